"""Stage ingest: a problem's source as one typed, sorted table without duplicates, and what was wrong with it."""

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

# Of a CSV file Polars reads so many bytes at a time into each of its threads: else up to 16 MiB, more the larger the
# file is, and what is made of them takes many times as much. Of a Parquet file it reads so many row groups ahead. It
# looks when it reads, and there is no other way to tell it.
os.environ.setdefault("POLARS_CSV_CHUNK_SIZE", str(1 << 20))
os.environ.setdefault("POLARS_ROW_GROUP_PREFETCH_SIZE", "1")

import polars as pl

from problems.errors import RecastError
from problems.fresh import FolderFresh
from problems.increments import FOLDER, GrowingSource, increments
from problems.problem import Problem, SequenceProblem
from problems.source import AGE, EPOCHS, PLACE, Rows, written
from problems.table import stored
from project import paths
from project.atomic import replaced_folder, write_json
from project.command import command
from project.progress import download_progress
from project.settings.parsing import parse_settings
from project.settings.sections import Settings
from stages.sequences.ingest import ingest_sequences

TABLE = "table.parquet"
QUALITY = "quality.json"
ONLY_SERIES = "all"
LISTED_GAPS = 50
_ROW_GROUP_ROWS = 1 << 18
_UNDECODABLE = "\N{REPLACEMENT CHARACTER}"
_AGAIN, _ROW = "__again__", "__row__"
_ISO_8601 = ("%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M", "%Y-%m-%d %H:%M")
"""How a time may be written where `time_format` says nothing; a date alone is its midnight."""
_SHORTENED = ((r"^(.{10}[Tt ]\d\d:\d\d) ?([-+Zz])", "${1}:00${2}"), (r"(:[\d.]+ ?[-+]\d\d)$", "${1}:00"))
"""What a time with a zone may leave out, seconds and the zone's minutes: 2020-01-01T00:00Z, 2020-01-01 00:00:00+01."""
_WHOLE_SECONDS = ("%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M:%S")
_WITH_ZONE = ("%Y-%m-%dT%H:%M:%S%.f%#z", "%Y-%m-%d %H:%M:%S%.f%#z")


@dataclass(frozen=True)
class Gap:
    """Neighbouring rows further apart than the cadence, and how many rows would lie between them."""

    after: str
    before: str
    missing: int


@dataclass(frozen=True)
class SeriesQuality:
    """One series: the rows kept, and what was wrong with the rows read.

    Attributes:
        first, last: times of the first and last row
        rows: rows kept
        duplicates: rows dropped because an earlier one, or one of a newer increment, had the same time
        out_of_order: rows read that were earlier than the row before them
        cadence: the most frequent time between neighbours; None for a single row
        off_cadence: neighbours closer to each other than the problem's cadence
        gaps, missing: how many gaps there are, and how many rows are missing in them
        listed: the first gaps in time, at most `LISTED_GAPS`
    """

    first: str
    last: str
    rows: int
    duplicates: int
    out_of_order: int
    cadence: str | None
    off_cadence: int
    gaps: int
    missing: int
    listed: list[Gap]


@dataclass(frozen=True)
class ColumnQuality:
    """One column of the table: null cells, how many cells read held a sentinel, and the range in the column's unit.

    The mean has six digits: its last ones depend on the order of the sum.
    """

    nulls: int
    sentinels: int
    min: float
    max: float
    mean: float


@dataclass(frozen=True)
class Quality:
    """What was read and what was wrong with it; the same rows give the same report.

    Attributes:
        synthetic: the rows are simulated
        files: sha256 of each raw file, by its name in the store
        settings: sha256 of what params.yaml says of source and table, see `read_by`
        cadence: time between rows, declared or else the most frequent
    """

    synthetic: bool
    files: dict[str, str]
    settings: str
    rows_read: int
    rows_kept: int
    cadence: str
    cadence_seconds: float
    cadence_declared: bool
    series: dict[str, SeriesQuality]
    columns: dict[str, ColumnQuality]


def ingest(problem: Problem, store: Path, out: Path) -> Quality:
    """Read the raw files in `store` into `out`: `table.parquet` and `quality.json`, both or neither.

    The table has `time` (Datetime, ms), `series` (`all` where there is one) and the features as Float64 in their
    declared order, sorted by series and time. Of rows with the same series and time that of the newest increment is
    kept, else the first; sentinels and NaN are null. Memory does not grow with the rows as long as they come in order.

    Raises:
        RecastError: a file, a column or a cell is not what the problem declares; the message names it.
        OSError: the disk refuses.
    """
    with replaced_folder(out) as folder, readable_polars_errors(store, out, problem.source.fault):
        scratch = folder / "scratch"
        scratch.mkdir()
        found, disorder = tabulate(problem.source.read(store, scratch), problem, folder / TABLE, scratch)
        quality = _quality(problem, found, disorder, pl.scan_parquet(folder / TABLE), store)
        shutil.rmtree(scratch)
        write_json(folder / QUALITY, asdict(quality))
    return quality


def tabulate(rows: Rows, problem: Problem, table: Path, scratch: Path) -> tuple[dict[str, int], "dict[str, Disorder]"]:
    """Write the table of some rows, see `ingest`; what was counted in them, and each series that was not in order.

    Raises:
        RecastError: a column or a cell is not what the problem declares; the message names it.
    """
    check_columns(rows, problem.table.features)
    found = _read(_with_repeats(rows), problem, table)
    disorder = _disorder(pl.scan_parquet(table))
    aged, thin = AGE in rows.frame.collect_schema(), problem.table.thin
    if disorder or aged or thin:
        as_read = table.rename(scratch / "as_read.parquet")
        frame = pl.scan_parquet(as_read)
        if disorder:
            frame = frame.sort("series", "time", *([AGE] if aged else []), maintain_order=True).filter(~_REPEATED)
        if thin and problem.table.cadence is not None:
            frame = thinned(frame, problem.table.cadence)
        _sink(frame.drop(AGE, strict=False), table).collect(engine="streaming")
        as_read.unlink()
    return found, disorder


def thinned(table: pl.LazyFrame, cadence: timedelta) -> pl.LazyFrame:
    """Of each stretch of a sorted table, rows at most a cadence apart, those whole cadences after its first."""
    begins = (~_SAME_SERIES | (pl.col("time").diff() > cadence)).fill_null(True)
    since = pl.col("time") - pl.when(begins).then(pl.col("time")).forward_fill()
    return table.filter(since.dt.total_milliseconds() % round(cadence.total_seconds() * 1000) == 0)


def fetch(problem: str, settings: Settings) -> None:
    """Fill the problem's raw store, unless what it holds is right already.

    Raises:
        Unreachable: no source of its files can be reached now.
        RecastError: a file is not what it should be, or is one of `fresh.path` too.
    """
    declared, store = settings.problem(problem), paths.raw(problem)
    store.mkdir(parents=True, exist_ok=True)
    with download_progress(f"fetch {problem}") as progress:
        declared.source.fetch(store, progress, settings.ingest.attempts)
    fresh = declared.fresh if isinstance(declared, Problem) else None
    if isinstance(fresh, FolderFresh) and isinstance(declared.source, GrowingSource):
        _refuse_both(problem, fresh.there(declared.source), stored(store))


def _refuse_both(problem: str, fresh: list[Path], own: list[Path]) -> None:
    """
    Raises:
        RecastError: a file that brings new rows is one of the source's own, whose rows nothing checks.
    """
    unchecked = {file.resolve() for file in own}
    if both := [file for file in fresh if file.resolve() in unchecked]:
        raise RecastError(
            f"{both[0]}: problems.{problem}.source.path and problems.{problem}.fresh.path both name this file, so its "
            "new rows would not be checked; have source.path name only the files that there were at the beginning, and "
            "fresh.path only others, such as those of another folder"
        )


def main(problem: str) -> None:
    """Fetch a problem's rows and write them as one typed, sorted table with a quality report."""
    settings = parse_settings()
    fetch(problem, settings)
    declared, store, out = settings.problem(problem), paths.raw(problem), paths.stage("ingest", problem)
    if isinstance(declared, SequenceProblem):
        with readable_polars_errors(store, out):
            read = ingest_sequences(declared, store, out, hashes(store))
        print(f"{problem}: {read.described}")
        return
    quality = ingest(declared, store, out)
    gaps = sum(series.gaps for series in quality.series.values())
    rows = "simulated rows" if quality.synthetic else "rows"
    print(
        f"{problem}: {quality.rows_kept:,} of {quality.rows_read:,} {rows} kept, "
        f"every {quality.cadence}, {len(quality.series)} series, {gaps} gaps"
    )


_SAME_SERIES = pl.col("series") == pl.col("series").shift()
_REPEATED = (_SAME_SERIES & (pl.col("time") == pl.col("time").shift())).fill_null(False)
"""In a table sorted by series and time: whether a row has the time of the row before it."""


@dataclass(frozen=True)
class Disorder:
    """A series whose rows are not in order as they were read, or repeat a time.

    Attributes:
        repeated: rows that had the time of another one, and were not kept
    """

    repeated: int
    out_of_order: int


def _sink(frame: pl.LazyFrame, file: Path) -> pl.LazyFrame:
    """The frame, written to the file when it is collected."""
    return frame.sink_parquet(file, row_group_size=_ROW_GROUP_ROWS, lazy=True)


def _disorder(table: pl.LazyFrame) -> dict[str, Disorder]:
    """What was read of each series, if the rows are not sorted by series and time, each time once; else nothing."""
    earlier = pl.col("series") < pl.col("series").shift()
    late = _SAME_SERIES & (pl.col("time") <= pl.col("time").shift())
    if not table.select((earlier | late).any()).collect(engine="streaming").item():
        return {}
    late = (pl.col("time").diff() < timedelta(0)).sum()
    read = (
        table.select("series", "time")
        .collect()
        .group_by("series")
        .agg(pl.len() - pl.col("time").n_unique(), late.alias("out of order"))
    )
    return {name: Disorder(repeated, out_of_order) for name, repeated, out_of_order in read.iter_rows()}


def time_of(rows: Rows) -> pl.Expr:
    """The time of a row in UTC; null where it cannot be read, or where the clock showed it twice or never."""
    return pl.coalesce(written_times(rows)[0], _in_utc(rows))


def written_times(rows: Rows) -> tuple[pl.Expr, pl.Expr]:
    """The time of a row as it is written: in UTC where the cell says a zone, else as the clock showed it."""
    dtype, column = rows.frame.collect_schema()[rows.time], pl.col(rows.time)
    never = pl.lit(None, pl.Datetime("ms"))
    if rows.time_format in EPOCHS:
        ticks = column.cast(pl.Float64, strict=False) * EPOCHS[rows.time_format]
        return ticks.round().cast(pl.Int64).cast(pl.Datetime("ms")), never
    if isinstance(dtype, pl.Datetime) and dtype.time_zone:
        return _utc(column), never
    if dtype in (pl.Date, pl.Datetime):
        return never, column.cast(pl.Datetime("ms"))
    text = column.cast(pl.String).str.strip_chars()
    if rows.time_format is None:
        local = [text.str.to_datetime(each, strict=False, time_unit="ms") for each in _ISO_8601]
        local.append(text.str.to_date("%Y-%m-%d", strict=False).cast(pl.Datetime("ms")))
        for shortened, whole in _SHORTENED:
            text = text.str.replace(shortened, whole)
        return _utc(text.str.to_datetime("%+", strict=False, time_unit="ms")), pl.coalesce(local)
    if re.search("%(:|#)?z", rows.time_format):
        return _utc(text.str.to_datetime(rows.time_format, strict=False, time_unit="ms")), never
    # A format without an hour is one of dates, and Polars knows none with an hour alone.
    if not re.search("%[HIcsTRrX+]", rows.time_format):
        return never, text.str.to_date(rows.time_format, strict=False).cast(pl.Datetime("ms"))
    if not re.search("%[McsTRrX+]", rows.time_format):
        return never, (text + " 0").str.to_datetime(f"{rows.time_format} %M", strict=False, time_unit="ms")
    return never, text.str.to_datetime(rows.time_format, strict=False, time_unit="ms")


def _utc(time: pl.Expr) -> pl.Expr:
    return time.dt.convert_time_zone("UTC").dt.replace_time_zone(None).cast(pl.Datetime("ms"))


def _in_utc(rows: Rows) -> pl.Expr:
    """What the clock showed, in UTC; null where it showed it twice, unless the rows' order tells which, or never."""
    _, local = written_times(rows)
    if rows.time_zone is None:
        return local
    ambiguous: pl.Expr | Literal["null"] = "null"
    if rows.repeated_hour == "in order":
        ambiguous = pl.when(_again(rows)).then(pl.lit("latest")).otherwise(pl.lit("earliest"))
    return _utc(local.dt.replace_time_zone(rows.time_zone, ambiguous=ambiguous, non_existent="null"))


def _again(rows: Rows) -> pl.Expr:
    """Whether the clock has shown a row's time in the rows before it."""
    schema, (_, local) = rows.frame.collect_schema(), written_times(rows)
    if _AGAIN in schema:
        return pl.col(_AGAIN)
    return local.cum_count().over(series_of(rows), local, *([AGE] if AGE in schema else [])) > 1


def _with_repeats(rows: Rows) -> Rows:
    """The rows with `_AGAIN`, where their order tells which of two hours they are of.

    Only the few rows of such hours are held in memory for that, not all of them as `_again` has to.
    """
    if rows.time_zone is None or rows.repeated_hour != "in order":
        return rows
    _, local = written_times(rows)
    unsure, once = (
        local.dt.replace_time_zone(rows.time_zone, ambiguous=ambiguous, non_existent="null")
        for ambiguous in ("null", "earliest")
    )
    numbered = rows.frame.with_row_index(_ROW)
    twice = replace(rows, frame=numbered.filter(unsure.is_null() & once.is_not_null()))
    again = twice.frame.filter(_again(twice)).select(_ROW).collect(engine="streaming")[_ROW]
    return replace(rows, frame=numbered.with_columns(pl.col(_ROW).is_in(again.implode()).alias(_AGAIN)).drop(_ROW))


def series_of(rows: Rows) -> pl.Expr:
    return pl.lit(ONLY_SERIES) if rows.series is None else pl.col(rows.series).cast(pl.String)


def number_of(rows: Rows, feature: str) -> pl.Expr:
    """The cell as a number; null where it is none."""
    column = pl.col(feature)
    if rows.frame.collect_schema()[feature] == pl.String:
        column = column.str.strip_chars()
        if rows.decimal != ".":
            column = decimal_point(column, rows.decimal)
    return column.cast(pl.Float64, strict=False)


def decimal_point(cells: pl.Expr, decimal: str) -> pl.Expr:
    """The cells with a point for `decimal`; null where there is a point already, which sets thousands apart."""
    return pl.when(~cells.str.contains(".", literal=True)).then(cells.str.replace(decimal, ".", literal=True))


def _is_wrong(rows: Rows, feature: str) -> pl.Expr:
    """Whether a cell holds something that is neither a finite number nor a missing value."""
    number, column = number_of(rows, feature), pl.col(feature)
    if rows.frame.collect_schema()[feature] == pl.String:
        return (column.str.strip_chars() != "") & ~(number.is_finite() | number.is_nan()).fill_null(False)
    return number.is_infinite()


def _value(problem: Problem, feature: str) -> pl.Expr:
    """The number that goes into the table, of the one that was read: null for a missing one, a sentinel or NaN."""
    number = pl.col(feature)
    if sentinels := problem.table.sentinels.get(feature):
        number = pl.when(~number.is_in(list(sentinels))).then(number)
    return number.fill_nan(None).alias(feature)


def check_columns(rows: Rows, features: tuple[str, ...]) -> None:
    """Every column that is needed is there once, and of a type that can be read."""
    schema = rows.frame.collect_schema()
    there = [name for name in schema.names() if name not in (PLACE, AGE)]
    for column in dict.fromkeys([rows.time, *([rows.series] if rows.series else []), *features]):
        if column not in schema:
            garbled = [n for n in there if _UNDECODABLE in n and len(n) == len(column) and _matches(n, column)]
            if garbled:
                raise RecastError(
                    f"{first_place(rows)}: the header of column {column!r} has bytes that are not UTF-8 "
                    f"({garbled[0]!r}); save the file as UTF-8"
                )
            mend = "Correct the name in params.yaml, or the file's header"
            if len(there) == 1 and (found := re.search(r"[,;\t|]", there[0])):
                mend = f"The whole header is one column: is {found[0]!r} what separates them? (source.separator)"
            raise RecastError(
                f"{first_place(rows)}: there is no column {column!r}; the columns are {', '.join(there)}. {mend}"
            )
    time = schema[rows.time]
    if not (time in (pl.String, pl.Date, pl.Datetime) or (time.is_numeric() and rows.time_format)):
        mend = "; if they are times, say in time_format how they are written" if time.is_numeric() else ""
        raise RecastError(f"{first_place(rows)}: column {rows.time!r} holds {time}, not times{mend}")
    for feature in features:
        if not (schema[feature].is_numeric() or schema[feature] in (pl.String, pl.Boolean, pl.Null)):
            raise RecastError(f"{first_place(rows)}: column {feature!r} holds {schema[feature]}, not numbers")


def _without_blank(rows: Rows, features: tuple[str, ...]) -> Rows:
    """The rows without those that hold nothing at all, such as the last lines of a spreadsheet's CSV file."""
    columns = [rows.time, *([rows.series] if rows.series else []), *features]
    return replace(rows, frame=rows.frame.filter(~pl.all_horizontal(pl.col(columns).is_null())))


def _matches(garbled: str, column: str) -> bool:
    return all(a in (_UNDECODABLE, b) for a, b in zip(garbled, column, strict=True))


def first_place(rows: Rows) -> str:
    """The file, for a message about all of it."""
    first = rows.frame.select(PLACE).head(1).collect()
    return str(first.item()).rsplit(",", 1)[0] if first.height else "the file"


def _read(rows: Rows, problem: Problem, file: Path) -> dict[str, int]:
    """Write the rows in the order in which they are read, and count what was wrong with them.

    Returns:
        `rows`, and `sentinel <feature>` for each that has one

    Raises:
        RecastError: some of them cannot be rows of the table.
    """
    found = _read_as(_with_one_form(rows), problem, file)
    if found["no time"]:
        # The times are written in several forms, there are blank rows, or there is something to refuse.
        rows = _without_blank(rows, problem.table.features)
        found = _read_as(rows, problem, file)
    _refuse_wrong(rows, problem, found)
    return found


def _with_one_form(rows: Rows) -> Rows:
    """The rows with the form of ISO 8601 that reads the first time; where none does, or their form is known, as is.

    The forms have nothing in common but what they mean, so that where one reads every time it is the only one; to try
    them all on every row would take longer than all else.
    """
    if rows.time_format is not None or rows.frame.collect_schema()[rows.time] != pl.String:
        return rows
    first = rows.frame.select(rows.time).head(1).collect().lazy()
    for form in (*_WHOLE_SECONDS, *_ISO_8601, "%Y-%m-%d", *_WITH_ZONE):
        read = written_times(replace(rows, frame=first, time_format=form))
        if not first.select(pl.coalesce(read).is_null().all()).collect().item():
            return replace(rows, time_format=form)
    return rows


def _read_as(rows: Rows, problem: Problem, file: Path) -> dict[str, int]:
    """Write and count in one go through the files; see `_read`."""
    features, schema = problem.table.features, rows.frame.collect_schema()
    zoned, local = written_times(rows)
    texts = [feature for feature in features if schema[feature] == pl.String]
    aged = [AGE] if AGE in schema else []
    cells = rows.frame.select(
        *aged,
        time_of(rows).alias("time"),
        series_of(rows).alias("series"),
        (zoned.is_null() & local.is_null()).alias(_cell("no time")),
        zoned.is_not_null().alias(_cell("zoned")),
        *(number_of(rows, feature).alias(feature) for feature in features),
        *(pl.col(feature).str.strip_chars().alias(_cell(feature)) for feature in texts),
    )

    def wrong(feature: str) -> pl.Expr:
        infinite = pl.col(feature).is_infinite().sum().cast(pl.Int64)
        if feature not in texts:
            return infinite
        return infinite + (pl.col(_cell(feature)) != "").sum().cast(pl.Int64) - pl.col(feature).count().cast(pl.Int64)

    _, counted = pl.collect_all(
        [
            _sink(cells.select("time", "series", *aged, *(_value(problem, feature) for feature in features)), file),
            cells.select(
                pl.len().alias("rows"),
                pl.col(_cell("no time")).sum().alias("no time"),
                pl.col(_cell("zoned")).sum().alias("zoned"),
                pl.col("time").null_count().alias("no moment"),
                *([_is_unnamed(pl.col("series")).sum().alias("no series")] if rows.series is not None else []),
                *(wrong(feature).alias(f"wrong {feature}") for feature in features),
                *(
                    pl.col(feature).is_in(list(sentinels)).sum().alias(f"sentinel {feature}")
                    for feature, sentinels in problem.table.sentinels.items()
                ),
            ),
        ],
        engine="streaming",
    )
    found: dict[str, int] = counted.row(0, named=True)
    return found


def _cell(name: str) -> str:
    """The name of a column that is no feature's."""
    return f"__{name}__"


def _is_unnamed(series: pl.Expr) -> pl.Expr:
    return series.is_null() | series.str.contains(_UNDECODABLE, literal=True)


def _refuse_wrong(rows: Rows, problem: Problem, found: dict[str, int]) -> None:
    """Name the first cell of those that cannot be in a table, if there are any.

    Raises:
        RecastError: there are.
    """
    zoned, local = written_times(rows)
    unreadable, time, unnamed = zoned.is_null() & local.is_null(), time_of(rows), _is_unnamed(series_of(rows))
    if found["no time"]:
        place, value = _first(rows, unreadable, rows.time)
        how = f"written as {rows.time_format}" if rows.time_format else "in ISO 8601, such as 2009-01-01 00:10:00"
        said = "is empty" if value is None else f"holds {value!r}, which is no time {how}"
        raise RecastError(f"{place}: column {rows.time!r} {said}; mend or delete the row, or correct time_format")
    if rows.time_zone is None and 0 < found["zoned"] < found["rows"]:
        place, value = _first(rows, zoned.is_null(), rows.time)
        raise RecastError(
            f"{place}: column {rows.time!r} holds {value!r}, without a time zone, and {found['zoned']:,} of the "
            f"{found['rows']:,} rows have one; say in time_zone which the others mean"
        )
    if found["no moment"]:
        place, value = _first(rows, time.is_null(), rows.time)
        shown = local.dt.replace_time_zone(rows.time_zone, ambiguous="earliest", non_existent="null")
        twice = rows.frame.filter(time.is_null()).select(shown.is_not_null()).head(1).collect().item()
        said = (
            "an hour that came twice, when the clock was set back; with repeated_hour: in order the row that stands "
            "first is the earlier"
            if twice
            else "an hour that never came, for the clock was set on; correct time_zone, or mend the row"
        )
        count = found["no moment"]
        raise RecastError(
            f"{place}: column {rows.time!r} holds {value!r}: in {rows.time_zone} {said} ({count:,} such rows)"
        )
    if rows.series is not None and found["no series"]:
        place, value = _first(rows, unnamed, rows.series)
        said = "is empty" if value is None else f"has bytes that are not UTF-8 ({value!r})"
        raise RecastError(f"{place}: column {rows.series!r}, which names the series, {said}; mend the file")
    for feature in problem.table.features:
        if found[f"wrong {feature}"]:
            place, value = _first(rows, _is_wrong(rows, feature), feature)
            if _UNDECODABLE in str(value):
                said, mend = f"has bytes that are not UTF-8 ({value!r})", "save the file as UTF-8"
            else:
                said, mend = f"holds {value!r}, which is no finite number", "mend the cell, or leave it empty"
            cells = found[f"wrong {feature}"]
            raise RecastError(f"{place}: column {feature!r} {said}; {mend} ({cells:,} such cells in this column)")


def _first(rows: Rows, wrong: pl.Expr, column: str) -> tuple[str, Any]:
    """Where the first wrong row stands, and what it holds."""
    place, value = rows.frame.filter(wrong).select(PLACE, pl.col(column).alias("value")).head(1).collect().row(0)
    return place, value


def _quality(
    problem: Problem, found: dict[str, int], disorder: dict[str, Disorder], table: pl.LazyFrame, store: Path
) -> Quality:
    """Measure the finished table.

    Raises:
        RecastError: there are too few rows, a column has no value, or the cadence is not the declared one.
    """
    step = pl.when(_SAME_SERIES).then(pl.col("time").diff()).alias("step")
    steps = table.select("series", step).drop_nulls().group_by("series", "step").len().collect(engine="streaming")
    if steps.is_empty():
        raise RecastError(
            f"{store.name}: too few rows: {found['rows']:,} were read, and no series has two different times; "
            "give the source more rows"
        )
    cadence = _most_frequent(steps)
    if problem.table.cadence is not None and problem.table.cadence != cadence:
        raise RecastError(
            f"{store.name}: cadence {written(problem.table.cadence)} is declared, but most rows come every "
            f"{written(cadence)}; correct problems.{store.name}.table.cadence, or set it to null"
        )
    column = pl.col(problem.table.features)
    measured = (
        table.select(
            pl.len().alias("rows"),
            column.null_count().name.prefix("nulls "),
            column.min().name.prefix("min "),
            column.max().name.prefix("max "),
            column.mean().name.prefix("mean "),
        )
        .collect(engine="streaming")
        .row(0, named=True)
    )
    if empty := [each for each in problem.table.features if measured[f"nulls {each}"] == measured["rows"]]:
        sentinels = ", ".join(f"{feature!r} ({found.get(f'sentinel {feature}', 0):,} sentinels)" for feature in empty)
        raise RecastError(f"{store.name}: no row has a value in column {sentinels}; take it out of the features")
    return Quality(
        synthetic=problem.source.synthetic,
        files=hashes(store),
        settings=read_by(problem),
        rows_read=found["rows"],
        rows_kept=measured["rows"],
        cadence=written(cadence),
        cadence_seconds=cadence.total_seconds(),
        cadence_declared=problem.table.cadence is not None,
        series=_series_quality(disorder, table, steps, cadence),
        columns={
            feature: ColumnQuality(
                nulls=measured[f"nulls {feature}"],
                sentinels=found.get(f"sentinel {feature}", 0),
                min=measured[f"min {feature}"],
                max=measured[f"max {feature}"],
                mean=float(f"{measured[f'mean {feature}']:.6g}"),
            )
            for feature in problem.table.features
        },
    )


def _series_quality(
    disorder: dict[str, Disorder], table: pl.LazyFrame, steps: pl.DataFrame, cadence: timedelta
) -> dict[str, SeriesQuality]:
    """The report of each series, by its name."""
    kept = (
        table.group_by("series")
        .agg(pl.col("time").min().alias("first"), pl.col("time").max().alias("last"), pl.len().alias("rows"))
        .sort("series")
        .collect(engine="streaming")
    )
    gaps = (
        table.select("series", pl.col("time").shift().alias("after"), pl.col("time").alias("before"))
        .filter(_SAME_SERIES & (pl.col("before") - pl.col("after") > cadence))
        .collect(engine="streaming")
    )
    reports = {}
    for name, first, last, count in kept.iter_rows():
        mine = steps.filter(pl.col("series") == name)
        holes = gaps.filter(pl.col("series") == name)
        missing = [_missing(before - after, cadence) for after, before in holes.select("after", "before").iter_rows()]
        read = disorder.get(name, Disorder(0, 0))
        reports[name] = SeriesQuality(
            first=str(first),
            last=str(last),
            rows=count,
            duplicates=read.repeated,
            out_of_order=read.out_of_order,
            cadence=None if mine.is_empty() else written(_most_frequent(mine)),
            off_cadence=int(mine.filter(pl.col("step") < cadence)["len"].sum()),
            gaps=len(missing),
            missing=sum(missing),
            listed=[
                Gap(str(after), str(before), count)
                for (_, after, before), count in zip(holes.head(LISTED_GAPS).iter_rows(), missing, strict=False)
            ],
        )
    return reports


def _most_frequent(steps: pl.DataFrame) -> timedelta:
    """The step that most neighbours have; of two as frequent, the shorter."""
    frequent = steps.group_by("step").agg(pl.col("len").sum()).sort("len", "step", descending=[True, False])
    most: timedelta = frequent["step"][0]
    return most


def _missing(gap: timedelta, cadence: timedelta) -> int:
    """How many rows would fill a gap; one in a gap that is no whole number of steps, where the clock was shifted."""
    return -(-gap // cadence) - 1


def hashes(store: Path) -> dict[str, str]:
    """sha256 of each raw file, by its name in the store."""
    files = [*stored(store), *increments(store / FOLDER)]
    return {file.relative_to(store).as_posix(): _sha256(file) for file in files}


def read_by(problem: Problem) -> str:
    """sha256 of the settings that decide how the raw files are read."""
    return hashlib.sha256(problem.model_dump_json(include={"source", "table"}).encode()).hexdigest()


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


@contextmanager
def readable_polars_errors(
    store: Path, out: Path, fault: Callable[[Path], str | None] = lambda store: None
) -> Iterator[None]:
    """What Polars raises, as an error that names the place, which `fault` finds; a full disk as Python reports it."""
    try:
        yield
    except pl.exceptions.PolarsError as error:
        if os.strerror(errno.ENOSPC) in str(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(out)) from error
        raise RecastError(f"{fault(store) or f'{store}: {str(error).splitlines()[0]}'}; mend the file") from error


if __name__ == "__main__":
    command(main)
