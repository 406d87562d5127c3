"""The leaderboard: what an evaluation found, for the table, the report and MLflow to show."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from problems.errors import RecastError
from stages.history import Epoch
from stages.metrics import Comparison

BASELINE = "persistence"
"""The architecture that skill is measured against."""


@dataclass(frozen=True)
class Spread:
    """A measure over seeds: its mean, and the deviation of the sample where there are two seeds or more."""

    mean: float
    deviation: float | None
    values: list[float]

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, list(values))


@dataclass(frozen=True)
class Interval:
    """The intervals around a configuration's forecasts that are made to hold a share of the targets.

    Attributes:
        level: that share.
        width: from the lower end to the upper, over seeds, in the target's unit: the narrower, the sharper.
        coverage: the share of the test targets that they hold, over seeds.
    """

    level: float
    width: Spread
    coverage: Spread


@dataclass(frozen=True)
class Row:
    """A configuration in the leaderboard; errors are in the target's unit unless named normalised.

    Attributes:
        architecture: its name; an ensemble of several members is an architecture of its own, such as gru ensemble.
        finished_seeds: the seeds of its trials that finished; every spread has a value for each, in this order.
        failed: why the others did not.
        selected: it is the best of its architecture by validation among those that are complete, so it was tried on
            the test rows.
        skill: of the mean test MAE against persistence on the same windows.
        intervals: of a selected configuration, by level; none of a level for which the validation windows are too few.
    """

    configuration: str
    architecture: str
    source: str
    parameters: int | None
    finished_seeds: list[int]
    failed: list[str]
    selected: bool
    validation_mae: Spread | None
    validation_rmse: Spread | None
    validation_mae_normalized: Spread | None
    validation_rmse_normalized: Spread | None
    test_mae: Spread | None
    test_rmse: Spread | None
    test_mae_normalized: Spread | None
    test_rmse_normalized: Spread | None
    skill: float | None
    intervals: list[Interval]

    @property
    def complete(self) -> bool:
        """Whether every seed has finished. Only then is it ranked: the seeds that are left may be the lucky ones."""
        return bool(self.finished_seeds) and not self.failed


@dataclass(frozen=True)
class Evaluation:
    """All that the leaderboard, the metrics, the plots and the report say.

    Attributes:
        rows: best validation MAE first; then those of which some trials have failed, which have no rank, likewise;
            then those of which no trial finished.
        best, runner_up: the first two architectures by their best complete configurations.
        comparison: the best against the runner-up on the test rows, each averaged over its seeds.
        curves: by selected configuration, by seed: the history.
        hours, months: test MAE by hour of day (24) and month (12) of the target, by selected configuration; None
            where the test rows have none.
        forecasts: a stretch of the test rows of one series: `time`, `observed`, and the mean forecast by
            configuration.
        forecasts_of: that series.
        quality: what `ingest` found.
        windows: how many windows each split has, and what was left out.
        persistence_test_mae: what skill is measured against.
    """

    problem: str
    title: str
    target: str
    unit: str
    synthetic: bool
    split: dict[str, Any]
    window: dict[str, str]
    rows: list[Row]
    best: str | None
    runner_up: str | None
    comparison: Comparison | None
    persistence_test_mae: float
    curves: dict[str, dict[str, list[Epoch]]]
    hours: dict[str, list[float | None]]
    months: dict[str, list[float | None]]
    forecasts: dict[str, list[Any]]
    forecasts_of: str
    quality: dict[str, Any]
    windows: dict[str, Any]

    def row(self, configuration: str | None) -> Row | None:
        """The row of a configuration, where it has one."""
        return next((row for row in self.rows if row.configuration == configuration), None)


def failures(evaluation: Evaluation) -> list[str]:
    """The trials of the grid that have failed, each with its reason."""
    return [f"{evaluation.problem}: {row.configuration} {reason}" for row in evaluation.rows for reason in row.failed]


def read(folder: Path) -> Evaluation | None:
    """What `evaluate` wrote into `folder`, or None where it has not run.

    Raises:
        RecastError: another version of Recast wrote it.
    """
    file = folder / "leaderboard.json"
    if not file.exists():
        return None
    try:
        return TypeAdapter(Evaluation).validate_json(file.read_bytes())
    except ValidationError as error:
        what = error.errors()[0]
        raise RecastError(
            f"{file}: written by another version of Recast ({'.'.join(map(str, what['loc']))}: {what['msg']}); run "
            f"`recast run {folder.name}`"
        ) from error
