"""Reading the normalised table: its values, times and observed targets, memory-mapped, and their description."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from forecasting.preparation import Preparation
from project.records import read_record
from stages.sequences.reading import DESCRIPTION_FILE

CHUNK_ROWS = 1_000_000
"""Rows that are held in memory at once."""


@dataclass(frozen=True)
class Series:
    """One series of the table.

    Attributes:
        first: its first row in the table.
        rows: the number of its rows.
        train, validation: the ends of these splits, counted from `first`; the rest of the rows is the test split.
    """

    name: str
    first: int
    rows: int
    train: int
    validation: int


@dataclass(frozen=True)
class Table:
    """A description of a normalised table, beside its values.

    Attributes:
        preparation: how the table was made from the ingested one.
        cadence: seconds between rows.
        synthetic: the rows are simulated.
        sha256: of values, times and scaling: the identity of the data in a trial's key. Which targets were observed
            shows in the windows, which the key hashes too.
    """

    preparation: Preparation
    cadence: float
    synthetic: bool
    series: tuple[Series, ...]
    sha256: str

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the description that `normalize` wrote into `folder`."""
        return read_record(folder / DESCRIPTION_FILE, cls, fix=f"run `recast run {folder.name}`")


def read_values(folder: Path) -> NDArray[np.float32]:
    """The table's normalised values, (N, F), NaN where they are unknown; memory-mapped, and a write stays private."""
    values_NF: NDArray[np.float32] = np.load(folder / "table.npy", mmap_mode="c", allow_pickle=False)
    return values_NF


def read_times(folder: Path) -> NDArray[np.datetime64]:
    """The times of the rows, (N,), in milliseconds; memory-mapped."""
    times_N: NDArray[np.datetime64] = np.load(folder / "time.npy", mmap_mode="r", allow_pickle=False)
    return times_N


def read_observed(folder: Path) -> NDArray[np.bool_]:
    """Whether the target of each row, (N,), was observed, that is neither null nor filled; memory-mapped."""
    observed_N: NDArray[np.bool_] = np.load(folder / "observed.npy", mmap_mode="r", allow_pickle=False)
    return observed_N
