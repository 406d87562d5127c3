"""The list of a grid's trials that the stage `train` writes when all have ended, readable without PyTorch."""

from dataclasses import dataclass
from pathlib import Path

from project.records import read_record

LIST_FILE = "trials.json"


@dataclass(frozen=True)
class ListedTrial:
    """A trial that has ended.

    Attributes:
        key: its content address.
        label: its name for people.
        status: finished or failed.
        reason: why it failed.
        sha256: of its files that DVC tracks.
    """

    key: str
    label: str
    status: str
    reason: str | None
    sha256: str


def read_listed_trials(folder: Path) -> list[ListedTrial]:
    """The trials that the stage `train` has listed in its folder.

    Raises:
        FileNotFoundError: the stage has not run.
        RecastError: the file is damaged.
    """
    return read_record(folder / LIST_FILE, list[ListedTrial], fix="`recast run` writes it again once it is deleted")
