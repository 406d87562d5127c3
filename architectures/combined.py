"""Networks made of networks: ensembles, networks that read a part of the window or add to a baseline, and more."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from architectures import baselines  # noqa: F401 - they are looked up by name; this import makes their source count
from architectures.network import REGISTRY, Axes, Network, ShapeError, TrainedAxes, WindowShape


def build_network(architecture: str, hyperparameters: Axes, shape: WindowShape) -> Network:
    """The network of a trial: as many networks of the architecture as it has members, added to its baseline.

    Raises:
        ShapeError: the architecture, or the baseline, cannot be used with these windows.
    """
    axes = hyperparameters
    if not isinstance(axes, TrainedAxes):
        baseline = REGISTRY[architecture](shape, axes)
        return QuantileBaseline(baseline, shape) if shape.outputs > 1 else baseline
    if shape.each and not REGISTRY[architecture].at_each_step:
        able = ", ".join(sorted(name for name, network in REGISTRY.items() if network.at_each_step))
        raise ShapeError(
            f"{architecture} gives one answer a window, and this problem asks for one at each step: take {able}"
        )
    if shape.carried and not REGISTRY[architecture].carries:
        raise ShapeError(
            f"{architecture} has no state to carry over: set window.carry to false, or take a recurrent architecture"
        )
    visible = _visible_shape(architecture, axes, shape)
    network: Network
    network, *others = (_build_member(architecture, axes, visible) for _ in range(axes.members))
    if others:
        network = Ensemble([network, *others])
    if visible != shape:
        network = CroppedNetwork(network, visible)
    if axes.residual != "none":
        network = ResidualNetwork(REGISTRY[axes.residual](shape, Axes()), network)
    return network


def _build_member(architecture: str, axes: TrainedAxes, shape: WindowShape) -> Network:
    """One network, behind an embedding where the inputs are codes."""
    if shape.codes is None:
        return REGISTRY[architecture](shape, axes)
    inner = replace(shape, features=axes.embedding or 1, codes=None)
    return EmbeddedNetwork(shape.codes, axes.embedding, REGISTRY[architecture](inner, axes))


def _visible_shape(architecture: str, axes: TrainedAxes, shape: WindowShape) -> WindowShape:
    """The shape of the part of a window that the network reads.

    Raises:
        ShapeError: the part is longer than the window, or lacks steps that have to be answered.
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


class Wrapper(Network):
    """A network around another one, `network`, whose penalty it passes on.

    A subclass sets `network` after its own parts, so that its own parameters come first.
    """

    network: Network

    def penalty(self) -> Tensor | None:
        """The penalty of the network inside."""
        return self.network.penalty()


class Ensemble(Network):
    """Networks that differ in their initial weights and their dropout; the forecast is the mean of their forecasts.

    In training each member has its own forecast, and so its own loss. Trained on the loss of the mean, the members
    would compensate for each other's errors, as parts of one large network.
    """

    def __init__(self, members: Sequence[Network]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x_BTF: Tensor) -> Tensor:
        """The mean answer (B, S, O); in training the answers of each of the M members: (M, B, S, O).

        For classes and labels, the mean is of the scores, not of the probabilities.
        """
        y_MBSO = torch.stack([member(x_BTF) for member in self.members])
        return y_MBSO if self.training else y_MBSO.mean(dim=0)

    def penalty(self) -> Tensor | None:
        """The mean of the members' penalties."""
        penalties = [member.penalty() for member in self.members]  # type: ignore[operator]
        known = [penalty for penalty in penalties if penalty is not None]
        return torch.stack(known).mean() if known else None


class EmbeddedNetwork(Wrapper):
    """A network behind an embedding: for each code it reads a learned vector (lecture rows P2 to P5).

    The initial vectors are those of Keras: uniform within 0.05 of zero.
    """

    def __init__(self, codes: int, width: int, network: Network) -> None:
        """
        Args:
            width: the width of a vector; 0: the network reads the code as a number, as in the public code of Bai et al.
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


class QuantileBaseline(Wrapper):
    """A baseline that forecasts quantiles: its number, and a fixed distance from it for each lead and quantile.

    The distances are stored as weights are; `fit` takes them from the baseline's errors on validation.
    """

    def __init__(self, network: Network, shape: WindowShape) -> None:
        super().__init__()
        self.network = network
        self.spread_LO: Tensor
        self.register_buffer("spread_LO", torch.zeros(shape.leads, shape.outputs))

    def forward(self, x_BTF: Tensor) -> Tensor:
        y_BSO: Tensor = self.network(x_BTF) + self.spread_LO
        return y_BSO


class CroppedNetwork(Wrapper):
    """A network that reads only the last steps and the first features of a window."""

    def __init__(self, network: Network, visible: WindowShape) -> None:
        super().__init__()
        self.network = network
        self.visible = visible

    def crop(self, x_BTF: Tensor) -> Tensor:
        """The part of the windows that the network reads."""
        return x_BTF[:, -self.visible.steps :, : self.visible.features]

    def forward(self, x_BTF: Tensor) -> Tensor:
        y_BSO: Tensor = self.network(self.crop(x_BTF))
        return y_BSO


class ResidualNetwork(Wrapper):
    """A baseline's forecast plus the output of a network, which has to learn only what the baseline does not know."""

    def __init__(self, baseline: Network, network: Network) -> None:
        super().__init__()
        self.baseline = baseline
        self.network = network

    def forward(self, x_BTF: Tensor) -> Tensor:
        y_BSO: Tensor = self.baseline(x_BTF) + self.network(x_BTF)
        return y_BSO
