"""An objective: the loss that training reduces, and the measures of the answers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from learning.measures import Measure, normalized_name
from learning.scores import Score, sort_quantiles

if TYPE_CHECKING:
    from torch import Tensor

Loss: TypeAlias = "Callable[[Tensor, Tensor, Tensor | None], Tensor]"
"""From answers (B, S, O), targets (B, S, K) and weights (B, S), or None for equal weights, to a number."""


@dataclass(frozen=True)
class Objective:
    """What a network is trained for, and what it is measured by.

    Attributes:
        measures: the first one is the selection measure; smaller values of it are better.
        outputs: O, the values in one answer of a network.
        quantiles: the quantiles that the outputs forecast; empty where they are something else.
    """

    loss: Loss
    measures: tuple[Measure, ...]
    outputs: int
    quantiles: tuple[float, ...] = ()

    @property
    def selection_measure(self) -> Measure:
        return self.measures[0]

    def score_answers(self, y_BSO: "Tensor", target_BSK: "Tensor") -> "dict[str, Tensor]":
        """The scores (B, S) of answers for each measure, by its name, in double precision."""
        if self.quantiles:
            y_BSO = sort_quantiles(y_BSO)
        return {measure.name: measure.score(y_BSO, target_BSK).double() for measure in self.measures}

    def compute_measures(self, mean_scores: Mapping[str, float], scale: float = 1.0) -> dict[str, float]:
        """The measures by name, and the normalised values of those that are scaled.

        Args:
            mean_scores: the weighted mean of the scores for each measure; see `score_answers`.
            scale: the factor that turns a normalised error into the target's unit.
        """
        values = {}
        for measure in self.measures:
            value = measure.of_mean(mean_scores[measure.name])
            values[measure.name] = value * scale if measure.scaled else value
            if measure.scaled:
                values[normalized_name(measure.name)] = value
        return values


def weighted_mean(score_BS: "Tensor", weight_BS: "Tensor | None") -> "Tensor":
    """The mean of the scores of answers; None for equal weights."""
    return score_BS.mean() if weight_BS is None else (score_BS * weight_BS).sum() / weight_BS.sum()


def mean_of(score: Score) -> Loss:
    """The loss that is the weighted mean of a score."""

    def loss(y_BSO: "Tensor", target_BSK: "Tensor", weight_BS: "Tensor | None") -> "Tensor":
        return weighted_mean(score(y_BSO, target_BSK), weight_BS)

    return loss
