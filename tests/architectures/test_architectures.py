"""The same checks on every registered architecture, with each of its axes varied; and what single ones compute."""

import math
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor

from architectures import REGISTRY, Axes, Network, ShapeError, TrainedAxes, WindowShape, register
from architectures.combined import EmbeddedNetwork
from problems.errors import RecastError
from project.settings.grid import expand_grid
from project.settings.schema import build_schema
from project.settings.sections import Grid
from stages.training.fit import initialize_network
from tests.support import checkout
from tests.support.checkout import ROOT

B, T, F = 16, 24, 3
SHAPE = WindowShape(steps=T, features=F, target=1, horizon=8, day=8, climatology=(0, 2))


OF_OTHER_WINDOWS = {("neural_programmer", "columns")}
"""Axes whose other values ask for windows of another kind; their own tests vary them."""


def variants(name: str) -> list[dict[str, Any]]:
    """The defaults, each axis of the network by itself at another value, and all of them together."""
    rules = REGISTRY[name].Hyperparameters
    actual: dict[str, list[Any]] = {}
    for axis, schema in rules.model_json_schema().get("properties", {}).items():
        default = schema["default"]
        # An axis with one value for all layers or a list of one for each is varied by the first.
        first = schema.get("anyOf", [schema])[0]
        others: list[Any] = first.get("enum", [3 if first["type"] == "integer" else 0.3])
        if isinstance(default, int):
            # A width of 0 means that the layer is not there; one relu alone may be dead.
            others = [not default if isinstance(default, bool) else default + 1 if default else 8]
        if axis not in TrainedAxes.model_fields and (name, axis) not in OF_OTHER_WINDOWS:
            actual[axis] = [value for value in others if value != default]
    varied = [{axis: values[0]} for axis, values in actual.items()]
    together = {axis: value for axes in varied for axis, value in axes.items()}
    return [{}, *varied, *([together] if len(varied) > 1 else [])]


CASES = [(name, axes) for name in sorted(REGISTRY) for axes in variants(name)]
IDS = [f"{name}-{'-'.join(f'{axis}={value}' for axis, value in axes.items()) or 'default'}" for name, axes in CASES]
every_architecture = pytest.mark.parametrize(("name", "axes"), CASES, ids=IDS)


def network_of(name: str, axes: dict[str, Any], seed: int = 0, shape: WindowShape = SHAPE) -> Network:
    return initialize_network(name, REGISTRY[name].Hyperparameters(**axes), shape, seed)


def windows(batch: int = B, seed: int = 0) -> Tensor:
    return torch.randn(batch, T, F, generator=torch.Generator().manual_seed(seed))


def test_every_axis_is_varied_by_these_tests() -> None:
    for name, architecture in REGISTRY.items():
        varied = {axis for axes in variants(name) for axis in axes}
        of_others = {axis for other, axis in OF_OTHER_WINDOWS if other == name}
        assert varied == set(architecture.Hyperparameters.model_fields) - set(TrainedAxes.model_fields) - of_others


@every_architecture
@pytest.mark.parametrize("batch", [1, B])
def test_a_forecast_for_each_window(name: str, axes: dict[str, Any], batch: int) -> None:
    y_BSO = network_of(name, axes)(windows(batch))
    assert y_BSO.shape == (batch, 1, 1)
    assert y_BSO.dtype == torch.float32
    assert y_BSO.isfinite().all()


@pytest.mark.parametrize("name", sorted(REGISTRY))
@pytest.mark.parametrize(("leads", "outputs"), [(4, 1), (1, 3), (4, 3)])
def test_as_many_answers_as_are_asked_for(name: str, leads: int, outputs: int) -> None:
    """One to many and many to many, the last few (lecture row P1), and several numbers in an answer."""
    shape = replace(SHAPE, leads=leads, outputs=outputs)
    y_BSO = network_of(name, {}, shape=shape)(windows())
    assert y_BSO.shape == (B, leads, outputs)
    if not REGISTRY[name].trainable:
        assert (y_BSO == y_BSO[:, :, :1]).all(), "a baseline knows one number a lead"
    one_step = replace(shape, steps=1, leads=1) if not REGISTRY[name].trainable else replace(shape, steps=1)
    try:
        network = network_of(name, {}, shape=one_step)
    except ShapeError as error:
        message = str(error)
        settings = {"window.lookback", *REGISTRY[name].Hyperparameters.model_fields}
        assert any(re.search(rf"\b{setting}\b", message) for setting in settings), "it names the setting to change"
    else:
        assert network(windows()[:, :1]).shape[0] == B


def test_the_network_of_the_documentation_passes_the_checks_that_it_names(tmp_path: Path) -> None:
    """By the documented commands, in a checkout to which only that file was added."""
    page = (ROOT / "docs/architectures.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    theirs = checkout.make_checkout(tmp_path / "stranger")
    shutil.copytree(ROOT / "tests", theirs.file("tests"), ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", theirs.root)
    theirs.file("architectures/pooled.py").write_text(example, encoding="utf-8")
    theirs.run(sys.executable, "-m", "project.settings.schema")
    assert '"pooled_conv"' in theirs.file("project/settings/params.schema.json").read_text(encoding="utf-8")
    checks = re.findall(r"^    pytest (.*)$", page, flags=re.MULTILINE)[0].split()
    # In a folder of its own: else it would clean up what earlier sessions of pytest have left, which takes minutes.
    place = f"--basetemp={tmp_path / 'theirs'}"
    printed = theirs.run(sys.executable, "-m", "pytest", "-n0", place, *checks, "-k", "pooled_conv")
    assert int(re.findall(r"(\d+) passed", printed)[0]) > 10


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_an_answer_at_each_step_sees_no_later_one(name: str) -> None:
    """Many to many, aligned (lecture row P1)."""
    shape = replace(SHAPE, each=True, outputs=3)
    if not REGISTRY[name].at_each_step:
        if REGISTRY[name].trainable:
            with pytest.raises(
                ShapeError, match=f"^{name} gives one answer a window, and this problem asks for one at each"
            ):
                network_of(name, {}, shape=shape)
        return
    network = network_of(name, {"causal": True} if name == "transformer" else {}, shape=shape).eval()
    x_BTF = windows()
    y_BSO = network(x_BTF)
    assert y_BSO.shape == (B, T, 3)
    x_BTF[:, 15:] += 1
    moved_BSO = network(x_BTF)
    assert torch.equal(moved_BSO[:, :15], y_BSO[:, :15])
    assert torch.equal(moved_BSO[:, 15:], y_BSO[:, 15:]) == (name == "constant")
    torch.testing.assert_close(network(windows()[:, :9]), y_BSO[:, :9])


@pytest.mark.parametrize("axes", [{"reversed": True}, {"bidirectional": True}])
def test_an_answer_at_each_step_is_refused_where_it_would_see_later_ones(axes: dict[str, bool]) -> None:
    with pytest.raises(ShapeError, match="must be false where an answer is asked for at each step"):
        network_of("gru", axes, shape=replace(SHAPE, each=True))
    with pytest.raises(ShapeError, match=r"^transformer\.causal: must be true"):
        network_of("transformer", {}, shape=replace(SHAPE, each=True))
    with pytest.raises(ShapeError, match=r"^gru\.lookback: must be null"):
        network_of("gru", {"lookback": 3}, shape=replace(SHAPE, each=True))


@pytest.mark.parametrize("name", ["simple_rnn", "jordan", "lstm", "lstm_peephole", "gru", "gru_reset_before"])
def test_a_state_that_is_carried_over_makes_pieces_of_a_sequence_one(name: str) -> None:
    axes = {"layers": 2}
    whole = network_of(name, axes, shape=replace(SHAPE, each=True)).eval()
    carried = network_of(name, axes, shape=replace(SHAPE, each=True, carried=True)).eval()
    y_BSO = whole(windows())
    for _ in range(2):
        carried.forget()
        pieces = [carried(piece) for piece in windows().split(7, dim=1)]
        torch.testing.assert_close(torch.cat(pieces, dim=1), y_BSO)
    # The first sequences go on when the others have ended.
    carried.forget()
    carried(windows()[:, :7])
    torch.testing.assert_close(carried(windows()[:5, 7:]), y_BSO[:5, 7:])
    with pytest.raises(ShapeError, match=r"^tcn has no state to carry over: set window\.carry to false"):
        network_of("tcn", {}, shape=replace(SHAPE, each=True, carried=True))


@pytest.mark.parametrize("name", sorted(name for name in REGISTRY if REGISTRY[name].trainable))
def test_codes_go_through_an_embedding(name: str) -> None:
    shape = replace(SHAPE, features=1, codes=7, target=None, climatology=None)
    codes_BT1 = torch.randint(7, (B, T, 1), generator=torch.Generator().manual_seed(0))
    network = network_of(name, {"embedding": 5}, shape=shape).eval()
    assert isinstance(network, EmbeddedNetwork)
    assert network.embedding is not None
    assert network.embedding.weight.shape == (7, 5)
    inner = network_of(name, {"embedding": 5}, shape=replace(shape, features=5, codes=None)).eval()
    inner.load_state_dict(network.network.state_dict())
    torch.testing.assert_close(network(codes_BT1), inner(network.embedding.weight[codes_BT1[:, :, 0]]))
    as_number = network_of(name, {"embedding": 0}, shape=shape)
    assert not any(key.startswith("embedding") for key in as_number.state_dict())
    assert as_number(codes_BT1).shape == (B, 1, 1)


@pytest.mark.parametrize("name", ["persistence", "seasonal_naive", "anomaly_persistence"])
def test_what_repeats_the_target_needs_it_among_the_features(name: str) -> None:
    with pytest.raises(
        ShapeError, match=f"^{name} repeats values of the target, and here the target is not one of the features"
    ):
        network_of(name, {}, shape=replace(SHAPE, target=None))


@every_architecture
def test_gradients_are_finite_and_reach_every_parameter(name: str, axes: dict[str, Any]) -> None:
    network = network_of(name, axes)
    parameters = dict(network.named_parameters())
    assert bool(parameters) == network.trainable
    if network.trainable:
        (network(windows()) - 1).square().mean().backward()
    for parameter, value in parameters.items():
        assert value.grad is not None, parameter
        assert value.grad.isfinite().all(), parameter
        assert value.grad.any(), parameter


@every_architecture
def test_the_seed_decides_weights_and_forecasts(name: str, axes: dict[str, Any]) -> None:
    one, same, other = (network_of(name, axes, seed).eval() for seed in (0, 0, 1))
    for left, right in zip(one.state_dict().values(), same.state_dict().values(), strict=True):
        assert torch.equal(left, right)
    assert torch.equal(one(windows()), same(windows()))
    assert torch.equal(one(windows()), other(windows())) == (not one.trainable or name == "constant")


@every_architecture
def test_a_forecast_does_not_change_when_it_is_made_again(name: str, axes: dict[str, Any]) -> None:
    network = network_of(name, axes).eval()
    assert torch.equal(network(windows()), network(windows()))


@every_architecture
def test_weights_come_back_from_safetensors(name: str, axes: dict[str, Any], tmp_path: Path) -> None:
    network = network_of(name, axes).eval()
    if not network.trainable:
        assert not network.state_dict(), "a baseline keeps nothing"
        return
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    read = network_of(name, axes, seed=1).eval()
    read.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    assert torch.equal(network(windows()), read(windows()))


@every_architecture
def test_a_forecast_depends_on_its_own_window_alone(name: str, axes: dict[str, Any]) -> None:
    network = network_of(name, axes)
    if name == "constant":
        assert torch.equal(network(windows()), network(torch.zeros_like(windows())))
        return
    x_BTF = windows().requires_grad_()
    network(x_BTF)[3].sum().backward()
    gradient = x_BTF.grad
    assert gradient is not None
    assert gradient[3].any()
    gradient[3] = 0
    assert not gradient.any()


@every_architecture
def test_a_forecast_does_not_change_its_input(name: str, axes: dict[str, Any]) -> None:
    x_BTF = windows()
    network_of(name, axes)(x_BTF)
    assert torch.equal(x_BTF, windows())


@every_architecture
def test_dropout_acts_in_training_only(name: str, axes: dict[str, Any]) -> None:
    network = network_of(name, axes)
    dropped = any("dropout" in axis and value for axis, value in axes.items())
    with torch.no_grad():
        assert torch.equal(network.train()(windows()), network(windows())) != dropped


def test_every_architecture_says_where_it_comes_from() -> None:
    for name, architecture in REGISTRY.items():
        assert architecture.name == name
        assert architecture.source
        assert architecture.__doc__
        for axis, field in architecture.Hyperparameters.model_fields.items():
            assert field.description, f"{name}.{axis}"


# What single architectures compute.


def parameters(network: Network) -> int:
    return sum(value.numel() for value in network.parameters())


@given(units=st.integers(1, 9), layers=st.integers(1, 3), features=st.integers(1, 4), steps=st.integers(1, 6))
def test_dense_has_as_many_parameters_as_its_formula(units: int, layers: int, features: int, steps: int) -> None:
    shape = WindowShape(steps, features, 0, horizon=1, day=24)
    network = network_of("dense", {"units": units, "layers": layers}, shape=shape)
    hidden = steps * features * units + units + (layers - 1) * (units * units + units)
    assert parameters(network) == hidden + units + 1


@pytest.mark.parametrize("layers", [1, 3])
def test_dense_follows_its_equations(layers: int) -> None:
    network = network_of("dense", {"units": 5, "layers": layers}).double()
    x_BTF = windows().double()
    *values, weight, bias = [value.numpy() for value in network.state_dict().values()]
    hidden = x_BTF.numpy().reshape(B, -1)
    for W, b in zip(values[::2], values[1::2], strict=True):
        hidden = np.maximum(hidden @ W.T + b, 0)
    np.testing.assert_allclose(network(x_BTF).detach().numpy(), (hidden @ weight.T + bias)[:, None], rtol=1e-10)


def test_persistence_is_the_last_value_of_the_target() -> None:
    assert torch.equal(network_of("persistence", {})(windows())[:, 0, 0], windows()[:, -1, 1])
    several = network_of("persistence", {}, shape=replace(SHAPE, leads=4))(windows())
    assert torch.equal(several[:, 3, 0], windows()[:, -1, 1])


@given(
    steps=st.integers(1, 40),
    day=st.integers(1, 12),
    horizon=st.integers(1, 30),
    days=st.integers(1, 5),
    leads=st.integers(1, 5),
)
def test_seasonal_naive_averages_the_targets_hour_of_the_last_days(
    steps: int, day: int, horizon: int, days: int, leads: int
) -> None:
    """By definition: the steps of the window that lie whole days before the target, the `days` latest of them."""
    leads = min(leads, horizon)
    targets = [steps - 1 + lead for lead in range(horizon - leads + 1, horizon + 1)]
    known = [[step for step in range(target - day, -1, -day) if step < steps][:days] for target in targets]
    shape = WindowShape(steps, F, 1, horizon, day, leads=leads)
    if not all(known):
        with pytest.raises(ShapeError, match=rf"looks \d+ steps back, but the window has {steps}: lengthen"):
            network_of("seasonal_naive", {"days": days}, shape=shape)
        return
    x_BTF = torch.randn(4, steps, F, generator=torch.Generator().manual_seed(0))
    actual = network_of("seasonal_naive", {"days": days}, shape=shape)(x_BTF)
    for s, steps_known in enumerate(known):
        expected_B = torch.stack([x_BTF[:, step, 1] for step in steps_known]).mean(dim=0)
        torch.testing.assert_close(actual[:, s, 0], expected_B)


@pytest.mark.parametrize(("day", "horizon"), [(24, 3.5), (9.6, 24), (math.pi, math.e)])
def test_seasonal_naive_needs_whole_steps(day: float, horizon: float) -> None:
    with pytest.raises(ShapeError, match=r"change window\.step or window\.delay"):
        network_of("seasonal_naive", {}, shape=WindowShape(T, F, 1, horizon, day))


def test_seasonal_naive_takes_rows_for_days_where_they_are_further_apart() -> None:
    weekly = WindowShape(T, F, 1, horizon=2, day=1 / 7)
    actual = network_of("seasonal_naive", {"days": 3}, shape=weekly)(windows())
    torch.testing.assert_close(actual[:, 0, 0], windows()[:, -3:, 1].mean(dim=1))


def test_seasonal_naive_a_day_ahead_is_persistence() -> None:
    shape = WindowShape(T, F, 1, horizon=8, day=8)
    assert torch.equal(
        network_of("seasonal_naive", {}, shape=shape)(windows()), network_of("persistence", {})(windows())
    )


# The registry.


@pytest.fixture
def registry() -> Any:
    """The registry, as it was again afterwards."""
    known = dict(REGISTRY)
    yield REGISTRY
    REGISTRY.clear()
    REGISTRY.update(known)


def test_a_new_architecture_is_one_class(registry: dict[str, type[Network]]) -> None:
    @register("last_times")
    class LastTimes(Network):
        """The last value times a number."""

        source = "test"

        class Hyperparameters(TrainedAxes):
            start: float = Field(1.0, gt=0, description="the number")

        def __init__(self, shape: WindowShape, hyperparameters: Any) -> None:
            super().__init__()
            self.number = torch.nn.Parameter(torch.tensor(hyperparameters.start))

        def forward(self, x_BTF: Tensor) -> Tensor:
            return x_BTF[:, -1:, 1:2] * self.number

    actual = expand_grid(Grid(seeds=(0,), architectures={"last_times": {"start": [0.5, 2.0]}}))
    assert [configuration.label for configuration in actual] == ["last_times start=0.5", "last_times start=2"]
    network = initialize_network("last_times", actual[1].hyperparameters, SHAPE, seed=0)
    assert torch.equal(network(windows())[:, 0, 0], windows()[:, -1, 1] * 2)
    with pytest.raises(RecastError, match=r"grid\.architectures\.last_times\.start: must be above 0; it is -1"):
        expand_grid(Grid(seeds=(0,), architectures={"last_times": {"start": [-1.0]}}))
    axes = build_schema()["$defs"]["last_times axes"]
    assert set(axes["properties"]) == {*TrainedAxes.model_fields, "start"}


def test_a_name_is_taken_once(registry: dict[str, type[Network]]) -> None:
    with pytest.raises(ValueError, match="two architectures are called 'gru'"):
        register("gru")(type("Other", (Network,), {}))


def test_hyperparameters_do_not_change() -> None:
    axes = TrainedAxes()
    with pytest.raises(ValidationError):
        axes.learning_rate = 1.0
    with pytest.raises(ValidationError):
        Axes(units=3)  # type: ignore[call-arg]
