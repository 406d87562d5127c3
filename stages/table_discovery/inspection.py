"""Inspects a file that no problem declares yet: how it is written, and what its columns hold.

Everything is read from a sample of the rows, except the number of different values of each column. They are counted
over many more rows, because the first rows of a file that is sorted by series belong to one series.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from problems.errors import RecastError
from problems.files.tables import find_data_files, is_parquet
from problems.source import PLACE_COLUMN
from problems.sources.table import TableSource
from problems.wording import list_names
from stages.table_discovery.columns import (
    MARKERS,
    Column,
    count_values,
    describe_columns,
    find_markers,
    find_numbers,
    find_role,
    find_sentinels,
    find_series,
    is_ascending,
)
from stages.table_discovery.layout import detect_layout
from stages.table_discovery.text import has_decimal_commas
from stages.table_discovery.times import find_time
from stages.tables.polars_errors import explain_polars_errors

SAMPLE_ROWS = 20_000

COUNTED_ROWS = 5_000_000
"""The rows over which the different values of each column are counted."""


@dataclass(frozen=True)
class Inspection:
    """The result of inspecting a file.

    Attributes:
        source: the section `source` of the problem.
        columns: every column of the file.
        sentinels: numbers that seem to stand for a missing value, by column.
        sample: the first rows, as they are written.
        questions: what could not be decided for certain, and what was assumed.
    """

    source: dict[str, Any]
    columns: list[Column]
    sentinels: dict[str, list[float]]
    sample: pl.DataFrame
    questions: list[str] = field(default_factory=list)

    @property
    def numbers(self) -> list[str]:
        """The columns that can be features and targets."""
        return [column.name for column in self.columns if column.role == "number"]


def inspect_file(
    path: str, time: Sequence[str] = (), series: str | None = None, target: str | None = None
) -> Inspection:
    """Inspect a file, a folder of files or a pattern.

    Args:
        time: the columns of the time, one or two; none: find them.
        series: the column that names the series; None: find it, if there is one.
        target: a column that is used even if it has few values.

    Raises:
        RecastError: there is no such file, or no column in it could be the time or a feature.
    """
    file = find_data_files(path, "FILE")[0]
    questions: list[str] = []
    layout = {} if is_parquet(file) else detect_layout(file, questions)
    source = TableSource.model_validate({"kind": "table", "path": path, "time": "?", **layout})
    with tempfile.TemporaryDirectory() as scratch, explain_polars_errors(file, Path(scratch), source.find_file_fault):
        lines = source.scan_file(file, Path(scratch))
        # Blank lines are not rows.
        placed = lines.filter(~pl.all_horizontal(pl.exclude(PLACE_COLUMN).is_null()))
        frame = placed.drop(PLACE_COLUMN)
        sample = frame.head(SAMPLE_ROWS).collect()
        if not sample.height:
            raise RecastError(f"{file}: no row after the header")
        for column in (*time, *([series] if series else [])):
            if column not in sample.columns:
                raise RecastError(
                    f"{file}: there is no column {column!r}; the columns are {list_names(sample.columns)}"
                )
        if not is_parquet(file) and has_decimal_commas(sample, source.separator, questions):
            layout["decimal"] = ","
        counted = frame.head(COUNTED_ROWS)
        numbers = find_numbers(sample, layout.get("decimal", "."))
        if null_values := _find_null_values(source, file, Path(scratch), counted, sample, numbers, layout):
            layout["null_values"] = [*source.null_values, *null_values]
            texts = ", ".join(map(repr, null_values))
            questions.append(f"Does {texts} stand for a missing value? (source.null_values)")

        def describe_place(row: int) -> str:
            return str(placed.select(PLACE_COLUMN).slice(row, 1).collect().item())

        time_settings = find_time(file, sample, numbers, time, questions, describe_place)
        time_columns = time_settings["time"] if isinstance(time_settings["time"], list) else [time_settings["time"]]
        unique = {name: sample[name].n_unique() for name in numbers}
        unique |= count_values(counted, [name for name, count in unique.items() if count < 3])
        # A blank line has no time, so that the times with it are not ascending.
        if series is None and not is_ascending(lines.head(COUNTED_ROWS), time_columns[0]):
            series = find_series(counted, time_columns, questions)
    columns = [
        Column(name, find_role(name, sample, numbers, unique, time_columns, series, target)) for name in sample.columns
    ]
    features = {column.name: numbers[column.name] for column in columns if column.role == "number"}
    if not features:
        raise RecastError(f"{file}: no column of numbers that could be forecast: {describe_columns(columns)}")
    return Inspection(
        source={"kind": "table", "path": path, **time_settings, **({"series": series} if series else {}), **layout},
        columns=columns,
        sentinels={name: sentinels for name, values in features.items() if (sentinels := find_sentinels(values))},
        sample=sample,
        questions=questions,
    )


def _find_null_values(
    source: TableSource,
    file: Path,
    scratch: Path,
    counted: pl.LazyFrame,
    sample: pl.DataFrame,
    numbers: dict[str, pl.Series],
    layout: dict[str, Any],
) -> list[str]:
    """The texts that seem to mean a missing value, from all columns of numbers.

    Columns with too many different texts are not columns of numbers, and are removed from `numbers`.
    """
    columns = [name for name in numbers if sample[name].dtype == pl.String]
    decimal = layout.get("decimal", ".")
    if not columns or (decimal == "." and "comment" not in layout and _are_plain(source, file, scratch, columns)):
        return []
    markers = find_markers(counted, columns, decimal)
    for name, texts in markers.items():
        if len(texts) > MARKERS:
            del numbers[name]
    return list(dict.fromkeys(text for texts in markers.values() if len(texts) <= MARKERS for text in texts))


def _are_plain(source: TableSource, file: Path, scratch: Path, columns: list[str]) -> bool:
    """Whether every cell of these columns is empty or a number. Polars finds that out fastest while it scans a file."""
    frame = source.scan_file(file, scratch, numbers=columns).head(COUNTED_ROWS)
    try:
        frame.select(pl.col(columns).count()).collect(engine="streaming")
    except pl.exceptions.ComputeError:
        return False
    return True
