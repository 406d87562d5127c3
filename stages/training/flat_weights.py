"""All weights of a network as one vector: a step of an optimizer is a few operations, not a few for each weight."""

import torch
from torch import Tensor, nn


class FlatWeights:
    """The trained weights of a network, which from now on are views of one vector.

    Attributes:
        vector: what an optimizer changes.
    """

    def __init__(self, network: nn.Module) -> None:
        self._weights = [weight for weight in network.parameters() if weight.requires_grad]
        self.vector = nn.Parameter(torch.cat([weight.detach().reshape(-1) for weight in self._weights]))
        sizes = [weight.numel() for weight in self._weights]
        for weight, view in zip(self._weights, torch.split(self.vector.detach(), sizes), strict=True):
            weight.data = view.view_as(weight)

    def take_gradients(self) -> None:
        """Move the gradients of the weights to the vector. Where one was not needed, it is zero."""
        self.vector.grad = torch.cat([_gradient(weight).reshape(-1) for weight in self._weights])
        for weight in self._weights:
            weight.grad = None


def _gradient(weight: Tensor) -> Tensor:
    return torch.zeros_like(weight) if weight.grad is None else weight.grad
