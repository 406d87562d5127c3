"""The thin command around a stage: `python -m stages.<name> <problem>`."""

import argparse
import errno
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from problems.errors import RecastError
from project.lock import only_pipeline
from project.paths import require_root

FULL_BYTES = 1 << 20
"""A disk with less space is full: nothing of ours fits there."""

_DISK = {
    errno.ENOSPC: "the disk is full: free some space and run again; nothing was left half-written",
    errno.EDQUOT: "the disk quota is used up: free some space and run again; nothing was left half-written",
    errno.EROFS: "the file system is read-only: mount it for writing, or work in a copy elsewhere",
    errno.EACCES: "this user may not write or read there: mend the permissions",
    errno.EPERM: "this user may not write or read there: mend the permissions",
}


class DiskError(RecastError):
    """The disk refuses: it is full, or may not be written to."""


@contextmanager
def plain_errors(place: Path = Path()) -> Iterator[None]:
    """Turn what the disk refuses into an error that names the place and the mend.

    Args:
        place: where the block writes; the system names a file only when it refuses to open it.

    Raises:
        DiskError: the disk has refused.
    """
    try:
        yield
    except RecastError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _DISK:
            raise DiskError(f"{error.filename or place.absolute()}: {_DISK[error.errno]}") from error
        # A server whose disk it is too answers with an error of its own.
        if shutil.disk_usage(place).free < FULL_BYTES:
            raise DiskError(f"{place.absolute()}: {_DISK[errno.ENOSPC]}") from error
        raise


def command(stage: Callable[[str], None]) -> None:
    """Run a stage for the problem named on the command line; mendable errors end with a message and status 1."""
    parser = argparse.ArgumentParser(description=(stage.__doc__ or "").strip())
    parser.add_argument("problem", help="a problem that params.yaml declares, such as jena")
    problem = parser.parse_args().problem
    try:
        require_root()
        with plain_errors(), only_pipeline():
            stage(problem)
    except RecastError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
