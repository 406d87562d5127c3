"""CSV and Parquet files: found by a path, unpacked, and scanned as tables whose rows know where they stand."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO, TextIO

from problems.errors import RecastError
from problems.files.local_paths import list_files, resolve_path
from problems.lazy_modules import pl
from problems.source import PLACE_COLUMN

TABLE_SUFFIXES = (".csv", ".tsv", ".txt", ".parquet")
_LINE_COLUMN = "__line__"

MAX_COLUMNS, MAX_HEADER_BYTES = 10_000, 1 << 20
"""Of a CSV file. Polars takes minutes to find out what a million columns are called."""

MAX_LINE_CHARACTERS = 1 << 24
"""A table with a longer line is not a table, and reading the line would take all memory."""

MAX_EXPANSION, HARMLESS_BYTES = 200, 1 << 28
"""A file that unpacks to more than `HARMLESS_BYTES` and to more than so many times its size is refused. Tables shrink
to a tenth, and what was made to fill the disk to a thousandth.
"""


def is_parquet(file: Path) -> bool:
    """Whether the name of a file says that it is a Parquet file."""
    return file.suffix.lower() == ".parquet"


def is_packed(file: Path) -> bool:
    """Whether the name of a file says that it is packed with gzip."""
    return file.suffix.lower() == ".gz"


def open_unpacked(file: Path) -> BinaryIO:
    """Open a file to read its bytes, unpacked where its name ends in .gz."""
    return gzip.open(file) if is_packed(file) else file.open("rb")  # type: ignore[return-value]


@contextmanager
def explain_gzip_errors(file: Path) -> Iterator[None]:
    """Turn errors that occur while a file is unpacked into one that a user can act on.

    Raises:
        RecastError: the file is cut short or broken.
    """
    try:
        yield
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise RecastError(f"{file}: not a whole gzip file: {error}") from None


def unpack(file: Path, target: Path) -> None:
    """Write the unpacked content of a file.

    Raises:
        RecastError: the file is cut short or broken, or its content is far too large for a table.
    """
    with open_unpacked(file) as content, explain_gzip_errors(file):
        write_unpacked(content, target, file)


def write_unpacked(content: IO[bytes], target: Path, file: Path) -> None:
    """Write the content that is read from a packed file.

    Raises:
        RecastError: it is far too large for a table.
    """
    left = max(HARMLESS_BYTES, MAX_EXPANSION * file.stat().st_size)
    with target.open("wb") as out:
        while chunk := content.read(1 << 20):
            left -= len(chunk)
            if left < 0:
                raise RecastError(
                    f"{file}: it unpacks to more than {MAX_EXPANSION} times its size, as no table does; if it is one, "
                    "unpack it yourself and name the unpacked file"
                )
            out.write(chunk)


def read_lines(text: TextIO, file: Path) -> Iterator[str]:
    """Read the lines of a text file, with their ends.

    Raises:
        RecastError: a line is too long.
    """
    number = 0
    while line := text.readline(MAX_LINE_CHARACTERS):
        number += 1
        if len(line) == MAX_LINE_CHARACTERS:
            raise RecastError(
                f"{file}, line {number}: longer than {MAX_LINE_CHARACTERS:,} characters; a table has a row on each line"
            )
        yield line


def find_data_files(path: str, setting: str) -> list[Path]:
    """Find the files that a path names: a file, those of a folder, or those that match a pattern.

    Args:
        setting: where the path comes from, for messages.

    Raises:
        RecastError: there are none, or there are both CSV and Parquet files.
    """
    place = resolve_path(path, setting)
    files = [
        file
        for file in list_files(place)
        if file == place or file.name.lower().removesuffix(".gz").endswith(TABLE_SUFFIXES)
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
    if name.encode(errors="replace").decode() != name:
        raise RecastError(f"{name}: this name has bytes that are not UTF-8; rename the file or the folder")
    if not is_parquet(file):
        _check_header(file, name, separator, skip_lines)
    try:
        if is_parquet(file):
            frame = pl.scan_parquet(file, glob=False, row_index_name=_LINE_COLUMN, row_index_offset=1)
            word = "row"
        else:
            frame = pl.scan_csv(
                file,
                glob=False,
                separator=separator,
                infer_schema=False,
                schema_overrides=dict.fromkeys(numbers, pl.Float64),
                encoding="utf8-lossy",
                null_values=list(null_values),
                skip_lines=skip_lines,
                row_index_name=_LINE_COLUMN,
                row_index_offset=skip_lines + 2,  # the line before is the header
            )
            word = "line"
        frame.collect_schema()
    except pl.exceptions.NoDataError as error:
        raise RecastError(f"{name}: the file is empty") from error
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RecastError(f"{name}: not a readable table: {reason}") from error
    # The column costs nothing unless an error message reads it.
    place = pl.format("{}, {} {}", pl.lit(name), pl.lit(word), _LINE_COLUMN).alias(PLACE_COLUMN)
    return frame.with_columns(place).drop(_LINE_COLUMN)


def _check_header(file: Path, name: str, separator: str, skip_lines: int) -> None:
    """Check that the header of a CSV file is not too long.

    Raises:
        RecastError: it is.
    """
    header = b""
    with file.open("rb") as content:
        for line in range(1, skip_lines + 2):
            header = content.readline(MAX_HEADER_BYTES)
            if len(header) == MAX_HEADER_BYTES:
                raise RecastError(f"{name}, line {line}: longer than {MAX_HEADER_BYTES:,} bytes, so it is not a header")
    if (columns := header.count(separator.encode()) + 1) > MAX_COLUMNS:
        raise RecastError(f"{name}: {columns:,} columns are more than the {MAX_COLUMNS:,} that Recast reads")
