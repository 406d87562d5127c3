"""Checks of a source's columns and cells; every message names the file, the line and the fix."""

import math
import re
from dataclasses import dataclass
from typing import Any

import polars as pl

from problems.errors import RecastError
from problems.problem import Problem
from problems.source import AGE_COLUMN, PLACE_COLUMN, Rows
from problems.wording import list_names, shorten
from stages.tables.cells import LARGEST_NUMBER, UNDECODABLE, is_unnamed, is_wrong_number, parse_number, parse_series
from stages.tables.times import parse_time, parse_written_times


@dataclass(frozen=True)
class CellCounts:
    """What was counted in the rows that were read.

    Attributes:
        rows: all of them.
        unreadable_times: rows whose time cannot be read.
        zoned_times: rows whose time names a time zone.
        impossible_times: rows whose time is null in UTC, which includes local times that the clock showed twice or
            never.
        unnamed_series: rows without a readable name of their series.
        wrong: cells that are neither a number that fits into a table nor a missing value, by feature.
        sentinels: cells that hold a sentinel, by feature; features without sentinels are left out.
    """

    rows: int
    unreadable_times: int
    zoned_times: int
    impossible_times: int
    unnamed_series: int
    wrong: dict[str, int]
    sentinels: dict[str, int]


def check_columns(rows: Rows, features: tuple[str, ...]) -> None:
    """Check that every column that is needed exists and has a type that can be read.

    Raises:
        RecastError: a column is missing, or its type is wrong.
    """
    schema = rows.frame.collect_schema()
    columns = [name for name in schema.names() if name not in (PLACE_COLUMN, AGE_COLUMN)]
    for column in dict.fromkeys([rows.time, *([rows.series] if rows.series else []), *features]):
        if column not in schema:
            garbled = [
                name
                for name in columns
                if UNDECODABLE in name and len(name) == len(column) and _matches_garbled(name, column)
            ]
            if garbled:
                raise RecastError(
                    f"{name_first_file(rows)}: the header of column {column!r} has bytes that are not UTF-8 "
                    f"({garbled[0]!r}); save the file as UTF-8"
                )
            fix = "Correct the name in params.yaml, or the file's header"
            if len(columns) == 1 and (separator := re.search(r"[,;\t|]", columns[0])):
                fix = f"The whole header is one column: is {separator[0]!r} the separator? (source.separator)"
            raise RecastError(
                f"{name_first_file(rows)}: there is no column {column!r}; the columns are {list_names(columns)}. {fix}"
            )
    time = schema[rows.time]
    if not (time in (pl.String, pl.Date, pl.Datetime) or (time.is_numeric() and rows.time_format)):
        fix = "; if they are times, say in time_format how they are written" if time.is_numeric() else ""
        raise RecastError(f"{name_first_file(rows)}: column {rows.time!r} holds {time}, not times{fix}")
    for feature in features:
        if not (schema[feature].is_numeric() or schema[feature] in (pl.String, pl.Boolean, pl.Null)):
            raise RecastError(f"{name_first_file(rows)}: column {feature!r} holds {schema[feature]}, not numbers")


def _matches_garbled(garbled: str, column: str) -> bool:
    """Whether a header with undecodable characters agrees with a column's name in all other characters."""
    return all(a in (UNDECODABLE, b) for a, b in zip(garbled, column, strict=True))


def name_first_file(rows: Rows) -> str:
    """The file of the first row, for a message about the whole source."""
    first = rows.frame.select(PLACE_COLUMN).head(1).collect()
    return str(first.item()).rsplit(",", 1)[0] if first.height else "the file"


def refuse_wrong_cells(rows: Rows, problem: Problem, counts: CellCounts) -> None:
    """Name the first cell that cannot be in a table, if there is one.

    Raises:
        RecastError: there is one.
    """
    zoned, local = parse_written_times(rows)
    unreadable, time, unnamed = zoned.is_null() & local.is_null(), parse_time(rows), is_unnamed(parse_series(rows))
    if counts.unreadable_times:
        place, value = _find_first(rows, unreadable, rows.time)
        form = f"written as {rows.time_format}" if rows.time_format else "in ISO 8601, such as 2009-01-01 00:10:00"
        fault = "is empty" if value is None else f"holds {value!r}, which is not a time {form}"
        raise RecastError(f"{place}: column {rows.time!r} {fault}; fix or delete the row, or correct time_format")
    if rows.time_zone is None and 0 < counts.zoned_times < counts.rows:
        place, value = _find_first(rows, zoned.is_null(), rows.time)
        raise RecastError(
            f"{place}: column {rows.time!r} holds {value!r}, without a time zone, but {counts.zoned_times:,} of the "
            f"{counts.rows:,} rows have one; give the time zone of the others in time_zone"
        )
    if counts.impossible_times:
        place, value = _find_first(rows, time.is_null(), rows.time)
        shown = local.dt.replace_time_zone(rows.time_zone, ambiguous="earliest", non_existent="null")
        is_repeated = rows.frame.filter(time.is_null()).select(shown.is_not_null()).head(1).collect().item()
        fault = (
            f"occurs twice in {rows.time_zone}, because the clock was set back; with repeated_hour: in order, the row "
            "that comes first in the file is taken as the earlier one"
            if is_repeated
            else f"does not exist in {rows.time_zone}, because the clock was set forward; correct time_zone, or fix "
            "the row"
        )
        raise RecastError(
            f"{place}: column {rows.time!r} holds {value!r}, which {fault} ({counts.impossible_times:,} such rows)"
        )
    if rows.series is not None and counts.unnamed_series:
        place, value = _find_first(rows, unnamed, rows.series)
        fault = "is empty" if value is None else f"has bytes that are not UTF-8 ({value!r})"
        raise RecastError(f"{place}: column {rows.series!r}, which names the series, {fault}; fix the file")
    for feature in problem.table.features:
        if counts.wrong[feature]:
            wrong = is_wrong_number(problem, rows, feature)
            place, value = _find_first(rows, wrong, feature)
            number = rows.frame.filter(wrong).select(parse_number(rows, feature)).head(1).collect().item()
            fix = "fix the cell, or leave it empty"
            if UNDECODABLE in str(value):
                fault, fix = f"has bytes that are not UTF-8 ({value!r})", "save the file as UTF-8"
            elif number is not None and math.isfinite(number):
                fault = f"holds {value!r}, which is too large: a table holds numbers up to {LARGEST_NUMBER:.2g}"
            else:
                fault = f"holds {value!r}, which is not a finite number"
            raise RecastError(
                f"{place}: column {feature!r} {fault}; {fix} ({counts.wrong[feature]:,} such cells in this column)"
            )


def _find_first(rows: Rows, wrong: pl.Expr, column: str) -> tuple[str, Any]:
    """The place of the first wrong row, and its value in the column."""
    place, value = rows.frame.filter(wrong).select(PLACE_COLUMN, pl.col(column).alias("value")).head(1).collect().row(0)
    return place, shorten(value) if isinstance(value, str) else value
