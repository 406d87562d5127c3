"""Files that say how far a retraining has come, so that the next run can finish what a killed one has begun."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lifecycle.champions.history import champion_folder
from project.atomic import write_json
from project.records import read_record


def open_mark(problem: str) -> Path:
    """The file that exists while a retraining is under way."""
    return champion_folder(problem) / "open.json"


def breach_mark(problem: str) -> Path:
    """The file that exists from before rows go into quarantine until their retraining has ended as a breach."""
    return champion_folder(problem) / "breach.json"


def mark_open(problem: str) -> None:
    """Note that a retraining is under way. An earlier note stays as it is."""
    if not open_mark(problem).exists():
        write_json(open_mark(problem), {"since": datetime.now(UTC).isoformat(timespec="seconds")})


def read_mark(problem: str) -> dict[str, Any]:
    """The content of the file that `open_mark` names."""
    return read_record(open_mark(problem), dict[str, Any], fix=f"delete it, then run `recast retrain {problem}`")
