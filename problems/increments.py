"""The raw store of a source that grows: what it began with, and an increment for each time that new rows came.

The increments lie in the folder `fresh` of the store, `0001-<first digits of the sha256>.csv` or `.parquet`; they never
change. Of rows with the same series and time the one of the newest increment counts: it corrects the others.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import polars as pl

from problems.errors import RecastError
from problems.source import AGE, Rows, Source

FOLDER = "fresh"
KEPT = (".gitkeep", ".gitignore", FOLDER, f"{FOLDER}.dvc")
"""What may lie in a raw store and is no file of its source: the increments, and what DVC and Git keep beside them."""
_NAME = re.compile(r"(\d{4,})-[0-9a-f]{8}\.(csv|parquet)")


def increments(folder: Path) -> list[Path]:
    """The increments in a folder, the oldest first; none where there is no such folder.

    Raises:
        RecastError: another table lies there.
    """
    there = folder.iterdir() if folder.is_dir() else ()
    return sorted((file for file in there if file.suffix in (".csv", ".parquet")), key=number)


def number(increment: Path) -> int:
    """The how manieth increment it is.

    Raises:
        RecastError: it is none.
    """
    found = _NAME.fullmatch(increment.name)
    if found is None:
        raise RecastError(
            f"{increment}: no increment, which recast refresh names, such as 0001-0a1b2c3d.csv; move the file elsewhere"
        )
    return int(found[1])


def together(parts: Sequence[Rows]) -> Rows:
    """The rows of files, the oldest first, as those of one source; columns that not all have are left out."""
    frames = [part.frame for part in parts]
    names = [set(frame.collect_schema().names()) for frame in frames]
    common = [name for name in frames[0].collect_schema().names() if all(name in each for each in names)]
    aged = [frame.select(*common, pl.lit(len(frames) - i, pl.Int32).alias(AGE)) for i, frame in enumerate(frames)]
    return replace(parts[0], frame=pl.concat(aged, how="vertical_relaxed"))


class GrowingSource(Source):
    """A source whose rows are those of its own files and those of increments, which `problems.<name>.fresh` brings."""

    def read(self, store: Path, scratch: Path) -> Rows:
        """The rows of the source's own files, then those of the increments.

        Raises:
            RecastError: a file cannot be read as what it should be.
        """
        base, found = self.read_base(store, scratch), increments(store / FOLDER)
        return together([base, *(self.read_increment(file, scratch) for file in found)]) if found else base

    def read_base(self, store: Path, scratch: Path) -> Rows:
        """The rows of the source's own files, see `read`."""
        raise NotImplementedError

    def read_increment(self, file: Path, scratch: Path) -> Rows:
        """The rows of an increment, or of another plain file of the same form.

        Raises:
            RecastError: the file cannot be read as what it should be.
        """
        raise NotImplementedError

    def plain(self, file: Path, scratch: Path) -> Path:
        """A file as it comes as one that `read_increment` reads: itself, or unpacked into `scratch`.

        Raises:
            RecastError: it is broken.
        """
        return file

    def is_fresh_file(self, file: Path) -> bool:
        """Whether a file of this name may be one of the source's."""
        raise NotImplementedError
