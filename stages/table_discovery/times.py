"""The column of a file's times, or the columns that a time is spread over, and the format that reads them."""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import polars as pl

from problems.errors import RecastError
from problems.source import EPOCHS, Rows
from problems.wording import list_names
from stages.table_discovery.text import list_text_columns
from stages.tables.times import parse_written_times

_DATES = """%Y-%m-%d|%Y/%m/%d|%d.%m.%Y|%d/%m/%Y|%m/%d/%Y|%d-%m-%Y|%m-%d-%Y|%Y%m%d|%d %b %Y|%b %d %Y|%b %d, %Y|%d-%b-%Y
|%d.%m.%y|%d/%m/%y|%m/%d/%y""".replace("\n", "").split("|")
_CLOCKS = ["", "%H%M", "%H%M%S", "T%H:%M:%S", "T%H:%M", ":%H%M"]
_CLOCKS += [" %H:%M:%S", " %H:%M", " %H", " %H:%M:%S%.f", " %I:%M %p", " %I:%M:%S %p"]

FORMATS: tuple[str | None, ...] = (None, *(date + clock for clock in _CLOCKS for date in _DATES))
"""The formats of times that are tried; None: ISO 8601."""

TIME_PARTS = {"year": "%Y", "month": "%m", "day": "%d", "hour": "%H", "minute": "%M", "second": "%S"}
"""The columns that a time is often spread over, by their names."""

TIME_NAMES = re.compile(r"time|date|stamp|epoch|zeit|datum|heure|fecha|day|hour", re.IGNORECASE)
"""Columns with such names may hold times even if they hold numbers."""

EPOCH_SECONDS = (5e8, 4e9)
"""Numbers that may be seconds since 1970: from 1985 to 2096."""

YEARS = (1600, 2200)
"""Years of observations. A format for years of four digits also reads two digits, as a year long ago."""


@dataclass(frozen=True)
class TimeFormat:
    """A format that reads a column's times.

    Attributes:
        written_as: the format; None: ISO 8601, or the column holds times already.
        moments: the times that it reads.
        regularity: the share of the most frequent step among the steps between the times.
    """

    written_as: str | None
    moments: pl.Series
    regularity: float

    @classmethod
    def measure(cls, written_as: str | None, moments: pl.Series) -> Self:
        """The format with the regularity of the times that it reads."""
        steps = moments.drop_nulls().unique().sort().diff().drop_nulls()
        most_common = Counter(steps.to_list()).most_common(1)
        return cls(written_as, moments, most_common[0][1] / len(steps) if most_common else 0.0)

    @property
    def has_dates_only(self) -> bool:
        """Whether every time is a midnight."""
        return bool((self.moments.dt.truncate("1d") == self.moments).all())


def find_time(
    file: Path,
    sample: pl.DataFrame,
    numbers: Mapping[str, pl.Series],
    named: Sequence[str],
    questions: list[str],
    describe_place: Callable[[int], str],
) -> dict[str, Any]:
    """The column of the time or the columns that it is spread over, and its format, as settings of the source.

    Args:
        numbers: columns of numbers, which hold times only if their name says so.
        named: the columns that the user has named; none: find them.
        questions: what could not be decided for certain is added to them.
        describe_place: the place of a row of the sample, for messages.

    Raises:
        RecastError: no column holds times.
    """
    has_time_name = {name: TIME_NAMES.search(name) is not None for name in sample.columns}
    candidates = sorted(
        (name for name in sample.columns if has_time_name[name] or name not in numbers),
        key=lambda name: not has_time_name[name],
    )
    clocks = _find_clocks(sample, numbers)
    if len(named) == 2:
        candidates, clocks = [named[0]], [named[1]]
    elif named:
        candidates, clocks = [*named], []
    for name in candidates:
        if name in clocks or not (formats := find_formats(sample.select(t=pl.col(name)))):
            continue
        if formats[0].has_dates_only and clocks:
            joined = find_formats(sample.select(t=pl.concat_str([name, clocks[0]], separator=" ")))
            if not joined:
                raise RecastError(
                    f"{file}: {name!r} holds a date and {clocks[0]!r} a time of day, but not all of them can be read "
                    "together (24:00 is not a time); fix the file, or name the column of the time with --time"
                )
            return {"time": [name, clocks[0]], **_choose_format(f"{name} {clocks[0]}", joined, questions)}
        return {"time": name, **_choose_format(name, formats, questions)}
    columns = {name.lower(): name for name in sample.columns}
    parts = [part for part in TIME_PARTS if part in columns]
    if not named and len(parts) >= 3 and parts == [*TIME_PARTS][: len(parts)]:
        spread, written_as = [columns[part] for part in parts], " ".join(TIME_PARTS[part] for part in parts)
        if not parse_moments(sample.select(t=pl.concat_str(spread, separator=" ")), written_as).null_count():
            return {"time": spread, "time_format": written_as}
    _check_few_unreadable(sample, candidates, describe_place)
    raise RecastError(
        f"{file}: no column holds times that can be read in all of its first {sample.height:,} rows; the columns are "
        f"{list_names(sample.columns)}. A year or a month alone is not a time, because years and months differ in "
        "length. If a column does hold times, write the section by hand and give their format in source.time_format"
    )


def _find_clocks(sample: pl.DataFrame, numbers: Mapping[str, pl.Series]) -> list[str]:
    """The columns that may hold a time of day."""
    clocks = [
        name
        for name, cells in list_text_columns(sample)
        if len(cells) and cells.str.contains(r"^[0-9]{1,2}:[0-9]{2}(:[0-9]{2})?$").all()
    ]
    clocks += [
        name
        for name, values in numbers.items()
        if name.lower() in ("hour", "hr") and values.is_between(0, 23).all() and (values == values.floor()).all()
    ]
    return clocks


def _check_few_unreadable(
    sample: pl.DataFrame, candidates: Sequence[str], describe_place: Callable[[int], str]
) -> None:
    """Name the first unreadable cell of a column that otherwise holds times.

    Raises:
        RecastError: there is such a column.
    """
    for name, cells in list_text_columns(sample.select(candidates)):
        first = cells.drop_nulls().head(100).to_frame("t")
        counts = first.select(_read_moment(first, form).count().alias(str(form)) for form in FORMATS)
        readable = {form: counts[str(form)].item() for form in FORMATS}
        best = max(readable, key=lambda form: readable[form])
        if readable[best] > len(first) / 2:
            moments = parse_moments(sample.select(t=pl.col(name)), best)
            row = moments.is_null().arg_true()[0]
            value = sample[name][row]
            fault = "is empty" if value is None else f"holds {value!r}"
            form = f"written as {best}" if best else "in ISO 8601"
            raise RecastError(
                f"{describe_place(row)}: column {name!r} {fault}, and most of its other cells hold a time {form} "
                f"({moments.null_count():,} of the first {sample.height:,} do not); fix or delete the row"
            )


def find_formats(cells: pl.DataFrame) -> list[TimeFormat]:
    """The formats that read every cell of the column `t`, the one that makes the steps most regular first."""
    dtype = cells["t"].dtype
    if dtype in (pl.Date, pl.Datetime):
        return [TimeFormat.measure(None, cells["t"].cast(pl.Datetime("ms")))]
    if not (dtype == pl.String or dtype.is_numeric()) or cells["t"].null_count():
        return []
    candidates: list[str | None] = [*FORMATS] if dtype == pl.String or dtype.is_integer() else []
    if dtype != pl.String:
        candidates = [form for form in candidates if form is not None]
    number = cells["t"].cast(pl.Float64, strict=False)
    for name, milliseconds in EPOCHS.items():
        low, high = (bound * 1000 / milliseconds for bound in EPOCH_SECONDS)
        if number.is_between(low, high).fill_null(False).all():
            candidates.append(name)
    few = cells.head(20)
    # At once: most formats are wrong, and a query takes longer than reading 20 cells.
    unread = few.select(_read_moment(few, form).null_count().alias(str(form)) for form in candidates)
    candidates = [form for form in candidates if not unread[str(form)].item()]
    formats = [
        TimeFormat.measure(form, moments)
        for form in candidates
        if not (moments := parse_moments(cells, form)).null_count()
    ]
    return sorted(formats, key=lambda form: -form.regularity)


def parse_moments(cells: pl.DataFrame, written_as: str | None) -> pl.Series:
    """The times that a format reads; null where it reads none, or a year in which nobody observed anything."""
    return cells.select(_read_moment(cells, written_as)).to_series()


def _read_moment(cells: pl.DataFrame, written_as: str | None) -> pl.Expr:
    """The time of a row, as in `parse_moments`."""
    zoned, local = parse_written_times(Rows(cells.lazy(), "t", written_as))
    moment = pl.coalesce(zoned, local)
    return pl.when(moment.dt.year().is_between(*YEARS)).then(moment)


def _choose_format(name: str, formats: Sequence[TimeFormat], questions: list[str]) -> dict[str, Any]:
    """The format with the most regular steps; a question if another one reads other times that are as regular."""
    best, *others = formats
    if best.written_as is None:
        return {}
    if rivals := [
        str(form.written_as)
        for form in others
        if form.regularity == best.regularity and not form.moments.equals(best.moments)
    ]:
        questions.append(f"Is {name!r} written as {best.written_as}, or as {' or '.join(rivals)}? (source.time_format)")
    return {"time_format": best.written_as}
