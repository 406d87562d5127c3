"""The history of a trial: what each epoch left."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from project.atomic import write_json

FILE = "history.json"


@dataclass(frozen=True)
class Epoch:
    """One epoch, counted from 1: the loss and the measures on validation, by name, errors normalised."""

    epoch: int
    train_loss: float
    validation: dict[str, float]


def read(folder: Path) -> list[Epoch]:
    """The history that a trial's folder holds."""
    return [Epoch(**each) for each in json.loads((folder / FILE).read_text(encoding="utf-8"))]


def write(folder: Path, history: Sequence[Epoch]) -> None:
    """Write a history into a trial's folder."""
    write_json(folder / FILE, [asdict(epoch) for epoch in history])
