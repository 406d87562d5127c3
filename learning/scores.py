"""Scores: how good each single answer is, compared with its target. Measures average them, and some are losses too.

Answers are a network's outputs (B, S, O) for B windows and S leads or steps, targets are (B, S, K).
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

from learning.lazy_torch import functional

if TYPE_CHECKING:
    from torch import Tensor

Score: TypeAlias = "Callable[[Tensor, Tensor], Tensor]"
"""From answers and targets to a score (B, S) for each answer."""


# Numbers


def absolute_error(y_BSO: "Tensor", target_BSK: "Tensor") -> "Tensor":
    """The absolute errors (B, S) of forecasts of one number, in double precision."""
    return (y_BSO - target_BSK).squeeze(2).double().abs()


def squared_error(y_BSO: "Tensor", target_BSK: "Tensor") -> "Tensor":
    """The squared errors (B, S) of forecasts of one number, in double precision."""
    return (y_BSO - target_BSK).squeeze(2).double().square()


def pinball(y_BSO: "Tensor", target_BSK: "Tensor", quantiles: Sequence[float]) -> "Tensor":
    """The pinball loss (B, S) of forecasts of quantiles (B, S, O): its mean is lowest at the true quantiles.

    Koenker and Bassett, "Regression Quantiles", 1978: max(q e, (q - 1) e) of the error e = target - forecast. Here it
    is twice the mean over the quantiles. For the median alone that is the absolute error; for the median and the ends
    of K intervals it is the weighted interval score (Bracher et al. 2021, "Evaluating epidemic forecasts in an interval
    format", PLOS Computational Biology 17); and the more quantiles there are, the closer it is to the
    continuous ranked probability score (Gneiting and Raftery 2007, "Strictly Proper Scoring Rules, Prediction, and
    Estimation", Journal of the American Statistical Association 102).
    """
    q_O = y_BSO.new_tensor(quantiles)
    error_BSO = target_BSK - y_BSO
    return 2 * (q_O * error_BSO).maximum((q_O - 1) * error_BSO).mean(dim=2)


def sort_quantiles(y_BSO: "Tensor") -> "Tensor":
    """Forecasts of quantiles, sorted so that they do not cross (Chernozhukov, Fernández-Val and Galichon 2010)."""
    return y_BSO.sort(dim=2).values


# Classes, yes or no, and labels. Their outputs are scores of any size (logits).


def class_cross_entropy(y_BSO: "Tensor", target_BSK: "Tensor") -> "Tensor":
    """The cross-entropy (B, S) of O classes, in nats."""
    target_BS = target_BSK[:, :, 0].long()
    score_N: Tensor = functional().cross_entropy(y_BSO.flatten(0, 1), target_BS.flatten(), reduction="none")
    return score_N.view_as(target_BS)


def yes_or_no_cross_entropy(y_BSO: "Tensor", target_BSK: "Tensor") -> "Tensor":
    """The cross-entropy (B, S) of yes or no, in nats."""
    return _cross_entropy_of_each(y_BSO, target_BSK).squeeze(2)


def labels_cross_entropy(y_BSO: "Tensor", target_BSK: "Tensor") -> "Tensor":
    """The negative log-likelihood (B, S) of all O labels of an answer, in nats: of a frame of notes, for example."""
    return _cross_entropy_of_each(y_BSO, target_BSK).sum(dim=2)


def _cross_entropy_of_each(y_BSO: "Tensor", target_BSK: "Tensor") -> "Tensor":
    score_BSO: Tensor = functional().binary_cross_entropy_with_logits(y_BSO, target_BSK, reduction="none")
    return score_BSO


def class_is_right(y_BSO: "Tensor", target_BSK: "Tensor") -> "Tensor":
    """Whether the class with the highest score is the target (B, S)."""
    return y_BSO.argmax(dim=2) == target_BSK[:, :, 0].long()


def yes_or_no_is_right(y_BSO: "Tensor", target_BSK: "Tensor") -> "Tensor":
    """Whether the more probable answer is the target (B, S)."""
    return ((y_BSO > 0) == (target_BSK > 0.5)).squeeze(2)
