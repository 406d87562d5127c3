"""What a file of anyone's seems to hold: how it is written, which column is the time, which are numbers.

Everything is read from a sample of the rows, but for how many different values each column has, which is counted over
many more: in a file sorted by series, the first rows are of one.
"""

import codecs
import csv
import io
import re
import tempfile
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import polars as pl
from charset_normalizer import from_bytes

from problems.errors import RecastError
from problems.problem import RESERVED
from problems.source import EPOCHS, PLACE, Rows
from problems.table import TableSource, files, is_parquet, opened
from stages.ingest import written_times

SAMPLE_BYTES = 1 << 20
SAMPLE_ROWS = 20_000
COUNTED_ROWS = 5_000_000
"""Rows among which the different values of each column are counted."""
SEPARATORS = (",", ";", "\t", "|")
DATES = """%Y-%m-%d|%Y/%m/%d|%d.%m.%Y|%d/%m/%Y|%m/%d/%Y|%d-%m-%Y|%m-%d-%Y|%Y%m%d|%d %b %Y|%b %d %Y|%b %d, %Y|%d-%b-%Y
|%d.%m.%y|%d/%m/%y|%m/%d/%y""".replace("\n", "").split("|")
CLOCKS = ["", "%H%M", "%H%M%S", "T%H:%M:%S", "T%H:%M"]
CLOCKS += [" %H:%M:%S", " %H:%M", " %H:%M:%S%.f", " %I:%M %p", " %I:%M:%S %p"]
FORMATS: tuple[str | None, ...] = (None, *(date + clock for clock in CLOCKS for date in DATES))
"""How times may be written; None: ISO 8601."""
EPOCH_SECONDS = (5e8, 4e9)
"""Numbers that may be seconds since 1970: from 1985 to 2096."""
YEARS = (1600, 2200)
"""A year of two digits is read as one of four too, long ago."""
TIME_NAMES = re.compile(r"time|date|stamp|epoch|zeit|datum|heure|fecha|day|hour", re.IGNORECASE)
MISSING = (-9999.0, -9900.0, -999.9, -999.0, -99.9, -99.0, 999.0, 999.9, 9999.0, 99999.0)
"""Numbers that often stand for a missing value."""
MOSTLY = 0.8
"""The share of a column's cells that must be numbers for it to be one of numbers."""
MARKERS = 3
"""Texts that stand for a missing value in one column, at most."""
UNITS = {"celsius": "°C", "degc": "°C", "c": "°C", "fahrenheit": "°F", "degf": "°F"}


@dataclass(frozen=True)
class Column:
    """A column, and what it is taken for: `time`, `series`, `number`, or why it is not used."""

    name: str
    role: str


@dataclass(frozen=True)
class Inspection:
    """What was found.

    Attributes:
        source: the section `source` of the problem.
        columns: every column of the file.
        sentinels: numbers that seem to stand for a missing value, by column.
        sample: the first rows, as they are written.
        questions: what could not be told for certain, and what was taken.
    """

    source: dict[str, Any]
    columns: list[Column]
    sentinels: dict[str, list[float]]
    sample: pl.DataFrame
    questions: list[str] = field(default_factory=list)

    @property
    def numbers(self) -> list[str]:
        """The columns that a forecast can be made from, and of."""
        return [column.name for column in self.columns if column.role == "number"]


@dataclass(frozen=True)
class Format:
    """A way to read a column's times.

    Attributes:
        written_as: None: ISO 8601, or times already.
        moments: what it reads.
        regular: the share of the most frequent step among the steps between them.
    """

    written_as: str | None
    moments: pl.Series
    regular: float

    @classmethod
    def of(cls, written_as: str | None, moments: pl.Series) -> Self:
        steps = moments.drop_nulls().unique().sort().diff().drop_nulls()
        most = Counter(steps.to_list()).most_common(1)
        return cls(written_as, moments, most[0][1] / len(steps) if most else 0.0)

    @property
    def is_of_dates(self) -> bool:
        """Whether every time is a midnight."""
        return bool((self.moments.dt.truncate("1d") == self.moments).all())


def inspect(path: str, time: Sequence[str] = (), series: str | None = None) -> Inspection:
    """Look at a file, a folder of them or a pattern.

    Args:
        time: the columns of the time, one or two; none: find them.
        series: the column that tells several series apart; None: find it, if there is one.

    Raises:
        RecastError: there is no such file, or nothing in it that could be a time or a number.
    """
    found = files(path, "FILE")
    questions: list[str] = []
    written = {} if is_parquet(found[0]) else _layout(found[0], questions)
    with tempfile.TemporaryDirectory() as scratch:
        source = TableSource.model_validate({"kind": "table", "path": path, "time": "?", **written})
        frame = source.scan(found[0], Path(scratch)).drop(PLACE)
        sample = frame.head(SAMPLE_ROWS).collect()
        if not sample.height:
            raise RecastError(f"{found[0]}: no row after the header")
        for wanted in (*time, *([series] if series else [])):
            if wanted not in sample.columns:
                raise RecastError(
                    f"{found[0]}: there is no column {wanted!r}; the columns are {', '.join(sample.columns)}"
                )
        if not written.get("decimal") and not is_parquet(found[0]) and _has_decimal_commas(sample):
            written["decimal"] = ","
        counted = frame.head(COUNTED_ROWS)
        numbers, null_values = _numbers(sample, counted, written.get("decimal", "."))
        if null_values:
            written["null_values"] = [*source.null_values, *null_values]
        when = _time(found[0], sample, numbers, time, questions)
        of_time = [when["time"]] if isinstance(when["time"], str) else when["time"]
        counts = counted.select(pl.len().alias(PLACE), pl.all().n_unique()).collect(engine="streaming")
        unique = counts.row(0, named=True)
        named = series or _series(counted, of_time, unique, questions)
    columns = [Column(name, _role(name, sample, numbers, unique, of_time, named)) for name in sample.columns]
    values = {column.name: numbers[column.name] for column in columns if column.role == "number"}
    if not values:
        raise RecastError(f"{found[0]}: no column of numbers, which a forecast could be made of: {_told(columns)}")
    return Inspection(
        source={"kind": "table", "path": path, **when, **({"series": named} if named else {}), **written},
        columns=columns,
        sentinels={name: missing for name, each in values.items() if (missing := _sentinels(each))},
        sample=sample,
        questions=questions,
    )


def unit_of(column: str) -> str | None:
    """The unit that a column's name gives in brackets: temperature (celsius)."""
    found = re.search(r"[(\[]([^()\[\]]+)[)\]]\s*$", column)
    return UNITS.get(found[1].strip().lower(), found[1].strip()) if found else None


def _told(columns: Sequence[Column]) -> str:
    return "; ".join(f"{column.name!r} is {column.role}" for column in columns)


def _layout(file: Path, questions: list[str]) -> dict[str, Any]:
    """How a CSV file is written, where that is not the default.

    Raises:
        RecastError: it is empty, no text, or no table with a header.
    """
    with opened(file) as content:
        head = content.read(SAMPLE_BYTES)
    if not head.strip():
        raise RecastError(f"{file}: the file is empty")
    encoding = _encoding(head)
    text = codecs.getincrementaldecoder(encoding)("replace").decode(head)
    # The last line may be cut.
    lines = text.splitlines()[: -1 if len(head) == SAMPLE_BYTES else None]
    separator, width = _separator(file, lines)
    skipped = next(i for i, line in enumerate(lines) if len(_cells(line, separator)) == width)
    header = _cells(lines[skipped], separator)
    if all(_is_number(cell) or not cell for cell in header) or len(set(header)) < len(header):
        raise RecastError(
            f"{file}, line {skipped + 1}: no header, which names every column once: {', '.join(header)}; add one"
        )
    if encoding not in ("utf-8", "utf-8-sig") and not text.isascii():
        words = [word for line in lines for word in re.split(rf"[{separator}\s]+", line) if not word.isascii()]
        shown = ", ".join(dict.fromkeys(words[:5]))
        questions.append(f"Is the encoding {encoding} right? It reads words such as {shown} (source.encoding)")
    found: dict[str, Any] = {}
    if separator != ",":
        found["separator"] = separator
    if encoding != "utf-8":
        found["encoding"] = encoding
    if skipped:
        found["skip_lines"] = skipped
    return found


def _encoding(head: bytes) -> str:
    for mark, name in (
        (codecs.BOM_UTF8, "utf-8-sig"),
        (codecs.BOM_UTF16_LE, "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16"),
    ):
        if head.startswith(mark):
            return name
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        # Letters of western Europe are by far the most frequent; a guess from a few of them is worth less.
        try:
            strange = head.decode("cp1252")
            if sum(not character.isascii() for character in strange) < 0.05 * len(strange):
                return "cp1252"
        except UnicodeDecodeError:
            pass
        best = from_bytes(head).best()
        return codecs.lookup(best.encoding).name if best else "latin-1"
    return "utf-8"


def _separator(file: Path, lines: Sequence[str]) -> tuple[str, int]:
    """What stands between the columns, and how many there are: those that most lines have.

    Raises:
        RecastError: there is one column only, whatever the separator.
    """
    best = (0.0, 0, "")
    for separator in SEPARATORS:
        counts = Counter(len(_cells(line, separator)) for line in lines if line.strip())
        width, times = counts.most_common(1)[0]
        if width > 1:
            best = max(best, (times / counts.total(), width, separator))
    share, width, separator = best
    if not share:
        raise RecastError(
            f"{file}: no columns: none of the separators , ; tab and | stands in most lines, such as {lines[0][:60]!r}"
        )
    return separator, width


def _cells(line: str, separator: str) -> list[str]:
    return [cell.strip() for cell in next(csv.reader(io.StringIO(line), delimiter=separator), [])]


def _is_number(cell: str) -> bool:
    return re.fullmatch(r"[-+]?[0-9]*[.,]?[0-9]+([eE][-+]?[0-9]+)?", cell) is not None


def _text(sample: pl.DataFrame) -> Iterator[tuple[str, pl.Series]]:
    """The columns of text, and their cells that are not empty."""
    for name in sample.columns:
        if sample[name].dtype == pl.String:
            cells = sample[name].str.strip_chars()
            yield name, cells.filter(cells != "")


def _has_decimal_commas(sample: pl.DataFrame) -> bool:
    def any_of(pattern: str) -> bool:
        return any(cells.str.contains(pattern).sum() > 0.3 * len(cells) for _, cells in _text(sample))

    return any_of(r"^[-+]?[0-9]+,[0-9]+$") and not any_of(r"^[-+]?[0-9]*\.[0-9]+$")


def _numbers(sample: pl.DataFrame, frame: pl.LazyFrame, decimal: str) -> tuple[dict[str, pl.Series], list[str]]:
    """The columns of numbers, as such, and the texts in them, anywhere, that seem to mean a missing value."""
    numbers = {
        name: sample[name].cast(pl.Float64).drop_nulls().drop_nans()
        for name in sample.columns
        if sample[name].dtype.is_numeric()
    }
    markers: dict[str, None] = {}

    def number(cells: pl.Expr) -> pl.Expr:
        return cells.str.replace(decimal, ".", literal=True).cast(pl.Float64, strict=False)

    for name, cells in _text(sample):
        values = cells.to_frame("t").select(number(pl.col("t"))).to_series().drop_nulls()
        if len(values) < max(MOSTLY * len(cells), 1):
            continue
        text = pl.col(name).str.strip_chars()
        wrong = frame.select(text.filter((text != "") & number(text).is_null()).unique().head(MARKERS + 1)).collect()
        if wrong.height <= MARKERS:
            numbers[name] = values
            markers |= dict.fromkeys(sorted(wrong.to_series()))
    return numbers, list(markers)


def _time(
    file: Path, sample: pl.DataFrame, numbers: Container[str], wanted: Sequence[str], questions: list[str]
) -> dict[str, Any]:
    """The column of the time, or those of the date and of the time of day, and how it is written.

    Args:
        numbers: columns of numbers, which are times only if they are called so.

    Raises:
        RecastError: there is none.
    """
    named_so = {name: TIME_NAMES.search(name) is not None for name in sample.columns}
    possible = sorted(
        (name for name in sample.columns if named_so[name] or name not in numbers), key=lambda name: not named_so[name]
    )
    clocks = [
        name
        for name, cells in _text(sample)
        if len(cells) and cells.str.contains(r"^[0-9]{1,2}:[0-9]{2}(:[0-9]{2})?$").all()
    ]
    if len(wanted) == 2:
        possible, clocks = [wanted[0]], [wanted[1]]
    elif wanted:
        possible, clocks = [*wanted], []
    for name in possible:
        if name in clocks or not (formats := _formats(sample.select(t=pl.col(name)))):
            continue
        if formats[0].is_of_dates and clocks:
            joined = _formats(sample.select(t=pl.concat_str([name, clocks[0]], separator=" ")))
            if not joined:
                raise RecastError(
                    f"{file}: {name!r} holds a date and {clocks[0]!r} a time of day, but not all of them can be read "
                    "together (24:00 is no time); mend the file, or name the column of the time with --time"
                )
            return {"time": [name, clocks[0]], **_chosen(f"{name} {clocks[0]}", joined, questions)}
        return {"time": name, **_chosen(name, formats, questions)}
    raise RecastError(
        f"{file}: no column holds times that can be read in all of its first {sample.height:,} rows; the columns are "
        f"{', '.join(sample.columns)}. If one does, write the section by hand and say in source.time_format how"
    )


def _formats(cells: pl.DataFrame) -> list[Format]:
    """The formats that read every cell of the column `t`, the one that makes the steps most regular first."""
    dtype = cells["t"].dtype
    if dtype in (pl.Date, pl.Datetime):
        return [Format.of(None, cells["t"].cast(pl.Datetime("ms")))]
    if not (dtype == pl.String or dtype.is_numeric()) or cells["t"].null_count():
        return []
    possible: list[str | None] = [*FORMATS] if dtype == pl.String or dtype.is_integer() else []
    if dtype != pl.String:
        possible = [each for each in possible if each is not None]
    number = cells["t"].cast(pl.Float64, strict=False)
    for name, milliseconds in EPOCHS.items():
        low, high = (bound * 1000 / milliseconds for bound in EPOCH_SECONDS)
        if number.is_between(low, high).fill_null(False).all():
            possible.append(name)
    few = cells.head(20)
    readable = [each for each in possible if not _moments(few, each).null_count()]
    found = [Format.of(each, moments) for each in readable if not (moments := _moments(cells, each)).null_count()]
    return sorted(found, key=lambda each: -each.regular)


def _moments(cells: pl.DataFrame, written_as: str | None) -> pl.Series:
    """The times that a format reads; null where it cannot, or reads a year that is none of observations."""
    zoned, local = written_times(Rows(cells.lazy(), "t", written_as))
    moment = pl.coalesce(zoned, local)
    return cells.select(pl.when(moment.dt.year().is_between(*YEARS)).then(moment)).to_series()


def _chosen(name: str, formats: Sequence[Format], questions: list[str]) -> dict[str, Any]:
    """The format of the most regular steps; a question where another makes other times of them, as regular."""
    best, *others = formats
    if best.written_as is None:
        return {}
    if rivals := [
        str(each.written_as)
        for each in others
        if each.regular == best.regular and not each.moments.equals(best.moments)
    ]:
        questions.append(f"Is {name!r} written as {best.written_as}, or as {' or '.join(rivals)}? (source.time_format)")
    return {"time_format": best.written_as}


def _series(frame: pl.LazyFrame, time: Sequence[str], unique: dict[str, int], questions: list[str]) -> str | None:
    """The column with the fewest values that makes the times differ, where they repeat; None: there is one series."""
    rows, different = unique[PLACE], _different(frame, time)
    if different > 0.95 * rows:
        return None
    schema = frame.collect_schema()
    possible = sorted(
        (count, name)
        for name, count in unique.items()
        if name not in (PLACE, *time) and 1 < count <= rows / 10 and not schema[name].is_float()
    )
    for count, name in possible:
        if count * different >= 0.95 * rows and _different(frame, [*time, name]) > 0.95 * rows:
            return name
    questions.append(
        f"{rows - different:,} of {rows:,} rows repeat a time, and no column tells them apart: of each time the first "
        "row is kept. Which columns do? Recast reads the name of a series from one (source.series)"
    )
    return None


def _different(frame: pl.LazyFrame, names: Sequence[str]) -> int:
    """How many different rows there are of these columns."""
    count: int = frame.select(pl.struct(names).n_unique()).collect(engine="streaming").item()
    return count


def _role(
    name: str,
    sample: pl.DataFrame,
    numbers: dict[str, pl.Series],
    unique: dict[str, int],
    time: Sequence[str],
    series: str | None,
) -> str:
    if name in time:
        return "time"
    if name == series:
        return "series"
    if name not in numbers:
        return "not used: text"
    if name in RESERVED:
        return f"not used: {name!r} is the name of a column of Recast's own"
    if unique[name] <= 1 or (numbers[name].n_unique() == 1 and unique[name] < 3):
        return "not used: always the same"
    steps = numbers[name].diff().drop_nulls()
    if len(steps) > 2 and (steps == 1).all() and len(numbers[name]) == sample.height:
        return "not used: counts the rows"
    return "number"


def _sentinels(values: pl.Series) -> list[float]:
    """Numbers that often stand for a missing value, and lie far from all others of the column."""
    found = []
    for missing in MISSING:
        others = values.filter(~values.is_in(list(MISSING)))
        if (values == missing).any() and len(others):
            low, high = float(others.min()), float(others.max())  # type: ignore[arg-type]
            if not low - 2 * (high - low) <= missing <= high + 2 * (high - low):
                found.append(missing)
    return found
