"""Inside the networks: pictures of how the best trial of each architecture processes a few test windows."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from architectures.combined import CroppedNetwork, EmbeddedNetwork, Ensemble, ResidualNetwork
from architectures.network import Network
from architectures.recurrent import Recurrent
from stages.evaluation.leaderboard import Evaluation
from stages.evaluation.selection import select_best_trials
from stages.report.gradients import build_gradient_view, state_gradient_norms
from stages.report.pictures import InspectedTrial, NetworkPictures
from stages.report.view_painter import ViewPainter
from stages.tables.table import Table, read_times
from stages.tables.windows import read_windows
from stages.training.batches import SplitData
from stages.training.networks import load_network
from stages.training.objectives import choose_objective
from stages.training.reading import read_batches
from stages.training.table_batches import TableBatches
from stages.training.trials import Trial

VIEW_WINDOWS = 3
"""Test windows for which the views of a network are drawn."""
GRADIENT_WINDOWS = 64
"""Test windows over which the norms of gradients are averaged."""


def inspect_networks(
    evaluation: Evaluation, trials: Sequence[Trial], normalized: Path, windowed: Path
) -> NetworkPictures:
    """Draw the network of the best trial of each architecture. An error in one picture does not affect the others.

    Args:
        trials: all trials of the grid.
        normalized, windowed: the folders of the stages `normalize` and `window`.
    """
    windows = read_windows(windowed)
    test = read_batches(normalized, windowed, torch.device("cpu"))["test"]
    view_positions = _spread_positions(test, VIEW_WINDOWS)
    gradient_positions = _spread_positions(test, GRADIENT_WINDOWS)
    view_batch, gradient_batch = test.select(view_positions), test.select(gradient_positions)
    painter = ViewPainter.of(evaluation, windows)
    pictures = NetworkPictures(_name_windows(test, view_positions, normalized))
    objective = choose_objective(windows, trials[0].train)
    norms: dict[str, Tensor] = {}
    for row, trial in select_best_trials(evaluation.rows, trials):
        network = load_network(trial, windows)
        with _note_failure(pictures, trial.label), torch.no_grad():
            network.forget()
            core, x_BTF, _ = unwrap_network(network, view_batch.x_BTF, view_batch.y_BSK)
            if views := [painter.paint(view, trial.label) for view in core.views(x_BTF)]:
                pictures.trials.append(InspectedTrial(trial, views))
        # In double precision, because gradients that have almost vanished underflow in single precision.
        network.forget()
        core, x_BTF, y_BSK = unwrap_network(network.double(), gradient_batch.x_BTF, gradient_batch.y_BSK)
        # Where each step has an answer, each state is close to one, so gradients do not have far to go.
        if isinstance(core, Recurrent) and not windows.shape.each:
            with _note_failure(pictures, f"{trial.label}, gradients"):
                norms[row.architecture] = state_gradient_norms(core, x_BTF, y_BSK, objective.loss)
    if norms:
        with _note_failure(pictures, "vanishing gradients"):
            styles = {row.architecture: painter.lines[row.configuration] for row in evaluation.rows if row.selected}
            pictures.comparisons["vanishing_gradients.png"] = painter.paint(
                build_gradient_view(norms, len(gradient_positions)),
                "all recurrent architectures",
                [styles[architecture] for architecture in norms],
            )
    return pictures


def unwrap_network(network: Network, x_BTF: Tensor, y_BSK: Tensor) -> tuple[Network, Tensor, Tensor]:
    """The network of the architecture itself, without the wrappers of `combined`; the first member of an ensemble.

    Args:
        x_BTF, y_BSK: windows and targets.

    Returns:
        The network, its inputs, and its targets: the differences from the baseline where it forecasts these. Inputs and
        targets are in the network's precision.
    """
    dtype = next((weight.dtype for weight in network.parameters()), torch.float32)
    y_BSK = y_BSK.to(dtype)
    if x_BTF.is_floating_point():
        x_BTF = x_BTF.to(dtype)
    if isinstance(network, ResidualNetwork):
        with torch.no_grad():
            y_BSK = y_BSK - network.baseline(x_BTF)[..., :1]
        network = network.network
    if isinstance(network, CroppedNetwork):
        x_BTF, network = network.crop(x_BTF), network.network
    if isinstance(network, Ensemble):
        network = next(member for member in network.members if isinstance(member, Network))
    if isinstance(network, EmbeddedNetwork):
        x_BTF, network = network.embed(x_BTF).to(dtype), network.network
    return network, x_BTF, y_BSK


@contextmanager
def _note_failure(pictures: NetworkPictures, subject: str) -> Iterator[None]:
    """Put any error of a network's own code for pictures into the log and the report, and go on."""
    try:
        yield
    except Exception as error:
        reason = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
        logging.getLogger(__name__).warning("%s cannot be drawn: %s", subject, reason)
        pictures.failures.append((subject, reason))


def _spread_positions(data: SplitData, n: int) -> Tensor:
    """The positions of at most n windows: the middle of each of n equal parts of the split."""
    n = min(n, len(data))
    return (torch.arange(n) * 2 + 1) * len(data) // (2 * n)


def _name_windows(test: SplitData, positions_B: Tensor, normalized: Path) -> list[str]:
    """A name for each window: the time and series of its target, or its number among the pieces of sequences."""
    if isinstance(test, TableBatches):
        return _name_targets(normalized, test.find_target_rows(test.find_rows(positions_B))[:, -1].numpy())
    return [f"piece {position + 1:,}" for position in positions_B.tolist()]


def _name_targets(normalized: Path, rows_B: NDArray[np.int64]) -> list[str]:
    """The times of the targets in these rows of the table, with their series if there are several."""
    series = Table.read(normalized).series
    names = []
    for row, moment in zip(rows_B, np.datetime_as_string(read_times(normalized)[rows_B], unit="m"), strict=True):
        (name,) = (part.name for part in series if part.first <= row < part.first + part.rows)
        names.append(str(moment).replace("T", " ") + (f" ({name})" if len(series) > 1 else ""))
    return names
