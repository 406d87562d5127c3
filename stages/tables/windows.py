"""TODO: what stages.tables.windows is for."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from architectures.shape import WindowShape
from problems.sequences import Objective
from stages.sequences.reading import WINDOWS, Piecing

Ranges = NDArray[np.int64]
"""Ranges of rows, (K, 2): from the first column up to, not including, the second; sorted, apart from each other."""


@dataclass(frozen=True)
class Windowing:
    """What a window is, in rows of the table.

    A window is named by the row after its inputs, as in the lecture's generator: inputs are rows
    `row - lookback, row - lookback + step, ...` before `row`, the target is row `row + delay`; where there are several
    leads, that is the last, and the others come a step apart before it.

    Attributes:
        windows: how many there are, by split.
        lost_to_gaps, lost_to_nulls: how many more there would be without gaps between rows, and without nulls that
            were not filled and targets that were not observed.
        table: sha256 of the table that they index.
        shape: what a network is told of them.
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

    objective: ClassVar[Objective] = "value"
    token: ClassVar[None] = None

    @property
    def leads(self) -> list[int]:
        """Rows from a window's own to each of its targets."""
        return [self.delay - self.step * later for later in reversed(range(self.shape.leads))]

    @classmethod
    def read(cls, folder: Path) -> Self:
        """What `window` wrote into `folder`."""
        return TypeAdapter(cls).validate_json((folder / WINDOWS).read_bytes())


AnyWindows = Windowing | Piecing


def read_windows(folder: Path) -> AnyWindows:
    """What `window` wrote into `folder`: of a table, or of sequences."""
    found: AnyWindows = TypeAdapter(AnyWindows).validate_json((folder / WINDOWS).read_bytes())
    return found


def ranges(folder: Path, split: str) -> Ranges:
    """The rows of a split's windows, as `window` wrote them into `folder`."""
    found: Ranges = np.load(folder / f"{split}.npy", allow_pickle=False)
    return found
