"""The history of a trial: the results of each epoch."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from project.atomic import write_json
from project.records import read_record

HISTORY_FILE = "history.json"


@dataclass(frozen=True)
class Epoch:
    """One epoch.

    Attributes:
        epoch: its number, counted from 1.
        validation: the measures on validation, by name; errors are normalised.
    """

    epoch: int
    train_loss: float
    validation: dict[str, float]


def read_history(folder: Path) -> list[Epoch]:
    """The history in a trial's folder."""
    return read_record(folder / HISTORY_FILE, list[Epoch], fix=f"delete {folder} and train the trial again")


def write_history(folder: Path, history: Sequence[Epoch]) -> None:
    """Write a history into a trial's folder."""
    write_json(folder / HISTORY_FILE, [asdict(epoch) for epoch in history])
