"""Errors that Polars raises, turned into errors that name the place in the file and the fix."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl

from problems.errors import RecastError


@contextmanager
def explain_polars_errors(
    path: Path, out: Path, find_fault: Callable[[Path], str | None] = lambda path: None
) -> Iterator[None]:
    """Turn an error of Polars into one that a user can act on.

    Args:
        path: the file or the raw store that the block reads.
        out: where the block writes.
        find_fault: describes, with its place, where `path` breaks its own format; None: that is unknown.

    Raises:
        RecastError: Polars cannot read `path`.
        OSError: the disk or the user's share of it is full, as Python itself reports it.
    """
    try:
        yield
    # Damaged Parquet files make Polars panic.
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        for code in (errno.ENOSPC, errno.EDQUOT):
            if os.strerror(code) in str(error):
                raise OSError(code, os.strerror(code), str(out)) from error
        reason = f"cannot be read: {(str(error).splitlines() or [type(error).__name__])[0]}"
        raise RecastError(f"{find_fault(path) or f'{path}: {reason}'}; fix the file") from error
