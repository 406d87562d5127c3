"""Sequences that are written one chunk after the other, so that memory does not grow with their number."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from problems.lazy_modules import np, pl
from problems.sequences import INPUTS_COLUMN, SPLIT_COLUMN, TARGET_COLUMN
from problems.source import PLACE_COLUMN

if TYPE_CHECKING:
    from numpy.typing import NDArray

CHUNK_NUMBERS = 1 << 22
"""About how many input numbers a chunk has: 16 MiB."""


def sequences_per_chunk(numbers: int) -> int:
    """How many sequences a chunk has, if each sequence has so many numbers."""
    return max(1, CHUNK_NUMBERS // numbers)


def make_chunk(
    split: str | None, inputs_NL: NDArray[Any], target_NK: NDArray[Any], places: Sequence[str]
) -> pl.DataFrame:
    """Make N sequences of one split, with L numbers and K answers each, into a frame like `Sequences.frame`."""
    return pl.DataFrame(
        {
            SPLIT_COLUMN: pl.repeat(split, len(places), dtype=pl.String, eager=True),
            INPUTS_COLUMN: pl.Series(inputs_NL.astype(np.float32, copy=False)).arr.to_list(),
            TARGET_COLUMN: pl.Series(target_NK.astype(np.float32, copy=False)).arr.to_list(),
            PLACE_COLUMN: pl.Series(places, dtype=pl.String),
        }
    )


def write_chunks(chunks: Iterable[pl.DataFrame], scratch: Path) -> pl.LazyFrame:
    """Write chunks, at least one, into `scratch`, a file each, and scan them in their order."""
    files = []
    for number, chunk in enumerate(chunks):
        files.append(scratch / f"{number:06d}.parquet")
        chunk.write_parquet(files[-1], compression="lz4")
    return pl.scan_parquet(files, glob=False)
