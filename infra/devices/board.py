"""What runs now: each grid that is under way keeps a page of it for `recast status`."""

import itertools
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from pydantic import TypeAdapter, ValidationError

from project.atomic import write_json
from project.paths import STATE

EVERY_SECONDS = 1.0
"""How often a page is written at most."""

_numbers = itertools.count()


@dataclass(frozen=True)
class Place:
    """A device.

    Attributes:
        memory, used: bytes to give away and given away; None: they are not counted.
    """

    device: str
    slots: int
    memory: int | None
    used: int | None


@dataclass(frozen=True)
class Running:
    """A bundle that is being trained.

    Attributes:
        begun: when, in seconds since the epoch.
        expected: seconds from then on; None: not known.
    """

    device: str
    label: str
    begun: float
    expected: float | None


@dataclass(frozen=True)
class Page:
    """A grid that is being trained.

    Attributes:
        pid, created: of the process that dispatches it.
        left: seconds that it is expected to take from now on; None: not known.
    """

    title: str
    pid: int
    created: float
    places: Sequence[Place]
    running: Sequence[Running]
    queued: int
    left: float | None


class Board:
    """The page of one grid; it is there until the block of `board` ends."""

    def __init__(self, title: str, file: Path) -> None:
        self.title, self.file, self.written = title, file, 0.0
        self.created = psutil.Process().create_time()

    def show(
        self,
        places: Sequence[Place],
        running: Sequence[Running],
        queued: int,
        left: float | None,
        at_once: bool = False,
    ) -> None:
        """Write the page, unless that was done a moment ago.

        Args:
            at_once: write it in any case; it may be long until there is something else to show.
        """
        if not at_once and time.monotonic() - self.written < EVERY_SECONDS:
            return
        page = Page(self.title, os.getpid(), self.created, places, running, queued, left)
        write_json(self.file, asdict(page))
        self.written = time.monotonic()


@contextmanager
def board(title: str) -> Iterator[Board]:
    """A page for a grid."""
    shown = Board(title, _folder() / f"{os.getpid()}-{next(_numbers)}.json")
    try:
        yield shown
    finally:
        shown.file.unlink(missing_ok=True)


def pages() -> list[Page]:
    """The pages of the grids that are under way; those that a killed process has left are removed."""
    found = []
    for file in sorted(_folder().glob("*.json")):
        try:
            page: Page = TypeAdapter(Page).validate_json(file.read_bytes())
        except (FileNotFoundError, ValidationError):
            continue
        if _lives(page):
            found.append(page)
        else:
            file.unlink(missing_ok=True)
    return found


def _lives(page: Page) -> bool:
    try:
        return abs(psutil.Process(page.pid).create_time() - page.created) < 2
    except psutil.NoSuchProcess:
        return False


def _folder() -> Path:
    return STATE / "running"
