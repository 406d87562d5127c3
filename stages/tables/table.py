"""TODO: what stages.tables.table is for."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from forecasting.preparation import Preparation

CHUNK = 1_000_000
"""Rows held in memory at once."""


@dataclass(frozen=True)
class Series:
    """One series of the table: its rows are `first` to `first + rows`, cut at `train` and `validation` from `first`."""

    name: str
    first: int
    rows: int
    train: int
    validation: int


@dataclass(frozen=True)
class Table:
    """What there is to know about a normalised table beside its values.

    Attributes:
        preparation: how it was made of what was ingested.
        cadence: seconds between rows.
        sha256: of values and times: the identity of the data for a trial's key. Which targets were observed shows in
            the windows, which the key hashes beside it.
    """

    preparation: Preparation
    cadence: float
    synthetic: bool
    series: tuple[Series, ...]
    sha256: str

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The table that `normalize` wrote into `folder`."""
        return TypeAdapter(cls).validate_json((folder / "table.json").read_bytes())


def values(folder: Path) -> NDArray[np.float32]:
    """The table's values, (N, F), normalised, NaN where nothing is known; memory-mapped, a write stays private."""
    table: NDArray[np.float32] = np.load(folder / "table.npy", mmap_mode="c", allow_pickle=False)
    return table


def times(folder: Path) -> NDArray[np.datetime64]:
    """The rows' times, (N,), to the millisecond; memory-mapped."""
    table: NDArray[np.datetime64] = np.load(folder / "time.npy", mmap_mode="r", allow_pickle=False)
    return table


def observed(folder: Path) -> NDArray[np.bool_]:
    """Whether each row's target, (N,), was observed: neither null nor filled; memory-mapped."""
    table: NDArray[np.bool_] = np.load(folder / "observed.npy", mmap_mode="r", allow_pickle=False)
    return table
