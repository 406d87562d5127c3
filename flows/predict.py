"""The predict flow: take in new rows, and forecast with the champion from the newest; or from a file of rows.

Nothing is trained. It may be repeated: the same rows and model version give the same forecasts, but for their age, and
no forecast is twice in the log. If the newest row is older than it may be, the forecasts are made all the same, but
people get an alert and the flow ends as Stale.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import polars as pl
from filelock import FileLock
from prefect import flow
from prefect.runtime import flow_run
from prefect.states import Completed, Failed

from flows.alerts import alert
from flows.new_rows import (
    CheckedIncrement,
    alert_of_breach,
    breach_text,
    describe_breaches,
    hold_arrival_lock,
    take_in_rows,
)
from forecasting.forecaster import Forecaster
from lifecycle import forecast_log
from lifecycle.champions import history, promotion, registry
from lifecycle.champions.history import Version
from lifecycle.new_rows.increment_table import read_increment_table
from lifecycle.new_rows.known_table import KnownTable, open_known_table
from lifecycle.new_rows.row_age import RowAge, judge_age
from lifecycle.new_rows.unchecked_rows import find_unchecked_rows
from lifecycle.table_problem import require_table_problem
from problems.durations import format_length
from problems.errors import RecastError
from problems.problem import Problem
from project import paths
from project.atomic import replace_file, write_json
from project.lock import hold_pipeline_lock
from project.progress import console
from project.retry import retry_while_unreachable
from project.settings.loading import load_settings
from project.settings.sections import Settings
from stages.fetching import fetch

MLFLOW_PATIENCE_SECONDS = 150
"""How long MLflow may be out of reach."""

TAIL_FACTOR = 4
"""The newest complete window of each series is looked for in the last rows of so many windows, and if it is not found,
in so many times more rows."""

STALE, NOT_REFRESHED = "Stale", "Not refreshed"
"""The names of the states in which it may end beside Completed. Stale is a failure: the forecasts are made from rows
that are older than they may be. With Not refreshed they are not, but new rows could not be taken in.
"""

BREACH_OUTCOME = "The forecasts are made without these rows."
"""What rows that break the contract mean for the forecasts."""


@dataclass
class Intake:
    """What became of the new rows before a forecast.

    Attributes:
        waiting: rows that keep the contract and cannot be accepted yet, as a pipeline runs; None: there are none.
        problems: lines that say which rows could not be taken in, and why.
    """

    waiting: pl.DataFrame | None = None
    problems: list[str] = field(default_factory=list)


def _run_name() -> str:
    return f"predict {flow_run.parameters['problem']}"


@flow(name="predict", flow_run_name=_run_name, persist_result=False)
def predict(problem: str, rows: Path | None = None, out: Path | None = None, all_windows: bool = False) -> Path:
    """Forecast with a problem's champion, and write the forecasts to the log and to a file; the file.

    Args:
        rows: a Parquet or CSV file with `time` (UTC), `series` where there are several, and the problem's columns in
            their own units. Forecasts are made at the last row of each series, and are not judged by their age. None:
            new rows are taken in, and forecasts are made from the newest complete window of each series.
        out: the Parquet file to write; None: data/forecasts/<problem>.parquet.
        all_windows: forecast at every row at which a window is complete.

    Returns:
        The file. The flow ends in a state of its own where the file should not be relied on: see `STALE`.

    Raises:
        RecastError: there is no champion, or no forecast can be made from these rows.
    """
    version, forecaster = load_champion(problem)
    if rows is not None:
        forecasts = forecaster.forecast(read_rows(rows), all_windows=all_windows)
        if forecasts.is_empty():
            raise RecastError(
                f"{rows}: it has no complete window; a window takes {forecaster.about.window_rows:,} rows"
            )
        with _lock_forecasts(problem):
            return _write_forecasts(problem, version, forecasts, out, rows)
    settings = load_settings()
    declared = require_table_problem(problem, settings)
    intake = _take_in_rows(problem, declared, settings)
    with open_known_table(declared, paths.raw_folder(problem), paths.stage_folder("ingest", problem)) as ingested:
        known = ingested.with_rows(intake.waiting)
        table = _read_newest_windows(problem, forecaster, known, declared.table.thin)
        last_times = known.read_last_times(declared)
    forecasts = forecaster.forecast(table, all_windows=all_windows)
    newest = dict(forecasts.group_by("series").agg(pl.col("origin").max()).iter_rows())
    with _lock_forecasts(problem):
        file = _write_forecasts(problem, version, forecasts, out, None)
        age = judge_age(declared, newest, known.cadence)
        return _end(problem, age, last_times[age.series], intake, file)


def _take_in_rows(problem: str, declared: Problem, settings: Settings) -> Intake:
    """Take in what is new. Whatever keeps new rows away is noted: there is a forecast without them."""
    intake = Intake()

    def announce(increment: CheckedIncrement) -> None:
        if increment.breaches:
            lines = describe_breaches(problem, increment)
            # The alert goes first: what is in quarantine does not come again, even if this process is killed.
            alert_of_breach(problem, lines, BREACH_OUTCOME)
            intake.problems.append(breach_text(problem, lines, BREACH_OUTCOME))

    try:
        if growth := declared.growth:
            with hold_arrival_lock(problem):
                increments = take_in_rows(
                    problem, settings, lambda done, total: None, announce, pipeline_lock=hold_pipeline_lock
                )
                if increments and increments[-1].is_waiting:
                    intake.waiting = read_increment_table(growth.source, increments[-1].place, declared)
            for increment in increments:
                if not increment.breaches:
                    console.print(f"{problem}: {increment.description}", markup=False, highlight=False, soft_wrap=True)
        else:
            fetch(problem, settings)
        unchecked = find_unchecked_rows(declared, paths.raw_folder(problem), paths.stage_folder("ingest", problem))
        if unchecked is not None:
            console.print(unchecked.describe(problem), style="yellow", markup=False, highlight=False, soft_wrap=True)
    except RecastError as error:
        intake.problems.append(f"{problem}: no new rows could be taken in: {error}")
    for line in intake.problems:
        console.print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)
    return intake


@contextmanager
def _lock_forecasts(problem: str) -> Iterator[None]:
    """Keep other processes from writing forecasts of a problem to a file, and from the same alert about their age.

    A person's run and a deployed one may meet.
    """
    paths.STATE.mkdir(exist_ok=True)
    with FileLock(paths.STATE / f"forecasts-{problem}.lock"):
        yield


def _write_forecasts(
    problem: str, version: Version, forecasts: pl.DataFrame, out: Path | None, place: Path | None
) -> Path:
    """Write forecasts to the log and to a file, each with the age that its newest row has now; the file.

    Args:
        forecasts: as `Forecaster.forecast` returns them.
        place: the file that the rows come from; None: they are the problem's own.

    Raises:
        RecastError: a forecast is not a finite number.
    """
    identified = forecast_log.add_ids(problem, version.version, forecasts)
    if not identified["forecast"].is_finite().all():
        raise RecastError(f"{place or problem}: a forecast is not a number: values are too far from those of training")
    file = out or forecast_log.FORECASTS_FOLDER / f"{problem}.parquet"
    # The log is written first, so that every id that anybody sees can be traced.
    forecast_log.record_forecasts(problem, identified)
    aged = identified.drop("inputs").with_columns(age=forecast_log.row_age(datetime.now(UTC)))
    first_columns = ["forecast_id", "model_version"]
    with replace_file(file) as temporary:
        aged.select(*first_columns, pl.exclude(first_columns)).write_parquet(temporary)
    count = f"{len(aged):,} {'forecast' if len(aged) == 1 else 'forecasts'}"
    newest = aged.row(int(aged["origin"].arg_max() or 0), named=True)
    console.print(
        f"{problem}: {count} by version {version.version}, from rows up to {newest['origin']!s}, "
        f"{format_length(newest['age'])} old: {file}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    return file


def _end(problem: str, age: RowAge, last: datetime, intake: Intake, file: Path) -> Path:
    """The file; or the state in which the flow ends, if the forecasts are stale or new rows were not taken in.

    Args:
        age: of the newest row that the forecasts are made from.
        last: the time of the last row of its series, from which perhaps no window is complete.
    """
    note = stale_note(problem)
    reasons = "\n".join(intake.problems)
    if age.is_stale:
        text = (
            f"{problem}: the forecasts in {file} are stale. The newest row that they are made from, of series "
            f"{age.series}, is of {age.describe()} (problems.{problem}.fresh.max_age)."
        )
        if last > age.newest:
            text = f"{text}\nThere are rows up to {last}, but the windows that end there have a gap or a null."
        elif not reasons:
            text = f"{text}\nNothing newer has arrived at its source."
        text = f"{text}\n{reasons}" if reasons else text
        console.print(text, style="red", markup=False, highlight=False, soft_wrap=True)
        if not note.exists():
            alert("failure", f"{problem}: the forecasts are stale", text)
            write_json(note, {"newest": str(age.newest)})
        # Prefect makes it the state of the flow, and whoever calls the flow gets its data.
        return cast(Path, Failed(name=STALE, message=text))
    note.unlink(missing_ok=True)
    if reasons:
        return cast(Path, Completed(name=NOT_REFRESHED, message=reasons, data=file))
    return file


def stale_note(problem: str) -> Path:
    """The file that exists from the alert about stale forecasts until they are no longer stale."""
    return forecast_log.FORECASTS_FOLDER / f"{problem}.stale.json"


def load_champion(problem: str) -> tuple[Version, Forecaster]:
    """The champion, and its model.

    Raises:
        RecastError: there is none, or it cannot be loaded.
    """

    def load() -> tuple[Version, Forecaster]:
        if history.find_champion(problem) is None:
            # Another checkout that uses the same store may have promoted one.
            promotion.reconcile(problem)
        version = history.find_champion(problem)
        if version is None:
            raise RecastError(f"{problem} has no champion yet: recast retrain {problem}, or recast promote {problem}")
        return version, registry.load_model(version)

    version, forecaster = retry_while_unreachable(load, MLFLOW_PATIENCE_SECONDS, "MLflow")
    if forecaster.about.preparation is None:
        raise RecastError(f"{problem} is a problem of sequences: load {version.uri} with MLflow")
    return version, forecaster


def read_rows(file: Path) -> pl.DataFrame:
    """The rows of a Parquet or CSV file, with `time` as times.

    Raises:
        RecastError: there is no such file, or its content cannot be read.
    """
    try:
        if file.suffix.lower() in (".parquet", ".pq"):
            rows = pl.read_parquet(file)
        else:
            rows = pl.read_csv(file, infer_schema_length=None, null_values=["", "NaN", "nan", "NA"])
    except FileNotFoundError:
        raise RecastError(f"{file}: there is no such file") from None
    except (pl.exceptions.PolarsError, UnicodeDecodeError) as error:
        raise RecastError(f"{file}: {str(error).splitlines()[0]}") from None
    if rows.schema.get("time") != pl.String:
        return rows
    try:
        return rows.with_columns(pl.col("time").str.to_datetime(time_unit="ms", time_zone="UTC"))
    except pl.exceptions.PolarsError as error:
        raise RecastError(
            f"{file}: column 'time' must hold times in one form of ISO 8601, such as 2016-01-01T00:00:00: "
            f"{str(error).splitlines()[0]}"
        ) from None


def _read_newest_windows(problem: str, forecaster: Forecaster, known: KnownTable, thin: bool) -> pl.DataFrame:
    """The newest complete window of each series. A series without one is left out.

    Raises:
        RecastError: no series has a complete window.
    """
    about = forecaster.about
    tail = TAIL_FACTOR * (about.window_rows + about.horizon_rows)
    total = known.ingested.select(pl.len()).collect().item()
    while True:
        rows = known.read_newest(tail, thin)
        newest = forecaster.window_builder.select_newest(rows)
        if tail >= total or newest["series"].n_unique() == rows["series"].n_unique():
            break
        # The last rows of a series have gaps: look further back.
        tail *= TAIL_FACTOR
    if newest.is_empty():
        raise RecastError(
            f"{problem}: no window is complete; a window takes {about.window_rows:,} rows without a gap or a null"
        )
    return newest
