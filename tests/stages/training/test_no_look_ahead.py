"""Nothing after a window's last input reaches its forecast, and only training rows decide the scaling."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from architectures import REGISTRY
from problems.problem import Problem
from project.settings.sections import TrainSettings
from stages.normalize import normalize
from stages.tables.table import Table, read_values
from stages.tables.windows import read_ranges
from stages.training import table_batches
from stages.training.checkpoint import TrainingState
from stages.training.fit import fit, initialize_network
from stages.training.objectives import choose_objective
from stages.window import window
from tests.stages.training.conftest import CPU, answer_all

ROWS, TRAIN, VALIDATION = 320, 160, 240
LOOKBACK, STEP, DELAY = 24, 2, 6


class PreparedSeries:
    """The stages up to `window` on one series of hourly rows."""

    def __init__(self, raw: np.ndarray, folder: Path, make_problem: Callable[..., Problem], write: Any) -> None:
        problem = make_problem(
            split="half",
            fill="3h",
            window={"lookback": "24h", "step": "2h", "delay": "6h"},
            calendar={"year": 0, "day": 1},
            climatology={"year": 0, "day": 1},
        )
        write(folder / "ingest", [raw])
        self.table: Table = normalize(problem, "standard", folder / "ingest", folder / "normalize")
        self.windowing = window(problem, 1, folder / "normalize", folder / "window")
        self.shape = self.windowing.shape
        self.splits = table_batches.read_table_batches(folder / "normalize", folder / "window", self.windowing, CPU)
        self.values = np.array(read_values(folder / "normalize"))
        self.rows = read_ranges(folder / "window", "validation")

    def batches_of(self, table: np.ndarray) -> table_batches.TableBatches:
        """The validation windows over another table of the same shape."""
        rows_K2 = torch.from_numpy(self.rows)
        return table_batches.TableBatches(torch.from_numpy(table), None, rows_K2, self.windowing, CPU)


@pytest.fixture(scope="module")
def raw() -> np.ndarray:
    hours = np.arange(ROWS)[:, None]
    return np.sin(2 * np.pi * (hours / 24 + [0, 0.2, 0.6])) * 5 + np.random.default_rng(0).normal(10, 1, (ROWS, 3))


@pytest.fixture
def data_of(
    tmp_path_factory: pytest.TempPathFactory, make_problem: Callable[..., Problem], write_ingested: Any
) -> Callable[[np.ndarray], PreparedSeries]:
    return lambda raw: PreparedSeries(raw, tmp_path_factory.mktemp("data"), make_problem, write_ingested)


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_what_comes_after_the_last_input_changes_no_forecast(
    name: str, raw: np.ndarray, data_of: Callable[[np.ndarray], PreparedSeries]
) -> None:
    data = data_of(raw)
    network = initialize_network(name, REGISTRY[name].Hyperparameters(), data.shape, seed=0)
    before = answer_all(network, data.batches_of(data.values))
    for position in (0, 13, len(before) - 1):
        row = int(data.batches_of(data.values).find_rows(torch.tensor([position])))
        unknown = data.values.copy()
        # The last input is a step before the row that names the window; the target is among what follows it.
        unknown[row - STEP + 1 :] = np.nan
        after = answer_all(network, data.batches_of(unknown))
        assert torch.equal(after[: position + 1], before[: position + 1])
        known = data.values.copy()
        known[: row - STEP + 1] += 1
        changed = bool(answer_all(network, data.batches_of(known))[position] != before[position])
        assert changed == (name != "constant"), "earlier rows count"


@pytest.mark.parametrize("scale", ["standard", "range"])
def test_later_rows_change_neither_scaling_nor_earlier_values(
    scale: Any, raw: np.ndarray, tmp_path: Path, make_problem: Callable[..., Problem], write_ingested: Any
) -> None:
    raw = raw.copy()
    raw[[5, 6, 70, TRAIN - 1], 1] = np.nan
    other = raw.copy()
    other[TRAIN:] = other[TRAIN:] * 100 + 7
    derived = {"calendar": {"year": 1, "day": 1}, "climatology": {"year": 0, "day": 2}}
    problem = make_problem(split="half", fill="3h", **derived)
    tables, values = [], []
    for name, rows in (("one", raw), ("other", other)):
        write_ingested(tmp_path / name, [rows])
        tables.append(normalize(problem, scale, tmp_path / name, tmp_path / f"{name}.out"))
        values.append(np.array(read_values(tmp_path / f"{name}.out")))
    assert tables[0].preparation == tables[1].preparation
    assert tables[0].sha256 != tables[1].sha256
    assert values[0][:TRAIN].tobytes() == values[1][:TRAIN].tobytes()


@pytest.mark.parametrize("row", [1, 100, TRAIN, VALIDATION, ROWS - 1])
def test_a_row_changes_no_row_before_it(
    row: int, raw: np.ndarray, tmp_path: Path, make_problem: Callable[..., Problem], write_ingested: Any
) -> None:
    """Of the rows themselves, filled but not scaled: a null is filled from the past alone."""
    raw = raw.copy()
    raw[np.random.default_rng(1).random(raw.shape) < 0.3] = np.nan
    other = raw.copy()
    other[row:] = np.where(np.isnan(raw[row:]), 99.0, np.nan)
    problem = make_problem(split="half", fill="2h")
    values = []
    for name, rows in (("one", raw), ("other", other)):
        write_ingested(tmp_path / name, [rows])
        normalize(problem, "none", tmp_path / name, tmp_path / f"{name}.out")
        values.append(np.array(read_values(tmp_path / f"{name}.out")))
    assert values[0][:row].tobytes() == values[1][:row].tobytes()


@pytest.mark.parametrize("name", sorted(name for name in REGISTRY if REGISTRY[name].trainable))
def test_validation_and_test_rows_change_no_weights(
    name: str, raw: np.ndarray, data_of: Callable[[np.ndarray], PreparedSeries], tmp_path: Path
) -> None:
    """Validation rows choose among epochs, and here there is one; test rows choose nothing."""

    def weights(data: PreparedSeries, epochs: int, checkpoint: str) -> list[bytes]:
        settings = TrainSettings(epochs=epochs, steps_per_epoch=4, batch_size=16)
        axes = REGISTRY[name].Hyperparameters()
        objective = choose_objective(data.windowing, settings)

        def ignore(progress: TrainingState) -> None:
            pass

        result = fit(name, axes, 0, settings, data.shape, objective, data.splits, CPU, tmp_path / checkpoint, ignore)
        return [value.numpy().tobytes() for value in result.network.state_dict().values()]

    without_validation, without_test = raw.copy(), raw.copy()
    without_validation[TRAIN:] += 20
    without_test[VALIDATION:] += 20
    one, two, three = (data_of(rows) for rows in (raw, without_validation, without_test))
    assert weights(one, 1, "a") == weights(two, 1, "b")
    assert weights(one, 3, "c") == weights(three, 3, "d")
