"""Increments before they count: accepted into the raw store, or put into quarantine and taken out of it again."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from lifecycle.new_rows.increment_table import find_growing_problem, read_increment_table
from problems.errors import RecastError
from problems.files.file_hash import file_sha256
from problems.files.raw_store import INCREMENTS_FOLDER, list_increments
from project import paths
from project.atomic import write_json
from project.records import read_record
from project.settings.sections import Settings

UNDONE = "undone"
"""The rule that an increment breaks which a person has taken back; see `Breach`."""


@dataclass(frozen=True)
class Arrival:
    """Rows that have come and are not in the raw store yet.

    Attributes:
        rows: how many there are.
        corrected: how many of them have a known time, with other values.
        late: how many of them are earlier than the last known row of their series, and are not corrections.
        known: how many other rows came that are in the raw store or in quarantine already.
        first, last: the earliest and the latest time of the rows, in UTC; None where no time can be read.
        pending: the increment, which `accept_increment` or `quarantine_increment` moves to its place.
        sha256: the checksum of the increment.
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
class Breach:
    """A rule of the contract that new rows break.

    Attributes:
        rule: its name: types, series, range, stuck, cadence, gap, missing, clock, drift or change; or undone, where a
            person has taken back rows that keep all of them.
        column: the column that breaks it; None where the rule is not about one column.
        message: what is wrong, for people, with figures.
        evidence: the figures, as JSON.
    """

    rule: str
    column: str | None
    message: str
    evidence: dict[str, Any]


@dataclass(frozen=True)
class Quarantined:
    """An increment in quarantine.

    Attributes:
        arrival: what was counted when it came: the fields of `Arrival`.
        breaches: why it is in quarantine: the fields of each `Breach`.
    """

    file: Path
    arrival: dict[str, Any]
    breaches: list[dict[str, Any]]


def accept_increment(arrival: Arrival) -> Path:
    """Move an increment into the raw store; the caller then lets DVC track it. Once it is there, do nothing.

    Raises:
        RecastError: the increment has gone.
    """
    return _move(arrival.pending, paths.raw_folder(arrival.problem) / INCREMENTS_FOLDER)


def quarantine_increment(arrival: Arrival, breaches: Sequence[Breach]) -> Path:
    """Move an increment into quarantine, with the reasons beside it. Once it is there, do nothing.

    Raises:
        RecastError: the increment has gone.
    """
    folder = paths.quarantine_folder(arrival.problem)
    if not arrival.pending.exists():
        return _move(arrival.pending, folder)
    # The reasons come first: nobody could explain rows without them.
    counts = {**asdict(arrival), "pending": arrival.pending.name}
    reasons = {"arrival": counts, "breaches": [asdict(breach) for breach in breaches]}
    write_json((folder / arrival.pending.name).with_suffix(".json"), reasons)
    return _move(arrival.pending, folder)


def discard_increment(arrival: Arrival) -> None:
    """Delete an increment that is neither accepted nor in quarantine; its rows come again."""
    arrival.pending.unlink(missing_ok=True)


def list_quarantine(problem: str) -> list[Quarantined]:
    """List the increments in quarantine, the oldest first."""
    increments = []
    for file in list_increments(paths.quarantine_folder(problem)):
        reasons = _read_reasons(file)
        increments.append(Quarantined(file, reasons["arrival"], reasons["breaches"]))
    return increments


def release_increment(problem: str, name: str, settings: Settings) -> Path:
    """Move an increment from quarantine into the raw store; the caller then lets DVC track it.

    Raises:
        RecastError: there is no increment of this name, or its rows cannot be read, so that no table could be made of
            them.
    """
    declared, growth = find_growing_problem(problem, settings)
    file = _find_in_quarantine(problem, name)
    read_increment_table(growth.source, file, declared)
    reasons = _read_reasons(file)
    if any(breach["rule"] != UNDONE for breach in reasons["breaches"]):
        _note_accepted(problem, reasons["arrival"]["first"])
    released = _move(file, paths.raw_folder(problem) / INCREMENTS_FOLDER)
    file.with_suffix(".json").unlink()
    return released


def _note_accepted(problem: str, first: str | None) -> None:
    """Note that a person has accepted rows that break the contract.

    Args:
        first: their first time; None: it cannot be read.
    """
    noted = list(map(str, read_accepted_times(problem)))
    if first is not None and first not in noted:
        write_json(_accepted_note(problem), [*noted, first])


def read_accepted_times(problem: str) -> list[datetime]:
    """The first times of the increments that broke the contract and were accepted by a person all the same.

    What changed there is right: it is neither a breach nor usual.
    """
    note = _accepted_note(problem)
    if not note.exists():
        return []
    fix = "delete it; changes that were accepted by hand are refused again then"
    return [datetime.fromisoformat(time) for time in read_record(note, list[str], fix)]


def _accepted_note(problem: str) -> Path:
    return paths.quarantine_folder(problem) / "accepted.json"


def undo_increment(problem: str, name: str, by: str, settings: Settings) -> Path:
    """Move an increment from the raw store into quarantine; the caller then lets DVC track the store.

    Its rows do not come again while it is there, and it can be accepted again. If it was undone before, do nothing.

    Args:
        by: the person who asks for it.

    Raises:
        RecastError: the raw store has no increment of this name.
    """
    undone = {
        increment.file.stem: increment.file
        for increment in list_quarantine(problem)
        if increment.breaches and increment.breaches[0]["rule"] == UNDONE
    }
    if file := undone.get(Path(name).stem):
        return file
    increments = list_increments(paths.raw_folder(problem) / INCREMENTS_FOLDER)
    file = _find_increment(increments, name, paths.raw_folder(problem) / INCREMENTS_FOLDER)
    declared, growth = find_growing_problem(problem, settings)
    times = read_increment_table(growth.source, file, declared)["time"]
    first, last = (None if time is None else str(time) for time in (times.min(), times.max()))
    arrival = Arrival(problem, len(times), 0, 0, 0, first, last, file, file_sha256(file))
    when = f"{datetime.now().astimezone():%Y-%m-%d %H:%M}"
    reason = f"taken back by {by} at {when}; `recast quarantine --accept {file.stem}` accepts it again"
    return quarantine_increment(arrival, [Breach(UNDONE, None, reason, {"by": by})])


def drop_increment(problem: str, name: str) -> None:
    """Delete an increment in quarantine. What the source still has of it comes again, and is checked again.

    Its first time is noted, so that the next query to a database asks for these rows again.

    Raises:
        RecastError: there is no increment of this name.
    """
    file, note = _find_in_quarantine(problem, name), dropped_note(problem)
    reasons = _read_reasons(file)
    noted = read_dropped_time(problem)
    if first_times := [time for time in (noted, reasons["arrival"]["first"]) if time]:
        write_json(note, {"first": min(first_times, key=datetime.fromisoformat)})
    file.unlink()
    file.with_suffix(".json").unlink()


def _read_reasons(file: Path) -> dict[str, Any]:
    """What is recorded of an increment in quarantine: `arrival` and `breaches`."""
    fix = f"move it and {file.name} out of the quarantine; the rows come again"
    return read_record(file.with_suffix(".json"), dict[str, Any], fix)


def read_dropped_time(problem: str) -> str | None:
    """The first time in the note of what was dropped; None: there is no note."""
    note = dropped_note(problem)
    if not note.exists():
        return None
    record = read_record(note, dict[str, str], fix="delete it; rows that were dropped may not be fetched again then")
    return record["first"]


def dropped_note(problem: str) -> Path:
    """The file with the first time of all that was dropped and has not been fetched since."""
    return paths.quarantine_folder(problem) / "dropped.json"


def _find_in_quarantine(problem: str, name: str) -> Path:
    """Find an increment in quarantine by its name, with its suffix or without.

    Raises:
        RecastError: there is none of this name.
    """
    return _find_increment(list_increments(paths.quarantine_folder(problem)), name, paths.quarantine_folder(problem))


def _find_increment(increments: Sequence[Path], name: str, folder: Path) -> Path:
    """Find an increment among those of a folder by its name, with its suffix or without.

    Raises:
        RecastError: there is none of this name.
    """
    for file in increments:
        if name in (file.name, file.stem):
            return file
    names = ", ".join(file.stem for file in increments) or "none"
    raise RecastError(f"{folder}: no increment {name}; there are: {names}")


def _move(file: Path, folder: Path) -> Path:
    """Move an increment into a folder, unless it is there already.

    Raises:
        RecastError: it is in neither place.
    """
    target = folder / file.name
    if file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        file.replace(target)
    elif not target.exists():
        raise RecastError(f"{file}: the increment is no longer there; refresh again")
    return target
