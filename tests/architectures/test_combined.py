"""Networks made of networks: an ensemble of members, and what a network adds to a baseline."""

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn.functional import l1_loss

from architectures import REGISTRY, ShapeError, WindowShape
from architectures.combined import CroppedNetwork, Ensemble, ResidualNetwork
from architectures.network import Network, TrainedAxes
from stages.training.fit import initialize_network

B, T, F = 5, 8, 4
SHAPE = WindowShape(steps=T, features=F, target=1, horizon=4, day=4, climatology=(2, 3), derived=2)
BASELINES = ("persistence", "climatology", "anomaly_persistence")


def network_of(name: str = "gru", seed: int = 0, shape: WindowShape = SHAPE, **axes: object) -> Network:
    return initialize_network(name, REGISTRY[name].Hyperparameters(**({"units": 6} | axes)), shape, seed)


@pytest.fixture
def x_BTF() -> Tensor:  # noqa: N802
    return torch.randn(B, T, F, generator=torch.Generator().manual_seed(0))


def test_the_baselines_are_what_they_say(x_BTF: Tensor) -> None:
    last, target, now, ahead = (x_BTF[:, -1, column] for column in (1, 1, 2, 3))
    expected = {"persistence": last, "climatology": ahead, "anomaly_persistence": target - now + ahead}
    for name in BASELINES:
        network = REGISTRY[name](SHAPE, REGISTRY[name].Hyperparameters())
        torch.testing.assert_close(network(x_BTF)[:, 0, 0], expected[name])


@pytest.mark.parametrize("baseline", BASELINES)
def test_a_network_on_a_baseline_gives_the_sum(baseline: str, x_BTF: Tensor) -> None:
    alone, on_it = network_of(), network_of(residual=baseline)
    assert isinstance(on_it, ResidualNetwork)
    of_baseline = REGISTRY[baseline](SHAPE, REGISTRY[baseline].Hyperparameters())(x_BTF)
    torch.testing.assert_close(on_it(x_BTF), alone(x_BTF) + of_baseline)


@pytest.mark.parametrize("name", ["climatology", "anomaly_persistence"])
def test_without_a_climatology_the_message_says_what_to_write(name: str) -> None:
    bare = WindowShape(steps=T, features=F, target=1, horizon=4, day=4)
    with pytest.raises(ShapeError, match=rf"^{name} needs a climatology: give the problem one, table\.climatology"):
        REGISTRY[name](bare, REGISTRY[name].Hyperparameters())
    with pytest.raises(ShapeError, match="needs a climatology"):
        network_of(residual=name, shape=bare)


def test_a_network_may_see_a_part_of_the_window(x_BTF: Tensor) -> None:
    actual = network_of("dense", lookback=3)
    expected = network_of("dense", shape=replace(SHAPE, steps=3))
    torch.testing.assert_close(actual(x_BTF), expected(x_BTF[:, -3:]))
    assert not isinstance(network_of("dense", lookback=T), CroppedNetwork)
    measured = network_of("dense", inputs="measured", lookback=3, residual="climatology")
    small = network_of("dense", shape=WindowShape(steps=3, features=2, target=1, horizon=4, day=4))
    torch.testing.assert_close(measured(x_BTF), small(x_BTF[:, -3:, :2]) + x_BTF[:, -1:, 3:])
    on_baseline = network_of("dense", lookback=3, residual="persistence")
    torch.testing.assert_close(on_baseline(x_BTF), expected(x_BTF[:, -3:]) + x_BTF[:, -1:, 1:2])
    with pytest.raises(ShapeError, match=r"^dense\.lookback: 9 is more than the 8 steps of a window"):
        network_of("dense", lookback=9)


def test_an_ensemble_is_the_mean_of_networks_that_differ(x_BTF: Tensor) -> None:
    ensemble = network_of(members=3).eval()
    assert isinstance(ensemble, Ensemble)
    each = [member(x_BTF) for member in ensemble.members]
    assert not any(torch.equal(each[0], other) for other in each[1:])
    torch.testing.assert_close(ensemble(x_BTF), sum(each) / 3)
    parameters = [sum(p.numel() for p in network.parameters()) for network in (ensemble, network_of())]
    assert parameters[0] == 3 * parameters[1]


def test_members_are_trained_each_on_its_own_loss(x_BTF: Tensor) -> None:
    """Their gradients are those that each would have alone, by its share of the mean; also on a baseline."""
    y_BSO = torch.randn(B, 1, 1)
    network = network_of(members=2, residual="climatology").train()
    assert isinstance(network, ResidualNetwork)
    predicted_MBSO = network(x_BTF)
    assert predicted_MBSO.shape == (2, B, 1, 1)
    l1_loss(predicted_MBSO, y_BSO.expand_as(predicted_MBSO)).backward()
    for member in network.network.members:
        alone = torch.autograd.grad(l1_loss(member(x_BTF) + x_BTF[:, -1:, 3:], y_BSO), list(member.parameters()))
        for parameter, expected in zip(member.parameters(), alone, strict=True):
            assert parameter.grad is not None
            torch.testing.assert_close(parameter.grad, expected / 2)


def test_a_penalty_is_the_mean_of_the_members(x_BTF: Tensor) -> None:
    network = network_of("act_rnn", members=2, residual="persistence").train()
    assert network.penalty() is None
    network(x_BTF)
    members = network.network.members
    actual = network.penalty()
    assert actual is not None
    torch.testing.assert_close(actual, sum(member.penalty() for member in members) / 2)
    assert network_of(members=2).train().penalty() is None


def test_impossible_values_are_refused() -> None:
    for axes in ({"members": 0}, {"residual": "dense"}, {"schedule": "linear"}, {"epochs": 0}):
        with pytest.raises(ValidationError):
            TrainedAxes.model_validate(axes)
