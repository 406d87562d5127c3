"""One pipeline at a time in a checkout, whether `dvc repro` or a flow runs it."""

from collections.abc import Iterator
from contextlib import contextmanager

from filelock import FileLock, Timeout

from problems.errors import RecastError
from project.paths import STATE

_FILE = STATE / "pipeline.lock"

PATIENCE_SECONDS = 1
"""Who only looks whether a pipeline runs (`is_running`) holds the lock for a moment."""


@contextmanager
def only_pipeline(wait: bool = False) -> Iterator[None]:
    """Hold the lock of this checkout; it is free again however its holder ends.

    Raises:
        RecastError: another holds it, and `wait` is not set.
    """
    STATE.mkdir(exist_ok=True)
    lock = FileLock(_FILE)
    try:
        lock.acquire(timeout=-1 if wait else PATIENCE_SECONDS)
    except Timeout:
        raise RecastError(
            "another pipeline runs in this checkout (`recast status` shows it); wait for it, or `recast run --wait`"
        ) from None
    try:
        yield
    finally:
        lock.release()


def is_running() -> bool:
    """Whether a pipeline runs in this checkout now."""
    if not _FILE.exists():
        return False
    try:
        with FileLock(_FILE, timeout=0):
            return False
    except Timeout:
        return True
