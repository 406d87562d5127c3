"""Errors of the disk, as messages that name the place and the fix."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
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
}


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
