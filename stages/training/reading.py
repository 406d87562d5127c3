"""The batches of a problem, whether it has a table or sequences."""

from pathlib import Path

import torch

from stages.sequences.reading import SequenceWindows
from stages.tables.windows import read_windows
from stages.training.batches import SplitData
from stages.training.sequence_batches import read_sequence_batches
from stages.training.table_batches import read_table_batches


def read_batches(normalized: Path, windowed: Path, device: torch.device) -> dict[str, SplitData]:
    """The batches of every split of a problem, all of them over one table or one array of steps."""
    windows = read_windows(windowed)
    if isinstance(windows, SequenceWindows):
        return {**read_sequence_batches(normalized, windowed, windows, device)}
    return {**read_table_batches(normalized, windowed, windows, device)}
