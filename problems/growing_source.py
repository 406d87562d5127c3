"""Sources to which new rows are added while the project lives.

The raw store of such a source holds the files that it began with, and an increment for each time that new rows came;
`problems.files.raw_store` says where the increments lie. Of several rows with the same series and time, the one of the
newest increment counts: it corrects the others.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar, Protocol

from problems.files.raw_store import INCREMENTS_FOLDER, list_increments, list_stored_files
from problems.files.tables import is_parquet
from problems.lazy_modules import pl
from problems.source import AGE_COLUMN, Rows, Source


class KnownRows(Protocol):
    """What a place of new rows may ask about the rows that are known: those of the raw store."""

    def rows(self) -> Rows:
        """The rows of the raw store."""

    def times(self) -> pl.LazyFrame:
        """The times of those rows: `time` in UTC, and `written`, the same time as the source writes it."""

    def last_time(self, overlap: timedelta) -> Any:
        """The time up to which the rows of every series are known, less `overlap`, as the source writes it.

        It is earlier than all rows in quarantine and than all that were dropped from it since: so the source is asked
        for them again, and its corrections come.
        """


class GrowingSource(Source):
    """A source whose rows are those of its own files and those of increments, which `problems.<name>.fresh` brings."""

    fresh_kinds: ClassVar[tuple[str, ...]] = ("http", "folder")

    @property
    def row_order_matters(self) -> bool:
        """Whether the time of a row may depend on the rows before it, as in an hour that comes twice."""
        return False

    @property
    def head_lines(self) -> int:
        """How many lines stand before the first row of a CSV file of this source, the header among them."""
        return 1

    def read(self, store: Path, scratch: Path) -> Rows:
        """Read the rows of the source's own files, then those of the increments.

        Raises:
            RecastError: a file cannot be read as what it should be.
        """
        return self._read_files(store, scratch, ())

    def read_parsed(self, store: Path, scratch: Path, numbers: Collection[str]) -> Rows | None:
        """Read the same rows as `read`, with the columns `numbers` parsed while they are scanned, see `Source`."""
        # A Parquet file has types of its own, which numbers in text beside it must not change.
        files = [*list_stored_files(store), *list_increments(store / INCREMENTS_FOLDER)]
        return None if any(map(is_parquet, files)) else self._read_files(store, scratch, numbers)

    def _read_files(self, store: Path, scratch: Path, numbers: Collection[str]) -> Rows:
        base, increments = self.read_base(store, scratch, numbers), list_increments(store / INCREMENTS_FOLDER)
        parts = [base, *(self.read_increment(file, scratch, numbers) for file in increments)]
        return _join_parts(parts) if increments else base

    def read_base(self, store: Path, scratch: Path, numbers: Collection[str] = ()) -> Rows:
        """Read the rows of the source's own files, see `read`, or `read_parsed` where there are `numbers`."""
        raise NotImplementedError

    def read_increment(self, file: Path, scratch: Path, numbers: Collection[str] = ()) -> Rows:
        """Read the rows of an increment, or of another file that `unpack` has returned.

        Args:
            numbers: see `read_parsed`.

        Raises:
            RecastError: the file cannot be read as what it should be.
        """
        raise NotImplementedError

    def is_fresh_file(self, file: Path) -> bool:
        """Whether a file of this name may bring new rows of this source."""
        raise NotImplementedError

    def unpack(self, file: Path, scratch: Path) -> Path:
        """Unpack a file of new rows into `scratch`; one that is not packed is returned itself.

        Raises:
            RecastError: the file is broken.
        """
        return file

    def find_file_fault(self, file: Path) -> str | None:
        """Say where an increment or another file is malformed, once Polars has refused it; None where that is unknown.

        Args:
            file: as `unpack` has returned it.
        """
        return None

    def check_line_ends(self, file: Path) -> None:
        """Check that the lines of a CSV file can be told apart by their bytes.

        Raises:
            RecastError: they cannot, because of the file's encoding.
        """

    def is_comment(self, line: bytes) -> bool:
        """Whether a line of a CSV file is a comment, which is not a row."""
        return False

    def read_rows_after(self, query: str | None, after: Any, problem: str) -> Iterator[pl.DataFrame]:
        """Ask a source that answers queries for the rows after a time; for others there is nothing to override.

        Args:
            query: in the source's language, with `:after` for the time; None: the source's own query.
            after: as the source writes times.
            problem: the problem's name, for messages.

        Raises:
            Unreachable: the source does not answer.
            RecastError: it refuses the query.
        """
        raise NotImplementedError


def _join_parts(parts: Sequence[Rows]) -> Rows:
    """Join the rows of files, the oldest first, as those of one source; columns that not all have are left out."""
    frames = [part.frame for part in parts]
    names_of_frames = [set(frame.collect_schema().names()) for frame in frames]
    common = [name for name in frames[0].collect_schema().names() if all(name in names for names in names_of_frames)]
    aged = [
        frame.select(*common, pl.lit(len(frames) - i, pl.Int32).alias(AGE_COLUMN)) for i, frame in enumerate(frames)
    ]
    return replace(parts[0], frame=pl.concat(aged, how="vertical_relaxed"))
