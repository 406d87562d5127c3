"""Networks made of networks: an ensemble, one that sees the window's end alone, one that adds to a baseline."""

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
    seen = replace(shape, steps=shape.steps if axes.lookback is None else axes.lookback)
    if seen.steps > shape.steps:
        raise ShapeError(
            f"{architecture}.lookback: {seen.steps} is more than the {shape.steps} steps of a window: lengthen "
            "window.lookback or lower it"
        )
    network: Network
    network, *others = (REGISTRY[architecture](seen, axes) for _ in range(axes.members))
    if others:
        network = Ensemble([network, *others])
    if seen != shape:
        network = Recent(network, seen.steps)
    if axes.residual != "none":
        network = Residual(REGISTRY[axes.residual](shape, Axes()), network)
    return network


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


class Recent(Network):
    """A network that sees the last steps of a window alone."""

    def __init__(self, network: Network, steps: int) -> None:
        super().__init__()
        self.network = network
        self.steps = steps

    def forward(self, x_BTF: Tensor) -> Tensor:
        y_B: Tensor = self.network(x_BTF[:, -self.steps :])
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
