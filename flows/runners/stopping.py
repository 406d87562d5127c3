"""Stopping on request: one call stops all training of this process, whichever runner does it."""

import threading

from problems.errors import RecastError

_is_stopping = threading.Event()
"""Every train flow of this process is to end."""


class Stopped(RecastError):
    """A person has stopped the training."""


def raise_if_stopped() -> None:
    """Do nothing while training may go on.

    Raises:
        Stopped: a person has stopped the training that runs in this process.
    """
    if _is_stopping.is_set():
        raise Stopped("stopped; what is trained is kept, and the next run goes on from there")


def stop_training() -> None:
    """End every train flow of this process with `Stopped`, and the processes that train for it."""
    _is_stopping.set()


def allow_training() -> None:
    """Let train flows run again after `stop_training`."""
    _is_stopping.clear()
