"""The leaderboard: what an evaluation found, for the table, the report and MLflow to show."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from problems.errors import RecastError
from stages.evaluation.metrics import Comparison
from stages.training.history import Epoch

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
class Measured:
    """A measure, as it is shown.

    Attributes:
        name: in files and metrics.
        title: for people.
        unit: for people; empty for a pure number.
        scaled: there is a normalised one of the same name and `_normalized` too.
        more_is_better: otherwise less is.
    """

    name: str
    title: str
    unit: str
    scaled: bool
    more_is_better: bool


@dataclass(frozen=True)
class Interval:
    """The intervals around a configuration's forecasts that are made to hold a share of the targets.

    Attributes:
        level: that share.
        width: from the lower end to the upper, over seeds, in the target's unit: the narrower, the sharper.
        coverage: the share of the test targets that they hold, over seeds.
        forecast: the network forecasts their ends; otherwise they are as wide as its validation errors ask.
    """

    level: float
    width: Spread
    coverage: Spread
    forecast: bool


@dataclass(frozen=True)
class Fan:
    """The ends of the intervals of a level along the stretch that is drawn, means over seeds."""

    level: float
    low: list[float]
    high: list[float]


@dataclass(frozen=True)
class Row:
    """A configuration in the leaderboard; measures by name, errors in the target's unit unless named normalised.

    Attributes:
        architecture: its name; an ensemble of several members is an architecture of its own, such as gru ensemble.
        finished_seeds: the seeds of its trials that finished; every spread has a value for each, in this order.
        failed: why the others did not.
        selected: it is the best of its architecture by validation among those that are complete, so it was tried on
            the test rows.
        validation: nothing where no trial finished.
        test: nothing where it was not selected.
        skill: of the mean test error against persistence on the same windows; None where persistence is no answer.
        intervals: of a selected configuration, by level; none of a level for which the validation windows are too few.
    """

    configuration: str
    architecture: str
    source: str
    parameters: int | None
    finished_seeds: list[int]
    failed: list[str]
    selected: bool
    validation: dict[str, Spread]
    test: dict[str, Spread]
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
        measures: what answers are measured by; the first one selects.
        rows: best on validation first; then those of which some trials have failed, which have no rank, likewise;
            then those of which no trial finished.
        best, runner_up: the first two architectures by their best complete configurations.
        comparison: the best against the runner-up on the test rows, each averaged over its seeds.
        comparison_unit: of the differences that it tells.
        curves: by selected configuration, by seed: the history.
        leads: test MAE by lead, by selected configuration; nothing where there is one lead.
        lead_names: how far ahead each lead is, the shortest first.
        hours, months: test MAE by hour of day (24) and month (12) of the target, by selected configuration; None
            where the test rows have none; nothing where the data have no clock.
        forecasts: a stretch of the test rows of one series: `time`, `observed`, and the mean forecast by
            configuration, where there are several leads the longest; nothing where the data have no clock.
        forecasts_of: that series.
        fans: by configuration, the intervals along that stretch, the widest first.
        confusion: by selected configuration, of each class of the test rows (a row) how often each was answered, mean
            over seeds; nothing where answers are not one of a few classes.
        quality: what `ingest` found.
        windows: how many windows each split has, and what was left out.
        persistence_test: what skill is measured against; None where persistence is no answer.
    """

    problem: str
    title: str
    target: str
    unit: str
    synthetic: bool
    split: dict[str, Any]
    window: dict[str, Any]
    measures: list[Measured]
    rows: list[Row]
    best: str | None
    runner_up: str | None
    comparison: Comparison | None
    comparison_unit: str
    persistence_test: float | None
    curves: dict[str, dict[str, list[Epoch]]]
    leads: dict[str, list[float]]
    lead_names: list[str]
    hours: dict[str, list[float | None]]
    months: dict[str, list[float | None]]
    forecasts: dict[str, list[Any]]
    forecasts_of: str
    fans: dict[str, list[Fan]]
    confusion: dict[str, list[list[float]]]
    quality: dict[str, Any]
    windows: dict[str, Any]

    @property
    def measure(self) -> Measured:
        """The measure that selects."""
        return self.measures[0]

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
