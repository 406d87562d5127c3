"""Networks made of networks: an ensemble of members, and what a network adds to a baseline's forecast."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from architectures import baselines  # noqa: F401 - the baselines are found by name; their source decides a result
from architectures.network import REGISTRY, Axes, Network, TrainedAxes, WindowShape


def build(architecture: str, hyperparameters: Axes, shape: WindowShape) -> Network:
    """The network of a trial: the architecture's, as many as it has members, on the baseline that it starts from.

    Raises:
        ShapeError: the architecture, or the baseline, cannot work on these windows.
    """
    if not isinstance(hyperparameters, TrainedAxes):
        return REGISTRY[architecture](shape, hyperparameters)
    members = [REGISTRY[architecture](shape, hyperparameters) for _ in range(hyperparameters.members)]
    network = Ensemble(members) if len(members) > 1 else members[0]
    if hyperparameters.residual == "none":
        return network
    return Residual(REGISTRY[hyperparameters.residual](shape, Axes()), network)


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
