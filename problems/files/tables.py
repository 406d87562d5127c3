"""CSV and Parquet files: found by a path, unpacked, and scanned as tables whose rows know where they stand."""

from __future__ import annotations

import glob
import gzip
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import BinaryIO

from problems.errors import RecastError
from problems.lazy_modules import pl
from problems.source import PLACE_COLUMN

TABLE_SUFFIXES = (".csv", ".tsv", ".txt", ".parquet")
_LINE_COLUMN = "__line__"


def is_parquet(file: Path) -> bool:
    """Whether the name of a file says that it is a Parquet file."""
    return file.suffix.lower() == ".parquet"


def is_packed(file: Path) -> bool:
    """Whether the name of a file says that it is packed with gzip."""
    return file.suffix.lower() == ".gz"


def open_unpacked(file: Path) -> BinaryIO:
    """Open a file to read its bytes, unpacked where its name ends in .gz."""
    return gzip.open(file) if is_packed(file) else file.open("rb")  # type: ignore[return-value]


def find_data_files(path: str, setting: str) -> list[Path]:
    """Find the files that a path names: a file, those of a folder, or those that match a pattern.

    Args:
        setting: where the path comes from, for messages.

    Raises:
        RecastError: there are none, or there are both CSV and Parquet files.
    """
    place = Path(path).expanduser()
    # glob.glob, not Path.glob: a pattern may be absolute.
    candidates = place.iterdir() if place.is_dir() else map(Path, glob.glob(str(place)))  # noqa: PTH207
    files = [
        file
        for file in sorted(candidates)
        if file.is_file() and (file == place or file.name.lower().removesuffix(".gz").endswith(TABLE_SUFFIXES))
    ]
    if not files:
        raise RecastError(f"{setting}: {path} names no CSV or Parquet file; name a file, folder or pattern")
    if len({is_parquet(file) for file in files}) > 1:
        raise RecastError(f"{setting}: {path} names both CSV and Parquet files; name one kind with a pattern")
    return files


def scan_table(
    file: Path,
    *,
    name: str | None = None,
    separator: str = ",",
    null_values: Sequence[str] = (),
    skip_lines: int = 0,
    numbers: Collection[str] = (),
) -> pl.LazyFrame:
    """Scan the columns of a CSV file as text, or of a Parquet file as they are, with `PLACE_COLUMN`.

    Nothing is read yet. Bytes that are not UTF-8 become the replacement character, so that a column that nobody needs
    does no harm.

    Args:
        name: what messages call the file; None: its path.
        numbers: columns of a CSV file whose cells are parsed as numbers while they are scanned, which takes half as
            long as parsing text later. Polars reads a number as it would from the text, apart from white space after
            it. When the rows are collected, a cell that is not a number raises `polars.exceptions.ComputeError`.

    Raises:
        RecastError: the file is empty or cannot be read as a table.
    """
    name = name or str(file)
    try:
        if is_parquet(file):
            frame, word = pl.scan_parquet(file, row_index_name=_LINE_COLUMN, row_index_offset=1), "row"
        else:
            frame, word = (
                pl.scan_csv(
                    file,
                    separator=separator,
                    infer_schema=False,
                    schema_overrides=dict.fromkeys(numbers, pl.Float64),
                    encoding="utf8-lossy",
                    null_values=list(null_values),
                    skip_lines=skip_lines,
                    row_index_name=_LINE_COLUMN,
                    row_index_offset=skip_lines + 2,  # the line before is the header
                ),
                "line",
            )
        frame.collect_schema()
    except pl.exceptions.NoDataError as error:
        raise RecastError(f"{name}: the file is empty") from error
    except pl.exceptions.PolarsError as error:
        raise RecastError(f"{name}: not a readable table: {str(error).splitlines()[0]}") from error
    # The column costs nothing unless an error message reads it.
    place = pl.format("{}, {} {}", pl.lit(name), pl.lit(word), _LINE_COLUMN).alias(PLACE_COLUMN)
    return frame.with_columns(place).drop(_LINE_COLUMN)
