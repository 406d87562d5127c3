"""The measures of how good a network is. A new one is a `Measure` in the tuple of its kind of answer.

The first measure of a tuple is the selection measure: smaller values of it must be better.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from learning.scores import (
    Score,
    absolute_error,
    class_cross_entropy,
    class_is_right,
    labels_cross_entropy,
    squared_error,
    yes_or_no_cross_entropy,
    yes_or_no_is_right,
)


@dataclass(frozen=True)
class Measure:
    """A number that says how good a network is: the weighted mean of a score, or a function of that mean.

    Attributes:
        name: the key in metrics and files.
        title: the name for people.
        score: the score of each answer.
        of_mean: the measure as a function of the weighted mean of the scores.
        scaled: it is in the target's unit. Computed from normalised answers, it is called normalised.
        more_is_better: larger values are better; otherwise smaller ones are.
        unit: the unit of a measure that is not scaled.
    """

    name: str
    title: str
    score: Score
    of_mean: Callable[[float], float] = float
    scaled: bool = False
    more_is_better: bool = False
    unit: str = ""


def normalized_name(name: str) -> str:
    """The name of a measure's normalised value."""
    return f"{name}_normalized"


MAE = "mae"
"""The name of the measure that every forecast of a number has, whatever measure selects."""

NUMBER_MEASURES = (
    Measure(MAE, "MAE", absolute_error, scaled=True),
    Measure("rmse", "RMSE", squared_error, math.sqrt, scaled=True),
)


def _accuracy(is_right: Score) -> Measure:
    return Measure("accuracy", "accuracy", is_right, lambda share: 100 * share, more_is_better=True, unit="%")


YES_OR_NO_MEASURES = (
    Measure("cross_entropy", "cross-entropy", yes_or_no_cross_entropy, unit="nats"),
    _accuracy(yes_or_no_is_right),
)
CLASS_MEASURES = (
    Measure("cross_entropy", "cross-entropy", class_cross_entropy, unit="nats"),
    _accuracy(class_is_right),
)
TOKEN_MEASURES = {
    "characters": (
        Measure("bits", "bits per character", class_cross_entropy, lambda nats: nats / math.log(2)),
        _accuracy(class_is_right),
    ),
    "words": (
        Measure("perplexity", "perplexity", class_cross_entropy, lambda nats: math.exp(min(nats, 700))),
        _accuracy(class_is_right),
    ),
}
"""The measures of classes that are the tokens of a text, by the kind of token."""

LABEL_MEASURES = (Measure("nll", "negative log-likelihood", labels_cross_entropy, unit="nats a step"),)
