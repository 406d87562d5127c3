"""What a person sees of a run: progress bars on a terminal, a line a stage elsewhere.

There is one display a process, however many flows show bars in it.
"""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from problems.source import Progress as DownloadProgress

console = Console(stderr=True)
"""For what happens."""

results = Console(width=None if sys.stdout.isatty() else 140)
"""For what a command is asked for; a file or a pipe has lines long enough for a table."""

_lock = threading.Lock()
_display: Progress | None = None
_users = 0
_begun: dict[str, float] = {}


@contextmanager
def progress() -> Iterator[Progress]:
    """The display to add bars to; it is drawn while anyone uses it, and only on a terminal."""
    global _display, _users
    with _lock:
        if _display is None:
            _display = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=console,
                transient=True,
                disable=not console.is_terminal,
            )
            _display.start()
        _users += 1
        display = _display
    try:
        yield display
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                display.stop()
                _display = None


@contextmanager
def show_stage(stage: str) -> Iterator[None]:
    """Count a stage among those that run until the block ends; where no bar shows it, say how long it took."""
    with _lock:
        _begun[stage] = time.monotonic()
    try:
        yield
    finally:
        with _lock:
            seconds = time.monotonic() - _begun.pop(stage)
    if not console.is_terminal:
        console.print(f"{stage}: {seconds:.1f} s", markup=False, highlight=False)


def running() -> list[str]:
    """The stages that run in this process now."""
    with _lock:
        return list(_begun)


@contextmanager
def download_progress(task: str) -> Iterator[DownloadProgress]:
    """A progress bar for downloads on a terminal; silence elsewhere."""
    if not sys.stderr.isatty():
        yield lambda come, total: None
        return
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress("{task.description}", *columns, console=Console(stderr=True), transient=True) as bar:
        number = bar.add_task(task, total=None)
        yield lambda come, total: bar.update(number, completed=come, total=total)
