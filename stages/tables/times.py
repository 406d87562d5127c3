"""The times of a source's rows as Polars expressions: every way in which a time may be written, brought to UTC."""

import re
from dataclasses import replace
from datetime import datetime
from functools import cache
from typing import Literal

import polars as pl

from problems.source import AGE_COLUMN, EPOCHS, Rows
from stages.tables.cells import parse_series

_IS_SECOND_HOUR, _ROW = "__again__", "__row__"

_ISO_8601 = ("%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M", "%Y-%m-%d %H:%M")
"""How a time may be written where `time_format` is not set; a date alone means its midnight."""

_SHORTENED = ((r"^(.{10}[Tt ]\d\d:\d\d) ?([-+Zz])", "${1}:00${2}"), (r"(:[\d.]+ ?[-+]\d\d)$", "${1}:00"))
"""A time with a zone may leave out the seconds and the zone's minutes: 2020-01-01T00:00Z, 2020-01-01 00:00:00+01."""

_WHOLE_SECONDS = ("%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M:%S")
_WITH_ZONE = ("%Y-%m-%dT%H:%M:%S%.f%#z", "%Y-%m-%d %H:%M:%S%.f%#z")


@cache
def _time_limits() -> tuple[pl.Expr, pl.Expr]:
    """Times outside are not read: not all parts of the software know other years. A day is left for the time zones.

    They are kept, because Polars takes a millisecond to make an expression of a time. It must not do so on import: it
    starts threads for it, which a process that is forked later would not have.
    """
    return pl.lit(datetime(1, 1, 2)), pl.lit(datetime(9999, 12, 30))


def parse_time(rows: Rows) -> pl.Expr:
    """The time of a row in UTC; null where it cannot be read, or where the clock showed it twice or never."""
    return pl.coalesce(parse_written_times(rows)[0], _convert_local_time(rows))


def parse_written_times(rows: Rows) -> tuple[pl.Expr, pl.Expr]:
    """The time of a row as it is written; null where it cannot be read.

    Returns:
        The time in UTC where the cell names a time zone, else null; and the time that the local clock showed where the
        cell names none, else null.
    """
    zoned, local = _parse_any_time(rows)
    return _leave_out_far_times(zoned), _leave_out_far_times(local)


def _parse_any_time(rows: Rows) -> tuple[pl.Expr, pl.Expr]:
    """The two times of `parse_written_times`, of any year."""
    dtype, column = rows.frame.collect_schema()[rows.time], pl.col(rows.time)
    never = pl.lit(None, pl.Datetime("ms"))
    if rows.time_format in EPOCHS:
        ticks = column.cast(pl.Float64, strict=False) * EPOCHS[rows.time_format]
        return ticks.round().cast(pl.Int64, strict=False).cast(pl.Datetime("ms")), never
    if isinstance(dtype, pl.Datetime) and dtype.time_zone:
        return _drop_zone(column), never
    if dtype in (pl.Date, pl.Datetime):
        return never, column.cast(pl.Datetime("ms"))
    text = column.cast(pl.String).str.strip_chars()
    if rows.time_format is None:
        local = [text.str.to_datetime(form, strict=False, time_unit="ms") for form in _ISO_8601]
        local.append(text.str.to_date("%Y-%m-%d", strict=False).cast(pl.Datetime("ms")))
        for shortened, whole in _SHORTENED:
            text = text.str.replace(shortened, whole)
        return _drop_zone(text.str.to_datetime("%+", strict=False, time_unit="ms")), pl.coalesce(local)
    if re.search("%(:|#)?z", rows.time_format):
        return _drop_zone(text.str.to_datetime(rows.time_format, strict=False, time_unit="ms")), never
    # A format without an hour describes dates. Polars refuses a format that has an hour but no minute.
    if not re.search("%[HIcsTRrX+]", rows.time_format):
        return never, text.str.to_date(rows.time_format, strict=False).cast(pl.Datetime("ms"))
    if not re.search("%[McsTRrX+]", rows.time_format):
        return never, (text + " 0").str.to_datetime(f"{rows.time_format} %M", strict=False, time_unit="ms")
    return never, text.str.to_datetime(rows.time_format, strict=False, time_unit="ms")


def _leave_out_far_times(time: pl.Expr) -> pl.Expr:
    return pl.when(time.is_between(*_time_limits())).then(time)


def _drop_zone(time: pl.Expr) -> pl.Expr:
    """A time with a zone, as UTC without a zone."""
    return time.dt.convert_time_zone("UTC").dt.replace_time_zone(None).cast(pl.Datetime("ms"))


def _convert_local_time(rows: Rows) -> pl.Expr:
    """The local time in UTC.

    Null where the clock never showed it, and where the clock showed it twice unless the rows' order tells which is
    meant.
    """
    _, local = parse_written_times(rows)
    if rows.time_zone is None:
        return local
    ambiguous: pl.Expr | Literal["null"] = "null"
    if rows.repeated_hour == "in order":
        ambiguous = pl.when(_is_second_hour(rows)).then(pl.lit("latest")).otherwise(pl.lit("earliest"))
    return _drop_zone(local.dt.replace_time_zone(rows.time_zone, ambiguous=ambiguous, non_existent="null"))


def _is_second_hour(rows: Rows) -> pl.Expr:
    """Whether an earlier row has the same local time."""
    schema, (_, local) = rows.frame.collect_schema(), parse_written_times(rows)
    if _IS_SECOND_HOUR in schema:
        return pl.col(_IS_SECOND_HOUR)
    return local.cum_count().over(parse_series(rows), local, *([AGE_COLUMN] if AGE_COLUMN in schema else [])) > 1


def mark_repeated_hours(rows: Rows) -> Rows:
    """Mark the rows of the second of two equal hours, where the order of the rows tells the two apart.

    Only the few rows of such hours are held in memory for this; `_is_second_hour` alone would have to hold all rows.
    """
    if rows.time_zone is None or rows.repeated_hour != "in order":
        return rows
    _, local = parse_written_times(rows)
    without_ambiguous, with_ambiguous = (
        local.dt.replace_time_zone(rows.time_zone, ambiguous=ambiguous, non_existent="null")
        for ambiguous in ("null", "earliest")
    )
    numbered = rows.frame.with_row_index(_ROW)
    repeated = replace(rows, frame=numbered.filter(without_ambiguous.is_null() & with_ambiguous.is_not_null()))
    second = repeated.frame.filter(_is_second_hour(repeated)).select(_ROW).collect(engine="streaming")[_ROW]
    marked = numbered.with_columns(pl.col(_ROW).is_in(second.implode()).alias(_IS_SECOND_HOUR)).drop(_ROW)
    return replace(rows, frame=marked)


def detect_time_format(rows: Rows) -> Rows:
    """The rows with the form of ISO 8601 that reads their first time as `time_format`.

    The rows stay as they are where no form reads it, or where their format is known.

    No text fits two of these forms with different meanings, so a form that reads every time is the right one. Trying
    all forms on every row would take longer than everything else.
    """
    if rows.time_format is not None or rows.frame.collect_schema()[rows.time] != pl.String:
        return rows
    first = rows.frame.select(rows.time).head(1).collect().lazy()
    for form in (*_WHOLE_SECONDS, *_ISO_8601, "%Y-%m-%d", *_WITH_ZONE):
        parsed = parse_written_times(replace(rows, frame=first, time_format=form))
        if not first.select(pl.coalesce(parsed).is_null().all()).collect().item():
            return replace(rows, time_format=form)
    return rows
