"""Fetch the new rows of a source that grows, as one increment.

What is new is found by comparing what the source has with what is known. So there is no record of what came that could
be wrong. A row is known if the raw store has the same values for its series and time, or if it is in quarantine. A run
that is killed at any point therefore neither loses nor doubles a row.
"""

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl

from lifecycle.new_rows.arrived_file import LINE_COLUMN, ArrivedFile, FileStart
from lifecycle.new_rows.increment_table import find_growing_problem
from lifecycle.new_rows.known_rows import StoredRows
from lifecycle.new_rows.new_lines import NewLines, find_new_lines
from lifecycle.new_rows.quarantine import Arrival, dropped_note
from problems.files.file_hash import file_sha256
from problems.files.raw_store import INCREMENTS_FOLDER, increment_number, list_increments, list_stored_files
from problems.files.tables import is_parquet
from problems.growing_source import GrowingSource
from problems.problem import Growth, Problem
from problems.source import DownloadProgress
from project import paths
from project.atomic import replace_file, write_json
from project.records import read_disposable_record
from project.settings.sections import Settings
from stages.fetching import fetch
from stages.tables.polars_errors import explain_polars_errors


def fetch_increment(problem: str, settings: Settings, progress: DownloadProgress) -> Arrival | None:
    """Fetch what is new, as one increment; None where nothing is.

    Files with other columns become other increments: once this one is accepted or in quarantine, call again until
    nothing is new. What a killed run has left is found again.

    Raises:
        Unreachable: the place of new rows cannot be reached now.
        RecastError: the problem has no `fresh`, or what came cannot be read in the way that its source says.
    """
    declared, growth = find_growing_problem(problem, settings)
    fetch(problem, settings)
    store, folder = paths.raw_folder(problem), paths.pending_folder(problem)
    shutil.rmtree(folder, ignore_errors=True)
    scratch, cache = folder / "scratch", paths.STATE / "fresh" / problem
    for directory in (scratch, cache):
        directory.mkdir(parents=True, exist_ok=True)
    arrived: list[ArrivedFile] = []
    with explain_polars_errors(store, folder, lambda _: _find_fault(growth.source, arrived)):
        arrived += _bring_files(declared, growth, store, scratch, cache, progress, settings.ingest.attempts)
        with_rows = [file for file in arrived if file.lines]
        new = find_new_lines(with_rows, declared, growth.source, store, scratch)
        arrival = None if new is None else _write_increment(problem, new, folder)
    if arrival is None:
        # Not earlier: the next call of the same refresh would take a file to be complete that did not grow in between.
        write_json(cache / "sizes.json", {str(file.origin): file.size for file in arrived})
        _write_known_starts(arrived, declared, growth.source, store, cache)
        dropped_note(problem).unlink(missing_ok=True)
    shutil.rmtree(scratch if arrival else folder)
    return arrival


def _find_fault(source: GrowingSource, arrived: Sequence[ArrivedFile]) -> str | None:
    """Say where one of the files is malformed."""
    return next((fault for file in arrived if (fault := source.find_file_fault(file.file))), None)


def _bring_files(
    problem: Problem,
    growth: Growth,
    store: Path,
    scratch: Path,
    cache: Path,
    progress: DownloadProgress,
    attempts: int,
) -> list[ArrivedFile]:
    """Bring the files of the place, without the lines that were found to be known the last time."""
    known_rows = StoredRows(growth.source, store, scratch)
    files = growth.fresh.bring_files(growth.source, known_rows, cache, store.name, progress, attempts)
    sizes_file = cache / "sizes.json"
    sizes = read_disposable_record(sizes_file, dict[str, Any]) or {}
    known_starts = _read_known_starts(problem, store, cache)
    arrived: list[ArrivedFile] = []
    for i, file in enumerate(files):
        folder = scratch / str(i)
        folder.mkdir()
        # Once a file brings rows, all lines of the files after it are read, known ones too: of rows with one time the
        # last one counts.
        known = None if any(earlier.lines for earlier in arrived) else known_starts.get(str(file))
        arrived.append(ArrivedFile.from_file(file, growth.source, folder, sizes.get(str(file)), known))
    return arrived


def _write_known_starts(
    arrived: Sequence[ArrivedFile], problem: Problem, source: GrowingSource, store: Path, cache: Path
) -> None:
    """Note up to where the lines of each file are known, so that they need not be compared again.

    A file that is written on may grow for years.
    """
    if source.row_order_matters:
        return  # the lines before it tell which of two hours a line belongs to
    files = {str(file.origin): asdict(file.start) for file in arrived if file.start}
    write_json(cache / "known.json", {"of": _describe_known(problem, store), "files": files})


def _read_known_starts(problem: Problem, store: Path, cache: Path) -> dict[str, FileStart]:
    """Read up to where the lines of each file are known; nothing if what they were compared with has gone."""
    file = cache / "known.json"
    note = read_disposable_record(file, dict[str, Any])
    if note is None:
        return {}
    then, now = note["of"], _describe_known(problem, store)
    if then["base"] != now["base"] or not set(then["increments"]) <= set(now["increments"]):
        return {}
    return {name: FileStart(**start) for name, start in note["files"].items()}


def _describe_known(problem: Problem, store: Path) -> dict[str, Any]:
    """Describe what rows are compared with, and by which columns."""
    base = [[file.name, file.stat().st_size] for file in list_stored_files(store)]
    increments = [file.name for file in _list_all_increments(store.name, store)]
    return {"base": [*base, *problem.table.features], "increments": increments}


def _list_all_increments(problem: str, store: Path) -> list[Path]:
    """List the increments of the raw store, then those in quarantine."""
    return [*list_increments(store / INCREMENTS_FOLDER), *list_increments(paths.quarantine_folder(problem))]


def _write_increment(problem: str, new: NewLines, folder: Path) -> Arrival:
    """Write the new lines as an increment with the next sequence number."""
    suffix = ".parquet" if is_parquet(new.files[0].file) else ".csv"
    draft = folder / f"draft{suffix}"
    with replace_file(draft) as temporary:
        if suffix == ".parquet":
            parts = [
                pl.scan_parquet(file.file, glob=False)
                .with_row_index(LINE_COLUMN)
                .filter(pl.col(LINE_COLUMN).is_in(lines))
                .drop(LINE_COLUMN)
                for file, lines in zip(new.files, new.lines, strict=True)
            ]
            pl.concat(parts).sink_parquet(temporary)
        else:
            with temporary.open("wb") as out:
                out.write(new.files[0].head)
                for file, lines in zip(new.files, new.lines, strict=True):
                    out.writelines(file.pick_lines(set(lines)))
    sha256 = file_sha256(draft)
    increments = _list_all_increments(problem, paths.raw_folder(problem))
    number = max(map(increment_number, increments), default=0) + 1
    pending = draft.rename(folder / f"{number:04d}-{sha256[:8]}{suffix}")
    first, last = (None if time is None else str(time) for time in (new.first, new.last))
    return Arrival(
        problem=problem,
        rows=sum(map(len, new.lines)),
        corrected=new.corrected,
        late=new.late,
        known=new.known,
        first=first,
        last=last,
        pending=pending,
        sha256=sha256,
    )
