"""Progress bars: one display a process, however many flows show bars in it."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

console = Console(stderr=True)
"""For what happens."""

results = Console(width=None if sys.stdout.isatty() else 140)
"""For what a command is asked for; a file or a pipe has lines long enough for a table."""

_lock = threading.Lock()
_display: Progress | None = None
_users = 0


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
