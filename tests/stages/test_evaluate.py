"""evaluate on trials of real stages: errors against a loop over rows, and who may be selected."""

import json
import math
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from architectures import Network, WindowShape
from architectures.baselines import Persistence
from lifecycle.backtests.plan import Origin
from lifecycle.backtests.scoring import measure_origin
from problems.columns import Harmonics
from problems.errors import RecastError
from problems.problem import Problem
from problems.split import DateSplit
from project import paths
from project.settings.parsing import parse_settings
from project.settings.sections import Settings
from stages.evaluation import grid_evaluation
from stages.evaluation.dvc_outputs import summarize_metrics, tabulate_plots
from stages.evaluation.grid_evaluation import EvaluationData, evaluate_grid
from stages.evaluation.leaderboard import Evaluation
from stages.evaluation.warnings import list_warnings
from stages.ingest import ingest
from stages.normalize import normalize
from stages.tables.windows import TableWindows
from stages.training import networks
from stages.training.bundle import train_bundle
from stages.training.expansion import list_trials
from stages.training.trials import Trial, trial_folder, write_trial
from stages.window import window
from tests.support.checkout import ROOT, SETTINGS

HOUR = timedelta(hours=1)
LOOKBACK, DELAY = 6, 24
CPU = torch.device("cpu")
Make = Callable[..., Problem]
Write = Callable[..., None]


class Case:
    """The stages up to `train` on some series of hourly rows, in the current folder; b is the target."""

    def __init__(
        self,
        make_problem: Make,
        write_ingested: Write,
        grid: dict[str, Any],
        series: list[np.ndarray],
        times: list[list[datetime]],
        lookback: int = LOOKBACK,
        delay: int = DELAY,
        table: dict[str, Any] | None = None,
        **train: Any,
    ) -> None:
        self.ingested, self.normalized, self.windowed = (
            paths.stage_folder(name, "demo") for name in ("ingest", "normalize", "window")
        )
        self.settings = Settings.model_validate_json(
            json.dumps(
                SETTINGS | {"grid": {"seeds": [0, 1], "architectures": grid}, "train": SETTINGS["train"] | train}
            )
        )
        write_ingested(self.ingested, series, times)
        lengths = {"lookback": f"{lookback}h", "step": "1h", "delay": f"{delay}h"}
        self.problem = make_problem(2, window=lengths, fill="2h", **table or {})
        normalize(self.problem, "standard", self.ingested, self.normalized)
        window(self.problem, 1, self.normalized, self.windowed)
        self.trials = list_trials(self.settings, "demo", self.windowed)
        train_bundle(self.trials, CPU, None)

    def evaluate(self) -> Evaluation:
        return evaluate_grid(
            "demo",
            self.problem,
            self.settings.evaluate,
            self.trials,
            self.ingested,
            self.normalized,
            self.windowed,
        ).evaluation

    def trial(self, configuration: str, seed: int) -> Trial:
        (found,) = (t for t in self.trials if t.configuration.label == configuration and t.seed == seed)
        return found

    def ends(self, configuration: str, seed: int, **changes: Any) -> None:
        """Change the outcome of a trial."""
        folder = trial_folder(self.trial(configuration, seed))
        write_trial(folder, json.loads((folder / "trial.json").read_text()) | changes)


def weather(seed: int, rows: int, start: datetime, gap: int) -> tuple[np.ndarray, list[datetime]]:
    """Hourly rows with a daily wave, one missing stretch of 7 hours at `gap`, and a null target after it."""
    random = np.random.default_rng(seed)
    hours = np.arange(rows) + np.where(np.arange(rows) < gap, 0, 7)
    wave = np.sin(2 * np.pi * hours / 24)
    values = np.stack([random.normal(size=rows), 10 + 5 * wave + random.normal(size=rows)], axis=1)
    values[gap + 40, 1] = np.nan
    return values, [start + int(hour) * HOUR for hour in hours]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def persistent_errors(
    series: list[np.ndarray], times: list[list[datetime]], split: str = "test"
) -> list[tuple[datetime, float]]:
    """The time of each target and the error of the last temperature, by a loop, for comparison."""
    found = []
    for values, moments in zip(series, times, strict=True):
        n = len(values)
        begin, end = {"validation": (n // 2, n // 2 + n // 4), "test": (n // 2 + n // 4, n)}[split]
        for target in range(begin, end):
            last = target - DELAY
            first = last - LOOKBACK + 1
            if first < begin or moments[target] - moments[first] != (target - first) * HOUR:
                continue
            if np.isnan(values[target, 1]):
                continue
            known = values[last, 1] if not np.isnan(values[last, 1]) else values[last - 1, 1]
            found.append((moments[target], known - values[target, 1]))
    return found


def interval_scores(points: np.ndarray, targets: np.ndarray, known_errors: np.ndarray) -> np.ndarray:
    """The WIS (Bracher et al. 2021) of numbers with conformal intervals of the levels 0.8 and 0.5, for comparison."""
    known = np.sort(np.abs(known_errors))
    total = np.abs(targets - points) / 2
    for level in (0.8, 0.5):
        reach = known[math.ceil((len(known) + 1) * level) - 1]
        outside = np.maximum(np.abs(targets - points) - reach, 0)
        total += (1 - level) / 2 * 2 * reach + outside
    return total / 2.5


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("grid", [{"persistence": {}, "dense": {"units": [4]}}, {"dense": {"units": [4]}}])
def test_persistence_has_the_quantiles_of_its_own_validation_errors(
    make_problem: Make, write_ingested: Write, grid: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One definition, in the leaderboard, DVC's metrics and a backtest, whether it is in the grid or not."""
    values, times = weather(0, 800, datetime(2020, 12, 1), 660)
    train = {"loss": "pinball", "quantiles": [0.1, 0.25, 0.5, 0.75, 0.9]}
    case = Case(make_problem, write_ingested, grid, [values], [times], **train)
    passes: list[int] = []
    forward = Persistence.forward
    monkeypatch.setattr(Persistence, "forward", lambda self, x_BTF: passes.append(1) or forward(self, x_BTF))
    found = case.evaluate()
    assert len(passes) == 2, "one batch of validation and one of test"
    known, errors = (
        np.array([error for _, error in persistent_errors([values], [times], split)])
        for split in ("validation", "test")
    )
    wis, mae = interval_scores(errors, np.zeros(len(errors)), known).mean(), np.abs(errors).mean()
    assert found.persistence_test == pytest.approx(wis, rel=1e-5)
    assert found.persistence_mae == pytest.approx(mae, rel=1e-5)
    assert wis < mae
    row = next(row for row in found.rows if row.architecture == "dense")
    assert row.skill == pytest.approx(1 - row.test["pinball"].mean / wis, rel=1e-5)
    assert row.mae_skill == pytest.approx(1 - row.test["mae"].mean / mae, rel=1e-5)
    if "persistence" in grid:
        baseline = next(row for row in found.rows if row.architecture == "persistence")
        own = interval_scores(known, np.zeros(len(known)), known).mean()
        assert baseline.validation["pinball"].mean == pytest.approx(own, rel=1e-5), (
            "it is ranked by the same definition"
        )
        assert baseline.skill == baseline.mae_skill == 0
        best = found.find_row(found.best)
        assert best is not None
        assert summarize_metrics(found)["persistence"] == {"test_pinball": round(wis, 4), "test_mae": round(mae, 4)}
        assert summarize_metrics(found)["best"]["mae_skill"] == round(best.mae_skill or 0, 4)
    split = DateSplit(validation_from=times[400], test_from=times[600])
    origin = measure_origin(case.problem, Origin("now", split), case.trials)
    score = origin.scores[row.configuration]
    assert (score.skill, score.mae_skill) == (row.skill, row.mae_skill)
    assert (origin.origin.persistence, origin.origin.persistence_mae) == (found.persistence_test, found.persistence_mae)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("days", "walk", "warning"),
    [
        (360, 0.0, "The training rows cover 180 days, less than a year."),
        (1500, 0.0, None),
        (1500, 1.0, "the climatology is far worse than persistence: its MAE is "),
    ],
)
def test_a_yearly_cycle_that_the_training_rows_do_not_teach_is_warned_of(
    make_problem: Make, write_ingested: Write, days: int, walk: float, warning: str | None
) -> None:
    random = np.random.default_rng(0)
    wave = 10 - 12 * np.cos(2 * np.pi * np.arange(days) / 365) + random.normal(size=days)
    wave += walk * np.cumsum(random.normal(size=days))
    values = np.stack([random.normal(size=days), wave], axis=1)
    cadence = 24 * HOUR
    ingested, normalized, windowed = Path("ingested/demo"), Path("normalized/demo"), Path("windowed/demo")
    write_ingested(ingested, [values], cadence=cadence)
    lengths = {"lookback": "4d", "step": "1d", "delay": "1d"}
    for year, key in ((2, "climatology"), (1, "calendar"), (0, "climatology")):
        problem = make_problem(2, window=lengths, **{key: {"year": year, "day": 0}})
        normalize(problem, "standard", ingested, normalized)
        window(problem, 1, normalized, windowed)
        warnings = list_warnings("demo", problem, normalized, windowed)
        assert bool(warnings) == (warning is not None and year > 0)
        if warnings:
            assert str(warning) in warnings[0]
            assert f"Set {key}.year in problems.demo.table to 0" in warnings[0]


@pytest.mark.usefixtures("here")
def test_the_problem_that_needs_no_network_has_no_warning() -> None:
    """Its first leaderboard should show trained networks that are better than persistence."""
    problem = parse_settings(ROOT / "params.yaml").problem("nyc")
    assert isinstance(problem, Problem)
    folders = Path("raw/nyc"), Path("ingest/nyc"), Path("normalize/nyc"), Path("window/nyc")
    for folder in folders:
        folder.mkdir(parents=True)
    problem.source.fetch(folders[0], lambda done, total: None, 1)
    ingest(problem, folders[0], folders[1])
    normalize(problem, "standard", folders[1], folders[2])
    window(problem, 1, *folders[2:])
    assert not list_warnings("nyc", problem, *folders[2:])
    declared = problem.table.model_copy(update={"calendar": Harmonics(year=1, day=1)})
    (warning,) = list_warnings("nyc", problem.model_copy(update={"table": declared}), *folders[2:])
    assert "less than a year" in warning


@pytest.mark.usefixtures("here")
def test_errors_are_those_of_a_loop_over_rows(make_problem: Make, write_ingested: Write) -> None:
    # The test rows of two years' ends and two airports, one of which has a gap and a null among them.
    one, one_times = weather(0, 800, datetime(2020, 12, 1), 660)
    two, two_times = weather(1, 900, datetime(2020, 12, 3, 5), 100)
    case = Case(make_problem, write_ingested, {"persistence": {}}, [one, two], [one_times, two_times])
    found = case.evaluate()
    expected = persistent_errors([one, two], [one_times, two_times])
    errors = np.array([error for _, error in expected])
    scale = np.nanstd(np.concatenate([one[:400, 1], two[:450, 1]]))
    (row,) = found.rows
    mae, rmse = float(np.abs(errors).mean()), float(np.sqrt(np.square(errors).mean()))
    assert found.windows["windows"]["test"] == len(expected)
    assert found.persistence_test == pytest.approx(mae, rel=1e-5)
    assert row.test["mae"].mean == found.persistence_test
    assert row.skill == 0
    assert row.test["rmse"].mean == pytest.approx(rmse, rel=1e-5)
    known = np.sort(np.abs([error for _, error in persistent_errors([one, two], [one_times, two_times], "validation")]))
    assert [interval.level for interval in row.intervals] == [0.5, 0.8, 0.95]
    for interval in row.intervals:
        reach = known[math.ceil((len(known) + 1) * interval.level) - 1]
        assert interval.width.mean == pytest.approx(2 * reach, rel=1e-5)
        assert interval.coverage.mean == pytest.approx(
            (np.abs(errors) <= reach * (1 + 1e-6)).mean(), abs=2 / len(errors)
        )
    assert row.test["mae_normalized"].mean == pytest.approx(mae / scale, rel=1e-5)
    assert row.test["rmse_normalized"].mean == pytest.approx(rmse / scale, rel=1e-5)
    groupings = [(found.hours, lambda moment: moment.hour), (found.months, lambda moment: moment.month - 1)]
    for groups, group_of in groupings:
        for group, value in enumerate(groups["persistence"]):
            own = [abs(error) for moment, error in expected if group_of(moment) == group]
            assert value == (pytest.approx(np.mean(own), rel=1e-5) if own else None)
    assert found.best == "persistence"
    assert found.runner_up is None
    assert found.comparison is None
    assert summarize_metrics(found)["best"] == {
        "configuration": "persistence",
        **{
            f"validation_{name}": pytest.approx(row.validation[name].mean, abs=1e-4)
            for name in ("mae", "mae_normalized", "rmse", "rmse_normalized")
        },
        "test_mae": pytest.approx(mae, abs=1e-4),
        "test_mae_normalized": pytest.approx(mae / scale, abs=1e-4),
        "test_rmse": pytest.approx(rmse, abs=1e-4),
        "test_rmse_normalized": pytest.approx(rmse / scale, abs=1e-4),
        "skill": 0,
    }


@pytest.mark.usefixtures("here")
def test_the_forecasts_shown_are_of_one_series(make_problem: Make, write_ingested: Write) -> None:
    """The first one, even if it has fewer test windows than are to be drawn."""
    one, one_times = weather(0, 200, datetime(2020, 1, 1), 20)
    two, two_times = weather(1, 600, datetime(2020, 1, 1, 0, 30), 20)
    case = Case(make_problem, write_ingested, {"persistence": {}}, [one, two], [one_times, two_times])
    found = case.evaluate()
    assert found.forecasts_of == "series0"
    expected = [f"{moment:%Y-%m-%dT%H:%M}" for moment, _ in persistent_errors([one], [one_times])]
    assert found.forecasts["time"] == expected[: 4 * 24]
    assert len(expected) < 4 * 24
    assert tabulate_plots(found)["forecasts.csv"].height == 2 * len(expected)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("late", [timedelta(0), timedelta(minutes=20)])
def test_a_copy_of_a_series_makes_no_interval_narrower(
    make_problem: Make, write_ingested: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: timedelta
) -> None:
    """Also where its clock differs by a part of the cadence."""
    values, times = weather(0, 800, datetime(2020, 1, 1), 20)
    grid = {"persistence": {}, "seasonal_naive": {"days": [1]}}
    found = []
    for copies in (1, 3):
        (tmp_path / str(copies)).mkdir()
        monkeypatch.chdir(tmp_path / str(copies))
        moments = [[time + k * late for time in times] for k in range(copies)]
        # Other lengths: 24 hours ahead, the seasonal forecast is the last value, too.
        case = Case(make_problem, write_ingested, grid, [values] * copies, moments, lookback=30, delay=5)
        found.append(case.evaluate().comparison)
    one, three = found
    assert one
    assert three
    assert one.low < one.high
    assert (three.block, three.difference, three.low, three.high) == pytest.approx(
        (one.block, one.difference, one.low, one.high), abs=1e-5
    )


A, B, OTHER = "dense units=2 learning_rate=0.001", "dense units=2 learning_rate=0.00100000001", "gru units=2"


@pytest.fixture
def trained(here: None, make_problem: Make, write_ingested: Write) -> Case:
    """Two networks of one architecture whose learning rates differ in the eighth digit, another one and a baseline."""
    grid = {
        "persistence": {},
        "dense": {"units": [2], "learning_rate": [0.001, 0.00100000001]},
        "gru": {"units": [2]},
    }
    values, times = weather(0, 600, datetime(2020, 1, 1), 20)
    return Case(make_problem, write_ingested, grid, [values], [times])


LOW = {"mae": 0.01, "rmse": 0.01, "mae_normalized": 0.01, "rmse_normalized": 0.01}
LOWER = dict.fromkeys(LOW, 0.001)
FAILED = {"status": "failed", "reason": "diverged", "validation": {}, "parameters": None}


def test_configurations_that_differ_in_the_last_digits_are_two(trained: Case) -> None:
    found = trained.evaluate()
    assert {row.configuration for row in found.rows} == {A, B, OTHER, "persistence"}
    assert all(row.finished_seeds == ([0] if row.architecture == "persistence" else [0, 1]) for row in found.rows)


def test_a_configuration_with_a_failed_seed_is_neither_ranked_nor_selected(trained: Case) -> None:
    """However good the other seeds are: they may be the lucky ones."""
    for seed in (0, 1):
        trained.ends(B, seed, validation=LOW)
    trained.ends(A, 0, validation=LOWER)
    trained.ends(A, 1, **FAILED)
    found = trained.evaluate()
    assert found.best == B
    assert found.rows[0].configuration == B
    last = found.rows[-1]
    assert last.configuration == A
    assert last.failed == ["seed 1: diverged"]
    assert last.validation["mae"].mean == 0.001
    assert not last.selected
    assert not last.complete
    assert not last.test
    assert A not in found.curves
    assert A not in found.hours
    assert A not in found.forecasts
    assert {row.architecture for row in found.rows if row.selected} == {"persistence", "dense", "gru"}


@pytest.mark.usefixtures("here")
def test_an_ensemble_is_an_architecture_of_its_own(make_problem: Make, write_ingested: Write) -> None:
    """It has several times the weights, so a single network is tested beside it."""
    values, times = weather(0, 600, datetime(2020, 1, 1), 20)
    case = Case(make_problem, write_ingested, {"dense": {"units": [2], "members": [1, 2, 3]}}, [values], [times])
    for members, error in ((1, LOW), (2, LOWER), (3, LOW)):
        for seed in (0, 1):
            case.ends(f"dense units=2 members={members}", seed, validation=error)
    found = case.evaluate()
    selected = {row.configuration: row.architecture for row in found.rows if row.selected}
    assert selected == {"dense units=2 members=2": "dense ensemble", "dense units=2 members=1": "dense"}
    forecasts = {members: np.array(found.forecasts[f"dense units=2 members={members}"]) for members in (1, 2)}
    assert not np.array_equal(forecasts[1], forecasts[2], equal_nan=True)


def test_a_trial_that_was_evaluated_before_is_not_evaluated_again(
    make_problem: Make, write_ingested: Write, here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = weather(0, 400, datetime(2020, 1, 1), gap=150)
    grid = {"persistence": {}, "gru": {"units": [2, 3]}}
    case = Case(make_problem, write_ingested, grid, [rows[0]], [rows[1]], loss="pinball", quantiles=[0.1, 0.5, 0.9])
    loaded: list[str] = []

    def load_network(trial: Trial, windows: Any) -> Network:
        loaded.append(trial.key)
        return networks.load_network(trial, windows)

    monkeypatch.setattr(grid_evaluation, "load_network", load_network)
    first = case.evaluate()
    selected = [trial for trial in case.trials if trial.key in loaded]
    kept = sorted(path.parent.name for path in Path("trials").rglob("answers.npz"))
    assert len(loaded) == 3, "persistence, and both seeds of the better GRU"
    assert kept == sorted(loaded)

    loaded.clear()
    assert case.evaluate() == first
    assert not loaded

    cut, changed, outdated = (trial_folder(trial) / "answers.npz" for trial in selected)
    cut.write_bytes(cut.read_bytes()[:-30])
    content = bytearray(changed.read_bytes())
    with np.load(changed) as arrays:
        content[content.index(arrays["test.window_N"].tobytes())] ^= 1
    changed.write_bytes(content)
    with np.load(outdated) as arrays:
        stored = dict(arrays)
    about = json.loads(bytes(stored["about"])) | {"identity": "of other code"}
    stored |= {"about": np.frombuffer(json.dumps(about).encode(), np.uint8), "test.values_NLO": np.zeros(1)}
    np.savez(outdated, **stored)
    assert case.evaluate() == first
    assert sorted(loaded) == kept

    case.ends(selected[-1].configuration.label, 0, **FAILED)
    case.evaluate()
    kept = sorted(path.parent.name for path in Path("trials").rglob("answers.npz"))
    assert selected[-1].key not in kept, "a configuration that is selected no more"


def test_an_architecture_without_a_complete_configuration_is_not_selected(trained: Case) -> None:
    for configuration in (A, B):
        trained.ends(configuration, 0, validation=LOWER)
        trained.ends(configuration, 1, **FAILED)
    found = trained.evaluate()
    assert {row.architecture for row in found.rows if row.selected} == {"persistence", "gru"}
    assert {found.best, found.runner_up} == {"persistence", OTHER}
    assert [row.configuration for row in found.rows][2:] == [A, B], "in the grid's order, as they are equal"


def test_nothing_is_best_where_nothing_is_complete(trained: Case) -> None:
    for trial in trained.trials:
        if trial.seed == 0:
            trained.ends(trial.configuration.label, 0, **FAILED)
    found = trained.evaluate()
    assert found.best is None
    assert found.comparison is None
    assert not any(row.selected for row in found.rows)
    assert found.rows[-1].configuration == "persistence", "not one seed of it has finished"
    assert found.persistence_test
    assert summarize_metrics(found) == {"persistence": {"test_mae": round(found.persistence_test, 4)}}
    assert set(tabulate_plots(found)) == {"curves.csv", "hours.csv", "months.csv", "forecasts.csv"}


def test_a_trial_that_was_not_run_is_named_with_the_fix(trained: Case) -> None:
    """Its key has changed with the code or the settings; `dvc repro evaluate` would train it first."""
    missing = trained.trial(OTHER, 0)
    (trial_folder(missing) / "trial.json").unlink()
    with pytest.raises(
        RecastError, match=f"{OTHER} seed=0 was not trained with the present code, .*: recast run demo$"
    ):
        trained.evaluate()


@pytest.mark.parametrize(
    ("delay", "names"), [(DELAY, ["23h", "1d", "25h"]), (DELAY - 1, ["22h", "23h", "1d"])], ids=["lecture", "other"]
)
def test_a_lead_is_counted_from_the_last_input(delay: int, names: list[str]) -> None:
    """In the lecture's split, the declared delay is counted from the row after it."""
    shape = WindowShape(steps=6, features=1, target=0, horizon=delay + 1, day=24, leads=3)
    windows = TableWindows(LOOKBACK, 1, delay, 1, {}, {}, {}, "", shape)
    table: Any = SimpleNamespace(cadence=3600.0)
    assert EvaluationData(windows, {}, table, Path()).lead_names == names
