"""The trials of a grid: their keys, and the bundles in which they are dispatched."""

import dataclasses
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from architectures import REGISTRY
from problems.errors import RecastError
from problems.problem import Problem
from project import paths
from project.settings.grid import expand_grid
from project.settings.operation import RunnerSettings
from project.settings.sections import Grid, Settings, TrainSettings
from stages.normalize import normalize
from stages.training.bundle import train_trial
from stages.training.expansion import bundle_trials, check_grid_shapes, list_trials
from stages.training.history import read_history
from stages.training.trials import Trial, set_aside_if_damaged, trial_folder
from stages.window import window
from tests.stages.training.conftest import CPU, SMALL, Prepared


@pytest.fixture
def list_grid(prepared: Prepared) -> Callable[..., list[Trial]]:
    """The trials of a grid."""

    def list_grid_trials(
        architectures: dict[str, Any],
        seeds: Sequence[int] = (0, 1),
        train: TrainSettings = SMALL,
        problem: str = "test",
    ) -> list[Trial]:
        grid = Grid(seeds=tuple(seeds), architectures=architectures)
        settings = Settings.model_construct(grid=grid, train=train, runner=RunnerSettings())
        return list_trials(settings, problem, prepared.folder / "window")

    return list_grid_trials


def keys(trials: Sequence[Trial]) -> set[str]:
    return {trial.key for trial in trials}


def test_the_grid_has_one_trial_per_configuration_and_seed_and_one_per_baseline(
    list_grid: Callable[..., list[Trial]],
) -> None:
    trials = list_grid({"persistence": {}, "gru": {"units": [4, 8]}}, seeds=(3, 5))
    assert [trial.label for trial in trials] == [
        "persistence seed=3",
        "gru units=4 seed=3",
        "gru units=4 seed=5",
        "gru units=8 seed=3",
        "gru units=8 seed=5",
    ]
    assert len(keys(trials)) == 5
    assert all(len(trial.key) == 16 for trial in trials)
    assert [trial.trainable for trial in trials] == [False, True, True, True, True]


OTHER_TRAIN: dict[str, Any] = {
    "epochs": 5,
    "steps_per_epoch": None,
    "batch_size": 17,
    "loss": "mse",
    "patience": 2,
    "clip": 1.0,
    "precision": "bfloat16",
    "threads": 2,
    "quantiles": (0.25, 0.5, 0.75),
}


def test_a_key_changes_with_every_part_of_the_specification(
    list_grid: Callable[..., list[Trial]], monkeypatch: pytest.MonkeyPatch
) -> None:
    (trial,) = list_grid({"gru": {}}, seeds=(0,))
    others = [
        *list_grid({"gru": {}}, seeds=(1,)),
        *list_grid({"lstm": {}}, seeds=(0,)),
        *list_grid({"gru": {}}, seeds=(0,), problem="other"),
        dataclasses.replace(trial, data="other"),
    ]
    axes: dict[str, list[Any]] = {
        "learning_rate": [0.01],
        "optimizer": ["adam"],
        "units": [33],
        "layers": [2],
        "activation": ["relu"],
        "dropout": [0.1],
        "recurrent_dropout": [0.1],
        "bidirectional": [True],
        "reversed": [True],
        "regressor": [8],
        "initial": ["keras"],
        "schedule": ["cosine"],
        "epochs": [3],
        "residual": ["persistence"],
        "members": [2],
        "lookback": [3],
        "inputs": ["measured"],
        "embedding": [8],
    }
    assert set(axes) == set(REGISTRY["gru"].Hyperparameters.model_fields)
    others += [other for axis, values in axes.items() for other in list_grid({"gru": {axis: values}}, seeds=(0,))]
    assert set(OTHER_TRAIN) == set(TrainSettings.model_fields)
    for name, value in OTHER_TRAIN.items():
        others += list_grid({"gru": {}}, seeds=(0,), train=SMALL.model_copy(update={name: value}))
    all_keys = [trial.key, *(other.key for other in others), dataclasses.replace(trial, code="other").key]
    monkeypatch.setattr(torch, "__version__", "0.0.1")
    all_keys.append(dataclasses.replace(trial).key)
    assert len(set(all_keys)) == len(all_keys) == 4 + len(axes) + len(OTHER_TRAIN) + 3


def test_a_key_changes_with_the_windows_and_the_table(
    prepared: Prepared, tmp_path: Path, make_problem: Callable[..., Problem], write_ingested: Any
) -> None:
    raw = np.random.default_rng(0).normal(size=(200, 3))
    changed = raw.copy()
    changed[3, 2] += 1
    grid = Grid(seeds=(0,), architectures={"gru": {}})
    settings = Settings.model_construct(grid=grid, train=SMALL, runner=RunnerSettings())
    all_keys = []
    for rows, delay, stride, target in (
        (raw, "4h", 1, "b"),
        (raw, "4h", 1, "b"),
        (changed, "4h", 1, "b"),
        (raw, "6h", 1, "b"),
        (raw, "4h", 2, "b"),
        (raw, "4h", 1, "c"),
    ):
        problem = make_problem(window={"lookback": "6h", "step": "2h", "delay": delay}, target=target)
        write_ingested(tmp_path / "ingest", [rows])
        normalize(problem, "standard", tmp_path / "ingest", tmp_path / "normalize")
        window(problem, stride, tmp_path / "normalize", tmp_path / "window")
        all_keys.append(list_trials(settings, "test", tmp_path / "window")[0].key)
    assert all_keys[0] == all_keys[1]
    assert len(set(all_keys)) == 5


@pytest.mark.parametrize(("split", "changes"), [("train", True), ("validation", True), ("test", False)])
def test_a_key_changes_with_the_rows_that_a_trial_sees(
    prepared: Prepared, tmp_path: Path, split: str, changes: bool
) -> None:
    """Windows at other rows change it, even if there are as many; those of the test split decide no trial."""
    shutil.copytree(prepared.folder / "window", tmp_path / "window")
    settings = Settings.model_construct(
        grid=Grid(seeds=(0,), architectures={"gru": {}}), train=SMALL, runner=RunnerSettings()
    )
    before = list_trials(settings, "test", tmp_path / "window")[0].key
    np.save(tmp_path / "window" / f"{split}.npy", np.load(tmp_path / "window" / f"{split}.npy") + 1)
    assert (list_trials(settings, "test", tmp_path / "window")[0].key != before) == changes


def test_a_key_does_not_change_with_what_decides_no_result(
    list_grid: Callable[..., list[Trial]], prepared: Prepared
) -> None:
    expected = keys(list_grid({"dense": {"units": [4, 8]}, "gru": {}}))
    assert keys(list_grid({"gru": {}, "dense": {"units": [8, 4]}}, seeds=(1, 0))) == expected, "the grid's order"
    assert keys(list_grid({"dense": {"units": [4, 8], "layers": [1]}, "gru": {"learning_rate": [1e-3]}})) == expected, (
        "a default value that is written out"
    )
    grid = Grid(seeds=(0, 1), architectures={"dense": {"units": [4, 8]}, "gru": {}})
    runner = RunnerSettings(kind="inline", workers=7, slots_per_gpu=3, devices="cpu", bundle=5)
    other = Settings.model_construct(grid=grid, train=SMALL, runner=runner)
    assert keys(list_trials(other, "test", prepared.folder / "window")) == expected


def test_one_more_value_adds_exactly_its_trials(list_grid: Callable[..., list[Trial]]) -> None:
    axes = {"units": [4, 8], "learning_rate": [0.001, 0.01]}
    before, after = list_grid({"gru": axes}), list_grid({"gru": axes | {"learning_rate": [0.001, 0.003, 0.01]}})
    assert keys(before) < keys(after)
    new = [trial for trial in after if trial.key not in keys(before)]
    assert len(new) == 4
    assert {trial.configuration.hyperparameters.model_dump()["learning_rate"] for trial in new} == {0.003}
    assert len(keys(list_grid({"gru": axes}, seeds=(0, 1, 2))) - keys(before)) == 4


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_a_bundle_holds_trials_of_one_architecture_and_shape(list_grid: Callable[..., list[Trial]], size: int) -> None:
    trials = list_grid(
        {
            "gru": {"units": [4, 8], "learning_rate": [0.001, 0.01]},
            "lstm": {"units": [4], "optimizer": ["adam", "sgd"]},
            "persistence": {},
        },
        seeds=(0, 1, 2),
    )
    grouped = bundle_trials(trials, size)
    together = [trial for bundle in grouped for trial in bundle]
    assert sorted(trial.key for trial in together) == sorted(trial.key for trial in trials), "each once"
    assert all(1 <= len(bundle) <= size for bundle in grouped)
    for bundle in grouped:
        ignored = {"learning_rate", "optimizer"}
        shapes = {str(trial.configuration.hyperparameters.model_dump(exclude=ignored)) for trial in bundle}
        assert len({trial.configuration.architecture for trial in bundle}) == len(shapes) == 1
    groups = [12 / 2, 12 / 2, 6, 1]
    assert len(grouped) == sum(math.ceil(group / size) for group in groups), "no more bundles than needed"
    assert bundle_trials(trials, size) == grouped


def test_an_architecture_that_cannot_work_on_the_windows_is_named(
    list_grid: Callable[..., list[Trial]], prepared: Prepared
) -> None:
    check_grid_shapes(list_grid({"gru": {}, "persistence": {}}), prepared.windowing)
    with pytest.raises(RecastError, match=r"grid\.architectures\.seasonal_naive looks .* lengthen window\.lookback"):
        check_grid_shapes(list_grid({"seasonal_naive": {}}), prepared.windowing)


def test_a_trial_is_an_immutable_value(list_grid: Callable[..., list[Trial]]) -> None:
    (configuration,) = expand_grid(Grid(seeds=(0,), architectures={"gru": {}}))
    (trial,) = list_grid({"gru": {}}, seeds=(0,))
    assert trial == Trial("test", configuration, 0, SMALL, trial.data, trial.code)
    with pytest.raises(dataclasses.FrozenInstanceError):
        trial.seed = 1  # type: ignore[misc]


class Killed(BaseException):
    """The process ends."""


@pytest.fixture
def trial(
    prepared: Prepared, list_grid: Callable[..., list[Trial]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Trial:
    """A trial that failed for want of memory after its first epoch, in the current folder."""
    monkeypatch.chdir(tmp_path)
    for stage in ("normalize", "window"):
        paths.stage_folder(stage, "test").parent.mkdir(parents=True)
        paths.stage_folder(stage, "test").symlink_to(prepared.folder / stage)
    (trial,) = list_grid({"gru": {"units": [4]}}, seeds=(0,))
    assert train_until_out_of_memory(trial, steps=SMALL.steps_per_epoch + 1).transient
    return trial


def train_until_out_of_memory(trial: Trial, steps: int) -> Any:
    """How a trial ends that has memory for fewer steps than these."""
    steps_done = []

    def before_step() -> None:
        steps_done.append(1)
        if len(steps_done) == steps:
            raise MemoryError

    return train_trial(trial, CPU, None, before_step)


def test_a_kill_at_the_end_of_a_second_attempt_leaves_what_was_trained(
    trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: Any) -> None:
        raise Killed

    monkeypatch.setattr("stages.training.bundle.write_trial", die)
    with pytest.raises(Killed):
        train_trial(trial, CPU, None, lambda: None)
    assert set_aside_if_damaged(trial) is None
    assert (trial_folder(trial) / "checkpoint.pt").exists()


def test_a_trial_that_fails_after_it_was_resumed_keeps_its_history(trial: Trial) -> None:
    assert train_until_out_of_memory(trial, steps=1).transient
    assert [epoch.epoch for epoch in read_history(trial_folder(trial))] == [1]
