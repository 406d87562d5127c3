"""Batches of windows: one gather each from the table, which lies on the training device whole when it fits."""

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from stages.normalize import values
from stages.window import SPLITS, Windowing, ranges

FREE_SHARE = 0.5
"""The table moves to a GPU when it takes no more than this share of the GPU's free memory."""


REORDERED_BYTES = 256 << 20
"""A table up to this size is reordered, in memory, where a window takes every n-th row; a larger one stays mapped."""

BLOCK = 64
"""Batches whose rows are found at once: one batch's alone would take longer than its gather."""


class Batches:
    """The windows of one split, by position, in batches on the training device.

    The table is seen through a strided view whose element `i` is the window of rows `i, i + step, ...`: gathering a
    batch copies each window once, and memory grows with neither rows nor windows.
    Where a window takes every n-th row, each row is a cache miss: with rows n apart side by side the window is one run
    of memory, which is copied twice as fast.
    """

    def __init__(
        self,
        table_NF: Tensor,
        inputs_NF: Tensor | None,
        rows_K2: Tensor,
        windowing: Windowing,
        device: torch.device,
        stride: int = 1,
    ) -> None:
        """
        Args:
            table_NF: the normalised table, on `device` or, when it does not fit there, in CPU memory.
            inputs_NF: the same table as `side_by_side` orders it, or None to take inputs from `table_NF` as it is.
            rows_K2: ranges of rows, sorted.
            stride: use every so-manieth window.
        """
        steps, features = windowing.shape.steps, windowing.shape.features
        self.phases = 1 if inputs_NF is None else windowing.step
        source_NF, step = (table_NF, windowing.step) if inputs_NF is None else (inputs_NF, 1)
        self.phase_rows = len(source_NF) // self.phases
        starts = len(source_NF) - (steps - 1) * step
        self.windows_STF = source_NF.as_strided((starts, steps, features), (features, step * features, 1))
        self.targets_N = table_NF[:, windowing.shape.target]
        self.lookback, self.delay, self.stride = windowing.lookback, windowing.delay, stride
        self.device = device
        self.first_K = rows_K2[:, 0].to(table_NF.device)
        lengths_K = (rows_K2[:, 1] - rows_K2[:, 0]).to(table_NF.device)
        self.until_K = lengths_K.cumsum(0)
        self.before_K = self.until_K - lengths_K
        self.length = math.ceil(int(self.until_K[-1]) / stride)

    def __len__(self) -> int:
        return self.length

    def rows(self, positions_B: Tensor) -> Tensor:
        """The rows, (B,), of the windows at these positions of the split."""
        positions_B = positions_B * self.stride
        k_B = torch.searchsorted(self.until_K, positions_B, right=True)
        return self.first_K[k_B] + positions_B - self.before_K[k_B]

    def gather(self, rows_B: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs (B, T, F) and targets (B,) of the windows named by these rows, on the training device."""
        first_B = rows_B - self.lookback
        if self.phases > 1:
            first_B = first_B % self.phases * self.phase_rows + first_B // self.phases
        x_BTF = self.windows_STF.index_select(0, first_B)
        y_B = self.targets_N.index_select(0, rows_B + self.delay)
        if x_BTF.device != self.device:
            return (
                x_BTF.pin_memory().to(self.device, non_blocking=True),
                y_B.pin_memory().to(self.device, non_blocking=True),
            )
        return x_BTF, y_B

    def at(self, positions_B: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs (B, T, F) and targets (B,) of the windows at these positions of the split."""
        return self.gather(self.rows(positions_B.to(self.windows_STF.device)))

    def in_order(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Every window once, in order of time, in batches of at most `size`."""
        for begin in range(0, self.length, size):
            yield self.at(torch.arange(begin, min(begin + size, self.length)))

    def shuffled(self, size: int, steps: int | None, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an epoch.

        Args:
            steps: so many batches drawn at random with replacement, as the lecture's generator does, which takes the
                same memory for any number of windows; or None: every window once, shuffled.
            generator: on the CPU; the same state gives the same batches on every device.
        """
        if steps is None:
            blocks = iter(torch.split(torch.randperm(self.length, generator=generator), BLOCK * size))
        else:
            lengths = (min(BLOCK, steps - begin) * size for begin in range(0, steps, BLOCK))
            blocks = (torch.randint(self.length, (length,), generator=generator) for length in lengths)
        for positions in blocks:
            for rows_B in torch.split(self.rows(positions.to(self.windows_STF.device)), size):
                yield self.gather(rows_B)


def side_by_side(table_NF: Tensor, step: int) -> Tensor:
    """The table, a copy, with rows `step` apart side by side: all rows 0, step, ..., then 1, step + 1, ...

    Its length is a multiple of `step`; the rows that fill it up are no window's.
    """
    rows, features = table_NF.shape
    padded_NF = torch.nn.functional.pad(table_NF, (0, 0, 0, -rows % step))
    return padded_NF.view(-1, step, features).transpose(0, 1).reshape(-1, features)


def read(normalized: Path, windowed: Path, device: torch.device) -> dict[str, Batches]:
    """The batches of every split of a problem, over one table."""
    windowing = Windowing.read(windowed)
    table_NF = torch.from_numpy(values(normalized))
    if device.type == "cuda" and table_NF.nbytes <= FREE_SHARE * torch.cuda.mem_get_info(device)[0]:
        table_NF = table_NF.to(device)
    reorder = windowing.step > 1 and table_NF.nbytes <= REORDERED_BYTES
    inputs_NF = side_by_side(table_NF, windowing.step) if reorder else None
    return {
        split: Batches(
            table_NF,
            inputs_NF,
            torch.from_numpy(ranges(windowed, split)),
            windowing,
            device,
            windowing.stride if split == "train" else 1,
        )
        for split in SPLITS
    }
