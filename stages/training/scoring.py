"""A trained network's answers to windows, and their scores."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from architectures import Network
from learning.objectives import Objective
from learning.scores import sort_quantiles
from stages.training.batches import Batch, SplitData

EVALUATION_BATCH = 1024
"""The most windows that are answered at once outside training. It changes nothing but the last bits of a result."""

EVALUATION_NUMBERS = 1 << 24
"""Roughly the most numbers in the widest layer of a network at once: of long windows, a batch has fewer."""


def answer_windows(network: Network, data: SplitData) -> Iterator[tuple[Tensor, Batch]]:
    """The answers (B, S, O) of a network in eval mode to every window, in order, each batch with its windows."""
    network.eval()
    with torch.inference_mode():
        for batch in data.iterate_in_order(_choose_batch_size(network, data)):
            if batch.begins:
                network.forget()
            yield network(batch.x_BTF).float(), batch
    network.forget()


def _choose_batch_size(network: Network, data: SplitData) -> int:
    """How many windows are answered at once: so many that the longest ones fit."""
    features = data.select(torch.arange(1)).x_BTF.shape[2]
    widest = max([features, 32, *(layer.out_features for layer in network.modules() if isinstance(layer, nn.Linear))])
    return max(1, min(EVALUATION_BATCH, EVALUATION_NUMBERS // (data.steps * widest)))


def collect_errors(network: Network, quantiles: Sequence[float], data: SplitData) -> NDArray[np.float64]:
    """The errors (N, S) of a network's answers to every window, normalised; see `find_errors`."""
    return np.concatenate(
        [find_errors(y_BSO, batch.y_BSK, quantiles) for y_BSO, batch in answer_windows(network, data)]
    )


def find_errors(y_BSO: Tensor, y_BSK: Tensor, quantiles: Sequence[float]) -> NDArray[np.float64]:
    """The errors (B, S) of answers (B, S, O): of the medians, where quantiles are forecast.

    Args:
        y_BSK: the targets.
        quantiles: those that the outputs forecast; empty where there is one output.
    """
    forecast_BS = sort_quantiles(y_BSO)[:, :, quantiles.index(0.5)] if quantiles else y_BSO[:, :, 0]
    errors_BS: NDArray[np.float64] = (forecast_BS - y_BSK[:, :, 0]).double().cpu().numpy()
    return errors_BS


def score_batch(objective: Objective, y_BSO: Tensor, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
    """The scores (B, S) of a batch's answers by name, and their weights (B, S), all in double precision."""
    scores = objective.score_answers(y_BSO, batch.y_BSK)
    if batch.weight_BS is None:
        return scores, torch.ones_like(next(iter(scores.values())))
    return scores, batch.weight_BS.double()


class ScoreSums:
    """The weighted sums of scores, batch by batch.

    They stay on the device: reading a sum after every batch would make the device wait for Python.
    """

    def __init__(self, device: torch.device) -> None:
        self._weight = torch.zeros((), dtype=torch.float64, device=device)
        self._sums: dict[str, Tensor] = {}

    def add(self, scores: Mapping[str, Tensor], weight_BS: Tensor) -> None:
        """Add the scores (B, S) of a batch."""
        self._weight += weight_BS.sum()
        for name, score_BS in scores.items():
            self._sums[name] = self._sums.get(name, torch.zeros_like(self._weight)) + (score_BS * weight_BS).sum()

    def mean_scores(self) -> dict[str, float]:
        """The weighted mean of each score."""
        return {name: float(total / self._weight) for name, total in self._sums.items()}


def mean_scores(network: Network, data: SplitData, objective: Objective) -> dict[str, float]:
    """The weighted mean of each score over the answers to all windows."""
    sums = ScoreSums(data.device)
    for y_BSO, batch in answer_windows(network, data):
        sums.add(*score_batch(objective, y_BSO, batch))
    return sums.mean_scores()
