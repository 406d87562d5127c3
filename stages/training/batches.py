"""Windows in batches: what training and evaluation read them through, whatever the windows are cut from."""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

BLOCK_BATCHES = 64
"""Batches whose positions are drawn at once: drawing those of a single batch takes longer than gathering it."""


class Batch(NamedTuple):
    """Some windows, and the targets of the answers to them.

    Attributes:
        x_BTF: inputs: numbers, or one code a step.
        y_BSK: targets at each lead or step: one value, or one for each label.
        weight_BS: the weight of each answer: 0 for padding and for steps that are not scored; None: equal weights.
        begins: the sequences begin with this batch; otherwise they continue those of the batch before.
    """

    x_BTF: Tensor
    y_BSK: Tensor
    weight_BS: Tensor | None = None
    begins: bool = True


class SplitData(Protocol):
    """The windows of one split.

    Attributes:
        steps: of the longest window.
    """

    device: torch.device
    steps: int

    def __len__(self) -> int:
        """The number of windows."""

    def select(self, positions_B: Tensor) -> Batch:
        """The windows at these positions of the split."""

    def iterate_in_order(self, size: int) -> Iterator[Batch]:
        """Every window once, always in the same order, in batches of at most `size`."""

    def iterate_shuffled(self, size: int, steps: int | None, generator: torch.Generator) -> Iterator[Batch]:
        """The batches of an epoch.

        Args:
            steps: the number of batches drawn at random with replacement, as the lecture's generator does, which takes
                the same memory for any number of windows; None: every window once, shuffled.
            generator: on the CPU; the same state gives the same batches on every device.
        """

    def count_batches(self, size: int) -> int:
        """The batches of an epoch that has every window once."""


def draw_positions(windows: int, size: int, steps: int | None, generator: torch.Generator) -> Iterator[Tensor]:
    """The positions of the windows of an epoch, several batches at once; see `SplitData.iterate_shuffled`."""
    if steps is None:
        yield from torch.split(torch.randperm(windows, generator=generator), BLOCK_BATCHES * size)
    else:
        for start in range(0, steps, BLOCK_BATCHES):
            yield torch.randint(windows, (min(BLOCK_BATCHES, steps - start) * size,), generator=generator)
