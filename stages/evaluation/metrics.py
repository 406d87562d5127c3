"""Errors of forecasts, the skill score, conformal intervals and their coverage."""

import math

import numpy as np
from numpy.typing import NDArray

Errors = NDArray[np.float64]


def mae(errors_N: Errors) -> float:
    """The mean absolute error, in the errors' unit."""
    return float(np.abs(errors_N).mean())


def skill_score(error: float, reference: float) -> float | None:
    """The skill score (Murphy 1988): 1 is perfect, 0 is as good as the reference; None if the reference has no error.

    Args:
        error, reference: the errors of the forecast and of the reference forecast, in one unit.
    """
    return 1 - error / reference if reference > 0 else None


def conformal_half_width(errors_N: Errors, level: float) -> float | None:
    """Half the width of an interval around a forecast that contains the target with a probability of `level`.

    Split conformal prediction (Papadopoulos et al. 2002; Lei et al. 2018, "Distribution-Free Predictive Inference for
    Regression", theorem 2.2): the k-th smallest absolute error of N windows that the network was not fitted to, where k
    is (N + 1) level, rounded up. The theorem assumes exchangeable windows. Those of weather are not, and the coverage
    on other windows shows how much that matters.

    Returns:
        In the errors' unit; None where there are too few windows for the level.
    """
    k = math.ceil((len(errors_N) + 1) * level)
    if k > len(errors_N):
        return None
    return float(np.partition(np.abs(errors_N), k - 1)[k - 1])


def coverage(errors_N: Errors, half_width_N: Errors | float) -> float:
    """The share of windows whose target lies within the half-width of an interval around the forecast."""
    return float((np.abs(errors_N) <= half_width_N).mean())
