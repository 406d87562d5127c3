"""Networks made of networks: an ensemble, one that sees a part of the window, one that adds to a baseline."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from architectures import baselines  # noqa: F401 - the baselines are found by name; their source decides a result
from architectures.network import REGISTRY, Axes, Network, ShapeError, TrainedAxes, WindowShape


def build(architecture: str, hyperparameters: Axes, shape: WindowShape) -> Network:
    """The network of a trial: the architecture's, as many as it has members, on the baseline that it starts from.

    Raises:
        ShapeError: the architecture, or the baseline, cannot work on these windows.
    """
    axes = hyperparameters
    if not isinstance(axes, TrainedAxes):
        return REGISTRY[architecture](shape, axes)
    seen = _seen(architecture, axes, shape)
    network: Network
    network, *others = (REGISTRY[architecture](seen, axes) for _ in range(axes.members))
    if others:
        network = Ensemble([network, *others])
    if seen != shape:
        network = Part(network, seen)
    if axes.residual != "none":
        network = Residual(REGISTRY[axes.residual](shape, Axes()), network)
    return network


def _seen(architecture: str, axes: TrainedAxes, shape: WindowShape) -> WindowShape:
    """What the network sees of a window.

    Raises:
        ShapeError: more than the window has, or not what is to be forecast.
    """
    if axes.lookback is not None:
        if axes.lookback > shape.steps:
            raise ShapeError(
                f"{architecture}.lookback: {axes.lookback} is more than the {shape.steps} steps of a window: lengthen "
                "window.lookback or lower it"
            )
        shape = replace(shape, steps=axes.lookback)
    if axes.inputs == "measured":
        shape = replace(shape, features=shape.features - shape.derived, climatology=None, derived=0)
    return shape


class Ensemble(Network):
    """Networks that differ in their initial weights and their dropout; the forecast is the mean of theirs.

    In training each member has its own forecast and so its own loss: trained on the loss of their mean, they would
    make up for each other's errors, and there would be one large network.
    """

    def __init__(self, members: Sequence[Network]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x_BTF: Tensor) -> Tensor:
        """The mean forecast (B,); in training the forecasts of the members, M, one by one: (M, B)."""
        y_MB = torch.stack([member(x_BTF) for member in self.members])
        return y_MB if self.training else y_MB.mean(dim=0)

    def penalty(self) -> Tensor | None:
        """The mean of the members' penalties."""
        found = [each for member in self.members if (each := member.penalty()) is not None]  # type: ignore[operator]
        return torch.stack(found).mean() if found else None


class Part(Network):
    """A network that sees the last steps and the first features of a window."""

    def __init__(self, network: Network, seen: WindowShape) -> None:
        super().__init__()
        self.network = network
        self.seen = seen

    def part(self, x_BTF: Tensor) -> Tensor:
        """What the network sees of the windows."""
        return x_BTF[:, -self.seen.steps :, : self.seen.features]

    def forward(self, x_BTF: Tensor) -> Tensor:
        y_B: Tensor = self.network(self.part(x_BTF))
        return y_B

    def penalty(self) -> Tensor | None:
        """The network's."""
        return self.network.penalty()


class Residual(Network):
    """A baseline's forecast, and what the network adds to it: it has to learn only what the baseline does not know."""

    def __init__(self, baseline: Network, network: Network) -> None:
        super().__init__()
        self.baseline = baseline
        self.network = network

    def forward(self, x_BTF: Tensor) -> Tensor:
        y_B: Tensor = self.baseline(x_BTF) + self.network(x_BTF)
        return y_B

    def penalty(self) -> Tensor | None:
        """The network's."""
        return self.network.penalty()
