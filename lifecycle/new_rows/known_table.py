"""The table of the known rows, with which the contract compares new rows."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl

from lifecycle.new_rows.increment_table import read_increment_table
from problems.files.raw_store import INCREMENTS_FOLDER, list_increments, list_stored_files
from problems.growing_source import GrowingSource
from problems.problem import Problem
from stages.ingest import ingest
from stages.tables.ingested import QUALITY_FILE, TABLE_FILE, read_quality
from stages.tables.quality import hash_raw_files, hash_reading_settings
from stages.tables.tabulation import thin_table

DAY = timedelta(days=1)

SEASON = timedelta(days=15)
"""Known rows belong to the season of new rows if they are at most so many days of the year before or after them."""

NEW_COLUMN = "__new__"
"""The column of a joined table that marks the new rows."""


@dataclass(frozen=True)
class KnownTable:
    """The rows with which new rows are compared.

    Attributes:
        ingested: as `ingest` has written them.
        first: these are the first new rows; there may be any gap between the rows that the store began with and them.
        since: the rows of the increments that were accepted since, as `ingest` would write them but for thinning; of
            several rows with the same series and time, the one that counts. None: there are none.
    """

    ingested: pl.LazyFrame
    cadence: timedelta
    first: bool
    since: pl.DataFrame | None = None

    @property
    def table(self) -> pl.LazyFrame:
        """All known rows, sorted by series and time."""
        if self.since is None:
            return self.ingested
        return join_marked(self.ingested, self.since).drop(NEW_COLUMN)

    def with_rows(self, rows: pl.DataFrame | None) -> "KnownTable":
        """This table with further rows, which replace those of the same series and time."""
        parts = [part for part in (self.since, rows) if part is not None]
        return replace(self, since=_keep_last(parts) if parts else None)

    def read_newest(self, count: int, thin: bool) -> pl.DataFrame:
        """Read the last rows of each series, as `ingest` would write them now.

        Args:
            count: how many of each series; where rows were added since it was ingested, there may be more.
            thin: rows may come more often than the cadence, and have to be thinned.
        """
        ingested = self.ingested.group_by("series", maintain_order=True).tail(count).collect(engine="streaming")
        if self.since is None:
            return ingested
        # Rows that came late, to times before these, would be a stretch of their own.
        begin = ingested.group_by("series").agg(pl.col("time").min().alias("begin"))
        later = self.since.join(begin, on="series", how="left").filter(
            (pl.col("time") >= pl.col("begin")).fill_null(True)
        )
        joined = join_marked(ingested.lazy(), later.drop("begin")).drop(NEW_COLUMN)
        return (thin_table(joined, self.cadence) if thin else joined).collect()

    def read_last_times(self, problem: Problem) -> dict[str, datetime]:
        """Read the time of each series' last row that holds a value which was not known in advance."""
        measured = [name for name in problem.table.features if name not in problem.table.known]
        parts = [self.ingested, *([] if self.since is None else [self.since.lazy()])]
        times: dict[str, datetime] = {}
        for part in parts:
            if problem.table.known:
                part = part.filter(pl.any_horizontal(pl.col(measured).is_not_null()))
            last = part.group_by("series").agg(pl.col("time").max()).collect(engine="streaming")
            for series, time in last.iter_rows():
                times[series] = max(time, times.get(series, time))
        return times


@contextmanager
def open_known_table(problem: Problem, store: Path, ingested: Path) -> Iterator[KnownTable]:
    """Open the table that was ingested, with the increments that were accepted since.

    If the store or the settings have changed in another way, everything is ingested again, into a temporary folder that
    exists until the block ends.
    """
    with tempfile.TemporaryDirectory() as name:
        if not _is_current(problem, store, ingested):
            ingested = Path(name) / "ingest"
            ingest(problem, store, ingested)
        yield read_known_table(problem, store, ingested)


def read_known_table(problem: Problem, store: Path, ingested: Path) -> KnownTable:
    """The table that was ingested, with the increments that were accepted since.

    Raises:
        RecastError: an increment cannot be read, or the report of the table is damaged.
    """
    increments = list_increments(store / INCREMENTS_FOLDER)
    quality = read_quality(ingested)
    known = KnownTable(
        pl.scan_parquet(ingested / TABLE_FILE), timedelta(seconds=quality["cadence_seconds"]), first=not increments
    )
    added = [file for file in increments if f"{INCREMENTS_FOLDER}/{file.name}" not in quality["files"]]
    if not added or not isinstance(problem.source, GrowingSource):
        return known
    return known.with_rows(_keep_last([read_increment_table(problem.source, file, problem) for file in added]))


def _keep_last(parts: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """The rows of several tables; of those with the same series and time, the one of the last table."""
    return pl.concat(parts).unique(["series", "time"], keep="last", maintain_order=True).sort("series", "time")


def _is_current(problem: Problem, store: Path, ingested: Path) -> bool:
    """Whether only increments were added to the store since it was ingested, and the settings are still the same."""
    if not (ingested / QUALITY_FILE).exists():
        return False
    quality = read_quality(ingested)
    if quality.get("settings") != hash_reading_settings(problem):
        return False
    if not store.is_dir() or not list_stored_files(store):
        # There is nothing that could be ingested again: the table may have come from another machine.
        return True
    then, now = quality["files"], hash_raw_files(store)
    added = now.keys() - then.keys()
    return then.items() <= now.items() and all(name.startswith(f"{INCREMENTS_FOLDER}/") for name in added)


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
