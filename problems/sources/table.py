"""A user's own CSV or Parquet files, read as params.yaml describes them."""

from __future__ import annotations

import codecs
import csv
import io
import shutil
from collections.abc import Collection
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from problems.errors import RecastError
from problems.files.raw_store import INCREMENTS_FOLDER, list_increments, list_stored_files, replace_with_links
from problems.files.tables import (
    TABLE_SUFFIXES,
    explain_gzip_errors,
    find_data_files,
    is_packed,
    is_parquet,
    open_unpacked,
    read_lines,
    scan_table,
    unpack,
)
from problems.growing_source import GrowingSource
from problems.lazy_modules import pl
from problems.source import DownloadProgress, RepeatedHour, Rows, TimeZone
from problems.wording import list_names


def _check_encoding(value: str) -> str:
    try:
        # Not every codec is one of text: hex and zlib turn bytes into other bytes.
        "a".encode(value)
        return codecs.lookup(value).name
    except (LookupError, ValueError):
        raise ValueError(
            "no such encoding; write utf-8, latin-1, cp1252, utf-16 or another that Python knows"
        ) from None


def _check_separator(value: str) -> str:
    if not value.isascii() or value.isalnum() or value in '"\r\n\0.+-':
        raise ValueError('write one character such as , or ; or |, "\\t" for a tab, or a space')
    return value


class TableSource(GrowingSource):
    """CSV or Parquet files of the user's own, with a header, read from where they are."""

    kind: Literal["table"]
    path: str = Field(description="a file, a folder of files, or a pattern such as data/plant-*.csv")
    time: str | Annotated[tuple[str, ...], Field(min_length=2, max_length=6)] = Field(
        description="the column that holds the time; or the columns that it is spread over, such as [date, clock], "
        "which are joined with a space"
    )
    time_format: str | None = Field(
        None,
        description="how the time is written, such as %d.%m.%Y %H:%M; epoch s or epoch ms: numbers since 1970; null: "
        "ISO 8601",
    )
    time_zone: TimeZone | None = Field(
        None, description="the time zone of times that are written without one, such as Europe/Berlin; null: UTC"
    )
    repeated_hour: RepeatedHour = Field(
        "refuse",
        description="what to do with the hour that comes twice when the clock is set back. refuse: report an error; in "
        "order: of two rows, the one that stands first is the earlier",
    )
    series: str | None = Field(None, description="the column that names the series of a row; null: there is one series")
    separator: Annotated[str, AfterValidator(_check_separator)] = Field(
        ",",
        min_length=1,
        max_length=1,
        description="the character between the columns of a CSV file; a space: one or more of them",
    )
    decimal: Literal[".", ","] = Field(".", description="the decimal separator of the numbers in a CSV file")
    encoding: Annotated[str, AfterValidator(_check_encoding)] = Field(
        "utf-8", description="the text encoding of a CSV file"
    )
    skip_lines: int = Field(0, ge=0, le=1_000_000, description="number of lines before the header of a CSV file")
    comment: str | None = Field(
        None,
        min_length=1,
        description="how lines of a CSV file begin that are comments, such as #; null: there are none",
    )
    null_values: tuple[str, ...] = Field(
        ("NA", "N/A", "null"), description="texts in a CSV file that mean a missing value"
    )

    @property
    def row_order_matters(self) -> bool:
        """The order of the rows tells which of two hours a row belongs to, if `repeated_hour` says so."""
        return self.repeated_hour == "in order"

    @property
    def head_lines(self) -> int:
        """The lines that are skipped, and the header."""
        return self.skip_lines + 1

    def fetch(self, store: Path, progress: DownloadProgress, attempts: int) -> None:
        """Link the files into the store.

        Raises:
            RecastError: the path names no file, or files that cannot be read as one table.
        """
        replace_with_links(store, find_data_files(self.path, f"problems.{store.name}.source.path"))

    def read_parsed(self, store: Path, scratch: Path, numbers: Collection[str]) -> Rows | None:
        """Read the same rows as `read`, with the columns `numbers` parsed while they are scanned, see `Source`."""
        # Where the comma is the decimal mark, Polars would also read 1.000, which may mean a thousand. A comment may
        # begin in a column of numbers.
        if self.decimal != "." or self.comment is not None:
            return None
        return super().read_parsed(store, scratch, numbers)

    def read_base(self, store: Path, scratch: Path, numbers: Collection[str] = ()) -> Rows:
        """Read the rows of every file in the store, in the order of the files' names.

        Raises:
            RecastError: a file is empty or cannot be read, or two files differ in their columns.
        """
        frames = {file: self.scan_file(file, scratch, numbers) for file in list_stored_files(store)}
        if not frames:
            raise RecastError(f"{store}: no data file is linked there; run the ingest stage again")
        names = {file: set(frame.collect_schema().names()) for file, frame in frames.items()}
        first, *others = names
        for other in others:
            if differing := sorted(names[first] ^ names[other]):
                raise RecastError(
                    f"{first.resolve()} and {other.resolve()} differ in their columns: only one has "
                    f"{list_names(differing)}; name the files of one kind with a pattern, or correct a header"
                )
        frame = pl.concat([frame.select(sorted(names[first])) for frame in frames.values()], how="vertical_relaxed")
        return self._as_rows(frame, first, f"problems.{store.name}.source.time")

    def read_increment(self, file: Path, scratch: Path, numbers: Collection[str] = ()) -> Rows:
        """Read the rows of one file.

        Raises:
            RecastError: the file is empty or cannot be read.
        """
        return self._as_rows(self.scan_file(file, scratch, numbers), file, "source.time")

    def is_fresh_file(self, file: Path) -> bool:
        """Whether its name is that of a CSV or Parquet file."""
        return file.name.lower().removesuffix(".gz").endswith(TABLE_SUFFIXES)

    def unpack(self, file: Path, scratch: Path) -> Path:
        """Unpack a file whose name ends in .gz.

        Raises:
            RecastError: the file is cut short or broken, or far too large once it is unpacked.
        """
        if not is_packed(file):
            return file
        copy = scratch / file.name.removesuffix(file.suffix)
        unpack(file.resolve(), copy)
        return copy

    def check_line_ends(self, file: Path) -> None:
        """Check that a line of the file ends in the byte that ends lines.

        Raises:
            RecastError: it does not, as in UTF-16.
        """
        if not "a\n".encode(self.encoding).endswith(b"a\n"):
            raise RecastError(f"{file}: the ends of lines cannot be found in {self.encoding}; save it as utf-8")

    def is_comment(self, line: bytes) -> bool:
        """Whether `scan_file` leaves out a line, because it begins with `comment`."""
        if self.comment is None:
            return False
        # Encoded after a line feed: at the beginning of a text, some encodings add a byte order mark.
        sign = f"\n{self.comment}".encode(self.encoding).partition(b"\n")[2]
        first = line.lstrip() if self.separator == " " else line
        return first.removeprefix(b'"').startswith(sign)

    def _as_rows(self, frame: pl.LazyFrame, file: Path, setting: str) -> Rows:
        """Join the columns of the time, if it is spread over several.

        Args:
            frame: the columns of `file`, and perhaps of others.
            setting: the setting to correct, for messages.

        Raises:
            RecastError: one of the columns that the time is spread over does not exist.
        """
        time = self.time
        if not isinstance(time, str):
            names = frame.collect_schema().names()
            if missing := [name for name in time if name not in names]:
                raise RecastError(f"{file.resolve()}: there is no column {missing[0]!r}; correct {setting}")
            frame = frame.with_columns(pl.concat_str(time, separator=" ").alias(" ".join(time)))
            time = " ".join(time)
        return Rows(frame, time, self.time_format, self.series, self.time_zone, self.repeated_hour, self.decimal)

    def find_fault(self, store: Path) -> str | None:
        """Find the first line in the store's CSV files that has too many cells, or a quotation that does not end."""
        files = [*list_stored_files(store), *list_increments(store / INCREMENTS_FOLDER)]
        return next((fault for file in files if (fault := self.find_file_fault(file))), None)

    def find_file_fault(self, file: Path) -> str | None:
        """Find the first such line in one file, see `find_fault`."""
        if is_parquet(file):
            return None
        with open_unpacked(file) as content, explain_gzip_errors(file):
            text = io.TextIOWrapper(content, self.encoding, errors="replace", newline="")
            lines = islice(read_lines(text, file), self.skip_lines, None)
            rows = csv.reader(lines, delimiter=self.separator, skipinitialspace=self.separator == " ", strict=True)
            width: int | None = None
            line = 0
            try:
                for row in rows:
                    if width is None:
                        width = len(row)
                    if len(row) > width:
                        fault = f"there are {len(row)} cells, and the header has {width}"
                        break
                    line = rows.line_num
                else:
                    return None
            except csv.Error as error:
                fault = f"a quotation mark opens a text that does not end as it should ({error})"
            return f"{file.resolve()}, line {self.skip_lines + line + 1}: {fault}"

    def scan_file(self, file: Path, scratch: Path, numbers: Collection[str] = ()) -> pl.LazyFrame:
        """Scan the columns of one file, see `scan_table`.

        A file that is packed, or whose text is not UTF-8, or whose columns are separated by spaces, is first copied
        into `scratch` as a plain UTF-8 file.

        Args:
            numbers: see `read_parsed`.

        Raises:
            RecastError: the file is empty or cannot be read as a table, or its bytes are not in the encoding.
        """
        is_utf_8, name = self.encoding == "utf-8", str(file.resolve())
        plain = copy = self.unpack(file, scratch)
        if not is_parquet(plain) and (not is_utf_8 or self.separator == " "):
            copy = scratch / f"{file.name}.csv"
            try:
                with plain.open("rb") as content, copy.open("w", encoding="utf-8", newline="") as out:
                    if self.separator == " ":
                        text = io.TextIOWrapper(content, self.encoding, errors="replace" if is_utf_8 else "strict")
                        out.writelines(f"{' '.join(line.split())}\n" for line in read_lines(text, file))
                    else:
                        shutil.copyfileobj(codecs.getreader(self.encoding)(content), out, 1 << 20)
            except UnicodeError as error:
                raise RecastError(
                    f"{name}: not all of its bytes are {self.encoding}: {error}; correct encoding"
                ) from None
        times = (self.time,) if isinstance(self.time, str) else self.time
        frame = scan_table(
            copy,
            name=name,
            separator=self.separator,
            null_values=self.null_values,
            skip_lines=self.skip_lines,
            numbers={*numbers} - {*times, self.series},
        )
        if self.comment is None or is_parquet(plain):
            return frame
        # Comments are read and then left out, so that lines are counted as an editor counts them.
        first = pl.col(frame.collect_schema().names()[0])
        return frame.filter(~first.str.starts_with(self.comment).fill_null(False))
