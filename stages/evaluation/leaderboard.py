"""The leaderboard: the results of an evaluation, as `leaderboard.json` stores them and as pages show them."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from learning.measures import MAE, Measure
from project.records import read_record
from stages.evaluation.bootstrap import Comparison
from stages.training.history import Epoch


@dataclass(frozen=True)
class Spread:
    """A measure over seeds: its mean, and the sample standard deviation, which needs at least two seeds."""

    mean: float
    deviation: float | None
    values: list[float]

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, list(values))

    @classmethod
    def by_name(cls, measures: Sequence[Mapping[str, float]]) -> "dict[str, Spread]":
        """The spread of each measure, by its name.

        Args:
            measures: those of each seed.
        """
        return (
            {name: cls.of([seed_measures[name] for seed_measures in measures]) for name in measures[0]}
            if measures
            else {}
        )


@dataclass(frozen=True)
class MeasureInfo:
    """What people and files need to know about a measure.

    Attributes:
        name: the key in files and metrics.
        title: the name for people.
        unit: the unit for people; empty for a pure number.
        scaled: there is also a normalised value, under this name and `_normalized`.
        more_is_better: larger values are better; otherwise smaller ones are.
    """

    name: str
    title: str
    unit: str
    scaled: bool
    more_is_better: bool

    @classmethod
    def of(cls, measure: Measure, target_unit: str) -> "MeasureInfo":
        """The information on a measure of an objective."""
        unit = target_unit if measure.scaled else measure.unit
        return cls(measure.name, measure.title, unit, measure.scaled, measure.more_is_better)


@dataclass(frozen=True)
class Interval:
    """The intervals around a configuration's forecasts that are meant to contain a given share of the targets.

    Attributes:
        level: that share.
        width: the distance between the two ends, over seeds, in the target's unit; narrower is sharper.
        coverage: the share of the test targets that the intervals contain, over seeds.
        forecast: the network forecasts the ends; otherwise its validation errors determine the width.
    """

    level: float
    width: Spread
    coverage: Spread
    forecast: bool


@dataclass(frozen=True)
class Fan:
    """The ends of the intervals of a level along the stretch of forecasts that is drawn; means over seeds."""

    level: float
    low: list[float]
    high: list[float]


@dataclass(frozen=True)
class LeaderboardRow:
    """A configuration in the leaderboard. Errors are in the target's unit, unless the name says normalised.

    Attributes:
        architecture: the name; an ensemble of several members is an architecture of its own, such as gru ensemble.
        source: where the architecture comes from: the lecture's row and the paper.
        parameters: the number of weights; None where no trial finished.
        finished_seeds: the seeds of the finished trials; every spread has one value for each, in this order.
        failed: the seeds of the failed trials, with the reasons.
        selected: it has the lowest validation error of the complete configurations of its architecture, so it was
            tested on the test rows.
        validation: spreads by name; empty where no trial finished.
        test: spreads by name; empty where the configuration was not selected.
        skill: the skill score of the mean test error by the selection measure, with persistence on the same windows
            as the reference; None where persistence cannot answer the problem.
        intervals: by level, for a selected configuration. A level that needs more validation windows than there are
            is left out.
        mae_skill: the skill score by MAE, whatever measure selects; None as for `skill`. Leaderboards of earlier
            versions of Recast do not have it.
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
    mae_skill: float | None = None

    @property
    def complete(self) -> bool:
        """Whether every seed has finished. Only then is it ranked: the seeds that finished may be the lucky ones."""
        return bool(self.finished_seeds) and not self.failed


@dataclass(frozen=True)
class Evaluation:
    """The results of evaluating a grid: everything in the leaderboard, the metrics, the plots and the report.

    Attributes:
        problem: the name; `title` is for people.
        unit: the target's unit.
        synthetic: the data are simulated.
        split, window: these sections of the problem's settings.
        measures: the measures of the objective; the first one is the selection measure.
        rows: the complete configurations, by validation error; then those with failed trials, which have no rank,
            also by validation error; then those without a finished trial.
        best, runner_up: the best complete configurations of the first two architectures.
        comparison: of the best with the runner-up on the test rows; the errors of each are averaged over its seeds.
        comparison_unit: the unit of the differences in the comparison.
        persistence_test: the test error of persistence by the selection measure, the reference of the skill score; None
            where persistence cannot answer the problem.
        curves: the training history, by selected configuration and seed.
        leads: test MAE by lead, by selected configuration; empty where there is only one lead.
        lead_names: the leads as text, such as 1d; the shortest first.
        hours, months: test MAE by hour of day (24) and month (12) of the target, by selected configuration; None for
            an hour or month without test windows; empty where the data have no clock.
        forecasts: a stretch of the test rows of one series, in columns: `time`, `observed`, and for each configuration
            its mean forecast at the longest lead; empty where the data have no clock.
        forecasts_of: the name of that series.
        fans: the intervals along that stretch, by configuration; the widest first.
        confusion: by selected configuration, how often each class of the test rows (a row) got each answer (a column),
            mean over seeds; empty unless the answers are classes, and few.
        quality: the report of `ingest` on the data.
        windows: the number of windows in each split, and what was left out.
        persistence_mae: the test MAE of persistence; None as for `persistence_test`. Leaderboards of earlier versions
            of Recast do not have it, nor `warnings`.
        warnings: what is wrong with the data or the settings, a sentence each.
    """

    problem: str
    title: str
    target: str
    unit: str
    synthetic: bool
    split: dict[str, Any]
    window: dict[str, Any]
    measures: list[MeasureInfo]
    rows: list[LeaderboardRow]
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
    persistence_mae: float | None = None
    warnings: list[str] = field(default_factory=list)

    @property
    def selects_by_mae(self) -> bool:
        """Whether the MAE is the measure that ranks, so that there is only one skill score."""
        return self.selection_measure.name == MAE

    @property
    def selection_measure(self) -> MeasureInfo:
        """The measure that ranks the configurations."""
        return self.measures[0]

    def find_row(self, configuration: str | None) -> LeaderboardRow | None:
        """The row of a configuration; None where there is no such row."""
        return next((row for row in self.rows if row.configuration == configuration), None)


def list_failures(evaluation: Evaluation) -> list[str]:
    """The failed trials of the grid, each with the reason."""
    return [f"{evaluation.problem}: {row.configuration} {reason}" for row in evaluation.rows for reason in row.failed]


def read_leaderboard(folder: Path) -> Evaluation | None:
    """The evaluation in the folder of the stage `evaluate`; None where the stage has not run.

    Raises:
        RecastError: another version of Recast wrote the file, or it is damaged.
    """
    try:
        return read_record(folder / "leaderboard.json", Evaluation, fix=f"run `recast run {folder.name}`")
    except FileNotFoundError:
        return None
