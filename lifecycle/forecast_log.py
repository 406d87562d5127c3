"""The forecast log: every forecast by its id, in one SQLite file for each problem.

A forecast's id is a hash of the model version and the window that it was made from. A forecast that is made twice has
the same id, and is in the log once.
"""

import hashlib
import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from problems.errors import RecastError
from project.disk import explain_disk_errors
from project.sqlite_files import is_locked, list_holders

FORECASTS_FOLDER = Path("data/forecasts")
LOCK_WAIT_SECONDS = 30
"""How long a writer waits for another one."""

_EPOCH = datetime(1970, 1, 1)
_MILLISECONDS = pl.Datetime("ms")
_SCHEMA = """
create table if not exists forecasts (
    forecast_id text primary key, model_version integer not null, series text not null, origin integer not null,
    target_time integer not null, lead text not null, forecast real not null, intervals text not null,
    inputs text not null, made integer not null
) without rowid;
create index if not exists by_target_time on forecasts (target_time);
"""


def log_file(problem: str) -> Path:
    """The file with the forecasts of a problem."""
    return FORECASTS_FOLDER / f"{problem}.db"


def add_ids(problem: str, version: int, forecasts: pl.DataFrame) -> pl.DataFrame:
    """Forecasts with the columns `model_version` and `forecast_id`.

    The id is the first 16 hex digits of the SHA-256 of problem, version, series, origin, lead and the window's values.

    Args:
        forecasts: as `Forecaster.forecast` returns them.
    """
    ids = [
        hashlib.sha256(json.dumps([problem, version, series, str(origin), lead, inputs]).encode()).hexdigest()[:16]
        for series, origin, lead, inputs in forecasts.select("series", "origin", "lead", "inputs").iter_rows()
    ]
    return forecasts.with_columns(
        model_version=pl.lit(version, dtype=pl.Int64), forecast_id=pl.Series(ids, dtype=pl.String)
    )


def row_age(now: datetime) -> pl.Expr:
    """How old the newest row is that a forecast is made from.

    Args:
        now: with a time zone.
    """
    return (pl.lit(now.astimezone(UTC).replace(tzinfo=None), pl.Datetime("ms")) - pl.col("origin")).cast(
        pl.Duration("ms")
    )


def record_forecasts(problem: str, forecasts: pl.DataFrame) -> None:
    """Write forecasts with ids to the log, in one transaction. Those that are in the log already stay as they are.

    Raises:
        RecastError: the log cannot be written.
    """
    levels = [name.removeprefix("low_") for name in forecasts.columns if name.startswith("low_")]
    now = time.time_ns() // 1_000_000
    rows = [
        (
            row["forecast_id"],
            row["model_version"],
            row["series"],
            _milliseconds(row["origin"]),
            _milliseconds(row["target_time"]),
            row["lead"],
            row["forecast"],
            json.dumps({level: [row[f"low_{level}"], row[f"high_{level}"]] for level in levels}),
            row["inputs"],
            now,
        )
        for row in forecasts.iter_rows(named=True)
    ]
    FORECASTS_FOLDER.mkdir(parents=True, exist_ok=True)
    with _connect(log_file(problem)) as database, database:
        database.executemany("insert or ignore into forecasts values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)


def find_forecast(forecast_id: str, problem: str | None = None) -> dict[str, Any] | None:
    """The forecast with this id; None: it is not in a log.

    Beside the columns of `read_forecasts` it has `problem`. `made` is the time (UTC) when it was made first.

    Args:
        problem: the problem whose log is read; None: those of all problems are.

    Raises:
        RecastError: it is in none of the logs that can be read, and another log cannot be read.
    """
    unreadable: RecastError | None = None
    for file in sorted(FORECASTS_FOLDER.glob("*.db")) if problem is None else [log_file(problem)]:
        try:
            forecasts = _select(file, "forecast_id = ?", (forecast_id,))
        except RecastError as error:
            unreadable = error
            continue
        if forecasts.height:
            return {"problem": file.stem, **forecasts.row(0, named=True)}
    if unreadable is not None:
        raise unreadable
    return None


def read_forecasts(problem: str) -> pl.DataFrame:
    """All forecasts of a problem, by target time.

    The columns are those of `add_ids`, and `made`. The ends of an interval, `low_<level>` and `high_<level>`, are null
    where the model version has no interval of that level.
    """
    return _select(log_file(problem), "true", ())


def forecasts_of_version(problem: str, version: int) -> pl.DataFrame:
    """The forecasts that a model version of a problem has made, as `read_forecasts` returns them."""
    return _select(log_file(problem), "model_version = ?", (version,))


def _select(file: Path, where: str, values: tuple[Any, ...]) -> pl.DataFrame:
    """The forecasts that fulfil a condition.

    Raises:
        RecastError: the file cannot be read.
    """
    columns = {
        "forecast_id": pl.String,
        "model_version": pl.Int64,
        "series": pl.String,
        "origin": pl.Int64,
        "target_time": pl.Int64,
        "lead": pl.String,
        "forecast": pl.Float64,
        "intervals": pl.String,
        "inputs": pl.String,
        "made": pl.Int64,
    }
    rows: list[Any] = []
    if file.exists():
        # The names of the columns and the condition are not input.
        query = f"select {', '.join(columns)} from forecasts where {where} order by target_time, series, origin, made"
        with _connect(file) as database:
            rows = database.execute(query, values).fetchall()
    frame = pl.DataFrame(rows, schema=columns, orient="row")
    intervals = [json.loads(text) for text in frame["intervals"]]
    levels = sorted({level for by_level in intervals for level in by_level}, key=float)
    ends = [
        pl.Series(
            f"{end}_{level}",
            [by_level[level][i] if level in by_level else None for by_level in intervals],
            pl.Float64,
        )
        for level in levels
        for i, end in enumerate(("low", "high"))
    ]
    times = pl.col("origin", "target_time", "made").cast(_MILLISECONDS)
    return frame.drop("intervals").with_columns(times, *ends)


@contextmanager
def _connect(file: Path) -> Iterator[sqlite3.Connection]:
    """The database in a file, which is created if it does not exist. Many may read it while one process writes.

    Raises:
        RecastError: the file, or the block, meets an error of SQLite or of the disk.
    """
    try:
        with (
            explain_disk_errors(file.parent),
            closing(sqlite3.connect(file, timeout=LOCK_WAIT_SECONDS)) as database,
        ):
            database.execute("pragma journal_mode = wal")
            # In WAL mode a power failure can lose the last forecasts, but no others.
            database.execute("pragma synchronous = normal")
            database.executescript(_SCHEMA)
            yield database
    except sqlite3.Error as error:
        fix = "restore it from a backup, or move it elsewhere"
        if is_locked(error):
            fix = f"wait for {list_holders(file) or 'the process that writes to it'}, or end it; then try again"
        raise RecastError(f"{file}: the log of forecasts cannot be used: {error}; {fix}") from error


def _milliseconds(time_: datetime) -> int:
    """A time as milliseconds since 1970 in UTC."""
    naive = time_.astimezone(UTC).replace(tzinfo=None) if time_.tzinfo else time_
    return round((naive - _EPOCH).total_seconds() * 1000)
