"""Split conformal prediction: how far from its forecasts a network's targets lie, judged by its errors on validation.

Papadopoulos et al. 2002; Lei et al. 2018, "Distribution-Free Predictive Inference for Regression", theorem 2.2: an
interval around a forecast contains the target with a probability of `level` if half its width is the k-th smallest
absolute error of N windows that the network was not fitted to, where k is (N + 1) level, rounded up. The theorem
assumes exchangeable windows. Those of weather are not, and the coverage on other windows shows how much that matters.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def conformal_half_width(errors_N: NDArray[np.float64], level: float) -> float | None:
    """Half the width of an interval around a forecast that contains the target with a probability of `level`.

    Returns:
        In the errors' unit; None where there are too few windows for the level.
    """
    k = math.ceil((len(errors_N) + 1) * level)
    if k > len(errors_N):
        return None
    return float(np.partition(np.abs(errors_N), k - 1)[k - 1])


def spread_quantiles(errors_NL: NDArray[np.float64], quantiles: Sequence[float]) -> NDArray[np.float64]:
    """How far the quantiles are from a forecast of one number (L, O): they are the ends of its conformal intervals.

    The quantiles 0.1 and 0.9 are the ends of the interval of level 0.8; the quantile 0.5 is the forecast itself. Where
    there are too few windows for a level, the largest error takes its place.

    Args:
        errors_NL: of windows that the network was not fitted to, by lead.
    """
    spread_LO = np.zeros((errors_NL.shape[1], len(quantiles)))
    for lead, errors_N in enumerate(errors_NL.T):
        for output, quantile in enumerate(quantiles):
            # Rounded, so that the level of 0.9 is 0.8, not 0.8000000000000002: see `find_interval_outputs`.
            level = round(abs(2 * quantile - 1), 9)
            if level:
                half_width = conformal_half_width(errors_N, level)
                distance = float(np.abs(errors_N).max()) if half_width is None else half_width
                spread_LO[lead, output] = math.copysign(distance, quantile - 0.5)
    return spread_LO
