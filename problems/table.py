"""Anyone's CSV or Parquet files, read by what params.yaml says of them, and how every source scans such files."""

import glob
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import polars as pl
from pydantic import Field

from problems.download import LEFTOVERS, record
from problems.errors import RecastError
from problems.source import PLACE, Progress, Rows, Source

_LINE = "__line__"


class TableSource(Source):
    """CSV or Parquet files of the user's own, with a header, read from where they are."""

    kind: Literal["table"]
    path: str = Field(description="a file, a folder of them, or a pattern such as data/plant-*.csv")
    time: str = Field(description="the column that holds the time")
    time_format: str | None = Field(None, description="how it is written, such as %d.%m.%Y %H:%M; null: ISO 8601")
    series: str | None = Field(None, description="the column that names the series of a row; null: there is one")
    separator: str = Field(",", min_length=1, max_length=1, description="between the columns of a CSV file")
    null_values: tuple[str, ...] = Field(("NA", "N/A", "null"), description="texts that mean a missing value (CSV)")

    def fetch(self, store: Path, progress: Progress, attempts: int) -> None:
        """Link the files into the store.

        Raises:
            RecastError: the path names no file, or files that cannot be read as one table.
        """
        setting = f"problems.{store.name}.source.path"
        place = Path(self.path).expanduser()
        # glob.glob, not Path.glob: a pattern may be absolute.
        found = place.iterdir() if place.is_dir() else map(Path, glob.glob(str(place)))  # noqa: PTH207
        files = [
            file for file in sorted(found) if file.is_file() and (file == place or file.suffix in (".csv", ".parquet"))
        ]
        if not files:
            raise RecastError(f"{setting}: {self.path} names no CSV or Parquet file; name a file, folder or pattern")
        if len({file.suffix == ".parquet" for file in files}) > 1:
            raise RecastError(f"{setting}: {self.path} names both CSV and Parquet files; name one kind with a pattern")
        link_only(store, files)

    def read(self, store: Path, scratch: Path) -> Rows:
        """The rows of every file in the store, in the order of the files' names.

        Raises:
            RecastError: a file is empty or cannot be read, or two files differ in their columns.
        """
        frames = {file: scan(file, separator=self.separator, null_values=self.null_values) for file in stored(store)}
        if not frames:
            raise RecastError(f"{store}: no data file is linked there; run the ingest stage again")
        names = {file: set(frame.collect_schema().names()) for file, frame in frames.items()}
        first, *others = names
        for other in others:
            if differing := sorted(names[first] ^ names[other]):
                raise RecastError(f"{first} and {other} differ in their columns: only one has {', '.join(differing)}")
        frame = pl.concat([frame.select(sorted(names[first])) for frame in frames.values()], how="vertical_relaxed")
        return Rows(frame, self.time, self.time_format, self.series)


def scan(file: Path, *, name: str | None = None, separator: str = ",", null_values: Sequence[str] = ()) -> pl.LazyFrame:
    """The columns of a CSV file as text, or of a Parquet file as they are, and `PLACE`; nothing is read yet.

    Bytes that are not UTF-8 become the replacement character, so a column that nobody needs does no harm.

    Raises:
        RecastError: the file is empty or is no such table; the message calls it `name`.
    """
    name = name or str(file)
    try:
        if file.suffix == ".parquet":
            frame, word = pl.scan_parquet(file, row_index_name=_LINE, row_index_offset=1), "row"
        else:
            frame, word = (
                pl.scan_csv(
                    file,
                    separator=separator,
                    infer_schema=False,
                    encoding="utf8-lossy",
                    null_values=list(null_values),
                    row_index_name=_LINE,
                    row_index_offset=2,  # the header is line 1
                ),
                "line",
            )
        frame.collect_schema()
    except pl.exceptions.NoDataError as error:
        raise RecastError(f"{name}: the file is empty") from error
    except pl.exceptions.PolarsError as error:
        raise RecastError(f"{name}: not a readable table: {str(error).splitlines()[0]}") from error
    # A number, a text and a format: this costs nothing unless an error asks for it.
    return frame.with_columns(pl.format("{}, {} {}", pl.lit(name), pl.lit(word), _LINE).alias(PLACE)).drop(_LINE)


def stored(store: Path) -> list[Path]:
    """The data files of a store, by name; a link whose target is gone is none."""
    files = [file for file in store.iterdir() if file.name != ".gitkeep" and not file.name.endswith(LEFTOVERS)]
    return sorted(file for file in files if file.is_file())


def link_only(store: Path, files: Iterable[Path]) -> None:
    """Make the store hold links to these files, under their own names, and no other data.

    Links and downloads of another time are removed; a file that somebody put there by hand is not.

    Raises:
        RecastError: two files have the same name, or the store holds a file that is neither link nor download.
    """
    targets: dict[Path, Path] = {}
    for file in files:
        link, target = store / file.name, file.absolute()
        if targets.setdefault(link, target) != target:
            raise RecastError(f"{targets[link]} and {target} have the same name: rename one of them")
    # A file that lies in the store already is its own target.
    old = [file for file in store.iterdir() if file.name != ".gitkeep" and targets.get(file) != file.absolute()]
    ours = {file for file in old if file.is_symlink() or file.name.endswith(LEFTOVERS) or record(file).exists()}
    if foreign := [str(file) for file in old if file not in ours]:
        raise RecastError(f"{', '.join(foreign)}: neither a link nor a download; move it elsewhere, then run again")
    for file in old:
        file.unlink()
    for link, target in targets.items():
        if not link.exists():
            link.symlink_to(target.resolve())
