"""Windows per second, compared with the lecture's generator and PyTorch's DataLoader.

Goal: 20 times the generator. The ten-minute windows miss it: each window is 6.7 kB of a table that is larger than the
cache, so memory limits their rate.
"""

import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from architectures.network import WindowShape
from benchmarks.measure import Result, measure_in_turn, round_results
from stages.tables.windows import TableWindows
from stages.training.table_batches import TableBatches, group_rows_by_phase

FEATURES, BATCH = 14, 128


def run(quick: bool) -> dict[str, Any]:
    """The lecture's windows (row D3: lookback 720, step 6 of ten minutes), and hourly ones of 120 rows."""
    torch.set_num_threads(1)
    rounds = 2 if quick else 5
    return {
        "batch": BATCH,
        "threads": 1,
        "ten-minute rows: lookback 720, every 6th row": round_results(_compare(420_000, 720, 6, 144, rounds)),
        "hourly rows: lookback 120, every row": round_results(_compare(70_000, 120, 1, 24, rounds)),
    }


def _compare(length: int, lookback: int, step: int, delay: int, rounds: int) -> list[Result]:
    data = np.random.default_rng(0).standard_normal((length, FEATURES)).astype(np.float32)
    ours = make_batches(data, lookback, step, delay)
    generator = torch.Generator().manual_seed(0)
    dataset = _WindowDataset(data, lookback, step, delay)
    lecture = _iterate_as_lecture(
        data, lookback, delay, 0, length - delay - 1, shuffle=True, batch_size=BATCH, step=step
    )
    contenders = {
        "Recast": lambda: _measure_rate(ours.iterate_shuffled(BATCH, 2000, generator), 2000),
        "the lecture's generator": lambda: _measure_rate(lecture, 50),
        "DataLoader, in process": lambda: _measure_rate(DataLoader(dataset, BATCH, shuffle=True), 50),
        "DataLoader, 2 workers": lambda: _measure_rate(DataLoader(dataset, BATCH, shuffle=True, num_workers=2), 200),
    }
    return measure_in_turn(contenders, "windows/s", rounds, more_is_better=True)


def _measure_rate(batches: Iterable[Any], count: int) -> float:
    """Windows per second over `count` batches. The first is not counted, because workers start with it."""
    iterator = iter(batches)
    next(iterator)
    begun = time.perf_counter()
    for _ in range(count - 1):
        next(iterator)
    return (count - 1) * BATCH / (time.perf_counter() - begun)


def make_windows(data: np.ndarray, lookback: int, step: int, delay: int) -> TableWindows:
    """The windows of a table, with one lead."""
    shape = WindowShape(lookback // step, data.shape[1], 1, (delay + step) / step, 24)
    return TableWindows(lookback, step, delay, 1, {}, {}, {}, "", shape)


def make_batches(data: np.ndarray, lookback: int, step: int, delay: int) -> TableBatches:
    """Recast's batches of these windows."""
    windows = make_windows(data, lookback, step, delay)
    rows = torch.tensor([[lookback, len(data) - delay]])
    table_NF = torch.from_numpy(data)
    inputs_NF = group_rows_by_phase(table_NF, step) if step > 1 else None
    return TableBatches(table_NF, inputs_NF, rows, windows, torch.device("cpu"))


class _WindowDataset(Dataset[tuple[np.ndarray, np.float32]]):
    """The same windows as a map-style data set, whose every item is a slice."""

    def __init__(self, data: np.ndarray, lookback: int, step: int, delay: int) -> None:
        self.data, self.lookback, self.step, self.delay = data, lookback, step, delay

    def __len__(self) -> int:
        return len(self.data) - self.lookback - self.delay

    def __getitem__(self, i: int) -> tuple[np.ndarray, np.float32]:
        row = i + self.lookback
        return self.data[i : row : self.step], self.data[row + self.delay, 1]


def _iterate_as_lecture(
    data: np.ndarray,
    lookback: int,
    delay: int,
    min_index: int,
    max_index: int,
    shuffle: bool,
    batch_size: int,
    step: int,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The lecture's generator, line for line, for its shuffled case."""
    while 1:
        if not shuffle:
            raise NotImplementedError("only the shuffled case of the lecture's generator is copied here")
        rows = np.random.randint(min_index + lookback, max_index, size=batch_size)
        samples = np.zeros((len(rows), lookback // step, data.shape[-1]))
        targets = np.zeros((len(rows),))
        for j, row in enumerate(rows):
            indices = range(row - lookback, row, step)
            samples[j] = data[indices]
            targets[j] = data[row + delay][1]
        yield samples, targets
