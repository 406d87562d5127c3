"""Sequences written one chunk after the other, so that memory does not grow with their number."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from problems.sequences import INPUTS, SPLIT, TARGET
from problems.source import PLACE

CHUNK_NUMBERS = 1 << 22
"""Numbers of the inputs of a chunk, about: 16 MiB."""


def chunk_rows(numbers: int) -> int:
    """How many sequences of so many numbers a chunk has."""
    return max(1, CHUNK_NUMBERS // numbers)


def chunk(split: str | None, inputs_NL: NDArray[Any], target_NK: NDArray[Any], places: Sequence[str]) -> pl.DataFrame:
    """N sequences of one split, all of L numbers with K numbers as their answer, as `Sequences.frame` has them."""
    return pl.DataFrame(
        {
            SPLIT: pl.repeat(split, len(places), dtype=pl.String, eager=True),
            INPUTS: pl.Series(inputs_NL.astype(np.float32, copy=False)).arr.to_list(),
            TARGET: pl.Series(target_NK.astype(np.float32, copy=False)).arr.to_list(),
            PLACE: pl.Series(places, dtype=pl.String),
        }
    )


def scanned(chunks: Iterable[pl.DataFrame], scratch: Path) -> pl.LazyFrame:
    """Write the chunks, one at least, into `scratch`, a file each, and scan them in their order."""
    files = []
    for number, each in enumerate(chunks):
        files.append(scratch / f"{number:06d}.parquet")
        each.write_parquet(files[-1], compression="lz4")
    return pl.scan_parquet(files, glob=False)
