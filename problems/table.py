"""Anyone's CSV or Parquet files, read by what params.yaml says of them, and how every source scans such files."""

import codecs
import csv
import glob
import gzip
import io
import shutil
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, BinaryIO, Literal

import polars as pl
from pydantic import AfterValidator, Field

from problems.download import LEFTOVERS, record
from problems.errors import RecastError
from problems.increments import FOLDER, KEPT, GrowingSource, increments
from problems.source import PLACE, Progress, RepeatedHour, Rows, TimeZone

_LINE = "__line__"


def _encoding(value: str) -> str:
    try:
        return codecs.lookup(value).name
    except LookupError:
        raise ValueError(
            "no such encoding; write utf-8, latin-1, cp1252, utf-16 or another that Python knows"
        ) from None


class TableSource(GrowingSource):
    """CSV or Parquet files of the user's own, with a header, read from where they are."""

    kind: Literal["table"]
    path: str = Field(description="a file, a folder of them, or a pattern such as data/plant-*.csv")
    time: str | Annotated[tuple[str, ...], Field(min_length=2, max_length=6)] = Field(
        description="the column that holds the time; or those it is spread over, such as [date, clock], which are read "
        "with a space between them"
    )
    time_format: str | None = Field(
        None,
        description="how it is written, such as %d.%m.%Y %H:%M; epoch s, epoch ms: numbers since 1970; null: ISO 8601",
    )
    time_zone: TimeZone | None = Field(
        None, description="of times that are written without one, such as Europe/Berlin; null: UTC"
    )
    repeated_hour: RepeatedHour = Field(
        "refuse", description="when the clock is set back; in order: the row that stands first is the earlier"
    )
    series: str | None = Field(None, description="the column that names the series of a row; null: there is one")
    separator: str = Field(
        ",", min_length=1, max_length=1, description="between the columns of a CSV file; a space: one or more of them"
    )
    decimal: Literal[".", ","] = Field(".", description="what stands before the decimals of a CSV file's numbers")
    encoding: Annotated[str, AfterValidator(_encoding)] = Field("utf-8", description="of a CSV file's text")
    skip_lines: int = Field(0, ge=0, description="lines of a CSV file before its header")
    comment: str | None = Field(
        None, min_length=1, description="what a CSV file's lines begin with that are no rows, such as #"
    )
    null_values: tuple[str, ...] = Field(("NA", "N/A", "null"), description="texts that mean a missing value (CSV)")

    def fetch(self, store: Path, progress: Progress, attempts: int) -> None:
        """Link the files into the store.

        Raises:
            RecastError: the path names no file, or files that cannot be read as one table.
        """
        link_only(store, files(self.path, f"problems.{store.name}.source.path"))

    def read_base(self, store: Path, scratch: Path) -> Rows:
        """The rows of every file in the store, in the order of the files' names.

        Raises:
            RecastError: a file is empty or cannot be read, or two files differ in their columns.
        """
        frames = {file: self.scan(file, scratch) for file in stored(store)}
        if not frames:
            raise RecastError(f"{store}: no data file is linked there; run the ingest stage again")
        names = {file: set(frame.collect_schema().names()) for file, frame in frames.items()}
        first, *others = names
        for other in others:
            if differing := sorted(names[first] ^ names[other]):
                raise RecastError(
                    f"{first.resolve()} and {other.resolve()} differ in their columns: only one has "
                    f"{', '.join(differing)}; name the files of one kind with a pattern, or mend a header"
                )
        frame = pl.concat([frame.select(sorted(names[first])) for frame in frames.values()], how="vertical_relaxed")
        return self._rows(frame, first, f"problems.{store.name}.source.time")

    def read_increment(self, file: Path, scratch: Path) -> Rows:
        """The rows of one file.

        Raises:
            RecastError: it is empty or cannot be read.
        """
        return self._rows(self.scan(file, scratch), file, "source.time")

    def plain(self, file: Path, scratch: Path) -> Path:
        """The file, unpacked where its name ends in .gz.

        Raises:
            RecastError: it is cut short or broken.
        """
        if not is_packed(file):
            return file
        copy = scratch / file.name.removesuffix(file.suffix)
        try:
            with opened(file) as there, copy.open("wb") as here:
                shutil.copyfileobj(there, here, 1 << 20)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise RecastError(f"{file}: not a whole gzip file: {error}") from None
        return copy

    def is_fresh_file(self, file: Path) -> bool:
        """Whether its name is one of a CSV or Parquet file."""
        return file.name.lower().removesuffix(".gz").endswith(SUFFIXES)

    def _rows(self, frame: pl.LazyFrame, file: Path, setting: str) -> Rows:
        """The columns of `file`, and perhaps of others, as rows.

        Raises:
            RecastError: one of the columns that the time is spread over is not there; correct `setting`.
        """
        time = self.time
        if not isinstance(time, str):
            names = frame.collect_schema().names()
            if missing := [name for name in time if name not in names]:
                raise RecastError(f"{file.resolve()}: there is no column {missing[0]!r}; correct {setting}")
            frame = frame.with_columns(pl.concat_str(time, separator=" ").alias(" ".join(time)))
            time = " ".join(time)
        return Rows(frame, time, self.time_format, self.series, self.time_zone, self.repeated_hour, self.decimal)

    def fault(self, store: Path) -> str | None:
        """The first line in the store's CSV files that has too many cells, or opens a quotation that nothing closes."""
        files = [*stored(store), *increments(store / FOLDER)]
        return next((found for file in files if (found := self.fault_of(file))), None)

    def fault_of(self, file: Path) -> str | None:
        """The same for one file, which `scan` has read."""
        if is_parquet(file):
            return None
        with opened(file) as content:
            text = io.TextIOWrapper(content, self.encoding, errors="replace", newline="")
            for _ in range(self.skip_lines):
                next(text)
            cells = csv.reader(text, delimiter=self.separator, skipinitialspace=self.separator == " ", strict=True)
            width, line = len(next(cells)), 1
            try:
                for row in cells:
                    if len(row) > width:
                        said = f"there are {len(row)} cells, and the header has {width}"
                        break
                    line = cells.line_num
                else:
                    return None
            except csv.Error as error:
                said = f"a quotation mark opens a text that does not end as it should ({error})"
            return f"{file.resolve()}, line {self.skip_lines + line + 1}: {said}"

    def scan(self, file: Path, scratch: Path) -> pl.LazyFrame:
        """The columns of one file, see `scan`; from a copy in `scratch` of a packed one, of other text than UTF-8, or
        of one with spaces between the columns.

        Raises:
            RecastError: the file is empty, is no such table, or its bytes are not in the encoding.
        """
        is_utf_8, name = self.encoding == "utf-8", str(file.resolve())
        copy = file
        if not is_parquet(file) and (is_packed(file) or not is_utf_8 or self.separator == " "):
            copy = scratch / f"{file.name}.csv"
            try:
                with opened(file) as there:
                    if self.separator == " ":
                        text = io.TextIOWrapper(there, self.encoding, errors="replace" if is_utf_8 else "strict")
                        with copy.open("w", encoding="utf-8", newline="") as written:
                            written.writelines(f"{' '.join(line.split())}\n" for line in text)
                    elif is_utf_8:
                        with copy.open("wb") as here:
                            shutil.copyfileobj(there, here, 1 << 20)
                    else:
                        with copy.open("w", encoding="utf-8", newline="") as written:
                            shutil.copyfileobj(codecs.getreader(self.encoding)(there), written, 1 << 20)
            except UnicodeError as error:
                raise RecastError(
                    f"{name}: not all of its bytes are {self.encoding}: {error}; correct encoding"
                ) from None
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                raise RecastError(f"{name}: not a whole gzip file: {error}") from None
        frame = scan(
            copy, name=name, separator=self.separator, null_values=self.null_values, skip_lines=self.skip_lines
        )
        if self.comment is None or is_parquet(file):
            return frame
        # Read and then left out, so that lines are counted as an editor counts them.
        first = pl.col(frame.collect_schema().names()[0])
        return frame.filter(~first.str.starts_with(self.comment).fill_null(False))


SUFFIXES = (".csv", ".tsv", ".txt", ".parquet")


def is_parquet(file: Path) -> bool:
    return file.suffix.lower() == ".parquet"


def is_packed(file: Path) -> bool:
    return file.suffix.lower() == ".gz"


def opened(file: Path) -> BinaryIO:
    """The bytes of a file, unpacked where its name ends in .gz."""
    return gzip.open(file) if is_packed(file) else file.open("rb")  # type: ignore[return-value]


def files(path: str, setting: str) -> list[Path]:
    """The files that a path names: itself, those of a folder, or those that fit a pattern.

    Args:
        setting: where the path comes from, for messages.

    Raises:
        RecastError: there is none, or there are CSV files and Parquet files.
    """
    place = Path(path).expanduser()
    # glob.glob, not Path.glob: a pattern may be absolute.
    there = place.iterdir() if place.is_dir() else map(Path, glob.glob(str(place)))  # noqa: PTH207
    found = [
        file
        for file in sorted(there)
        if file.is_file() and (file == place or file.name.lower().removesuffix(".gz").endswith(SUFFIXES))
    ]
    if not found:
        raise RecastError(f"{setting}: {path} names no CSV or Parquet file; name a file, folder or pattern")
    if len({is_parquet(file) for file in found}) > 1:
        raise RecastError(f"{setting}: {path} names both CSV and Parquet files; name one kind with a pattern")
    return found


def scan(
    file: Path,
    *,
    name: str | None = None,
    separator: str = ",",
    null_values: Sequence[str] = (),
    skip_lines: int = 0,
) -> pl.LazyFrame:
    """The columns of a CSV file as text, or of a Parquet file as they are, and `PLACE`; nothing is read yet.

    Bytes that are not UTF-8 become the replacement character, so a column that nobody needs does no harm.

    Raises:
        RecastError: the file is empty or is no such table; the message calls it `name`.
    """
    name = name or str(file)
    try:
        if is_parquet(file):
            frame, word = pl.scan_parquet(file, row_index_name=_LINE, row_index_offset=1), "row"
        else:
            frame, word = (
                pl.scan_csv(
                    file,
                    separator=separator,
                    infer_schema=False,
                    encoding="utf8-lossy",
                    null_values=list(null_values),
                    skip_lines=skip_lines,
                    row_index_name=_LINE,
                    row_index_offset=skip_lines + 2,  # the header is the line before
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
    """The data files of a store but for its increments, by name; a link whose target is gone is none."""
    files = [file for file in store.iterdir() if file.name not in KEPT and not file.name.endswith(LEFTOVERS)]
    return sorted(file for file in files if file.is_file())


def link_only(store: Path, files: Iterable[Path]) -> None:
    """Make the store hold links to these files, under their own names, and no other data.

    Links and downloads of another time are removed; a file that somebody put there by hand is not, nor are increments.

    Raises:
        RecastError: two files have the same name, or the store holds a file that is neither link nor download.
    """
    targets: dict[Path, Path] = {}
    for file in files:
        link, target = store / file.name, file.absolute()
        if targets.setdefault(link, target) != target:
            raise RecastError(f"{targets[link]} and {target} have the same name: rename one of them")
    # A file that lies in the store already is its own target.
    old = [file for file in store.iterdir() if file.name not in KEPT and targets.get(file) != file.absolute()]
    ours = {file for file in old if file.is_symlink() or file.name.endswith(LEFTOVERS) or record(file).exists()}
    if foreign := [str(file) for file in old if file not in ours]:
        raise RecastError(f"{', '.join(foreign)}: neither a link nor a download; move it elsewhere, then run again")
    for file in old:
        file.unlink()
    for link, target in targets.items():
        if not link.exists():
            link.symlink_to(target.resolve())
