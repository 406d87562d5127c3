"""The report on a table's quality: what was read, what was wrong with it, and how the table was made of it."""

import hashlib
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import polars as pl

from problems.durations import format_duration
from problems.errors import RecastError
from problems.files.file_hash import file_sha256
from problems.files.raw_store import INCREMENTS_FOLDER, list_increments, list_stored_files
from problems.problem import Problem
from stages.tables.tabulation import SAME_SERIES, Disorder, Tabulated

LISTED_GAPS = 50
"""Gaps of a series that the report lists one by one, at most."""


@dataclass(frozen=True)
class Gap:
    """Two neighbouring rows that are further apart than the cadence, and the number of rows missing between them."""

    after: str
    before: str
    missing: int


@dataclass(frozen=True)
class SeriesQuality:
    """One series: the rows that were kept, and what was wrong with the rows that were read.

    Attributes:
        first, last: times of the first and the last row.
        rows: rows that were kept.
        duplicates: rows dropped because an earlier one, or one of a newer increment, had the same time.
        out_of_order: rows that were read after a row with a later time.
        cadence: the most frequent time between neighbours; None for a single row.
        off_cadence: pairs of neighbours that are closer to each other than the problem's cadence.
        gaps, missing: the number of gaps, and of the rows that are missing in them.
        listed: the first gaps in time, at most `LISTED_GAPS`.
    """

    first: str
    last: str
    rows: int
    duplicates: int
    out_of_order: int
    cadence: str | None
    off_cadence: int
    gaps: int
    missing: int
    listed: list[Gap]


@dataclass(frozen=True)
class ColumnQuality:
    """One column of the table: null cells, cells that held a sentinel, and the range in the column's unit.

    The mean has six digits, because its last digits depend on the order in which the values are added up.
    """

    nulls: int
    sentinels: int
    min: float
    max: float
    mean: float


@dataclass(frozen=True)
class Quality:
    """What was read and what was wrong with it; the same rows give the same report.

    Attributes:
        synthetic: the rows are simulated.
        files: sha256 of each raw file, by its name in the store.
        settings: sha256 of the source and the table in params.yaml, see `hash_reading_settings`.
        cadence: time between rows: the declared one, or else the most frequent one.
    """

    synthetic: bool
    files: dict[str, str]
    settings: str
    rows_read: int
    rows_kept: int
    cadence: str
    cadence_seconds: float
    cadence_declared: bool
    series: dict[str, SeriesQuality]
    columns: dict[str, ColumnQuality]


def measure_quality(
    problem: Problem, tabulated: Tabulated, table: pl.LazyFrame, store: Path, files: dict[str, str]
) -> Quality:
    """Measure the finished table.

    Args:
        store: the raw store, which is named for the problem.
        files: sha256 of the raw files, see `hash_raw_files`.

    Raises:
        RecastError: there are too few rows, a column has no value, or the cadence is not the declared one.
    """
    counts, step = tabulated.counts, pl.when(SAME_SERIES).then(pl.col("time").diff()).alias("step")
    steps, extents = pl.collect_all(
        [
            table.select("series", step).drop_nulls().group_by("series", "step").len(),
            table.group_by("series")
            .agg(pl.col("time").min().alias("first"), pl.col("time").max().alias("last"), pl.len().alias("rows"))
            .sort("series"),
        ],
        engine="streaming",
    )
    if steps.is_empty():
        raise RecastError(
            f"{store.name}: too few rows: {counts.rows:,} were read, and no series has two different times; "
            "give the source more rows"
        )
    cadence = _find_cadence(steps)
    if problem.table.cadence is not None and problem.table.cadence != cadence:
        raise RecastError(
            f"{store.name}: cadence {format_duration(problem.table.cadence)} is declared, but most rows come every "
            f"{format_duration(cadence)}; correct problems.{store.name}.table.cadence, or set it to null"
        )
    if empty := [feature for feature, figures in tabulated.columns.items() if figures is None]:
        columns = ", ".join(f"{feature!r} ({counts.sentinels.get(feature, 0):,} sentinels)" for feature in empty)
        raise RecastError(f"{store.name}: no row has a value in column {columns}; remove it from the features")
    return Quality(
        synthetic=problem.source.synthetic,
        files=files,
        settings=hash_reading_settings(problem),
        rows_read=counts.rows,
        rows_kept=tabulated.rows,
        cadence=format_duration(cadence),
        cadence_seconds=cadence.total_seconds(),
        cadence_declared=problem.table.cadence is not None,
        series=_measure_series(tabulated.disorder, table, extents, steps, cadence),
        columns={
            feature: ColumnQuality(
                nulls=figures.nulls,
                sentinels=counts.sentinels.get(feature, 0),
                # Of -0.0 and 0.0, which are equal, Polars returns any; adding 0 makes both of them 0.0.
                min=figures.min + 0.0,
                max=figures.max + 0.0,
                mean=float(f"{figures.mean:.6g}"),
            )
            for feature, figures in tabulated.columns.items()
            if figures is not None
        },
    )


def _measure_series(
    disorder: dict[str, Disorder],
    table: pl.LazyFrame,
    extents: pl.DataFrame,
    steps: pl.DataFrame,
    cadence: timedelta,
) -> dict[str, SeriesQuality]:
    """The report on each series, by its name."""
    neighbours = table.select("series", pl.col("time").shift().alias("after"), pl.col("time").alias("before"))
    gaps = neighbours.filter(SAME_SERIES & (pl.col("before") - pl.col("after") > cadence)).collect(engine="streaming")
    reports = {}
    for name, first, last, rows in extents.iter_rows():
        own_steps = steps.filter(pl.col("series") == name)
        own_gaps = gaps.filter(pl.col("series") == name).select("after", "before")
        missing = [_count_missing_rows(before - after, cadence) for after, before in own_gaps.iter_rows()]
        own_disorder = disorder.get(name, Disorder(0, 0))
        reports[name] = SeriesQuality(
            first=str(first),
            last=str(last),
            rows=rows,
            duplicates=own_disorder.repeated,
            out_of_order=own_disorder.out_of_order,
            cadence=None if own_steps.is_empty() else format_duration(_find_cadence(own_steps)),
            off_cadence=int(own_steps.filter(pl.col("step") < cadence)["len"].sum()),
            gaps=len(missing),
            missing=sum(missing),
            listed=[
                Gap(str(after), str(before), count)
                for (after, before), count in zip(own_gaps.head(LISTED_GAPS).iter_rows(), missing, strict=False)
            ],
        )
    return reports


def _find_cadence(steps: pl.DataFrame) -> timedelta:
    """The most frequent step between neighbours; of two that are as frequent, the shorter one."""
    by_frequency = steps.group_by("step").agg(pl.col("len").sum()).sort("len", "step", descending=[True, False])
    cadence: timedelta = by_frequency["step"][0]
    return cadence


def _count_missing_rows(gap: timedelta, cadence: timedelta) -> int:
    """How many rows would fill a gap.

    Where the clock was shifted, a gap need not be a whole number of steps; it then counts as the next larger one.
    """
    return -(-gap // cadence) - 1


def hash_raw_files(store: Path) -> dict[str, str]:
    """sha256 of each raw file, by its name in the store."""
    files = [*list_stored_files(store), *list_increments(store / INCREMENTS_FOLDER)]
    return {file.relative_to(store).as_posix(): file_sha256(file) for file in files}


def hash_reading_settings(problem: Problem) -> str:
    """sha256 of the settings that decide how the raw files are read."""
    return hashlib.sha256(problem.model_dump_json(include={"source", "table"}).encode()).hexdigest()
