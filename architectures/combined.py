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
    if shape.each and not REGISTRY[architecture].at_each_step:
        able = ", ".join(sorted(name for name, each in REGISTRY.items() if each.at_each_step))
        raise ShapeError(f"{architecture} has one answer a window, and here one is asked for at each step: take {able}")
    if shape.carried and not REGISTRY[architecture].carries:
        raise ShapeError(
            f"{architecture} has no state to carry over: set window.carry to false, or take a recurrent architecture"
        )
    seen = _seen(architecture, axes, shape)
    network: Network
    network, *others = (_member(architecture, axes, seen) for _ in range(axes.members))
    if others:
        network = Ensemble([network, *others])
    if seen != shape:
        network = Part(network, seen)
    if axes.residual != "none":
        network = Residual(REGISTRY[axes.residual](shape, Axes()), network)
    return network


def _member(architecture: str, axes: TrainedAxes, shape: WindowShape) -> Network:
    """One network, behind an embedding where the inputs are codes."""
    if shape.codes is None:
        return REGISTRY[architecture](shape, axes)
    inner = replace(shape, features=axes.embedding or 1, codes=None)
    return Embedded(shape.codes, axes.embedding, REGISTRY[architecture](inner, axes))


def _seen(architecture: str, axes: TrainedAxes, shape: WindowShape) -> WindowShape:
    """What the network sees of a window.

    Raises:
        ShapeError: more than the window has, or not what is to be forecast.
    """
    if axes.lookback is not None:
        if shape.each:
            raise ShapeError(f"{architecture}.lookback: must be null where an answer is asked for at each step")
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
        """The mean answer (B, S, O); in training the answers of the members, M, one by one: (M, B, S, O).

        Of classes and labels the scores are averaged, not the probabilities.
        """
        y_MBSO = torch.stack([member(x_BTF) for member in self.members])
        return y_MBSO if self.training else y_MBSO.mean(dim=0)

    def penalty(self) -> Tensor | None:
        """The mean of the members' penalties."""
        found = [each for member in self.members if (each := member.penalty()) is not None]  # type: ignore[operator]
        return torch.stack(found).mean() if found else None


class Embedded(Network):
    """A network behind an embedding: a vector that is learned stands for each code (lecture rows P2 to P5).

    The vectors begin as Keras's do, uniform within 0.05 of zero.
    """

    def __init__(self, codes: int, width: int, network: Network) -> None:
        """
        Args:
            width: of a vector; 0: the network sees the code as a number, as the public code of Bai et al. has it.
        """
        super().__init__()
        self.embedding = nn.Embedding(codes, width) if width else None
        if self.embedding:
            nn.init.uniform_(self.embedding.weight, -0.05, 0.05)
        self.network = network

    def embed(self, x_BT1: Tensor) -> Tensor:
        """Vectors (B, T, F) of codes (B, T, 1)."""
        if self.embedding is None:
            return x_BT1.float()
        x_BTF: Tensor = self.embedding(x_BT1.squeeze(2).long())
        return x_BTF

    def forward(self, x_BT1: Tensor) -> Tensor:
        y_BSO: Tensor = self.network(self.embed(x_BT1))
        return y_BSO

    def penalty(self) -> Tensor | None:
        """The network's."""
        return self.network.penalty()


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
        y_BSO: Tensor = self.network(self.part(x_BTF))
        return y_BSO

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
        y_BSO: Tensor = self.baseline(x_BTF) + self.network(x_BTF)
        return y_BSO

    def penalty(self) -> Tensor | None:
        """The network's."""
        return self.network.penalty()
