"""What the columns of a file hold: numbers, the names of series, missing values, or nothing that can be used."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from problems.columns import RESERVED_COLUMNS
from stages.table_discovery.text import GROUPED_NUMBER, list_text_columns
from stages.table_discovery.times import TIME_PARTS
from stages.tables.cells import use_decimal_point

MISSING = (-9999.0, -9900.0, -999.9, -999.0, -99.9, -99.0, 999.0, 999.9, 9999.0, 99999.0)
"""Numbers that often stand for a missing value."""
MOST_CELLS = 0.8
"""The share of a column's cells that must be numbers for the column to be one of numbers."""
SPARSE = 0.5
"""A column with values in a smaller share of the rows would leave few windows without a gap."""
MARKERS = 3
"""Texts that may stand for a missing value in one column, at most."""
UNITS = {"celsius": "°C", "degc": "°C", "c": "°C", "fahrenheit": "°F", "degf": "°F"}


@dataclass(frozen=True)
class Column:
    """A column and its role: `time`, `series`, `number`, or the reason why it is not used."""

    name: str
    role: str


def parse_unit(column: str) -> str | None:
    """The unit that a column's name gives in brackets: temperature (celsius)."""
    match = re.search(r"[(\[]([^()\[\]]+)[)\]]\s*$", column)
    return UNITS.get(match[1].strip().lower(), match[1].strip()) if match else None


def describe_columns(columns: Sequence[Column]) -> str:
    """The columns with their roles, for a message."""
    return "; ".join(f"{column.name!r} is {column.role}" for column in columns)


def find_numbers(sample: pl.DataFrame, decimal: str) -> dict[str, pl.Series]:
    """The columns of numbers, each with the numbers that the sample holds."""
    numbers = {}
    for name in sample.columns:
        if sample[name].dtype.is_numeric():
            numbers[name] = sample[name].cast(pl.Float64).drop_nulls().drop_nans()
    for name, cells in list_text_columns(sample):
        values = cells.to_frame("t").select(_parse_text(pl.col("t"), decimal)).to_series().drop_nulls()
        if len(values) >= max(MOST_CELLS * len(cells), 1):
            numbers[name] = values
    return numbers


def find_markers(frame: pl.LazyFrame, columns: Sequence[str], decimal: str) -> dict[str, list[str]]:
    """The texts in each of these columns of text that are not numbers; a column has at most `MARKERS` + 1 of them."""

    def select_markers(name: str) -> pl.Expr:
        text = pl.col(name).str.strip_chars()
        is_marker = (text != "") & _parse_text(text, decimal).is_null()
        return text.filter(is_marker).unique().head(MARKERS + 1).implode()

    markers = frame.select(map(select_markers, columns)).collect(engine="streaming").row(0, named=True)
    return {name: sorted(texts) for name, texts in markers.items()}


def _parse_text(cells: pl.Expr, decimal: str) -> pl.Expr:
    """The numbers that the texts are; null where one is not a number."""
    return (cells if decimal == "." else use_decimal_point(cells, decimal)).cast(pl.Float64, strict=False)


def find_series(frame: pl.LazyFrame, time: Sequence[str], questions: list[str]) -> str | None:
    """The column that names the series: where times repeat, the one with the fewest values that tells them apart.

    Args:
        questions: gets one if no column tells the rows apart.

    Returns:
        None if there is one series, or no such column.
    """
    rows: int = frame.select(pl.len()).collect(engine="streaming").item()
    different = _count_different_rows(frame, time)
    if different > 0.95 * rows:
        return None
    schema = frame.collect_schema()
    columns = [name for name in schema.names() if name not in time and not schema[name].is_float()]
    unique = count_values(frame, columns)
    candidates = sorted((count, name) for name, count in unique.items() if 1 < count <= rows / 10)
    for count, name in candidates:
        if count * different >= 0.95 * rows and _count_different_rows(frame, [*time, name]) > 0.95 * rows:
            return name
    questions.append(
        f"{rows - different:,} of {rows:,} rows repeat a time, and no column tells them apart; the first row of each "
        "time is kept. Which columns do tell them apart? Recast reads the name of a series from one (source.series)"
    )
    return None


def count_values(frame: pl.LazyFrame, columns: Sequence[str]) -> dict[str, int]:
    """The number of different values of each column; null is one of them."""
    return frame.select(pl.col(columns).n_unique()).collect(engine="streaming").row(0, named=True) if columns else {}


def is_ascending(frame: pl.LazyFrame, column: str) -> bool:
    """Whether each value of the column is greater than the one before it, so that no two are the same.

    That takes a tenth of the time of counting the different values.
    """
    ascending = (pl.col(column) > pl.col(column).shift()).sum()
    ascending_throughout: bool = frame.select(ascending == pl.len() - 1).collect(engine="streaming").item()
    return ascending_throughout


def _count_different_rows(frame: pl.LazyFrame, columns: Sequence[str]) -> int:
    """The number of different rows in these columns."""
    value = pl.struct(columns) if len(columns) > 1 else pl.col(columns)
    count: int = frame.select(value.n_unique()).collect(engine="streaming").item()
    return count


def find_role(
    name: str,
    sample: pl.DataFrame,
    numbers: dict[str, pl.Series],
    unique: dict[str, int],
    time: Sequence[str],
    series: str | None,
    target: str | None,
) -> str:
    """The role of a column, see `Column`.

    Args:
        unique: the number of different values of each column; of one with three or more, perhaps only of its sample.
    """
    if name in time:
        return "time"
    if name == series:
        return "series"
    if name not in numbers:
        return _explain_text(sample[name])
    if name in RESERVED_COLUMNS:
        return f"not used: {name!r} is the name of a column of Recast's own"
    if unique[name] <= 1 or (numbers[name].n_unique() == 1 and unique[name] < 3):
        return "not used: always the same"
    steps = numbers[name].diff().drop_nulls()
    if len(steps) > 2 and (steps == 1).all() and len(numbers[name]) == sample.height:
        return "not used: counts the rows"
    if name != target and name.lower() in TIME_PARTS:
        return "not used: a part of the time"
    share = len(numbers[name]) / sample.height
    if name != target and share < SPARSE:
        return f"not used: has no value in {1 - share:.0%} of the rows"
    return "number"


def _explain_text(cells: pl.Series) -> str:
    """Why a column that does not hold numbers is not used."""
    if cells.null_count() == len(cells):
        return "not used: empty"
    if cells.dtype != pl.String:
        return f"not used: {cells.dtype}"
    filled = cells.str.strip_chars().drop_nulls()
    grouped = filled.filter(filled.str.contains(GROUPED_NUMBER))
    plain = filled.str.contains(r"^([-+]?[0-9]+([.,][0-9]+)?)?$").sum()
    if len(grouped) and len(grouped) + plain > MOST_CELLS * len(filled):
        return f"not used: thousands are grouped, as in {grouped[0]!r}; save the numbers without grouping"
    return "not used: text"


def find_sentinels(values: pl.Series) -> list[float]:
    """The numbers that often stand for a missing value and lie far from all other values of the column."""
    sentinels = []
    for missing in MISSING:
        others = values.filter(~values.is_in(list(MISSING)))
        if (values == missing).any() and len(others):
            low, high = float(others.min()), float(others.max())  # type: ignore[arg-type]
            if not low - 2 * (high - low) <= missing <= high + 2 * (high - low):
                sentinels.append(missing)
    return sentinels
