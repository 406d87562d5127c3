"""The windows that the tests of training share."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from architectures import Network, WindowShape
from problems.problem import Problem
from project.settings.sections import TrainSettings
from stages.normalize import normalize
from stages.tables.windows import TableWindows
from stages.training import table_batches
from stages.training.batches import SplitData
from stages.training.scoring import answer_windows
from stages.training.table_batches import TableBatches
from stages.window import window

CPU = torch.device("cpu")
SMALL = TrainSettings(epochs=4, steps_per_epoch=5, batch_size=16)


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A problem up to its windows."""

    folder: Path
    windowing: TableWindows
    splits: dict[str, TableBatches]

    @property
    def shape(self) -> WindowShape:
        return self.windowing.shape


@pytest.fixture(scope="module")
def prepared(
    tmp_path_factory: pytest.TempPathFactory, make_problem: Callable[..., Problem], write_ingested: Any
) -> Prepared:
    """400 hours with a daily course, and noise that no network can learn."""
    folder = tmp_path_factory.mktemp("prepared")
    hours = np.arange(400)[:, None]
    noise = np.random.default_rng(0).normal(0, 1, (400, 3))
    write_ingested(folder / "ingest", [5 * np.sin(2 * np.pi * (hours / 24 + [0, 0.2, 0.6])) + noise])
    problem = make_problem(window={"lookback": "12h", "step": "1h", "delay": "3h"})
    normalize(problem, "standard", folder / "ingest", folder / "normalize")
    windowing = window(problem, 1, folder / "normalize", folder / "window")
    return Prepared(
        folder, windowing, table_batches.read_table_batches(folder / "normalize", folder / "window", windowing, CPU)
    )


def answer_all(network: Network, data: SplitData) -> torch.Tensor:
    """The answers (N, S, O) to every window in order, normalised."""
    return torch.cat([y_BSO for y_BSO, _ in answer_windows(network, data)])
