"""Reading the windows of a table: what a window is, and at which rows the windows of each split are."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from architectures.shape import WindowShape
from learning.answers import AnswerKindName
from project.records import read_record
from stages.sequences.reading import WINDOWS_FILE, SequenceWindows

Ranges = NDArray[np.int64]
"""Ranges of rows, (K, 2): from the first column up to, but not including, the second; sorted, not touching."""


@dataclass(frozen=True)
class TableWindows:
    """How a table is cut into windows, in rows.

    A window is identified by the row after its inputs, as in the lecture's generator. Its inputs are the rows
    `row - lookback, row - lookback + step, ...` before `row`; its target is row `row + delay`. Where there are several
    leads, that is the last target, and the others come before it, a step apart.

    Attributes:
        stride: training uses every n-th window.
        windows: number of windows, by split.
        lost_to_gaps, lost_to_nulls: how many more windows there would be without gaps between rows, and without nulls
            that were not filled and targets that were not observed.
        table: sha256 of the table that the windows are cut from.
        shape: the shape of a window, for a network.
    """

    lookback: int
    step: int
    delay: int
    stride: int
    windows: dict[str, int]
    lost_to_gaps: dict[str, int]
    lost_to_nulls: dict[str, int]
    table: str
    shape: WindowShape

    objective: ClassVar[AnswerKindName] = "value"
    token: ClassVar[None] = None

    @property
    def horizon(self) -> int:
        """The number of rows from the last input of a window to its last target."""
        return self.step + self.delay

    @property
    def leads(self) -> list[int]:
        """The number of rows from a window's own row to each of its targets."""
        return [self.delay - self.step * later for later in reversed(range(self.shape.leads))]

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read what `window` wrote into `folder`."""
        return read_record(folder / WINDOWS_FILE, cls, fix=f"run `recast run {folder.name}`")


AnyWindows = TableWindows | SequenceWindows


def read_windows(folder: Path) -> AnyWindows:
    """What the stage `window` wrote into `folder`, for a table or for sequences."""
    windows: AnyWindows = read_record(folder / WINDOWS_FILE, AnyWindows, fix=f"run `recast run {folder.name}`")
    return windows


def read_ranges(folder: Path, split: str) -> Ranges:
    """The rows of a split's windows, as `window` wrote them into `folder`."""
    ranges: Ranges = np.load(folder / f"{split}.npy", allow_pickle=False)
    return ranges
