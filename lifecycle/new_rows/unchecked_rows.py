"""Rows that nothing checks: those that were added to the files of `source.path` itself."""

import tempfile
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import polars as pl

from lifecycle.new_rows.known_table import read_known_table, time_range
from problems.files.raw_store import INCREMENTS_FOLDER
from problems.problem import Problem
from stages.ingest import ingest
from stages.tables.ingested import QUALITY_FILE, TABLE_FILE, read_quality
from stages.tables.quality import hash_raw_files, hash_reading_settings


@dataclass(frozen=True)
class UncheckedRows:
    """Rows that the source's own files hold now and did not hold when they were ingested.

    Attributes:
        files: the names of the files that have changed.
        rows: how many rows are new, or have other values.
        first, last: the earliest and the latest of their times, in UTC.
    """

    files: tuple[str, ...]
    rows: int
    first: datetime
    last: datetime

    def describe(self, problem: str) -> str:
        """Write it for people, with what to do."""
        return (
            f"{problem}: {self.rows:,} rows from {self.first} to {self.last} were added to {', '.join(self.files)}, "
            f"which problems.{problem}.source names, or changed there. They are unchecked: the contract is applied to "
            f"rows that problems.{problem}.fresh brings. Let another file bring new rows; see docs/refresh.md"
        )


def find_unchecked_rows(problem: Problem, store: Path, ingested: Path) -> UncheckedRows | None:
    """Find the rows that were added to the source's own files since they were ingested; None: there are none.

    Rows that are read in another way because the settings have changed are not new.

    Raises:
        RecastError: the files cannot be read.
    """
    if not (ingested / QUALITY_FILE).exists():
        return None
    quality = read_quality(ingested)
    if quality.get("settings") != hash_reading_settings(problem):
        return None
    then, now = quality["files"], hash_raw_files(store)
    own = [name for name in now if not name.startswith(f"{INCREMENTS_FOLDER}/")]
    changed = tuple(name for name in own if then.get(name) != now[name])
    if not changed:
        return None
    keys = ["series", "time", *problem.table.features]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "ingest"
        ingest(problem, store, folder)
        known = read_known_table(problem, store, ingested).table.select(keys)
        added = pl.scan_parquet(folder / TABLE_FILE).join(known, on=keys, how="anti", nulls_equal=True)
        times = added.select("time").collect(engine="streaming")["time"]
    if times.is_empty():
        return None
    return UncheckedRows(changed, len(times), *time_range(times))
