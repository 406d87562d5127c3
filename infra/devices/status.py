"""The grids that are being trained now: each one keeps a status file up to date, which `recast status` reads."""

import itertools
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from infra.processes import creation_time, find_process
from project.atomic import write_json
from project.paths import STATE
from project.records import read_disposable_record

UPDATE_SECONDS = 1.0
"""A status file is written at most this often."""

_numbers = itertools.count()


@dataclass(frozen=True)
class DeviceStatus:
    """A device on which bundles are trained.

    Attributes:
        memory, used: the bytes that bundles may have, and those that they have; None: memory is not counted.
    """

    device: str
    slots: int
    memory: int | None
    used: int | None


@dataclass(frozen=True)
class RunningBundle:
    """A bundle that is being trained.

    Attributes:
        begun: when its training began, in seconds since the epoch.
        expected: how many seconds the training is expected to take; None: not known.
    """

    device: str
    label: str
    begun: float
    expected: float | None


@dataclass(frozen=True)
class GridStatus:
    """A grid that is being trained, as its status file has it.

    Attributes:
        pid, created: the id of the process that dispatches it, and when that process began.
        queued: the number of bundles that wait.
        seconds_left: the seconds that the grid is expected to take from now on; None: not known.
    """

    title: str
    pid: int
    created: float
    devices: Sequence[DeviceStatus]
    running: Sequence[RunningBundle]
    queued: int
    seconds_left: float | None


class StatusFile:
    """The status file of one grid; see `status_file`."""

    def __init__(self, title: str, file: Path) -> None:
        self.title, self.file = title, file
        self._updated = 0.0
        self._created = creation_time()

    def update(
        self,
        devices: Sequence[DeviceStatus],
        running: Sequence[RunningBundle],
        queued: int,
        seconds_left: float | None,
        at_once: bool = False,
    ) -> None:
        """Write the status, unless it was written less than `UPDATE_SECONDS` ago; for the arguments see `GridStatus`.

        Args:
            at_once: write it in any case, because the next update may be far away.
        """
        if not at_once and time.monotonic() - self._updated < UPDATE_SECONDS:
            return
        status = GridStatus(self.title, os.getpid(), self._created, devices, running, queued, seconds_left)
        write_json(self.file, asdict(status))
        self._updated = time.monotonic()


@contextmanager
def status_file(title: str) -> Iterator[StatusFile]:
    """A status file for a grid, which is removed when the block ends."""
    status = StatusFile(title, _status_folder() / f"{os.getpid()}-{next(_numbers)}.json")
    try:
        yield status
    finally:
        status.file.unlink(missing_ok=True)


def running_grids() -> list[GridStatus]:
    """The status of each grid that is being trained. Files that a killed process has left behind are removed."""
    grids = []
    for file in sorted(_status_folder().glob("*.json")):
        grid = read_disposable_record(file, GridStatus)
        if grid is None:
            continue
        if find_process(grid.pid, grid.created):
            grids.append(grid)
        else:
            file.unlink(missing_ok=True)
    return grids


def _status_folder() -> Path:
    return STATE / "running"
