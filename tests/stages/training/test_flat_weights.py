"""Weights in one vector are trained as each by itself."""

import copy

import pytest
import torch
from torch import nn

from learning.optimizers import OPTIMIZERS
from stages.training.flat_weights import FlatWeights


class Parts(nn.Module):
    """A network that uses one of its layers only in some steps, and another never."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.unused = nn.Linear(5, 7), nn.Linear(7, 1), nn.Linear(3, 3)

    def forward(self, x_BF: torch.Tensor, *, deep: bool) -> torch.Tensor:
        h_BH = torch.tanh(self.first(x_BF))
        y_B1: torch.Tensor = self.second(h_BH) if deep else h_BH.sum(1, keepdim=True)
        return y_B1


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_changes_a_vector_as_it_changes_each_weight(name: str) -> None:
    torch.manual_seed(0)
    separate = Parts()
    joined = copy.deepcopy(separate)
    flat = FlatWeights(joined)
    one, other = OPTIMIZERS[name](separate.parameters(), 0.01), OPTIMIZERS[name]([flat.vector], 0.01)
    for _ in range(8):
        x_BF = torch.randn(16, 5)
        one.zero_grad()
        separate(x_BF, deep=True).square().mean().backward()
        one.step()
        joined(x_BF, deep=True).square().mean().backward()
        flat.take_gradients()
        other.step()
    used = ("first.weight", "first.bias", "second.weight", "second.bias")
    for weight in used:
        torch.testing.assert_close(joined.state_dict()[weight], separate.state_dict()[weight], rtol=1e-6, atol=1e-8)


def test_a_weight_without_a_gradient_stands_still() -> None:
    torch.manual_seed(0)
    network = Parts()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    flat = FlatWeights(network)
    optimizer = OPTIMIZERS["rmsprop"]([flat.vector], 0.01)
    for _ in range(3):
        network(torch.randn(16, 5), deep=False).mean().backward()
        flat.take_gradients()
        assert all(weight.grad is None for weight in network.parameters())
        optimizer.step()
    still = {name for name, value in network.state_dict().items() if torch.equal(value, before[name])}
    assert still == {"second.weight", "second.bias", "unused.weight", "unused.bias"}
