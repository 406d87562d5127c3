"""Processes that a file names: by their id and by when they began, because the system gives the same ids again."""

import psutil

SAME_PROCESS_SECONDS = 2
"""How far apart two readings of when one process began may be: the system's clock is adjusted now and then."""


def creation_time(pid: int | None = None) -> float:
    """When a process began, in seconds of the system's clock.

    Args:
        pid: the id of the process; None: this process.
    """
    return psutil.Process(pid).create_time()


def find_process(pid: int, created: float) -> psutil.Process | None:
    """The process with this id that began at this time, or None where it has ended.

    Args:
        created: see `creation_time`.
    """
    try:
        process = psutil.Process(pid)
        return process if abs(process.create_time() - created) < SAME_PROCESS_SECONDS else None
    except psutil.NoSuchProcess:
        return None
