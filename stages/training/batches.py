"""Batches of windows: one gather each from the table, which lies on the training device whole when it fits."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from problems.split import SPLITS
from stages.sequences.reading import Piecing, steps_of, targets_of
from stages.tables.table import values
from stages.tables.windows import Windowing, ranges, read_windows

FREE_SHARE = 0.5
"""The table moves to a GPU when it takes no more than this share of the GPU's free memory."""


REORDERED_BYTES = 256 << 20
"""A table up to this size is reordered, in memory, where a window takes every n-th row; a larger one stays mapped."""

BLOCK = 64
"""Batches whose rows are found at once: one batch's alone would take longer than its gather."""

STREAMS = 32
"""Places in a text that are read side by side outside training, where state is carried from piece to piece."""


class Batch(NamedTuple):
    """Some windows and what is to be answered.

    Attributes:
        x_BTF: inputs: numbers, or one code a step.
        y_BSK: targets: at each lead or step, one or, of labels, as many as there are.
        weight_BS: how much each counts: 0 for padding and for steps that are not scored; None: all alike.
        begins: the sequences begin here; otherwise they go on from the batch before.
    """

    x_BTF: Tensor
    y_BSK: Tensor
    weight_BS: Tensor | None = None
    begins: bool = True


class Data(Protocol):
    """The windows of one split."""

    device: torch.device

    def __len__(self) -> int:
        """How many windows there are."""

    def at(self, positions_B: Tensor) -> Batch:
        """The windows at these positions of the split."""

    def in_order(self, size: int) -> Iterator[Batch]:
        """Every window once, always in the same order, in batches of at most `size`."""

    def shuffled(self, size: int, steps: int | None, generator: torch.Generator) -> Iterator[Batch]:
        """The batches of an epoch.

        Args:
            steps: so many batches drawn at random with replacement, as the lecture's generator does, which takes the
                same memory for any number of windows; or None: every window once, shuffled.
            generator: on the CPU; the same state gives the same batches on every device.
        """

    def steps(self, size: int) -> int:
        """Batches of an epoch that has every window once."""


class Batches:
    """The windows of one split of a table, by position, in batches on the training device.

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
        assert windowing.shape.target is not None
        self.targets_N = table_NF[:, windowing.shape.target]
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

    def steps(self, size: int) -> int:
        return math.ceil(self.length / size)

    def rows(self, positions_B: Tensor) -> Tensor:
        """The rows, (B,), of the windows at these positions of the split."""
        positions_B = positions_B * self.stride
        k_B = torch.searchsorted(self.until_K, positions_B, right=True)
        return self.first_K[k_B] + positions_B - self.before_K[k_B]

    def targets(self, rows_B: Tensor) -> Tensor:
        """The rows (B, S) of the targets of the windows named by these rows."""
        return rows_B.unsqueeze(1) + self.leads_S

    def gather(self, rows_B: Tensor) -> Batch:
        """The windows named by these rows, on the training device."""
        first_B = rows_B - self.lookback
        if self.phases > 1:
            first_B = first_B % self.phases * self.phase_rows + first_B // self.phases
        x_BTF = self.windows_STF.index_select(0, first_B)
        y_BS1 = self.targets_N[self.targets(rows_B)].unsqueeze(2)
        if x_BTF.device != self.device:
            return Batch(
                x_BTF.pin_memory().to(self.device, non_blocking=True),
                y_BS1.pin_memory().to(self.device, non_blocking=True),
            )
        return Batch(x_BTF, y_BS1)

    def at(self, positions_B: Tensor) -> Batch:
        return self.gather(self.rows(positions_B.to(self.windows_STF.device)))

    def in_order(self, size: int) -> Iterator[Batch]:
        for begin in range(0, self.length, size):
            yield self.at(torch.arange(begin, min(begin + size, self.length)))

    def shuffled(self, size: int, steps: int | None, generator: torch.Generator) -> Iterator[Batch]:
        for positions in _drawn(self.length, size, steps, generator):
            for rows_B in torch.split(self.rows(positions.to(self.windows_STF.device)), size):
                yield self.gather(rows_B)


def _drawn(windows: int, size: int, steps: int | None, generator: torch.Generator) -> Iterator[Tensor]:
    """The positions of the windows of an epoch, several batches at once; see `Data.shuffled`."""
    if steps is None:
        yield from torch.split(torch.randperm(windows, generator=generator), BLOCK * size)
    else:
        for begin in range(0, steps, BLOCK):
            yield torch.randint(windows, (min(BLOCK, steps - begin) * size,), generator=generator)


class PieceBatches:
    """The pieces of sequences of one split, by position, in batches on the training device.

    With one answer a sequence, its end is what a network sees, padded with code or number 0 in front, so that the last
    step is the last one read. With an answer at each step, a batch is as long as its longest piece, and the others are
    padded at their end, where no earlier step sees it and nothing is scored.
    """

    def __init__(
        self, steps_NF: Tensor, targets_MK: Tensor | None, pieces_K4: Tensor, piecing: Piecing, device: torch.device
    ) -> None:
        """
        Args:
            steps_NF: of all sequences, one after the other: numbers, or one code a step.
            targets_MK: of each sequence, or with an answer at each step of each step; None: the next step is the
                target.
            pieces_K4: the first step that is read, the first that is scored, the one after the last; the sequence.
        """
        self.steps_NF, self.targets_MK, self.pieces_K4 = steps_NF, targets_MK, pieces_K4
        self.shape, self.carry, self.device = piecing.shape, piecing.carry, device

    def __len__(self) -> int:
        return len(self.pieces_K4)

    def steps(self, size: int) -> int:
        return math.ceil(len(self) / size)

    def at(self, positions_B: Tensor) -> Batch:
        begin_B, scored_B, end_B, sequence_B = self.pieces_K4[positions_B].unbind(1)
        if self.shape.each:
            length = int((end_B - begin_B).max())
            row_BT = begin_B.unsqueeze(1) + torch.arange(length)
        else:
            row_BT = end_B.unsqueeze(1) - torch.arange(self.shape.steps, 0, -1)
        inside_BT = (row_BT >= begin_B.unsqueeze(1)) & (row_BT < end_B.unsqueeze(1))
        row_BT = row_BT.clamp(0, len(self.steps_NF) - 1)
        x_BTF = self.steps_NF[row_BT] * inside_BT.unsqueeze(2)
        if not self.shape.each:
            assert self.targets_MK is not None
            return self._there(Batch(x_BTF, self.targets_MK[sequence_B].unsqueeze(1)))
        if self.targets_MK is None:
            y_BTK = self.steps_NF[(row_BT + 1).clamp(max=len(self.steps_NF) - 1)]
        else:
            y_BTK = self.targets_MK[row_BT]
        weight_BT = inside_BT & (row_BT >= scored_B.unsqueeze(1))
        return self._there(Batch(x_BTF, y_BTK * inside_BT.unsqueeze(2), weight_BT.float()))

    def _there(self, batch: Batch) -> Batch:
        """The batch on the training device."""
        if self.device.type == "cpu":
            return batch
        x_BTF, y_BSK, weight_BS = (None if each is None else each.to(self.device) for each in batch[:3])
        assert x_BTF is not None
        assert y_BSK is not None
        return Batch(x_BTF, y_BSK, weight_BS)

    def in_order(self, size: int) -> Iterator[Batch]:
        if self.carry:
            yield from self._streams(STREAMS)
        else:
            for begin in range(0, len(self), size):
                yield self.at(torch.arange(begin, min(begin + size, len(self))))

    def shuffled(self, size: int, steps: int | None, generator: torch.Generator) -> Iterator[Batch]:
        """As of any data; where state is carried, `size` places are read on from, in order, those of a random step."""
        if self.carry:
            longest = self.steps(size)
            first = int(torch.randint(max(1, longest - (steps or longest) + 1), (1,), generator=generator))
            yield from self._streams(size, first, first + (steps or longest))
        else:
            for positions in _drawn(len(self), size, steps, generator):
                for positions_B in torch.split(positions, size):
                    yield self.at(positions_B)

    def _streams(self, size: int, first: int = 0, until: int | None = None) -> Iterator[Batch]:
        """The text read on from `size` places side by side; at its end, again from the beginning."""
        longest = self.steps(size)
        begin_B = torch.arange(0, len(self), longest)
        for step in range(first, longest if until is None else until):
            positions_B = begin_B + step % longest
            # All but the last place are equally far from the next.
            positions_B = positions_B[positions_B < len(self)]
            yield self.at(positions_B)._replace(begins=step == first or step % longest == 0)


def side_by_side(table_NF: Tensor, step: int) -> Tensor:
    """The table, a copy, with rows `step` apart side by side: all rows 0, step, ..., then 1, step + 1, ...

    Its length is a multiple of `step`; the rows that fill it up are no window's.
    """
    rows, features = table_NF.shape
    padded_NF = torch.nn.functional.pad(table_NF, (0, 0, 0, -rows % step))
    return padded_NF.view(-1, step, features).transpose(0, 1).reshape(-1, features)


def read(normalized: Path, windowed: Path, device: torch.device) -> dict[str, Data]:
    """The batches of every split of a problem, over one table."""
    windows = read_windows(windowed)
    if isinstance(windows, Piecing):
        steps_NF, targets_MK = torch.from_numpy(steps_of(normalized)), targets_of(normalized)
        return {
            split: PieceBatches(
                steps_NF,
                None if targets_MK is None else torch.from_numpy(targets_MK),
                torch.from_numpy(np.load(windowed / f"{split}.npy", allow_pickle=False)),
                windows,
                device,
            )
            for split in SPLITS
        }
    return {**read_rows(normalized, windowed, windows, device)}


def read_rows(normalized: Path, windowed: Path, windowing: Windowing, device: torch.device) -> dict[str, Batches]:
    """The batches of every split of a problem that has a table."""
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
