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
    while not (value := condition()):
        has_ended = process is not None and process.poll() is not None
        assert not has_ended, f"ended before {description}: {process and process.stdout and process.stdout.read()}"
        assert time.monotonic() < deadline, f"waited for {description}"
        pause.wait(POLL_SECONDS)
    return value


def wait_for_file(checkout: Checkout, pattern: str, process: Process) -> None:
    """Wait until a file below the checkout exists. Fail when the process ends before."""
    wait_until(lambda: list(checkout.root.glob(pattern)), pattern, process)
