"""Errors of forecasts, the skill score, and the coverage of intervals."""

from collections.abc import Mapping

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


def measure_skill(measure: str, errors: Mapping[str, float], baseline: Mapping[str, float]) -> float | None:
    """The skill score by a measure; None where the baseline cannot answer the problem, or has no error.

    Args:
        errors, baseline: the errors of the forecast and of the baseline, by the name of the measure.
    """
    return skill_score(errors[measure], baseline[measure]) if measure in baseline else None


def coverage(errors_N: Errors, half_width_N: Errors | float) -> float:
    """The share of windows whose target lies within the half-width of an interval around the forecast."""
    return float((np.abs(errors_N) <= half_width_N).mean())
