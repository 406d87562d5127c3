"""Batches of the pieces of sequences."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from problems.split import SPLITS
from stages.sequences.reading import SequenceWindows, read_steps, read_targets
from stages.training.batches import Batch, draw_positions

EVALUATION_STREAMS = 32
"""Places in a text that are read side by side outside training, where state is carried from piece to piece."""


class SequenceBatches:
    """The pieces of sequences of one split, by position, in batches on the training device.

    With one answer a sequence, a network sees the end of the sequence, padded with code or number 0 in front, so that
    the last step is the last one that it reads. With an answer at each step, a batch is as long as its longest piece;
    the others are padded at their end, where no earlier step sees the padding and nothing is scored.
    """

    def __init__(
        self,
        steps_NF: Tensor,
        targets_MK: Tensor | None,
        pieces_K4: Tensor,
        windows: SequenceWindows,
        device: torch.device,
    ) -> None:
        """
        Args:
            steps_NF: of all sequences, one after the other: numbers, or one code a step.
            targets_MK: the target of each sequence, or of each step where each has an answer; None: the next step is
                the target.
            pieces_K4: the first step that is read, the first that is scored, the one after the last; the sequence.
        """
        self.steps_NF, self.targets_MK, self.pieces_K4 = steps_NF, targets_MK, pieces_K4
        self.shape, self.carry, self.device = windows.shape, windows.carry, device
        self.steps = windows.shape.steps

    def __len__(self) -> int:
        return len(self.pieces_K4)

    def count_batches(self, size: int) -> int:
        return math.ceil(len(self) / size)

    def select(self, positions_B: Tensor) -> Batch:
        first_B, scored_B, end_B, sequence_B = self.pieces_K4[positions_B].unbind(1)
        if self.shape.each:
            length = int((end_B - first_B).max())
            row_BT = first_B.unsqueeze(1) + torch.arange(length)
        else:
            row_BT = end_B.unsqueeze(1) - torch.arange(self.shape.steps, 0, -1)
        inside_BT = (row_BT >= first_B.unsqueeze(1)) & (row_BT < end_B.unsqueeze(1))
        row_BT = row_BT.clamp(0, len(self.steps_NF) - 1)
        x_BTF = self.steps_NF[row_BT] * inside_BT.unsqueeze(2)
        if not self.shape.each:
            if self.targets_MK is None:
                raise ValueError("where a sequence has one answer, it must have a target")
            return self._to_device(Batch(x_BTF, self.targets_MK[sequence_B].unsqueeze(1)))
        if self.targets_MK is None:
            y_BTK = self.steps_NF[(row_BT + 1).clamp(max=len(self.steps_NF) - 1)]
        else:
            y_BTK = self.targets_MK[row_BT]
        weight_BT = inside_BT & (row_BT >= scored_B.unsqueeze(1))
        return self._to_device(Batch(x_BTF, y_BTK * inside_BT.unsqueeze(2), weight_BT.float()))

    def _to_device(self, batch: Batch) -> Batch:
        """The batch on the training device."""
        if self.device.type == "cpu":
            return batch
        weight_BS = None if batch.weight_BS is None else batch.weight_BS.to(self.device)
        return Batch(batch.x_BTF.to(self.device), batch.y_BSK.to(self.device), weight_BS)

    def iterate_in_order(self, size: int) -> Iterator[Batch]:
        if self.carry:
            yield from self._read_streams(EVALUATION_STREAMS)
        else:
            for start in range(0, len(self), size):
                yield self.select(torch.arange(start, min(start + size, len(self))))

    def iterate_shuffled(self, size: int, steps: int | None, generator: torch.Generator) -> Iterator[Batch]:
        """As `SplitData` describes; but where state is carried, `size` places are read in order from a random step."""
        if self.carry:
            longest = self.count_batches(size)
            first = int(torch.randint(max(1, longest - (steps or longest) + 1), (1,), generator=generator))
            yield from self._read_streams(size, first, first + (steps or longest))
        else:
            for positions in draw_positions(len(self), size, steps, generator):
                for positions_B in torch.split(positions, size):
                    yield self.select(positions_B)

    def _read_streams(self, size: int, first: int = 0, until: int | None = None) -> Iterator[Batch]:
        """The text read from `size` places side by side; at the end of a place's part, again from its beginning."""
        longest = self.count_batches(size)
        start_B = torch.arange(0, len(self), longest)
        for step in range(first, longest if until is None else until):
            positions_B = start_B + step % longest
            # All places but the last are equally far from the next.
            positions_B = positions_B[positions_B < len(self)]
            yield self.select(positions_B)._replace(begins=step == first or step % longest == 0)


def read_sequence_batches(
    normalized: Path, windowed: Path, windows: SequenceWindows, device: torch.device
) -> dict[str, SequenceBatches]:
    """The batches of every split of a problem that has sequences."""
    steps_NF, targets_MK = torch.from_numpy(read_steps(normalized)), read_targets(normalized)
    return {
        split: SequenceBatches(
            steps_NF,
            None if targets_MK is None else torch.from_numpy(targets_MK),
            torch.from_numpy(np.load(windowed / f"{split}.npy", allow_pickle=False)),
            windows,
            device,
        )
        for split in SPLITS
    }
