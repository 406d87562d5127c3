"""A file that has come from the place of new rows, cut down to the lines that are rows and may be new."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Self

import polars as pl

from problems.errors import RecastError
from problems.files.tables import is_parquet
from problems.growing_source import GrowingSource
from problems.problem import Problem
from problems.source import Rows
from stages.tables.cells import parse_number, parse_series
from stages.tables.checks import check_columns
from stages.tables.times import parse_time, parse_written_times

FILE_COLUMN, LINE_COLUMN, RAW_COLUMN, LOCAL_COLUMN = "__file__", "__line__", "__raw__", "__local__"
"""Columns of rows: the number of their file, their line in it, the text of their cells, their time on a local clock."""


@dataclass(frozen=True)
class FileStart:
    """The beginning of a file: how many bytes it has, and their sha256."""

    end: int
    sha256: str


@dataclass(frozen=True)
class ArrivedFile:
    """A file that has come, without the lines that are not rows.

    Attributes:
        file: the copy, or the file itself if it is a Parquet file.
        head: what precedes the rows of a CSV file; of a Parquet file its columns.
        lines: how many rows there are.
        origin: the file as it came.
        size: the size of that file in bytes.
        start: the whole lines of it that were looked at; None where it is packed or a Parquet file.
    """

    file: Path
    head: bytes
    lines: int
    origin: Path
    size: int
    start: FileStart | None

    @classmethod
    def from_file(
        cls, file: Path, source: GrowingSource, scratch: Path, size_before: int | None, known: FileStart | None
    ) -> Self:
        """Copy the whole lines that are rows into `scratch`.

        A last line without an end may be only half of one. It is copied only if the file has the same size as before.
        It is not part of `start`, so that it is read again the next time: what is added to it corrects its row.

        Args:
            size_before: the size of the file when it was last looked at.
            known: the beginning of the file, whose lines are left out if it has not changed.

        Raises:
            RecastError: the file cannot be read.
        """
        size = file.stat().st_size
        plain = source.unpack(file, scratch)
        if is_parquet(plain):
            frame = pl.scan_parquet(plain, glob=False)
            try:
                schema = frame.collect_schema()
            except pl.exceptions.PolarsError as error:
                raise RecastError(
                    f"{file}: not a whole Parquet file: {str(error).splitlines()[0]}; if it is still being written, "
                    "refresh again later"
                ) from error
            return cls(plain, str(schema).encode(), frame.select(pl.len()).collect().item(), file, size, None)
        source.check_line_ends(file)
        copy, lines = scratch / "rows" / f"{plain.stem}.csv", 0
        copy.parent.mkdir()
        with plain.open("rb") as content, copy.open("wb") as out:
            head = b"".join(content.readline() for _ in range(source.head_lines))
            out.write(head)
            end, digest = len(head), hashlib.sha256(head)
            if known is not None and known.end > end:
                known_digest = digest.copy()
                for chunk in _read_chunks(content, known.end - end):
                    known_digest.update(chunk)
                if known_digest.hexdigest() == known.sha256:
                    end, digest = known.end, known_digest
            content.seek(end)
            for line in content:
                is_whole = line.endswith(b"\n")
                if is_whole:
                    end += len(line)
                    digest.update(line)
                # It may have grown since this function asked for its size.
                elif size != size_before or size != file.stat().st_size:
                    break
                if line.strip() and not source.is_comment(line):
                    out.write(line if is_whole else line + b"\n")
                    lines += 1
                if not is_whole:
                    break  # what is written behind it from now on is not a line of its own
        return cls(copy, head, lines, file, size, FileStart(end, digest.hexdigest()) if plain == file else None)

    def read_rows(self, problem: Problem, source: GrowingSource, scratch: Path) -> pl.DataFrame:
        """Read the rows, see `read_values`, with the lines that they stand in.

        Raises:
            RecastError: the rows have no time or no series, or a row is not one line.
        """
        rows = source.read_increment(self.file, scratch)
        check_columns(rows, ())
        numbered = replace(rows, frame=rows.frame.with_row_index(LINE_COLUMN))
        values = read_values(numbered, problem, LINE_COLUMN).collect()
        if values.height != self.lines:
            raise RecastError(
                f"{self.file}: there are {values.height:,} rows in {self.lines:,} lines; a text in quotation marks "
                "must not contain the end of a line"
            )
        return values

    def pick_lines(self, lines: set[int]) -> Iterator[bytes]:
        """Read some lines of the copy, as they are; they are counted from 0 after the head."""
        with self.file.open("rb") as content:
            content.seek(len(self.head))
            for i, line in enumerate(content):
                if i in lines:
                    yield line


def read_values(rows: Rows, problem: Problem, *others: str) -> pl.LazyFrame:
    """Parse the time, the series and the features of rows.

    Returns:
        the columns `others`; `time` (UTC), `series` and the features, null where a cell does not hold a number;
        `LOCAL_COLUMN`, the time as a clock without a zone has shown it; and `RAW_COLUMN`, the texts of all these cells
    """
    names = rows.frame.collect_schema().names()
    cells = [name for name in (rows.time, rows.series, *problem.table.features) if name in names]
    features = [
        (parse_number(rows, name).fill_nan(None) if name in names else pl.lit(None, pl.Float64)).alias(name)
        for name in problem.table.features
    ]
    texts = pl.col(cells).cast(pl.String, strict=False).fill_null("\0")
    return rows.frame.select(
        *others,
        parse_time(rows).alias("time"),
        parse_series(rows).alias("series"),
        parse_written_times(rows)[1].alias(LOCAL_COLUMN),
        *features,
        pl.concat_str(texts, separator="\x1f").alias(RAW_COLUMN),
    )


def _read_chunks(content: BinaryIO, count: int) -> Iterator[bytes]:
    """Read the next bytes of a file, at most `count`, in chunks."""
    while count > 0 and (chunk := content.read(min(count, 1 << 20))):
        count -= len(chunk)
        yield chunk
