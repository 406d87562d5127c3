"""Waiting for a condition, rather than for a time: a test on a busy machine only takes longer."""

import subprocess
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from tests.support.checkout import Checkout
from tests.support.commands import Command

PATIENCE_SECONDS = 360
POLL_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 1.0
BUSY_SHARE = 0.1
"""A condition is evaluated in this share of the time at most: one that asks a server keeps that busy, too."""

Value = TypeVar("Value")
Process = Command | subprocess.Popen[str]


def wait_until(condition: Callable[[], Value], description: str, process: Process | None = None) -> Value:
    """Wait until a condition returns something true, and return it.

    Args:
        description: of the condition, for the message.
        process: fail when it ends before.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    pause = threading.Event()
    while True:
        asked = time.monotonic()
        if value := condition():
            return value
        answered = time.monotonic()
        has_ended = process is not None and process.poll() is not None
        assert not has_ended, f"ended before {description}: {process and process.stdout and process.stdout.read()}"
        assert answered < deadline, f"waited for {description}"
        pause.wait(min(max(POLL_SECONDS, (answered - asked) / BUSY_SHARE), LONGEST_PAUSE_SECONDS))


def wait_for_file(checkout: Checkout, pattern: str, process: Process) -> None:
    """Wait until a file below the checkout exists. Fail when the process ends before."""
    wait_until(lambda: list(checkout.root.glob(pattern)), pattern, process)
