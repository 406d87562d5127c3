"""Errors of the disk, as messages that name the place and the fix."""

import errno
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from problems.errors import RecastError

FULL_DISK_BYTES = 1 << 20
"""A disk with less free space than this counts as full: nothing that Recast writes fits on it."""

_FIXES = {
    errno.ENOSPC: "the disk is full: free some space and run again; nothing was left half-written",
    errno.EDQUOT: "the disk quota is used up: free some space and run again; nothing was left half-written",
    errno.EROFS: "the file system is read-only: mount it for writing, or work in a copy elsewhere",
    errno.EACCES: "this user may not read or write here: fix the permissions",
    errno.EPERM: "this user may not read or write here: fix the permissions",
    errno.ENAMETOOLONG: "the name is too long for the file system: choose a shorter one",
    errno.EEXIST: "something else than a folder has this name: move it away",
    errno.ENOTDIR: "a part of this path is a file, not a folder: correct it",
    errno.EISDIR: "this is a folder: name a file",
    errno.ELOOP: "its links lead in a circle: correct them",
}


FULL_SECONDS = 15.0
"""A disk that has been full for so long is not about to have space again by itself."""


class DiskError(RecastError):
    """The disk refuses: it is full, or this user may not write to it."""


@contextmanager
def explain_disk_errors(place: Path = Path()) -> Iterator[None]:
    """Turn errors of the disk into errors that name the place and the fix.

    Args:
        place: where the block writes. The system names a file only when it refuses to open the file.

    Raises:
        DiskError: the disk has refused.
    """
    try:
        yield
    except RecastError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _FIXES:
            raise DiskError(f"{error.filename or place.absolute()}: {_FIXES[error.errno]}") from error
        # A server that writes to the same disk answers with an error of its own.
        if shutil.disk_usage(place).free < FULL_DISK_BYTES:
            raise DiskError(f"{place.absolute()}: {_FIXES[errno.ENOSPC]}") from error
        raise


@cache
def end_while_disk_is_full(place: Path = Path()) -> None:
    """End this process, from now on, when the disk has been full for a while.

    A server on that disk cannot write either, and its clients would wait for minutes for what cannot come, some of them
    after the error has been shown. The next run continues as it would after a kill.

    Args:
        place: a folder on the disk.
    """
    threading.Thread(target=_watch_disk, args=(place.absolute(),), name="disk", daemon=True).start()


def _watch_disk(place: Path) -> None:
    last_free, pause = time.monotonic(), threading.Event()
    while True:
        if shutil.disk_usage(place).free >= FULL_DISK_BYTES:
            last_free = time.monotonic()
        elif time.monotonic() - last_free > FULL_SECONDS:
            break
        pause.wait(1)
    # Not by way of a library: another thread may hold its lock.
    os.write(2, f"error: {place}: {_FIXES[errno.ENOSPC]}\n".encode())
    os._exit(1)
