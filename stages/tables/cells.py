"""The cells of a source's rows as Polars expressions: names of series, numbers, and what may not be in a table."""

import numpy as np
import polars as pl

from problems.problem import Problem
from problems.source import Rows

ONLY_SERIES = "all"
"""The name of the series where there is only one."""

UNDECODABLE = "\N{REPLACEMENT CHARACTER}"
"""Stands in a text for bytes that are not in the file's encoding."""


LARGEST_NUMBER = float(np.finfo(np.float32).max)
"""The largest number that fits into a normalized table and into a network, whose numbers have 32 bits."""


def parse_series(rows: Rows) -> pl.Expr:
    """The name of the series that a row belongs to."""
    return pl.lit(ONLY_SERIES) if rows.series is None else pl.col(rows.series).cast(pl.String)


def parse_number(rows: Rows, feature: str) -> pl.Expr:
    """The cell as a number; null where it is not a number."""
    column = pl.col(feature)
    if rows.frame.collect_schema()[feature] == pl.String:
        column = column.str.strip_chars()
        if rows.decimal != ".":
            column = use_decimal_point(column, rows.decimal)
    return column.cast(pl.Float64, strict=False)


def use_decimal_point(cells: pl.Expr, decimal: str) -> pl.Expr:
    """The cells with a point in place of `decimal`; null where a cell has a point already, which groups thousands."""
    return pl.when(~cells.str.contains(".", literal=True)).then(cells.str.replace(decimal, ".", literal=True))


def null_missing_values(problem: Problem, feature: str) -> pl.Expr:
    """The number that goes into the table: the number that was read, or null in place of a sentinel or NaN."""
    number = pl.col(feature)
    if sentinels := problem.table.sentinels.get(feature):
        number = pl.when(~number.is_in(list(sentinels))).then(number)
    return number.fill_nan(None).alias(feature)


def is_too_large(problem: Problem, feature: str, number: pl.Expr) -> pl.Expr:
    """Whether a number does not fit into a table, and is not a sentinel either."""
    # To Polars, NaN is larger than any number.
    is_large = (number.abs() > LARGEST_NUMBER) & number.is_not_nan()
    sentinels = problem.table.sentinels.get(feature)
    return is_large & ~number.is_in(list(sentinels)) if sentinels else is_large


def is_wrong_number(problem: Problem, rows: Rows, feature: str) -> pl.Expr:
    """Whether a cell holds something that is neither a number that fits into a table nor a missing value."""
    number, column = parse_number(rows, feature), pl.col(feature)
    too_large = is_too_large(problem, feature, number)
    if rows.frame.collect_schema()[feature] == pl.String:
        return (column.str.strip_chars() != "") & (number.is_null() | too_large)
    return too_large


def is_unnamed(series: pl.Expr) -> pl.Expr:
    """Whether the name of a series is missing or cannot be decoded."""
    return series.is_null() | series.str.contains(UNDECODABLE, literal=True)
