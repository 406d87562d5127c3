"""New rows of a source that grows: fetched as one increment, taken into the raw store or put into quarantine.

What is new is found by comparing what the source has with what is known, so that no note of what came could be wrong:
a row is known if the raw store gives the same values for its series and time, or if it lies in quarantine. A run that
is killed at any point therefore loses and doubles nothing.
"""

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import polars as pl

from problems.errors import RecastError
from problems.fresh import QueryFresh
from problems.increments import FOLDER, GrowingSource, increments, number
from problems.problem import Problem
from problems.source import AGE, EPOCHS, Progress, Rows
from problems.table import TableSource, is_parquet, stored
from project import paths
from project.atomic import replaced_file, write_json
from project.settings.sections import Settings
from stages.ingest import (
    check_columns,
    fetch,
    number_of,
    readable_polars_errors,
    series_of,
    tabulate,
    time_of,
    written_times,
)

if TYPE_CHECKING:
    from lifecycle.new_rows.contract import Breach

_FILE, _LINE, _RAW, _LOCAL = "__file__", "__line__", "__raw__", "__local__"
_KEY = ("series", "time")
_YEAR_FIRST = re.compile(r"%Y%m%d(%H(%M(%S(%[.\d]*f)?)?)?)?(%[:#]*z)?|%\+")
"""The fields of a format in which a later time is the later text."""


@dataclass(frozen=True)
class Arrival:
    """Rows that have come and are not in the raw store yet.

    Attributes:
        rows: how many
        corrected: how many of them have a time that is known, with other values
        late: how many of them are earlier than the last one known of their series, and not corrected
        known: rows that came too and are in the raw store or in quarantine already
        first, last: their earliest and latest time, in UTC; None where none of them can be read
        pending: the increment, which `accept` or `quarantine` moves to where it belongs
        sha256: of its bytes
    """

    problem: str
    rows: int
    corrected: int
    late: int
    known: int
    first: str | None
    last: str | None
    pending: Path
    sha256: str


@dataclass(frozen=True)
class Quarantined:
    """An increment in quarantine.

    Attributes:
        arrival: what was counted when it came
        breaches: why it lies here, as `lifecycle.new_rows.contract.Breach`
    """

    file: Path
    arrival: dict[str, Any]
    breaches: list[dict[str, Any]]


def arrived(problem: str, settings: Settings, progress: Progress) -> Arrival | None:
    """Fetch what is new, as one increment; None: there is nothing.

    Files with other columns are other increments: after one was accepted or put into quarantine, ask again until there
    is nothing. What a killed run has left is found again.

    Raises:
        Unreachable: the source cannot be reached now.
        RecastError: the problem has no `fresh`, or what came cannot be read as its source says.
    """
    declared, source = growing(problem, settings)
    fetch(problem, settings)
    store, folder = paths.raw(problem), paths.pending(problem)
    shutil.rmtree(folder, ignore_errors=True)
    scratch, cache = folder / "scratch", paths.STATE / "fresh" / problem
    for each in (scratch, cache):
        each.mkdir(parents=True, exist_ok=True)
    came: list[_Came] = []
    with readable_polars_errors(store, folder, lambda _: _fault(source, [one.file for one in came])):
        came += _fetched(declared, source, store, scratch, cache, progress, settings.ingest.attempts)
        found = _compared([each for each in came if each.lines], declared, source, store, scratch)
        arrival = None if found is None else _written(problem, found, folder)
    if arrival is None:
        # Not before: the next call of the same refresh would find that a file has not grown for a moment.
        write_json(cache / "sizes.json", {str(each.origin): each.size for each in came})
        _note_known(came, declared, store, cache)
        _dropped(problem).unlink(missing_ok=True)
    shutil.rmtree(scratch if arrival else folder)
    return arrival


def _fetched(
    problem: Problem,
    source: GrowingSource,
    store: Path,
    scratch: Path,
    cache: Path,
    progress: Progress,
    attempts: int,
) -> "list[_Came]":
    """The files, without the lines that are known to be known.

    A last line without an end may be half of one: it is left for the next refresh, and taken then if the file is the
    same.
    """
    fresh, after = problem.fresh, None
    assert fresh is not None
    if isinstance(fresh, QueryFresh):
        if fresh.query is None:
            _refuse_unsorted(source.read(store, scratch), store.name)
        after = _last_known(source, store, scratch, fresh.overlap or timedelta(0))
    files = fresh.files(source, cache, after, store.name, progress, attempts)
    note = cache / "sizes.json"
    before = json.loads(note.read_text(encoding="utf-8")) if note.exists() else {}
    known = _known_bytes(problem, store, cache)
    came: list[_Came] = []
    for i, file in enumerate(files):
        own = scratch / str(i)
        own.mkdir()
        # Where a file brings something, those after it say whether it counts, with lines that are known too.
        seen = None if any(each.lines for each in came) else known.get(str(file))
        came.append(_Came.of(file, source, own, before.get(str(file)), seen))
    return came


def _note_known(came: "Sequence[_Came]", problem: Problem, store: Path, cache: Path) -> None:
    """Note how far the lines of each file are known, so that they need not be compared again: a running file may grow
    for years."""
    if getattr(problem.source, "repeated_hour", None) == "in order":
        return  # which of two hours a line is of, those before it tell
    files = {str(each.origin): asdict(each.seen) for each in came if each.seen}
    write_json(cache / "known.json", {"of": _state(problem, store), "files": files})


def _known_bytes(problem: Problem, store: Path, cache: Path) -> "dict[str, _Seen]":
    """How far the lines of each file are known, if what they were compared with is still there."""
    note = cache / "known.json"
    if not note.exists():
        return {}
    found = json.loads(note.read_text(encoding="utf-8"))
    then, now = found["of"], _state(problem, store)
    if then["base"] != now["base"] or not set(then["increments"]) <= set(now["increments"]):
        return {}
    return {name: _Seen(**seen) for name, seen in found["files"].items()}


def _state(problem: Problem, store: Path) -> dict[str, Any]:
    """What rows are compared with, and by which columns."""
    there = [*increments(store / FOLDER), *increments(paths.quarantine(store.name))]
    base = [[file.name, file.stat().st_size] for file in stored(store)]
    return {"base": [*base, *problem.table.features], "increments": [file.name for file in there]}


def growing(problem: str, settings: Settings) -> tuple[Problem, GrowingSource]:
    """A problem whose source grows.

    Raises:
        RecastError: it does not.
    """
    declared = settings.problem(problem)
    if not isinstance(declared, Problem) or declared.fresh is None or not isinstance(declared.source, GrowingSource):
        raise RecastError(
            f"problems.{problem} has no `fresh`, which says where new rows come from; see docs/refresh.md, or name "
            "another problem"
        )
    return declared, declared.source


def accept(arrival: Arrival) -> Path:
    """Move the increment into the raw store, which the caller then has DVC track (`flows.dag.track`); again: nothing.

    Raises:
        RecastError: it is no longer there.
    """
    return _moved(arrival.pending, paths.raw(arrival.problem) / FOLDER)


def quarantine(arrival: Arrival, breaches: "Sequence[Breach]") -> Path:
    """Move the increment into quarantine, with the reasons beside it; again: nothing.

    Raises:
        RecastError: it is no longer there.
    """
    folder = paths.quarantine(arrival.problem)
    if not arrival.pending.exists():
        return _moved(arrival.pending, folder)
    # The reasons come first: rows without them would be a riddle.
    about = {**asdict(arrival), "pending": arrival.pending.name}
    reasons = {"arrival": about, "breaches": [asdict(each) for each in breaches]}
    write_json((folder / arrival.pending.name).with_suffix(".json"), reasons)
    return _moved(arrival.pending, folder)


def discard(arrival: Arrival) -> None:
    """Forget the increment: it comes again."""
    arrival.pending.unlink(missing_ok=True)


def quarantined(problem: str) -> list[Quarantined]:
    """The increments in quarantine, the oldest first."""
    found = []
    for file in increments(paths.quarantine(problem)):
        about = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
        found.append(Quarantined(file, about["arrival"], about["breaches"]))
    return found


def release(problem: str, name: str, settings: Settings) -> Path:
    """Take an increment out of quarantine into the raw store, which the caller then has DVC track.

    Raises:
        RecastError: there is none of this name, or its rows cannot be read, so that no table could be made of them.
    """
    declared, source = growing(problem, settings)
    file = _in_quarantine(problem, name)
    with readable(source, file, declared):
        pass
    moved = _moved(file, paths.raw(problem) / FOLDER)
    file.with_suffix(".json").unlink()
    return moved


def drop(problem: str, name: str) -> None:
    """Delete an increment in quarantine. What the source still has of it comes again, and is checked again.

    The next query asks for it again, for which its first time is noted.

    Raises:
        RecastError: there is none of this name.
    """
    file, note = _in_quarantine(problem, name), _dropped(problem)
    about = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
    before = json.loads(note.read_text(encoding="utf-8"))["first"] if note.exists() else None
    if firsts := [each for each in (before, about["arrival"]["first"]) if each]:
        write_json(note, {"first": min(firsts, key=datetime.fromisoformat)})
    file.unlink()
    file.with_suffix(".json").unlink()


def _dropped(problem: str) -> Path:
    """The note of the first time of what was dropped and not asked for since."""
    return paths.quarantine(problem) / "dropped.json"


@contextmanager
def readable(source: GrowingSource, file: Path, problem: Problem) -> Iterator[pl.DataFrame]:
    """The table of an increment alone, with all its rows, as `ingest` would make it.

    Raises:
        RecastError: a column or a cell is not what the problem declares.
    """
    whole = problem.model_copy(update={"table": problem.table.model_copy(update={"thin": False})})
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        with readable_polars_errors(file, scratch, lambda _: _fault(source, [file])):
            tabulate(source.read_increment(file, scratch), whole, scratch / "table.parquet", scratch)
        yield pl.read_parquet(scratch / "table.parquet")


def _in_quarantine(problem: str, name: str) -> Path:
    """
    Raises:
        RecastError: nothing of this name lies there.
    """
    there = increments(paths.quarantine(problem))
    for file in there:
        if name in (file.name, file.stem):
            return file
    names = ", ".join(file.stem for file in there) or "none"
    raise RecastError(f"{paths.quarantine(problem)}: no increment {name}; there are: {names}")


def _moved(file: Path, folder: Path) -> Path:
    """Move an increment into a folder, unless it is there.

    Raises:
        RecastError: it is nowhere.
    """
    target = folder / file.name
    if file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        file.replace(target)
    elif not target.exists():
        raise RecastError(f"{file}: the increment is no longer there; refresh again")
    return target


@dataclass(frozen=True)
class _Seen:
    """The beginning of a file: so many bytes, and their sha256."""

    end: int
    sha256: str


@dataclass(frozen=True)
class _Came:
    """A file that has come, without what is no row of it.

    Attributes:
        head: what stands before the rows of a CSV file; the columns of a Parquet file
        lines: how many rows there are
        origin: the file as it came
        size: its bytes then
        seen: what of it was looked at; None where it is packed or a Parquet file
    """

    file: Path
    head: bytes
    lines: int
    origin: Path
    size: int
    seen: _Seen | None

    @classmethod
    def of(cls, file: Path, source: GrowingSource, scratch: Path, before: int | None, known: _Seen | None) -> "_Came":
        """Copy the whole lines that are rows into `scratch`; one without an end only if the file is as before.

        Args:
            before: its bytes when it was last looked at.
            known: the beginning of the file, whose lines are left out if it is as it was.

        Raises:
            RecastError: the file cannot be read.
        """
        size = file.stat().st_size
        plain = source.plain(file, scratch)
        if is_parquet(plain):
            frame = pl.scan_parquet(plain)
            try:
                schema = frame.collect_schema()
            except pl.exceptions.PolarsError as error:
                raise RecastError(
                    f"{file}: not a whole Parquet file: {str(error).splitlines()[0]}; if it is still being written, "
                    "refresh again later"
                ) from error
            return cls(plain, str(schema).encode(), frame.select(pl.len()).collect().item(), file, size, None)
        table = source if isinstance(source, TableSource) else None
        if table is not None and not "a\n".encode(table.encoding).endswith(b"a\n"):
            raise RecastError(f"{file}: lines that are {table.encoding} cannot be told apart; save it as utf-8")
        copy, lines = scratch / "rows" / f"{plain.stem}.csv", 0
        copy.parent.mkdir()
        with plain.open("rb") as content, copy.open("wb") as out:
            head = b"".join(content.readline() for _ in range(1 + (table.skip_lines if table else 0)))
            out.write(head)
            end, digest = len(head), hashlib.sha256(head)
            if known is not None and known.end > end:
                there = digest.copy()
                for chunk in _chunks(content, known.end - end):
                    there.update(chunk)
                if there.hexdigest() == known.sha256:
                    end, digest = known.end, there
            content.seek(end)
            for line in content:
                if not line.endswith(b"\n") and size != before:
                    break
                end += len(line)
                digest.update(line)
                if line.strip() and not (table and _is_comment(line, table)):
                    out.write(line if line.endswith(b"\n") else line + b"\n")
                    lines += 1
        return cls(copy, head, lines, file, size, _Seen(end, digest.hexdigest()) if plain == file else None)

    def rows(self, problem: Problem, source: GrowingSource, scratch: Path) -> pl.DataFrame:
        """The rows by their line: time, series, features, and what the cells hold as they are written.

        Raises:
            RecastError: they have no time or no series, or are not a line each.
        """
        rows = source.read_increment(self.file, scratch)
        check_columns(rows, ())
        found = _values(replace(rows, frame=rows.frame.with_row_index(_LINE)), problem, _LINE).collect()
        if found.height != self.lines:
            raise RecastError(
                f"{self.file}: {found.height:,} rows stand in {self.lines:,} lines; a text in quotation marks must not "
                "have a line's end in it"
            )
        return found


def _values(rows: Rows, problem: Problem, *others: str) -> pl.LazyFrame:
    """Time, series and features of rows, null where a cell holds no number; and the cells' texts, as one.

    `_LOCAL` is the time as a clock without a zone has shown it.
    """
    names = rows.frame.collect_schema().names()
    cells = [name for name in (rows.time, rows.series, *problem.table.features) if name in names]
    return rows.frame.select(
        *others,
        time_of(rows).alias("time"),
        series_of(rows).alias("series"),
        written_times(rows)[1].alias(_LOCAL),
        *(
            (number_of(rows, each).fill_nan(None) if each in names else pl.lit(None, pl.Float64)).alias(each)
            for each in problem.table.features
        ),
        pl.concat_str(pl.col(cells).cast(pl.String, strict=False).fill_null("\0"), separator="\x1f").alias(_RAW),
    )


@dataclass(frozen=True)
class _New:
    """What is new of the files that have one head.

    Attributes:
        lines: which lines of each are new, counted from 0
    """

    files: list[_Came]
    lines: list[list[int]]
    corrected: int
    late: int
    known: int
    first: Any
    last: Any


def _compared(
    came: Sequence[_Came], problem: Problem, source: GrowingSource, store: Path, scratch: Path
) -> _New | None:
    """The rows that are not known yet, of the first file that has any and of those with the same columns."""
    if not came:
        return None
    features = list(problem.table.features)
    numbered = [
        each.rows(problem, source, scratch).with_columns(pl.lit(i, pl.Int32).alias(_FILE))
        for i, each in enumerate(came)
    ]
    rows = pl.concat(numbered)
    # Of the rows with one time the last one counts, as it does when they come one by one.
    unplaced = pl.any_horizontal(pl.col(_KEY).is_null())
    placed = rows.filter(~unplaced).unique(_KEY, keep="last", maintain_order=True)
    unreadable = rows.filter(unplaced).unique(_RAW, keep="last", maintain_order=True)
    known = _known(placed, problem, source.read(store, scratch))
    new = placed.join(known, on=[*_KEY, *features], how="anti", nulls_equal=True)
    new = pl.concat([new, unreadable]).sort(_FILE, _LINE)
    for increment in increments(paths.quarantine(store.name)):
        there = _values(source.read_increment(increment, scratch), problem).select(_RAW).collect()
        new = new.join(there, on=_RAW, how="anti")
    if new.is_empty():
        return None
    new = _with_twins(new, rows, source)
    head = came[new[_FILE][0]].head
    alike = [i for i, each in enumerate(came) if each.head == head]
    new = new.filter(pl.col(_FILE).is_in(alike))
    added = new.join(known, on=_KEY, how="anti")
    late = added.join(_last(source.read(store, scratch)), on="series").filter(pl.col("time") < pl.col("last")).height
    return _New(
        [came[i] for i in alike],
        [new.filter(pl.col(_FILE) == i)[_LINE].to_list() for i in alike],
        new.height - added.height,
        late,
        sum(came[i].lines for i in alike) - new.height,
        new["time"].min(),
        new["time"].max(),
    )


def _with_twins(new: pl.DataFrame, rows: pl.DataFrame, source: GrowingSource) -> pl.DataFrame:
    """New rows of an hour that came twice with the others of that hour, which tell which of the two it is."""
    zone = getattr(source, "time_zone", None)
    if zone is None or getattr(source, "repeated_hour", None) != "in order":
        return new
    twice = pl.col(_LOCAL).dt.replace_time_zone(zone, ambiguous="null", non_existent="null").is_null()
    hours = new.filter(pl.col(_LOCAL).is_not_null() & twice).select(_FILE, "series", _LOCAL)
    twins = rows.join(hours, on=[_FILE, "series", _LOCAL], how="semi")
    return pl.concat([new, twins]).unique([_FILE, _LINE]).sort(_FILE, _LINE)


def _known(placed: pl.DataFrame, problem: Problem, store: Rows) -> pl.DataFrame:
    """What the raw store says at the times of these rows: one row a time, of the newest increment."""
    aged = [AGE] if AGE in store.frame.collect_schema() else []
    there = _values(store, problem, *aged).drop(_RAW, _LOCAL)
    there = there.join(placed.lazy().select(_KEY), on=_KEY, how="semi").collect(engine="streaming").lazy()
    return (
        there.sort(*aged, maintain_order=True).unique(_KEY, keep="first").drop(aged).collect()
        if aged
        else (there.unique(_KEY, keep="first", maintain_order=True).collect())
    )


def _last(store: Rows) -> pl.DataFrame:
    """The last time of each series in the raw store."""
    frame = store.frame.select(time_of(store).alias("time"), series_of(store).alias("series"))
    return frame.group_by("series").agg(pl.col("time").max().alias("last")).collect(engine="streaming")


def _last_known(source: GrowingSource, store: Path, scratch: Path, overlap: timedelta) -> Any:
    """The time up to which the rows of every series are known, but for `overlap`, as the source writes it.

    It is before all that lies in quarantine, or was dropped since: what the source has mended of it comes again.
    """
    rows = source.read(store, scratch)
    until: Any = _last(rows)["last"].min()
    held = [each.arrival["first"] for each in quarantined(store.name)]
    if _dropped(store.name).exists():
        held.append(json.loads(_dropped(store.name).read_text(encoding="utf-8"))["first"])
    for first in filter(None, held):
        until = min(until, datetime.fromisoformat(first) - timedelta(milliseconds=1))
    times = rows.frame.select(time_of(rows).alias("time"), pl.col(rows.time).alias("written"))
    earlier = times.filter(pl.col("time") <= until - overlap).collect(engine="streaming")
    return (times.collect() if earlier.is_empty() else earlier).sort("time")["written"][0 if earlier.is_empty() else -1]


def _refuse_unsorted(rows: Rows, problem: str) -> None:
    """
    Raises:
        RecastError: the times are no times to the database, and what it takes for later ones are not those.
    """
    dtype = rows.frame.collect_schema()[rows.time]
    if dtype.is_temporal() or (dtype.is_numeric() and rows.time_format in EPOCHS):
        return
    times = rows.frame.select(time_of(rows).alias("time"), pl.col(rows.time).alias("written")).drop_nulls().collect()
    zones = times["written"].cast(pl.String).str.extract(r"([zZ]|[+-]\d\d:?\d\d)\s*$").n_unique()
    is_sorted = times.sort("written", "time")["time"].is_sorted()
    if is_sorted and zones <= 1 and (rows.time_format is None or _YEAR_FIRST.fullmatch(_fields(rows.time_format))):
        return
    raise RecastError(
        f"problems.{problem}.fresh: the query's column {rows.time!r} holds text such as {times['written'][-1]!r}, and "
        "later times are not later in the alphabet, so the database cannot be asked for those after the last known "
        "one; write fresh.query, in the database's SQL, with a cast to a time on both sides, such as "
        f"where cast({rows.time} as timestamp) > cast(:after as timestamp)"
    )


def _fields(time_format: str) -> str:
    """What a format says without the signs between its fields."""
    for short, long in (("%F", "%Y-%m-%d"), ("%T", "%H:%M:%S"), ("%R", "%H:%M")):
        time_format = time_format.replace(short, long)
    return "".join(re.findall(r"%[-_.:#\d]*[A-Za-z+]", time_format))


def _written(problem: str, new: _New, folder: Path) -> Arrival:
    """Write the increment."""
    suffix = ".parquet" if is_parquet(new.files[0].file) else ".csv"
    draft = folder / f"draft{suffix}"
    with replaced_file(draft) as temporary:
        if suffix == ".parquet":
            parts = [
                pl.scan_parquet(each.file).with_row_index(_LINE).filter(pl.col(_LINE).is_in(lines)).drop(_LINE)
                for each, lines in zip(new.files, new.lines, strict=True)
            ]
            pl.concat(parts).sink_parquet(temporary)
        else:
            with temporary.open("wb") as out:
                out.write(new.files[0].head)
                for each, lines in zip(new.files, new.lines, strict=True):
                    out.writelines(_picked(each, set(lines)))
    with draft.open("rb") as content:
        sha256 = hashlib.file_digest(content, "sha256").hexdigest()
    there = [*increments(paths.raw(problem) / FOLDER), *increments(paths.quarantine(problem))]
    following = max(map(number, there), default=0) + 1
    pending = draft.rename(folder / f"{following:04d}-{sha256[:8]}{suffix}")
    rows = sum(map(len, new.lines))
    first, last = (None if each is None else str(each) for each in (new.first, new.last))
    return Arrival(problem, rows, new.corrected, new.late, new.known, first, last, pending, sha256)


def _chunks(content: BinaryIO, count: int) -> Iterator[bytes]:
    """The next bytes of a file, at most `count`."""
    while count > 0 and (chunk := content.read(min(count, 1 << 20))):
        count -= len(chunk)
        yield chunk


def _picked(came: _Came, lines: set[int]) -> Iterator[bytes]:
    """Some lines of a file, as they are."""
    with came.file.open("rb") as content:
        content.seek(len(came.head))
        for i, line in enumerate(content):
            if i in lines:
                yield line


def _is_comment(line: bytes, source: TableSource) -> bool:
    """Whether `TableSource.scan` leaves a line out."""
    if source.comment is None:
        return False
    # Not at the beginning of a text, where some encodings put a mark.
    sign = f"\n{source.comment}".encode(source.encoding).partition(b"\n")[2]
    first = line.lstrip() if source.separator == " " else line
    return first.removeprefix(b'"').startswith(sign)


def _fault(source: GrowingSource, files: Sequence[Path]) -> str | None:
    """Where one of the files breaks its own form."""
    if not isinstance(source, TableSource):
        return None
    return next((found for file in files if (found := source.fault_of(file))), None)
