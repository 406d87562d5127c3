"""The rows that are known already: those of the raw store, and the increments in quarantine."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl

from lifecycle.new_rows.arrived_file import LOCAL_COLUMN, RAW_COLUMN, read_values
from lifecycle.new_rows.quarantine import list_quarantine, read_dropped_time
from problems.growing_source import GrowingSource
from problems.problem import Problem
from problems.source import AGE_COLUMN, Rows
from stages.tables.cells import parse_series
from stages.tables.times import parse_time

KEY_COLUMNS = ("series", "time")


@dataclass(frozen=True)
class StoredRows:
    """The rows of the raw store, as `problems.growing_source.KnownRows` for a place of new rows.

    Attributes:
        scratch: a folder for files that the rows are scanned from.
    """

    source: GrowingSource
    store: Path
    scratch: Path

    def rows(self) -> Rows:
        """See `KnownRows.rows`."""
        return self.source.read(self.store, self.scratch)

    def times(self) -> pl.LazyFrame:
        """See `KnownRows.times`."""
        rows = self.rows()
        return rows.frame.select(parse_time(rows).alias("time"), pl.col(rows.time).alias("written"))

    def last_time(self, overlap: timedelta) -> Any:
        """See `KnownRows.last_time`."""
        until: Any = last_times(self.rows())["last"].min()
        first_times = [increment.arrival["first"] for increment in list_quarantine(self.store.name)]
        first_times.append(read_dropped_time(self.store.name))
        for first in filter(None, first_times):
            until = min(until, datetime.fromisoformat(first) - timedelta(milliseconds=1))
        times = self.times()
        earlier = times.filter(pl.col("time") <= until - overlap).collect(engine="streaming")
        if earlier.is_empty():
            return times.collect().sort("time")["written"][0]
        return earlier.sort("time")["written"][-1]


def known_rows_at(placed: pl.DataFrame, problem: Problem, stored: Rows) -> pl.DataFrame:
    """The rows of the raw store with the series and times of `placed`; of rows with one time, the one that counts."""
    aged = [AGE_COLUMN] if AGE_COLUMN in stored.frame.collect_schema() else []
    values = read_values(stored, problem, *aged).drop(RAW_COLUMN, LOCAL_COLUMN)
    values = values.join(placed.lazy().select(KEY_COLUMNS), on=KEY_COLUMNS, how="semi")
    values = values.collect(engine="streaming").lazy()
    if not aged:
        return values.unique(KEY_COLUMNS, keep="first", maintain_order=True).collect()
    return values.sort(*aged, maintain_order=True).unique(KEY_COLUMNS, keep="first").drop(aged).collect()


def last_times(stored: Rows) -> pl.DataFrame:
    """The last time of each series in the raw store."""
    frame = stored.frame.select(parse_time(stored).alias("time"), parse_series(stored).alias("series"))
    return frame.group_by("series").agg(pl.col("time").max().alias("last")).collect(engine="streaming")
