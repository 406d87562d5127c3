"""What happened to a problem's champion, from first to last: the truth that MLflow's aliases follow.

It is in a module of its own so that a rollback need not wait for MLflow and PyTorch to be loaded.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from filelock import FileLock
from pydantic import TypeAdapter, ValidationError

from problems.errors import RecastError
from project.atomic import replaced_file
from project.paths import STATE

FOLDER = Path("data/champion")
"""Histories, decisions and pages, a folder a problem."""
RETRAIN = "retrain"
"""By whom an entry is that no person has asked for."""


@dataclass(frozen=True)
class Version:
    """A version of a problem's registered model.

    Attributes:
        key: of the trial.
        run: the trial's run in MLflow.
        label: of the trial, for people: gru units=32 seed=1.
        uri: by which MLflow loads it.
    """

    problem: str
    version: int
    key: str
    run: str
    label: str = ""

    @property
    def uri(self) -> str:
        return f"models:/{self.problem}/{self.version}"


@dataclass(frozen=True)
class Entry:
    """Something that happened to a problem's champion.

    Attributes:
        kind: challenge (a version was registered, to be compared), promotion, refusal or rollback.
        time: in UTC, ISO 8601.
        version, key, run, label: of the challenger; of a rollback, of the version that is champion again.
        former: the champion before, if there was one.
        decision: id of the comparison that it rests on, if there was one.
        reason: in a sentence.
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
        """The version that it is about."""
        return Version(problem, self.version, self.key, self.run, self.label)


def folder(problem: str) -> Path:
    """Where a problem's history, decisions and pages are."""
    return FOLDER / problem


def file_of(problem: str) -> Path:
    return folder(problem) / "history.json"


def history(problem: str) -> list[Entry]:
    """All that happened, the oldest first.

    Raises:
        RecastError: the file cannot be read.
    """
    file = file_of(problem)
    if not file.exists():
        return []
    try:
        return TypeAdapter(list[Entry]).validate_json(file.read_bytes())
    except ValidationError as error:
        what = error.errors()[0]
        raise RecastError(
            f"{file}: {'.'.join(map(str, what['loc']))}: {what['msg']}; restore the file, or move {folder(problem)} "
            "aside to begin a new history"
        ) from error


@contextmanager
def writing(problem: str) -> Iterator[None]:
    """Hold the lock of what is written of a problem's champion: a person may roll back while a flow promotes."""
    STATE.mkdir(exist_ok=True)
    with FileLock(STATE / f"champion-{problem}.lock"):
        yield


def append(problem: str, made: Callable[[list[Entry]], Entry | None]) -> None:
    """Add what is made of the entries that there are, if anything is; the file has it, or is as it was."""
    with writing(problem):
        entries = history(problem)
        entry = made(entries)
        if entry is not None:
            with replaced_file(file_of(problem)) as temporary:
                temporary.write_bytes(TypeAdapter(list[Entry]).dump_json([*entries, entry], indent=1) + b"\n")


def reign(entries: Sequence[Entry]) -> list[Entry]:
    """The champions that a rollback could go back to, the present one last: what promotions added, rollbacks took."""
    found: list[Entry] = []
    for entry in entries:
        if entry.kind == "promotion":
            found.append(entry)
        elif entry.kind == "rollback":
            del found[-1:]
    return found


def champion(problem: str) -> Version | None:
    """The champion by the history, or None where there was never one. MLflow is not asked."""
    return champion_of(problem, history(problem))


def champion_of(problem: str, entries: Sequence[Entry]) -> Version | None:
    """`champion`, by entries that were read."""
    found = reign(entries)
    return found[-1].version_of(problem) if found else None


def challenger(problem: str) -> Version | None:
    """The version that was last proposed, unless it has become champion."""
    return challenger_of(problem, history(problem))


def challenger_of(problem: str, entries: Sequence[Entry]) -> Version | None:
    """`challenger`, by entries that were read."""
    found = [entry for entry in entries if entry.kind != "rollback"]
    return found[-1].version_of(problem) if found and found[-1].kind != "promotion" else None


def decided(problem: str, decision: str | None) -> Entry | None:
    """What became of a comparison, where something has."""
    return decided_of(history(problem), decision)


def decided_of(entries: Sequence[Entry], decision: str | None) -> Entry | None:
    """`decided`, by entries that were read."""
    found = [entry for entry in entries if decision and entry.decision == decision]
    return found[-1] if found else None


def new_entry(
    kind: Literal["challenge", "promotion", "refusal", "rollback"],
    version: Version,
    entries: Sequence[Entry],
    decision: str | None,
    reason: str,
    by: str,
    experiment: str | None = None,
) -> Entry:
    """An entry of now."""
    now = champion_of(version.problem, entries)
    return Entry(
        kind,
        datetime.now(UTC).isoformat(timespec="seconds"),
        version.version,
        version.key,
        version.run,
        version.label,
        now.version if now else None,
        decision,
        reason,
        by,
        experiment,
    )


def roll_back(problem: str, by: str, reason: str) -> Version:
    """Make the former champion the champion again, and say which it is; each further call goes one further back.

    Raises:
        RecastError: there is none.
    """

    def made(entries: list[Entry]) -> Entry:
        found = reign(entries)
        if len(found) < 2:
            now = f"version {found[-1].version} is the first champion" if found else "there is no champion"
            raise RecastError(f"{problem}: {now}, so there is no former one to go back to")
        return new_entry("rollback", found[-2].version_of(problem), entries, None, reason, by)

    append(problem, made)
    now = champion(problem)
    assert now is not None
    return now
