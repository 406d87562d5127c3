"""The history of a problem's champion: everything that happened to it. MLflow's aliases follow from it.

This module does not import MLflow or PyTorch, so that a rollback does not wait until they are loaded.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, TypeVar

from filelock import FileLock
from pydantic import TypeAdapter

from problems.errors import RecastError
from project.atomic import replace_file
from project.paths import STATE
from project.records import read_record

CHAMPIONS_FOLDER = Path("data/champion")
"""A folder for each problem, with its history, decisions and pages."""
RETRAIN = "retrain"
"""The author of an entry that no person has asked for."""


@dataclass(frozen=True)
class Version:
    """A version of a problem's registered model.

    Attributes:
        key: of the trial.
        run: the trial's run in MLflow.
        label: of the trial, for people: gru units=32 seed=1.
    """

    problem: str
    version: int
    key: str
    run: str
    label: str = ""

    @property
    def uri(self) -> str:
        """By which MLflow loads it."""
        return f"models:/{self.problem}/{self.version}"


@dataclass(frozen=True)
class Entry:
    """Something that happened to a problem's champion.

    Attributes:
        kind: challenge (a version was registered, to be compared), promotion, refusal or rollback.
        time: in UTC, ISO 8601.
        version, key, run, label: of the challenger; of a rollback, of the version that is champion again.
        former: the champion before, if there was one; for people who read the file.
        decision: id of the comparison that it rests on, if there was one.
        reason: a sentence.
        by: retrain, or the person who asked for it.
        experiment: name of the DVC experiment that holds the retraining, where there is one.
    """

    kind: Literal["challenge", "promotion", "refusal", "rollback"]
    time: str
    version: int
    key: str
    run: str
    label: str
    former: int | None
    decision: str | None
    reason: str
    by: str
    experiment: str | None = None

    def version_of(self, problem: str) -> Version:
        """The version that the entry is about."""
        return Version(problem, self.version, self.key, self.run, self.label)


EntryOrNone = TypeVar("EntryOrNone", bound=Entry | None)


def champion_folder(problem: str) -> Path:
    """Where the history, the decisions and the pages of a problem are."""
    return CHAMPIONS_FOLDER / problem


def history_file(problem: str) -> Path:
    """The file of a problem's history."""
    return champion_folder(problem) / "history.json"


def read_history(problem: str) -> list[Entry]:
    """Everything that happened, the oldest first.

    Raises:
        RecastError: the file cannot be read.
    """
    file = history_file(problem)
    if not file.exists():
        return []
    return read_record(
        file, list[Entry], fix=f"restore the file, or move {champion_folder(problem)} aside to begin a new history"
    )


@contextmanager
def lock_history(problem: str) -> Iterator[None]:
    """Keep other processes from writing a problem's history: a person may roll back while a flow promotes."""
    STATE.mkdir(exist_ok=True)
    with FileLock(STATE / f"champion-{problem}.lock"):
        yield


def append_entry(problem: str, next_entry: Callable[[list[Entry]], EntryOrNone]) -> EntryOrNone:
    """Append to the history. The file is replaced as a whole: a kill leaves it either with the entry or as it was.

    Args:
        next_entry: makes the entry, by those that there are; None: there is nothing to append.

    Returns:
        The new entry.
    """
    with lock_history(problem):
        entries = read_history(problem)
        entry = next_entry(entries)
        if entry is not None:
            with replace_file(history_file(problem)) as temporary:
                temporary.write_bytes(TypeAdapter(list[Entry]).dump_json([*entries, entry], indent=1) + b"\n")
    return entry


def champion_stack(entries: Sequence[Entry]) -> list[Entry]:
    """The promotions of the champion and of those that a rollback could go back to, the present champion last."""
    stack: list[Entry] = []
    for entry in entries:
        if entry.kind == "promotion":
            stack.append(entry)
        elif entry.kind == "rollback":
            del stack[-1:]
    return stack


def find_champion(problem: str) -> Version | None:
    """The champion according to the history, which alone is read; None: there is no champion."""
    return find_champion_in(problem, read_history(problem))


def find_champion_in(problem: str, entries: Sequence[Entry]) -> Version | None:
    """The champion according to these entries; None: there is no champion."""
    stack = champion_stack(entries)
    return stack[-1].version_of(problem) if stack else None


def find_challenger(problem: str) -> Version | None:
    """The version that was the last challenger, unless it has become champion."""
    return find_challenger_in(problem, read_history(problem))


def find_challenger_in(problem: str, entries: Sequence[Entry]) -> Version | None:
    """The version that was the last challenger according to these entries, unless it has become champion."""
    last = next((entry for entry in reversed(entries) if entry.kind != "rollback"), None)
    return last.version_of(problem) if last and last.kind != "promotion" else None


def find_outcome(problem: str, decision: str | None) -> Entry | None:
    """The last entry that rests on a decision; None: nothing has followed from the decision yet."""
    return find_outcome_in(read_history(problem), decision)


def find_outcome_in(entries: Sequence[Entry], decision: str | None) -> Entry | None:
    """The last of these entries that rests on a decision; None: nothing has followed from the decision yet."""
    return next((entry for entry in reversed(entries) if decision and entry.decision == decision), None)


def make_entry(
    kind: Literal["challenge", "promotion", "refusal", "rollback"],
    version: Version,
    entries: Sequence[Entry],
    decision: str | None,
    reason: str,
    by: str,
    experiment: str | None = None,
) -> Entry:
    """An entry with the present time, to follow these entries."""
    champion = find_champion_in(version.problem, entries)
    return Entry(
        kind,
        datetime.now(UTC).isoformat(timespec="seconds"),
        version.version,
        version.key,
        version.run,
        version.label,
        champion.version if champion else None,
        decision,
        reason,
        by,
        experiment,
    )


def roll_back(problem: str, by: str, reason: str) -> Version:
    """Make the former champion the champion again, and return it. Each further call goes one champion further back.

    Raises:
        RecastError: there is no former champion.
    """

    def next_entry(entries: list[Entry]) -> Entry:
        stack = champion_stack(entries)
        if len(stack) < 2:
            state = f"version {stack[-1].version} is the first champion" if stack else "there is no champion"
            raise RecastError(f"{problem}: {state}, so there is no former champion to go back to")
        return make_entry("rollback", stack[-2].version_of(problem), entries, None, reason, by)

    return append_entry(problem, next_entry).version_of(problem)
