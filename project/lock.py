"""One pipeline at a time in a checkout, whether `dvc repro` or a flow runs it; and one retraining of a problem."""

from collections.abc import Iterator
from contextlib import contextmanager

from filelock import FileLock, Timeout

from problems.errors import RecastError
from project.paths import STATE

_LOCK_FILE = STATE / "pipeline.lock"

LOCK_WAIT_SECONDS = 1
"""A process that only asks whether a pipeline runs (`is_pipeline_running`) holds the lock for a moment."""


class PipelineRuns(RecastError):
    """Another process holds the lock of this checkout."""


@contextmanager
def hold_pipeline_lock(wait: bool = False) -> Iterator[None]:
    """Hold the lock of this checkout. It is released however the process that holds it ends.

    Raises:
        PipelineRuns: another process holds it, and `wait` is not set.
    """
    STATE.mkdir(exist_ok=True)
    lock = FileLock(_LOCK_FILE)
    try:
        lock.acquire(timeout=-1 if wait else LOCK_WAIT_SECONDS)
    except Timeout:
        raise PipelineRuns(
            "another command holds this checkout (`recast status` shows what runs); wait for it, or add `--wait` where "
            "the command has it"
        ) from None
    try:
        yield
    finally:
        lock.release()


def is_pipeline_running() -> bool:
    """Whether a pipeline runs in this checkout now."""
    if not _LOCK_FILE.exists():
        return False
    try:
        with FileLock(_LOCK_FILE, timeout=0):
            return False
    except Timeout:
        return True


@contextmanager
def hold_retraining_lock(problem: str) -> Iterator[None]:
    """Hold the lock of a problem's retraining. It is released however the process that holds it ends.

    Raises:
        RecastError: another process holds it.
    """
    STATE.mkdir(exist_ok=True)
    lock = FileLock(STATE / f"retrain-{problem}.lock")
    try:
        lock.acquire(timeout=LOCK_WAIT_SECONDS)
    except Timeout:
        raise RecastError(
            f"another retraining of {problem} runs in this checkout, or waits for a person's answer on Prefect's page; "
            "wait for it"
        ) from None
    try:
        yield
    finally:
        lock.release()
