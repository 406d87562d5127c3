"""backtest: the grid at several origins in the past, each with the data that there were then.

At an origin the rows before it train and validate, those after it test, and rows after these are as if they were not
there. What validation chooses at each origin is what a scheduled retraining would have served from then on.

Tashman 2000, "Out-of-sample tests of forecasting accuracy: an analysis and review", International Journal of
Forecasting 16: rolling origins, with a window of training rows that grows or rolls.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from mlflow.entities import Metric
from pydantic import TypeAdapter, ValidationError

from problems.errors import RecastError
from problems.problem import Problem
from problems.source import written
from problems.split import DateSplit, RecentSplit
from project import paths
from project.atomic import replaced_file, write_json
from project.settings.sections import Settings
from stages.evaluate import answered, persistence_error, validated
from stages.evaluation.leaderboard import Measured, Spread
from stages.evaluation.metrics import skill
from stages.normalize import normalize
from stages.tables.table import Table
from stages.tables.windows import Windowing
from stages.tracking import store
from stages.training import batches
from stages.training.networks import load_network
from stages.training.objectives import objective
from stages.training.trials import Trial, read_run, read_trial, trial_folder
from stages.window import window

BEAT = datetime(2001, 1, 1)
"""Origins are whole numbers of `every` after it, a Monday: a backtest of next month has those of today among its own,
and trains the new ones alone."""


@dataclass(frozen=True)
class Plan:
    """Which origins a backtest has.

    Attributes:
        every: from one origin to the next.
        test: how long the rows test from an origin on.
        validation: how long, before it, they validate.
        train: how long they train before that; None: all that there are.
        until: where the test rows of the last origin end at the latest; None: where the data do.
    """

    origins: int
    every: timedelta
    test: timedelta
    validation: timedelta
    train: timedelta | None
    until: datetime | None

    @classmethod
    def of(
        cls,
        problem: Problem,
        origins: int,
        every: timedelta,
        test: timedelta | None = None,
        validation: timedelta | None = None,
        train: timedelta | None = None,
        until: datetime | None = None,
    ) -> "Plan":
        """The plan with what was not asked for as the problem's split has it, where it is `recent`.

        Else an origin tests until the next, validates three times as long, and trains on all rows before that.
        """
        recent = problem.split if isinstance(problem.split, RecentSplit) else None
        return cls(
            origins,
            every,
            test or every,
            validation or (recent.validation if recent else 3 * (test or every)),
            train or (recent.train if recent else None),
            until,
        )


@dataclass(frozen=True)
class Origin:
    """A moment in the past: what is before it is known.

    Attributes:
        name: of it, for people and folders.
    """

    name: str
    split: DateSplit


def origins(plan: Plan, end: datetime) -> list[Origin]:
    """The origins, the oldest first.

    Args:
        end: where the data end: the time after the last row.

    Raises:
        RecastError: there is none.
    """
    until = min(end, plan.until or end)
    last = BEAT + (until - plan.test - BEAT) // plan.every * plan.every
    moments = [last - back * plan.every for back in reversed(range(plan.origins))]
    midnights = all(moment.time() == datetime.min.time() for moment in moments)
    return [
        Origin(
            f"{moment:%Y-%m-%d}" if midnights else f"{moment:%Y-%m-%dT%H%M%S}",
            DateSplit(
                train_from=moment - plan.validation - plan.train if plan.train else None,
                validation_from=moment - plan.validation,
                test_from=moment,
                test_until=moment + plan.test,
            ),
        )
        for moment in moments
    ]


def data_end(ingested: Path) -> datetime:
    """The time after the last row, of the series that ends first."""
    cadence = timedelta(seconds=json.loads((ingested / "quality.json").read_text(encoding="utf-8"))["cadence_seconds"])
    last = pl.scan_parquet(ingested / "table.parquet").group_by("series").agg(pl.col("time").max())
    end: datetime = last.collect(engine="streaming")["time"].min()  # type: ignore[assignment]
    return end + cadence


def table_problem(settings: Settings, problem: str) -> Problem:
    """
    Raises:
        RecastError: the problem has no clock.
    """
    declared = settings.problem(problem)
    if not isinstance(declared, Problem):
        raise RecastError(f"{problem}: a backtest needs rows with times; this is a problem of sequences")
    return declared


def at(problem: Problem, origin: Origin) -> Problem:
    """The problem as it was at an origin."""
    return problem.model_copy(update={"split": origin.split})


def prepare(name: str, problem: Problem, settings: Settings, origin: Origin) -> None:
    """Write the table and the windows of an origin, as the stages `normalize` and `window` do.

    Raises:
        RecastError: a part of its split has no window.
    """
    here = at(problem, origin)
    normalized, windowed = (paths.stage(stage, name, origin.name) for stage in ("normalize", "window"))
    try:
        normalize(here, here.table.scale or settings.normalize.scale, paths.stage("ingest", name), normalized)
        window(here, settings.window.stride, normalized, windowed)
    except RecastError as error:
        raise RecastError(
            f"origin {origin.name}: {error}. In a backtest, ask for fewer origins or other lengths: --origins, "
            "--every, --test, --validation, --train"
        ) from None


def remove_others(problem: str, kept: Sequence[Origin]) -> None:
    """Delete the data of origins that are not among these; trials stay."""
    names = {origin.name for origin in kept} | {"trials", "result"}
    for folder in paths.backtest(problem).glob("*/"):
        if folder.name not in names:
            shutil.rmtree(folder)


# What it found


@dataclass(frozen=True)
class Tested:
    """A configuration at an origin: the measure that selects, over seeds, and its skill against persistence."""

    validation: Spread
    test: Spread
    skill: float | None


@dataclass(frozen=True)
class Line:
    """A configuration at every origin.

    Attributes:
        at: nothing where a seed has failed.
        chosen: at so many origins it was the best on validation.
        test: over the origins, of means over seeds; nothing where there is none.
        skill: likewise.
    """

    configuration: str
    architecture: str
    parameters: int | None
    at: list[Tested | None]
    chosen: int
    test: Spread | None
    skill: Spread | None

    @classmethod
    def of(
        cls, configuration: str, architecture: str, parameters: int | None, cells: list[Tested | None], chosen: int
    ) -> "Line":
        there = [cell for cell in cells if cell]
        skills = [cell.skill for cell in there if cell.skill is not None]
        return cls(
            configuration,
            architecture,
            parameters,
            cells,
            chosen,
            Spread.of([cell.test.mean for cell in there]) if there else None,
            Spread.of(skills) if skills else None,
        )


@dataclass(frozen=True)
class At:
    """An origin, as it is told.

    Attributes:
        train_from: the time of the first row that trains.
        windows: how many there are, by split.
        persistence: its test error.
        best: the configuration that validation chose; None where none is complete.
        failed: the trials that have failed, each with its reason.
    """

    name: str
    train_from: str
    validation_from: str
    test_from: str
    test_until: str
    windows: dict[str, int]
    persistence: float | None
    best: str | None
    failed: list[str]


@dataclass(frozen=True)
class Backtest:
    """What a backtest found.

    Attributes:
        plan: its lengths of time, as they are written.
        measure: that selects.
        lines: the configurations: first those that are complete at every origin, by their mean validation error.
        chosen: at each origin, what validation chose there; its configuration is CHOSEN.
    """

    problem: str
    title: str
    target: str
    unit: str
    synthetic: bool
    plan: dict[str, Any]
    measure: Measured
    origins: list[At]
    lines: list[Line]
    chosen: Line

    @property
    def failures(self) -> list[str]:
        """The trials that have failed, each with its origin and reason."""
        return [f"{self.problem} at {origin.name}: {each}" for origin in self.origins for each in origin.failed]


CHOSEN = "chosen by validation"


@dataclass(frozen=True)
class Measurement:
    """All that is measured at one origin.

    Attributes:
        tested: by configuration, those that are complete.
        about: architecture and number of weights by configuration, also of the others.
    """

    origin: At
    tested: dict[str, Tested]
    about: dict[str, tuple[str, int | None]]


def measured(problem: Problem, origin: Origin, trials: Sequence[Trial]) -> Measurement:
    """Test every configuration of which all seeds have finished on the rows after an origin.

    Which one is chosen, validation says alone.
    """
    # The last bits of a forecast depend on the number of threads, and the result should not.
    torch.set_num_threads(1)
    normalized, windowed = trials[0].normalized, trials[0].windowed
    windows, table = Windowing.read(windowed), Table.read(normalized)
    aim = objective(windows, trials[0].train)
    ended = {trial.key: read_trial(trial) for trial in trials}
    data = batches.read(normalized, windowed, torch.device("cpu"))["test"]
    scale = table.preparation.of_target[1]
    reference = persistence_error(data, windows, trials[0], aim, scale)
    selects = aim.measure.name

    tested: dict[str, Tested] = {}
    about: dict[str, tuple[str, int | None]] = {}
    failed: list[str] = []
    for label, each in groupby(trials, key=lambda trial: trial.configuration.label):
        group = list(each)
        row = validated(group, ended)
        about[label] = row.architecture, row.parameters
        failed += [f"{label} {reason}" for reason in row.failed]
        if row.complete:
            found = [answered(load_network(trial, windows), data, aim, windows.objective) for trial in group]
            errors = Spread.of([aim.measured(answers.means, scale)[selects] for answers in found])
            gained = None if reference is None else skill(errors.mean, reference)
            tested[label] = Tested(row.validation[selects], errors, gained)
    split = origin.split
    return Measurement(
        At(
            name=origin.name,
            train_from=np.datetime_as_string(np.load(normalized / "time.npy", mmap_mode="r")[0], unit="m"),
            validation_from=split.validation_from.isoformat(timespec="minutes"),
            test_from=split.test_from.isoformat(timespec="minutes"),
            test_until=split.test_until.isoformat(timespec="minutes") if split.test_until else "",
            windows=windows.windows,
            persistence=reference,
            best=min(tested, key=lambda label: tested[label].validation.mean, default=None),
            failed=failed,
        ),
        tested,
        about,
    )


def summary(name: str, problem: Problem, plan: Plan, measure: Measured, found: Sequence[Measurement]) -> Backtest:
    """The measurements of all origins as one table."""
    best = [each.origin.best for each in found]
    # Architecture and number of weights: of the first origin at which a seed finished.
    about: dict[str, tuple[str, int | None]] = {}
    for each in found:
        for label, (architecture, parameters) in each.about.items():
            about[label] = architecture, about.get(label, (architecture, None))[1] or parameters
    lines = [
        Line.of(label, architecture, parameters, [each.tested.get(label) for each in found], best.count(label))
        for label, (architecture, parameters) in about.items()
    ]

    def rank(line: Line) -> tuple[int, float]:
        there = [cell.validation.mean for cell in line.at if cell]
        return -len(there), sum(there) / max(len(there), 1)

    cells = [each.tested[label] if label else None for each, label in zip(found, best, strict=True)]
    return Backtest(
        problem=name,
        title=problem.title,
        target=problem.target,
        unit=problem.unit,
        synthetic=problem.source.synthetic,
        plan={
            "origins": plan.origins,
            "every": written(plan.every),
            "test": written(plan.test),
            "validation": written(plan.validation),
            "train": written(plan.train) if plan.train else None,
        },
        measure=measure,
        origins=[each.origin for each in found],
        lines=sorted(lines, key=rank),
        chosen=Line.of(CHOSEN, "", None, cells, sum(cell is not None for cell in cells)),
    )


def measure_of(problem: Problem, trial: Trial) -> Measured:
    """The measure that selects, as it is shown."""
    selects = objective(Windowing.read(trial.windowed), trial.train).measure
    unit = problem.unit if selects.scaled else selects.unit
    return Measured(selects.name, selects.title, unit, selects.scaled, selects.more_is_better)


def result(problem: str) -> Path:
    """The folder of the result and its page."""
    return paths.backtest(problem) / "result"


def write(found: Backtest, page: str, out: Path) -> None:
    """Write the result and its page into the folder `out`."""
    write_json(out / "backtest.json", asdict(found))
    with replaced_file(out / "backtest.html") as temporary:
        temporary.write_text(page, encoding="utf-8")


def read(out: Path) -> Backtest | None:
    """What `write` wrote into `out`, or None.

    Raises:
        RecastError: another version of Recast wrote it.
    """
    file = out / "backtest.json"
    if not file.exists():
        return None
    try:
        return TypeAdapter(Backtest).validate_json(file.read_bytes())
    except ValidationError:
        raise RecastError(f"{file}: written by another version of Recast; run `recast backtest` again") from None


@store.reported()
def log(
    found: Backtest,
    trials: Mapping[str, Sequence[Trial]],
    whole: store.Context,
    contexts: Mapping[str | None, store.Context],
    folder: Path,
) -> None:
    """Write the result to the backtest's run, each origin's to its own, and test errors to the runs of the trials.

    The step of a metric is the number of its origin, and its time that origin, so that writing it again adds nothing.

    Args:
        trials, contexts: by origin.

    Raises:
        TrackingError: MLflow cannot be reached.
    """
    client, selects = store.client(), found.measure.name
    lines = {line.configuration: line for line in found.lines}
    for step, origin in enumerate(found.origins):
        moment = datetime.fromisoformat(origin.test_from).replace(tzinfo=UTC)

        def metrics(
            of: Mapping[str, float | None], step: int = step, stamp: int = round(moment.timestamp() * 1000)
        ) -> list[Metric]:
            return [Metric(name, value, stamp, step) for name, value in of.items() if value is not None]

        here = {f"persistence_test_{selects}": origin.persistence}
        if cell := found.chosen.at[step]:
            here |= {
                f"best_validation_{selects}": cell.validation.mean,
                f"best_test_{selects}": cell.test.mean,
                "best_skill": cell.skill,
            }
            client.set_tag(contexts[origin.name].parent, "recast.best", origin.best)
        client.log_batch(whole.parent, metrics=metrics(here))
        client.log_batch(contexts[origin.name].parent, metrics=metrics(here))
        for label, group in groupby(trials[origin.name], key=lambda trial: trial.configuration.label):
            if tested := lines[label].at[step]:
                for trial, error in zip(group, tested.test.values, strict=True):
                    run = read_run(trial_folder(trial))["mlflow_run_id"]
                    client.log_batch(run, metrics=metrics({f"test_{selects}": error}))
        store.close_pipeline(contexts[origin.name], len(origin.failed))
    if found.chosen.test:
        client.log_metric(whole.parent, f"mean_test_{selects}", found.chosen.test.mean)
    with store.storing():
        client.log_artifacts(whole.parent, str(folder), "backtest")
    store.close_pipeline(whole, len(found.failures))
