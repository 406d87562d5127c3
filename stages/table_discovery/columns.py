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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import polars as pl
from charset_normalizer import from_bytes

from problems.columns import RESERVED
from problems.errors import RecastError
from problems.source import EPOCHS, PLACE, Rows
from problems.table import TableSource, files, is_parquet, opened
from stages.ingest import decimal_point, written_times

SAMPLE_BYTES = 1 << 20
SAMPLE_ROWS = 20_000
COUNTED_ROWS = 5_000_000
"""Rows among which the different values of each column are counted."""
SEPARATORS = (",", ";", "\t", "|")
COMMENT = "#"
"""What lines begin with that are no rows, such as the units below a header."""
HEADER_LINES = 50
"""Lines among which the header is looked for."""
DATES = """%Y-%m-%d|%Y/%m/%d|%d.%m.%Y|%d/%m/%Y|%m/%d/%Y|%d-%m-%Y|%m-%d-%Y|%Y%m%d|%d %b %Y|%b %d %Y|%b %d, %Y|%d-%b-%Y
|%d.%m.%y|%d/%m/%y|%m/%d/%y""".replace("\n", "").split("|")
PARTS = {"year": "%Y", "month": "%m", "day": "%d", "hour": "%H", "minute": "%M", "second": "%S"}
"""Columns over which a time is often spread, by their names."""
CLOCKS = ["", "%H%M", "%H%M%S", "T%H:%M:%S", "T%H:%M", ":%H%M"]
CLOCKS += [" %H:%M:%S", " %H:%M", " %H", " %H:%M:%S%.f", " %I:%M %p", " %I:%M:%S %p"]
FORMATS: tuple[str | None, ...] = (None, *(date + clock for clock in CLOCKS for date in DATES))
"""How times may be written; None: ISO 8601."""
EPOCH_SECONDS = (5e8, 4e9)
"""Numbers that may be seconds since 1970: from 1985 to 2096."""
YEARS = (1600, 2200)
"""A year of two digits is read as one of four too, long ago."""
DATE = re.compile(r"[0-9]{1,4}[-./][0-9]{1,2}[-./][0-9]{1,4}")
GROUPED = r"^[-+]?[1-9][0-9]{0,2}([., '\x{a0}\x{202f}][0-9]{3})+([.,][0-9]+)?$"
"""A number whose thousands are set apart."""
TIME_NAMES = re.compile(r"time|date|stamp|epoch|zeit|datum|heure|fecha|day|hour", re.IGNORECASE)
MISSING = (-9999.0, -9900.0, -999.9, -999.0, -99.9, -99.0, 999.0, 999.9, 9999.0, 99999.0)
"""Numbers that often stand for a missing value."""
MOSTLY = 0.8
"""The share of a column's cells that must be numbers for it to be one of numbers."""
SPARSE = 0.5
"""A column that has a value in fewer of the rows would leave few windows without a gap."""
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


def inspect(path: str, time: Sequence[str] = (), series: str | None = None, target: str | None = None) -> Inspection:
    """Look at a file, a folder of them or a pattern.

    Args:
        time: the columns of the time, one or two; none: find them.
        series: the column that tells several series apart; None: find it, if there is one.
        target: a column that is used however seldom it has a value.

    Raises:
        RecastError: there is no such file, or nothing in it that could be a time or a number.
    """
    found = files(path, "FILE")
    questions: list[str] = []
    written = {} if is_parquet(found[0]) else _layout(found[0], questions)
    source = TableSource.model_validate({"kind": "table", "path": path, "time": "?", **written})
    with tempfile.TemporaryDirectory() as scratch, _readable(source, found[0]):
        placed = source.scan(found[0], Path(scratch))
        # Lines with nothing on them are no rows.
        placed = placed.filter(~pl.all_horizontal(pl.exclude(PLACE).is_null()))
        frame = placed.drop(PLACE)
        sample = frame.head(SAMPLE_ROWS).collect()
        if not sample.height:
            raise RecastError(f"{found[0]}: no row after the header")
        for wanted in (*time, *([series] if series else [])):
            if wanted not in sample.columns:
                raise RecastError(
                    f"{found[0]}: there is no column {wanted!r}; the columns are {', '.join(sample.columns)}"
                )
        if not is_parquet(found[0]) and _has_decimal_commas(sample, source.separator, questions):
            written["decimal"] = ","
        counted = frame.head(COUNTED_ROWS)
        numbers, null_values = _numbers(sample, counted, written.get("decimal", "."))
        if null_values:
            written["null_values"] = [*source.null_values, *null_values]
            shown = ", ".join(map(repr, null_values))
            questions.append(f"Does {shown} stand for a missing value? (source.null_values)")

        def place(row: int) -> str:
            return str(placed.select(PLACE).slice(row, 1).collect().item())

        when = _time(found[0], sample, numbers, time, questions, place)
        of_time = [when["time"]] if isinstance(when["time"], str) else when["time"]
        counts = counted.select(pl.len().alias(PLACE), pl.all().n_unique()).collect(engine="streaming")
        unique = counts.row(0, named=True)
        named = series or _series(counted, of_time, unique, questions)
    columns = [Column(name, _role(name, sample, numbers, unique, of_time, named, target)) for name in sample.columns]
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


@contextmanager
def _readable(source: TableSource, file: Path) -> Iterator[None]:
    """What Polars raises, as an error that names the place."""
    try:
        yield
    except pl.exceptions.PolarsError as error:
        fault = source.fault_of(file) or f"{file}: {str(error).splitlines()[0]}"
        raise RecastError(f"{fault}; mend the file") from error


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
    if head.startswith(b"PK\x03\x04"):
        raise RecastError(f"{file}: a spreadsheet or a zip archive, not text; save the table as CSV")
    encoding = _encoding(head)
    text = codecs.getincrementaldecoder(encoding)("replace").decode(head)
    if "\r" in text and "\n" not in text:
        raise RecastError(f"{file}: its lines end with a carriage return alone; save it with line feeds")
    # The last line may be cut.
    lines = text.splitlines()[: -1 if len(head) == SAMPLE_BYTES else None]
    separator, width = _separator(file, lines)
    wide = [i for i, line in enumerate(lines) if len(_cells(line, separator)) == width][:HEADER_LINES]
    skipped = wide[0]
    if not _is_header(_cells(lines[skipped], separator)):
        # Spreadsheets write as many cells before the header as in it.
        below = [
            i for i in wide if _is_header(cells := _cells(lines[i], separator)) and not any(map(_is_figure, cells))
        ]
        if not below:
            header = ", ".join(_cells(lines[skipped], separator))
            above = f"; line {skipped} has fewer cells than most lines, {width}" if skipped else ""
            raise RecastError(
                f"{file}, line {skipped + 1}: no header, which names every column once: {header}; add or mend it{above}"
            )
        skipped = below[0]
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
    below_header = lines[skipped + 1 :]
    if 0 < sum(line.startswith(COMMENT) for line in below_header) < len(below_header) / 2:
        found["comment"] = COMMENT
    return found


def _encoding(head: bytes) -> str:
    for mark, name in (
        (codecs.BOM_UTF8, "utf-8-sig"),
        (codecs.BOM_UTF16_LE, "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16"),
    ):
        if head.startswith(mark):
            return name
    for name, zeros in (("utf-16-be", head[::2]), ("utf-16-le", head[1::2])):
        if zeros.count(0) > len(zeros) / 2:
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
        counts = Counter(len(_cells(line, " ")) for line in lines if line.strip())
        width, times = counts.most_common(1)[0]
        if width > 1 and times > MOSTLY * counts.total():
            return " ", width
        raise RecastError(
            f"{file}: no columns: none of the separators , ; tab | and space stands in most lines, such as "
            f"{lines[0][:60]!r}"
        )
    return separator, width


def _cells(line: str, separator: str) -> list[str]:
    if separator == " ":
        line = " ".join(line.split())
    return [cell.strip() for cell in next(csv.reader(io.StringIO(line), delimiter=separator), [])]


def _is_number(cell: str) -> bool:
    return re.fullmatch(r"[-+]?[0-9]*[.,]?[0-9]+([eE][-+]?[0-9]+)?", cell) is not None


def _is_header(cells: Sequence[str]) -> bool:
    """Whether the cells may be the names of columns: different ones, not all numbers, no dates among them."""
    return (
        len(set(cells)) == len(cells)
        and not all(_is_number(cell) or not cell for cell in cells)
        and not any(DATE.match(cell) for cell in cells)
    )


def _is_figure(cell: str) -> bool:
    return re.match(r"[-+.]?[0-9]", cell) is not None


def _text(sample: pl.DataFrame) -> Iterator[tuple[str, pl.Series]]:
    """The columns of text, and their cells that are not empty."""
    for name in sample.columns:
        if sample[name].dtype == pl.String:
            cells = sample[name].str.strip_chars()
            yield name, cells.filter(cells != "")


def _has_decimal_commas(sample: pl.DataFrame, separator: str, questions: list[str]) -> bool:
    def having(pattern: str, mark: str) -> list[pl.Series]:
        """The cells with the mark in columns that often fit the pattern."""
        fitting = [cells for _, cells in _text(sample) if cells.str.contains(pattern).sum() > 0.3 * len(cells)]
        return [cells.filter(cells.str.contains(mark, literal=True)) for cells in fitting]

    commas, points = having(r"^[-+]?[0-9]+,[0-9]+$", ","), having(r"^[-+]?[0-9]*\.[0-9]+$", ".")
    if not commas or not all(cells.str.contains(GROUPED).all() for cells in points):
        return False
    if all(cells.str.contains(GROUPED).all() for cells in commas):
        # Where the comma separates the columns, it does not stand before decimals as well.
        if separator == ",":
            return False
        questions.append(f"Does the comma in {commas[0][0]} stand before decimals? (source.decimal)")
    return True


def _numbers(sample: pl.DataFrame, frame: pl.LazyFrame, decimal: str) -> tuple[dict[str, pl.Series], list[str]]:
    """The columns of numbers, as such, and the texts in them, anywhere, that seem to mean a missing value."""
    numbers = {
        name: sample[name].cast(pl.Float64).drop_nulls().drop_nans()
        for name in sample.columns
        if sample[name].dtype.is_numeric()
    }
    markers: dict[str, None] = {}

    def number(cells: pl.Expr) -> pl.Expr:
        return (cells if decimal == "." else decimal_point(cells, decimal)).cast(pl.Float64, strict=False)

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
    file: Path,
    sample: pl.DataFrame,
    numbers: Mapping[str, pl.Series],
    wanted: Sequence[str],
    questions: list[str],
    place: Callable[[int], str],
) -> dict[str, Any]:
    """The column of the time, or those that it is spread over, and how it is written.

    Args:
        numbers: columns of numbers, which are times only if they are called so.
        place: where a row of the sample stands.

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
    clocks += [
        name
        for name, values in numbers.items()
        if name.lower() in ("hour", "hr") and values.is_between(0, 23).all() and (values == values.floor()).all()
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
    named = {name.lower(): name for name in sample.columns}
    parts = [part for part in PARTS if part in named]
    if not wanted and len(parts) >= 3 and parts == [*PARTS][: len(parts)]:
        spread, written_as = [named[part] for part in parts], " ".join(PARTS[part] for part in parts)
        if not _moments(sample.select(t=pl.concat_str(spread, separator=" ")), written_as).null_count():
            return {"time": spread, "time_format": written_as}
    _check_all_but_few(sample, possible, place)
    raise RecastError(
        f"{file}: no column holds times that can be read in all of its first {sample.height:,} rows; the columns are "
        f"{', '.join(sample.columns)}. A year or a month alone is no time, for they are of unequal length. If a column "
        "does hold times, write the section by hand and say in source.time_format how"
    )


def _check_all_but_few(sample: pl.DataFrame, possible: Sequence[str], place: Callable[[int], str]) -> None:
    """
    Raises:
        RecastError: a column holds times, but for some cells.
    """
    for name, cells in _text(sample.select(possible)):
        first = cells.drop_nulls().head(100).to_frame("t")
        readable = {each: len(first) - _moments(first, each).null_count() for each in FORMATS}
        best = max(readable, key=lambda each: readable[each])
        if readable[best] > len(first) / 2:
            moments = _moments(sample.select(t=pl.col(name)), best)
            row = moments.is_null().arg_true()[0]
            value = sample[name][row]
            said = "is empty" if value is None else f"holds {value!r}"
            how = f"written as {best}" if best else "in ISO 8601"
            raise RecastError(
                f"{place(row)}: column {name!r} {said}, and most of its other cells hold a time {how} "
                f"({moments.null_count():,} of the first {sample.height:,} do not); mend or delete the row"
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
    target: str | None,
) -> str:
    if name in time:
        return "time"
    if name == series:
        return "series"
    if name not in numbers:
        return _role_of_text(sample[name])
    if name in RESERVED:
        return f"not used: {name!r} is the name of a column of Recast's own"
    if unique[name] <= 1 or (numbers[name].n_unique() == 1 and unique[name] < 3):
        return "not used: always the same"
    steps = numbers[name].diff().drop_nulls()
    if len(steps) > 2 and (steps == 1).all() and len(numbers[name]) == sample.height:
        return "not used: counts the rows"
    if name != target and name.lower() in PARTS:
        return "not used: a part of the time"
    filled = len(numbers[name]) / sample.height
    if name != target and filled < SPARSE:
        return f"not used: without a value in {1 - filled:.0%} of the rows"
    return "number"


def _role_of_text(cells: pl.Series) -> str:
    if cells.null_count() == len(cells):
        return "not used: empty"
    if cells.dtype != pl.String:
        return f"not used: {cells.dtype}"
    filled = cells.str.strip_chars().drop_nulls()
    grouped = filled.filter(filled.str.contains(GROUPED))
    plain = filled.str.contains(r"^([-+]?[0-9]+([.,][0-9]+)?)?$").sum()
    if len(grouped) and len(grouped) + plain > MOSTLY * len(filled):
        return f"not used: thousands are set apart, as in {grouped[0]!r}; save the numbers without that"
    return "not used: text"


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
