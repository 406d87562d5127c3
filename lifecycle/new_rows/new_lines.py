"""Which lines of the files that have come are new: found by comparing their rows with the rows that are known."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from lifecycle.new_rows.arrived_file import FILE_COLUMN, LINE_COLUMN, LOCAL_COLUMN, RAW_COLUMN, ArrivedFile, read_values
from lifecycle.new_rows.known_rows import KEY_COLUMNS, known_rows_at, last_times
from problems.files.raw_store import list_increments
from problems.growing_source import GrowingSource
from problems.problem import Problem
from problems.source import Rows
from project import paths


@dataclass(frozen=True)
class NewLines:
    """What is new in the files that have the same head.

    Attributes:
        lines: the numbers of the new lines in each of the files, counted from 0
        corrected, late, known, first, last: see `lifecycle.new_rows.quarantine.Arrival`
    """

    files: list[ArrivedFile]
    lines: list[list[int]]
    corrected: int
    late: int
    known: int
    first: Any
    last: Any


def find_new_lines(
    arrived: Sequence[ArrivedFile], problem: Problem, source: GrowingSource, store: Path, scratch: Path
) -> NewLines | None:
    """Find the rows that are not known yet, of the first file that has any and of those with the same columns."""
    if not arrived:
        return None
    features = list(problem.table.features)
    rows = pl.concat(
        [
            file.read_rows(problem, source, scratch).with_columns(pl.lit(i, pl.Int32).alias(FILE_COLUMN))
            for i, file in enumerate(arrived)
        ]
    )
    # Of several rows with one time the last one counts, as it does when they come one by one.
    has_no_key = pl.any_horizontal(pl.col(KEY_COLUMNS).is_null())
    placed = rows.filter(~has_no_key).unique(KEY_COLUMNS, keep="last", maintain_order=True)
    unreadable = rows.filter(has_no_key).unique(RAW_COLUMN, keep="last", maintain_order=True)
    stored = source.read(store, scratch)
    known = known_rows_at(placed, problem, stored)
    new = placed.join(known, on=[*KEY_COLUMNS, *features], how="anti", nulls_equal=True)
    new = pl.concat([new, unreadable]).sort(FILE_COLUMN, LINE_COLUMN)
    for increment in list_increments(paths.quarantine_folder(store.name)):
        texts = read_values(source.read_increment(increment, scratch), problem).select(RAW_COLUMN).collect()
        new = new.join(texts, on=RAW_COLUMN, how="anti")
    if new.is_empty():
        return None
    new = _add_rows_of_same_hour(new, rows, stored)
    head = arrived[new[FILE_COLUMN][0]].head
    same_head = [i for i, file in enumerate(arrived) if file.head == head]
    new = new.filter(pl.col(FILE_COLUMN).is_in(same_head))
    added = new.join(known, on=KEY_COLUMNS, how="anti")
    late = added.join(last_times(source.read(store, scratch)), on="series").filter(pl.col("time") < pl.col("last"))
    return NewLines(
        files=[arrived[i] for i in same_head],
        lines=[new.filter(pl.col(FILE_COLUMN) == i)[LINE_COLUMN].to_list() for i in same_head],
        corrected=new.height - added.height,
        late=late.height,
        known=sum(arrived[i].lines for i in same_head) - new.height,
        first=new["time"].min(),
        last=new["time"].max(),
    )


def _add_rows_of_same_hour(new: pl.DataFrame, rows: pl.DataFrame, stored: Rows) -> pl.DataFrame:
    """Add to new rows of an hour that the clock has shown twice the other rows of that hour, known or not.

    Their order tells which of the two hours a row belongs to.
    """
    if stored.time_zone is None or stored.repeated_hour != "in order":
        return new
    local = pl.col(LOCAL_COLUMN)
    is_repeated = local.dt.replace_time_zone(stored.time_zone, ambiguous="null", non_existent="null").is_null()
    hours = new.filter(local.is_not_null() & is_repeated).select(FILE_COLUMN, "series", LOCAL_COLUMN)
    same_hour = rows.join(hours, on=[FILE_COLUMN, "series", LOCAL_COLUMN], how="semi")
    return pl.concat([new, same_hour]).unique([FILE_COLUMN, LINE_COLUMN]).sort(FILE_COLUMN, LINE_COLUMN)
