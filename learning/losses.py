"""The losses of forecasts of numbers that `train.loss` may choose. A new one is an entry in `LOSSES`."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated

from learning.choices import Choice
from learning.lazy_torch import functional
from learning.measures import NUMBER_MEASURES, Measure
from learning.objectives import Objective, mean_of, weighted_mean
from learning.scores import pinball

if TYPE_CHECKING:
    from torch import Tensor

Quantiles = tuple[float, ...]


def torch_loss(name: str) -> Callable[[Quantiles], Objective]:
    """The objective of one number whose loss is this function of `torch.nn.functional`."""

    def choose(quantiles: Quantiles) -> Objective:
        loss_function = getattr(functional(), name)

        def loss(y_BSO: "Tensor", target_BSK: "Tensor", weight_BS: "Tensor | None") -> "Tensor":
            if weight_BS is None:
                mean_loss: Tensor = loss_function(y_BSO, target_BSK)
                return mean_loss
            return weighted_mean(loss_function(y_BSO, target_BSK, reduction="none").squeeze(2), weight_BS)

        return Objective(loss, NUMBER_MEASURES, outputs=1)

    return choose


def pinball_loss(quantiles: Quantiles) -> Objective:
    """The objective of forecasts of quantiles; errors are those of the median.

    Twice the mean pinball loss is the weighted interval score where every quantile but the median is the end of an
    interval; see `pinball`.
    """
    median = quantiles.index(0.5)
    score = partial(pinball, quantiles=quantiles)
    measures = (
        Measure("pinball", "WIS" if are_interval_ends(quantiles) else "pinball loss", score, scaled=True),
        *(_of_median(measure, median) for measure in NUMBER_MEASURES),
    )
    return Objective(mean_of(score), measures, len(quantiles), quantiles)


def are_interval_ends(quantiles: Quantiles) -> bool:
    """Whether the quantiles, in ascending order, are the median and the ends of intervals around it."""
    return all(math.isclose(low + high, 1) for low, high in zip(quantiles, reversed(quantiles), strict=True))


def _of_median(measure: Measure, median: int) -> Measure:
    """A measure of forecasts of one number, for the median among forecasts of quantiles.

    Args:
        median: its position among the quantiles.
    """

    def score(y_BSO: "Tensor", target_BSK: "Tensor") -> "Tensor":
        return measure.score(y_BSO[:, :, median : median + 1], target_BSK)

    return replace(measure, score=score)


LOSSES: dict[str, Callable[[Quantiles], Objective]] = {
    "mae": torch_loss("l1_loss"),
    "mse": torch_loss("mse_loss"),
    "huber": torch_loss("huber_loss"),
    "pinball": pinball_loss,
}
"""The objective by the name of its loss, as a function of the quantiles in the settings, which only some need."""

LossName = Annotated[str, Choice(LOSSES)]
