"""What a person sees of a run and of a download: progress bars on a terminal, otherwise one line per stage.

A process has one display, however many flows show bars in it.
"""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

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

from project.timings import time_phase

if TYPE_CHECKING:
    from problems.source import DownloadProgress

console = Console(stderr=True)
"""For messages about what happens."""

output = Console(width=None if sys.stdout.isatty() else 140)
"""For the output of a command. Lines that go to a file or a pipe are long enough for a table."""

_lock = threading.Lock()
_display: Progress | None = None
_users = 0
_begin_times: dict[str, float] = {}


def print_warning(text: str) -> None:
    """Show a message of one line about something that is not as it should be, although the command goes on."""
    console.print(f"warning: {text}", style="yellow", markup=False, highlight=False, soft_wrap=True)


@contextmanager
def show_progress() -> Iterator[Progress]:
    """The display to which bars are added. It is drawn while anything uses it, and only on a terminal."""
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
    """Count a stage as running until the block ends. Without a terminal, print how long it took."""
    with _lock:
        _begin_times[stage] = time.monotonic()
    try:
        with time_phase(stage):
            yield
    finally:
        with _lock:
            seconds = time.monotonic() - _begin_times.pop(stage)
    if not console.is_terminal:
        console.print(f"{stage}: {seconds:.1f} s", markup=False, highlight=False)


def list_running_stages() -> list[str]:
    """The stages that are running in this process."""
    with _lock:
        return list(_begin_times)


@contextmanager
def download_progress(task: str) -> "Iterator[DownloadProgress]":
    """A progress bar for a download on a terminal; nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda received, total: None
        return
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress("{task.description}", *columns, console=Console(stderr=True), transient=True) as bar:
        task_id = bar.add_task(task, total=None)
        yield lambda received, total: bar.update(task_id, completed=received, total=total)
