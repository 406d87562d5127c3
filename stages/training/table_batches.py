"""Batches of the windows of a table: one gather each from the table, which is on the training device if it fits."""

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from problems.split import SPLITS
from stages.tables.table import read_values
from stages.tables.windows import TableWindows, read_ranges
from stages.training.batches import Batch, draw_positions

FREE_SHARE = 0.5
"""The table is moved to a GPU if it takes no more than this share of the GPU's free memory."""

REORDERED_BYTES = 256 << 20
"""A table up to this size is reordered, in memory, where a window takes every n-th row; a larger one stays mapped."""


class TableBatches:
    """The windows of one split of a table, by position, in batches on the training device.

    The table is seen through a strided view whose element `i` is the window of rows `i, i + step, ...`: gathering a
    batch copies each window once, and memory does not grow with the number of rows or windows.
    Where a window takes every n-th row, each row is a cache miss. With rows n apart side by side, a window is one run
    of memory, which is copied twice as fast.
    """

    def __init__(
        self,
        table_NF: Tensor,
        inputs_NF: Tensor | None,
        rows_K2: Tensor,
        windowing: TableWindows,
        device: torch.device,
        stride: int = 1,
    ) -> None:
        """
        Args:
            table_NF: the normalised table, on `device` or, where it does not fit, in CPU memory.
            inputs_NF: the same table as `group_rows_by_phase` orders it, or None to take inputs from `table_NF`.
            rows_K2: ranges of rows, sorted.
            stride: use every n-th window.
        """
        steps, features, target = windowing.shape.steps, windowing.shape.features, windowing.shape.target
        if target is None:
            raise ValueError("the windows of a table must name the column of their target")
        self.phases = 1 if inputs_NF is None else windowing.step
        source_NF, step = (table_NF, windowing.step) if inputs_NF is None else (inputs_NF, 1)
        self.phase_rows = len(source_NF) // self.phases
        starts = len(source_NF) - (steps - 1) * step
        self.windows_STF = source_NF.as_strided((starts, steps, features), (features, step * features, 1))
        self.targets_N = table_NF[:, target]
        self.steps = steps
        self.lookback, self.stride = windowing.lookback, stride
        self.leads_S = torch.tensor(windowing.leads, device=table_NF.device)
        self.device = device
        self.first_K = rows_K2[:, 0].to(table_NF.device)
        lengths_K = (rows_K2[:, 1] - rows_K2[:, 0]).to(table_NF.device)
        self.until_K = lengths_K.cumsum(0)
        self.before_K = self.until_K - lengths_K
        self.length = math.ceil(int(self.until_K[-1]) / stride)

    def __len__(self) -> int:
        return self.length

    def count_batches(self, size: int) -> int:
        return math.ceil(self.length / size)

    def find_rows(self, positions_B: Tensor) -> Tensor:
        """The rows (B,) that name the windows at these positions of the split."""
        positions_B = positions_B * self.stride
        k_B = torch.searchsorted(self.until_K, positions_B, right=True)
        return self.first_K[k_B] + positions_B - self.before_K[k_B]

    def find_target_rows(self, rows_B: Tensor) -> Tensor:
        """The rows (B, S) of the targets of the windows that these rows name."""
        return rows_B.unsqueeze(1) + self.leads_S

    def gather(self, rows_B: Tensor) -> Batch:
        """The windows that these rows name, on the training device."""
        first_B = rows_B - self.lookback
        if self.phases > 1:
            first_B = first_B % self.phases * self.phase_rows + first_B // self.phases
        x_BTF = self.windows_STF.index_select(0, first_B)
        y_BS1 = self.targets_N[self.find_target_rows(rows_B)].unsqueeze(2)
        if x_BTF.device != self.device:
            return Batch(
                x_BTF.pin_memory().to(self.device, non_blocking=True),
                y_BS1.pin_memory().to(self.device, non_blocking=True),
            )
        return Batch(x_BTF, y_BS1)

    def select(self, positions_B: Tensor) -> Batch:
        return self.gather(self.find_rows(positions_B.to(self.windows_STF.device)))

    def iterate_in_order(self, size: int) -> Iterator[Batch]:
        for start in range(0, self.length, size):
            yield self.select(torch.arange(start, min(start + size, self.length)))

    def iterate_shuffled(self, size: int, steps: int | None, generator: torch.Generator) -> Iterator[Batch]:
        for positions in draw_positions(self.length, size, steps, generator):
            for rows_B in torch.split(self.find_rows(positions.to(self.windows_STF.device)), size):
                yield self.gather(rows_B)


def group_rows_by_phase(table_NF: Tensor, step: int) -> Tensor:
    """A copy of the table with rows `step` apart side by side: all rows 0, step, ..., then 1, step + 1, ...

    Its length is a multiple of `step`; the rows that fill it up belong to no window.
    """
    rows, features = table_NF.shape
    padded_NF = torch.nn.functional.pad(table_NF, (0, 0, 0, -rows % step))
    return padded_NF.view(-1, step, features).transpose(0, 1).reshape(-1, features)


def read_table_batches(
    normalized: Path, windowed: Path, windowing: TableWindows, device: torch.device
) -> dict[str, TableBatches]:
    """The batches of every split of a problem that has a table."""
    table_NF = torch.from_numpy(read_values(normalized))
    if device.type == "cuda" and table_NF.nbytes <= FREE_SHARE * torch.cuda.mem_get_info(device)[0]:
        table_NF = table_NF.to(device)
    reorder = windowing.step > 1 and table_NF.nbytes <= REORDERED_BYTES
    inputs_NF = group_rows_by_phase(table_NF, windowing.step) if reorder else None
    return {
        split: TableBatches(
            table_NF,
            inputs_NF,
            torch.from_numpy(read_ranges(windowed, split)),
            windowing,
            device,
            windowing.stride if split == "train" else 1,
        )
        for split in SPLITS
    }
