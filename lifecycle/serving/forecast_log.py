"""Every forecast that was made, by its id: one SQLite file a problem, which the service, flows and people read.

A forecast's id is a hash of what it was made by and from, so that the same window and model version have the same id,
and a forecast that is made twice stands here once.
"""

import hashlib
import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

FOLDER = Path("data/forecasts")
PATIENCE_SECONDS = 30
"""How long a writer waits for another."""

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


def file_of(problem: str) -> Path:
    """Where the forecasts of a problem stand."""
    return FOLDER / f"{problem}.db"


def identified(problem: str, version: int, forecasts: pl.DataFrame) -> pl.DataFrame:
    """Forecasts, as `Forecaster.forecast` gives them, with `model_version` and `forecast_id`.

    The id is the first 16 hex digits of the SHA-256 of problem, version, series, origin, lead and the window's values.
    """
    ids = [
        hashlib.sha256(json.dumps([problem, version, series, str(origin), lead, inputs]).encode()).hexdigest()[:16]
        for series, origin, lead, inputs in forecasts.select("series", "origin", "lead", "inputs").iter_rows()
    ]
    return forecasts.with_columns(
        model_version=pl.lit(version, dtype=pl.Int64), forecast_id=pl.Series(ids, dtype=pl.String)
    )


def record(problem: str, forecasts: pl.DataFrame) -> None:
    """Write forecasts that have an id down, in one transaction; those that stand there already stay as they are."""
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
    FOLDER.mkdir(parents=True, exist_ok=True)
    with _opened(file_of(problem)) as database, database:
        database.executemany("insert or ignore into forecasts values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)


def find(forecast_id: str) -> dict[str, Any] | None:
    """A forecast by its id, of whatever problem, with `problem` and `made`, when it was first made (UTC); None: none.

    Intervals are `low_<level>` and `high_<level>`.
    """
    for file in sorted(FOLDER.glob("*.db")):
        found = _selected(file, "forecast_id = ?", (forecast_id,))
        if found.height:
            return {"problem": file.stem, **found.row(0, named=True)}
    return None


def between(problem: str, first: datetime, last: datetime) -> pl.DataFrame:
    """The forecasts of what happens from `first` (UTC) up to, not including, `last`, by target time.

    Columns are those of `identified`, and `made`; an interval is null where the version had none of that level.
    """
    bounds = (_milliseconds(first), _milliseconds(last))
    return _selected(file_of(problem), "target_time >= ? and target_time < ?", bounds)


def of_version(problem: str, version: int) -> pl.DataFrame:
    """The forecasts that a version of a problem's model has made, as `between` gives them."""
    return _selected(file_of(problem), "model_version = ?", (version,))


def _selected(file: Path, where: str, values: tuple[Any, ...]) -> pl.DataFrame:
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
        with _opened(file) as database:
            # The names of columns and the condition are ours.
            query = (
                f"select {', '.join(columns)} from forecasts where {where} order by target_time, series, origin, made"
            )
            rows = database.execute(query, values).fetchall()
    frame = pl.DataFrame(rows, schema=columns, orient="row")
    intervals = [json.loads(each) for each in frame["intervals"]]
    levels = sorted({level for each in intervals for level in each}, key=float)
    ends = [
        pl.Series(f"{end}_{level}", [each[level][place] if level in each else None for each in intervals], pl.Float64)
        for level in levels
        for place, end in enumerate(("low", "high"))
    ]
    moments = pl.col("origin", "target_time", "made").cast(_MILLISECONDS)
    return frame.drop("intervals").with_columns(moments, *ends)


@contextmanager
def _opened(file: Path) -> Iterator[sqlite3.Connection]:
    """The database of a problem, created where there is none; many may read while one writes."""
    database = sqlite3.connect(file, timeout=PATIENCE_SECONDS)
    try:
        database.execute("pragma journal_mode = wal")
        # In WAL mode a power failure may cost the last forecasts, and no more.
        database.execute("pragma synchronous = normal")
        database.executescript(_SCHEMA)
        yield database
    finally:
        database.close()


def _milliseconds(moment: datetime) -> int:
    """Since 1970, UTC."""
    naive = moment.astimezone(UTC).replace(tzinfo=None) if moment.tzinfo else moment
    return round((naive - _EPOCH).total_seconds() * 1000)
