"""A source's rows, written as one typed table that is sorted by series and time and has every time once."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, BinaryIO

from stages.tables import polars_limits  # noqa: F401 - bounds the memory that reading takes

# isort: split
import polars as pl

from problems.problem import Problem
from problems.source import AGE_COLUMN, Rows
from stages.tables.cells import is_too_large, is_unnamed, null_missing_values, parse_number, parse_series
from stages.tables.checks import CellCounts, check_columns, refuse_wrong_cells
from stages.tables.times import detect_time_format, mark_repeated_hours, parse_time, parse_written_times

_ROW_GROUP_ROWS = 1 << 18

SAME_SERIES = pl.col("series") == pl.col("series").shift()
"""Whether a row is of the same series as the row before it."""

_REPEATS_TIME = (SAME_SERIES & (pl.col("time") == pl.col("time").shift())).fill_null(False)
"""In a table sorted by series and time: whether a row has the time of the row before it."""


@dataclass(frozen=True)
class Disorder:
    """A series whose rows were not in order when they were read, or repeat a time.

    Attributes:
        repeated: rows that had the time of another one, and were not kept.
        out_of_order: rows that were earlier than the row before them.
    """

    repeated: int
    out_of_order: int


@dataclass(frozen=True)
class ColumnFigures:
    """One column of a table: its null cells, and the range and the mean of the others."""

    nulls: int
    min: float
    max: float
    mean: float


@dataclass(frozen=True)
class Tabulated:
    """What is known of a table once it is written.

    Attributes:
        counts: what was counted in the rows that were read.
        disorder: the series that were not in order.
        rows: the number of rows that were kept.
        columns: the figures of each feature; None where no row has a value.
    """

    counts: CellCounts
    disorder: dict[str, Disorder]
    rows: int
    columns: dict[str, ColumnFigures | None]


def tabulate(rows: Rows, problem: Problem, table: Path, scratch: Path) -> Tabulated:
    """Write rows as a table; `stages.ingest.ingest` describes it.

    Args:
        table: the file to write.
        scratch: a folder for a temporary file.

    Raises:
        RecastError: a column or a cell is not what the problem declares; the message names it.
    """
    check_columns(rows, problem.table.features)
    rows = mark_repeated_hours(rows)
    as_read = _write_as_read(detect_time_format(rows), problem, table)
    if as_read.counts.unreadable_times:
        # The times are written in several forms, there are blank rows, or a row has to be refused.
        rows = _drop_blank_rows(rows, problem.table.features)
        as_read = _write_as_read(rows, problem, table)
    refuse_wrong_cells(rows, problem, as_read.counts)
    return _put_in_order(as_read, problem, table, scratch, has_age=_has_age(rows))


def tabulate_parsed(rows: Rows, problem: Problem, table: Path, scratch: Path) -> Tabulated | None:
    """Write rows that `Source.read_parsed` has read, as `tabulate` does.

    Returns:
        None where a time or a cell can be understood, or refused as it is written, only as text: `tabulate` has to
        do that, and overwrites what was written.

    Raises:
        RecastError: see `tabulate`.
    """
    check_columns(rows, problem.table.features)
    try:
        rows = detect_time_format(mark_repeated_hours(rows))
        as_read = _write_as_read(rows, problem, table)
    except pl.exceptions.ComputeError:
        return None
    if as_read.counts.unreadable_times or any(as_read.counts.wrong.values()):
        return None
    refuse_wrong_cells(rows, problem, as_read.counts)
    return _put_in_order(as_read, problem, table, scratch, has_age=_has_age(rows))


def _has_age(rows: Rows) -> bool:
    return AGE_COLUMN in rows.frame.collect_schema()


def _put_in_order(as_read: Tabulated, problem: Problem, table: Path, scratch: Path, has_age: bool) -> Tabulated:
    """Write the table again if its rows are not in order, repeat a time, or are more than the problem wants."""
    disorder, thin = _find_disorder(pl.scan_parquet(table)), problem.table.thin
    if not (disorder or has_age or thin):
        return as_read
    file = table.rename(scratch / "as_read.parquet")
    frame = pl.scan_parquet(file)
    if disorder:
        frame = frame.sort("series", "time", *([AGE_COLUMN] if has_age else []), maintain_order=True)
        frame = frame.filter(~_REPEATS_TIME)
    if thin and problem.table.cadence is not None:
        frame = thin_table(frame, problem.table.cadence)
    with _open_new_file(table) as out:
        _sink(frame.drop(AGE_COLUMN, strict=False), out).collect(engine="streaming")
    file.unlink()
    features = problem.table.features
    measures = (pl.len().alias("rows"), *(measure for name in features for measure in _measure_column(name)))
    figures = pl.scan_parquet(table).select(measures).collect(engine="streaming").row(0, named=True)
    return replace(as_read, disorder=disorder, rows=figures["rows"], columns=_make_columns(figures, features))


def thin_table(table: pl.LazyFrame, cadence: timedelta) -> pl.LazyFrame:
    """The rows of a sorted table that lie whole cadences after the beginning of their stretch.

    A stretch is a run of rows of one series that are at most a cadence apart.
    """
    begins = (~SAME_SERIES | (pl.col("time").diff() > cadence)).fill_null(True)
    since = pl.col("time") - pl.when(begins).then(pl.col("time")).forward_fill()
    return table.filter(since.dt.total_milliseconds() % round(cadence.total_seconds() * 1000) == 0)


def _open_new_file(file: Path) -> BinaryIO:
    """Open a file to write it, in place of a file of that name.

    When a query has failed, Polars may still write for a moment. An open file, unlike a path, keeps that away from the
    next file of the same name, and from a folder that is being removed.
    """
    file.unlink(missing_ok=True)
    return file.open("wb")


def _sink(frame: pl.LazyFrame, file: BinaryIO) -> pl.LazyFrame:
    """A frame that is written to the file when it is collected."""
    # At Zstandard's level 1 the file is a tenth larger than at Polars' own level, 3, and is written in half the time.
    return frame.sink_parquet(file, compression_level=1, row_group_size=_ROW_GROUP_ROWS, lazy=True)


def _find_disorder(table: pl.LazyFrame) -> dict[str, Disorder]:
    """The disorder of every series; empty if the rows are sorted by series and time and no time is repeated."""
    is_earlier_series = pl.col("series") < pl.col("series").shift()
    is_not_later = SAME_SERIES & (pl.col("time") <= pl.col("time").shift())
    if not table.select((is_earlier_series | is_not_later).any()).collect(engine="streaming").item():
        return {}
    out_of_order = (pl.col("time").diff() < timedelta(0)).sum()
    by_series = (
        table.select("series", "time")
        .collect()
        .group_by("series")
        .agg(pl.len() - pl.col("time").n_unique(), out_of_order.alias("out of order"))
    )
    return {name: Disorder(repeated, out_of_order) for name, repeated, out_of_order in by_series.iter_rows()}


def _drop_blank_rows(rows: Rows, features: tuple[str, ...]) -> Rows:
    """The rows without those that hold nothing at all, such as the last lines of a spreadsheet's CSV file."""
    columns = [rows.time, *([rows.series] if rows.series else []), *features]
    return replace(rows, frame=rows.frame.filter(~pl.all_horizontal(pl.col(columns).is_null())))


def _write_as_read(rows: Rows, problem: Problem, file: Path) -> Tabulated:
    """Write the rows in the order in which they are read, and count and measure them, in one pass through the files."""
    features, sentinels, schema = problem.table.features, problem.table.sentinels, rows.frame.collect_schema()
    zoned, local = parse_written_times(rows)
    texts = [feature for feature in features if schema[feature] == pl.String]
    age = [AGE_COLUMN] if AGE_COLUMN in schema else []
    cells = rows.frame.select(
        *age,
        parse_time(rows).alias("time"),
        parse_series(rows).alias("series"),
        (zoned.is_null() & local.is_null()).alias(_helper_column("no time")),
        zoned.is_not_null().alias(_helper_column("zoned")),
        *(parse_number(rows, feature).alias(feature) for feature in features),
        *(pl.col(feature).str.strip_chars().alias(_helper_column(f"text {feature}")) for feature in texts),
    )

    def count_wrong(feature: str) -> pl.Expr:
        too_large = is_too_large(problem, feature, pl.col(feature)).sum().cast(pl.Int64)
        if feature not in texts:
            return too_large
        filled = (pl.col(_helper_column(f"text {feature}")) != "").sum().cast(pl.Int64)
        return too_large + filled - pl.col(feature).count().cast(pl.Int64)

    table = cells.select("time", "series", *age, *(null_missing_values(problem, feature) for feature in features))
    with _open_new_file(file) as out:
        _, counted = pl.collect_all(
            [
                _sink(table, out),
                cells.select(
                    pl.len().alias("rows"),
                    pl.col(_helper_column("no time")).sum().alias("no time"),
                    pl.col(_helper_column("zoned")).sum().alias("zoned"),
                    pl.col("time").null_count().alias("no moment"),
                    *([is_unnamed(pl.col("series")).sum().alias("no series")] if rows.series is not None else []),
                    *(count_wrong(feature).alias(f"wrong {feature}") for feature in features),
                    *(
                        pl.col(feature).is_in(list(values)).sum().alias(f"sentinel {feature}")
                        for feature, values in sentinels.items()
                    ),
                    *(
                        measure
                        for feature in features
                        for measure in _measure_column(feature, null_missing_values(problem, feature))
                    ),
                ),
            ],
            engine="streaming",
        )
    counts = counted.row(0, named=True)
    return Tabulated(
        CellCounts(
            rows=counts["rows"],
            unreadable_times=counts["no time"],
            zoned_times=counts["zoned"],
            impossible_times=counts["no moment"],
            unnamed_series=counts.get("no series", 0),
            wrong={feature: counts[f"wrong {feature}"] for feature in features},
            sentinels={feature: counts[f"sentinel {feature}"] for feature in sentinels},
        ),
        disorder={},
        rows=counts["rows"],
        columns=_make_columns(counts, features),
    )


def _measure_column(name: str, cells: pl.Expr | None = None) -> Iterator[pl.Expr]:
    """The figures of a column as expressions whose names `_make_columns` knows.

    Args:
        cells: the cells of the column as they are in the table; None: the column itself.
    """
    cells = pl.col(name) if cells is None else cells
    yield cells.null_count().alias(f"nulls {name}")
    yield cells.min().alias(f"min {name}")
    yield cells.max().alias(f"max {name}")
    yield cells.mean().alias(f"mean {name}")


def _make_columns(figures: dict[str, Any], features: tuple[str, ...]) -> dict[str, ColumnFigures | None]:
    """The figures of every feature, from the results of `_measure_column`."""

    def make_column(name: str) -> ColumnFigures | None:
        nulls, *others = (figures[f"{figure} {name}"] for figure in ("nulls", "min", "max", "mean"))
        return None if None in others else ColumnFigures(nulls, *others)

    return {name: make_column(name) for name in features}


def _helper_column(name: str) -> str:
    """The name of a column that cannot be the name of a feature."""
    return f"__{name}__"
