"""The table of the known rows, with which the contract compares new rows."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl

from lifecycle.new_rows.increment_table import read_increment_table
from problems.files.raw_store import INCREMENTS_FOLDER, list_increments
from problems.growing_source import GrowingSource
from problems.problem import Problem
from stages.ingest import ingest
from stages.tables.ingested import QUALITY_FILE, TABLE_FILE, read_quality
from stages.tables.quality import hash_raw_files, hash_reading_settings

DAY = timedelta(days=1)

SEASON = timedelta(days=15)
"""Known rows belong to the season of new rows if they are at most so many days of the year before or after them."""

NEW_COLUMN = "__new__"
"""The column of a joined table that marks the new rows."""


@dataclass(frozen=True)
class KnownTable:
    """The rows with which new rows are compared.

    Attributes:
        table: as `ingest` writes it.
        first: these are the first new rows; there may be any gap between the rows that the store began with and them.
    """

    table: pl.LazyFrame
    cadence: timedelta
    first: bool


@contextmanager
def open_known_table(problem: Problem, source: GrowingSource, store: Path, ingested: Path) -> Iterator[KnownTable]:
    """Open the table that was ingested, with the increments that were accepted since.

    If the store or the settings have changed in another way, everything is ingested again, into a temporary folder that
    exists until the block ends.
    """
    increments = list_increments(store / INCREMENTS_FOLDER)
    with tempfile.TemporaryDirectory() as name:
        if not _is_current(problem, store, ingested):
            ingested = Path(name) / "ingest"
            ingest(problem, store, ingested)
        quality = read_quality(ingested)
        table = pl.scan_parquet(ingested / TABLE_FILE)
        for file in increments:
            if f"{INCREMENTS_FOLDER}/{file.name}" not in quality["files"]:
                rows = read_increment_table(source, file, problem)
                table = join_marked(table, rows).drop(NEW_COLUMN)
        yield KnownTable(table, timedelta(seconds=quality["cadence_seconds"]), first=not increments)


def _is_current(problem: Problem, store: Path, ingested: Path) -> bool:
    """Whether only increments were added to the store since it was ingested, and the settings are still the same."""
    if not (ingested / QUALITY_FILE).exists():
        return False
    quality = read_quality(ingested)
    then, now = quality["files"], hash_raw_files(store)
    added = now.keys() - then.keys()
    return (
        then.items() <= now.items()
        and all(name.startswith(f"{INCREMENTS_FOLDER}/") for name in added)
        and quality.get("settings") == hash_reading_settings(problem)
    )


def join_marked(known: pl.LazyFrame, new: pl.DataFrame) -> pl.LazyFrame:
    """Join known and new rows. The new ones are marked, and replace the known rows that they correct."""
    marked = new.lazy().with_columns(pl.lit(True).alias(NEW_COLUMN))
    others = known.join(new.lazy().select("series", "time"), on=["series", "time"], how="anti")
    others = others.with_columns(pl.lit(False).alias(NEW_COLUMN))
    return pl.concat([others, marked], how="diagonal").sort("series", "time")


def time_range(times: pl.Series) -> tuple[datetime, datetime]:
    """The first and the last of some times, of which there is at least one.

    Raises:
        TypeError: they are not times.
    """
    first, last = times.min(), times.max()
    if not isinstance(first, datetime) or not isinstance(last, datetime):
        raise TypeError(f"{times.name}: {len(times)} values of type {times.dtype} are not times")
    return first, last


def format_length(duration: timedelta) -> str:
    """Write a duration in hours or days, with one decimal."""
    return f"{duration / DAY:.1f} d" if duration >= 2 * DAY else f"{duration / timedelta(hours=1):.1f} h"


def select_season(known: pl.LazyFrame, series: Any, times: pl.Series) -> pl.LazyFrame:
    """Select the known rows of a series at the same time of the year as `times`, without those from first to last."""
    first, last = time_range(times)
    middle = first + (last - first) / 2
    reach = SEASON + (last - first) / 2
    rows = known.filter((pl.col("series") == series) & ~pl.col("time").is_between(first, last))
    if reach >= timedelta(days=182):
        return rows
    days_apart = (pl.col("time").dt.ordinal_day().cast(pl.Int32) - middle.timetuple().tm_yday + 365 + 182) % 365 - 182
    return rows.filter(days_apart.abs() <= reach / DAY)
