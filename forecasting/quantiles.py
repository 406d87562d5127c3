"""Which quantiles are the ends of an interval."""

import math

DIGITS = 9
"""Quantiles that differ after so many digits are the same, but for rounding: (1 - 0.9) / 2 is 0.04999999999999999."""


def find_interval_outputs(quantiles: tuple[float, ...], level: float) -> tuple[int, int] | None:
    """The positions of the quantiles that are the low and the high end of an interval; None unless both are forecast.

    Two numbers are the same quantile if they differ by no more than rounding, a relative 1e-9: (1 - 0.9) / 2 is
    0.04999999999999999, which means 0.05, while 0.975 and 0.97501 may both be asked for.

    Args:
        level: the share of the observations that the interval should contain, such as 0.9.
    """
    ends = ((1 - level) / 2, (1 + level) / 2)
    low, high = ([i for i, quantile in enumerate(quantiles) if math.isclose(quantile, end)] for end in ends)
    return (low[0], high[0]) if low and high else None


def list_interval_ends(level: float) -> tuple[float, float]:
    """The quantiles that are the low and the high end of an interval: 0.1 and 0.9 for 0.8."""
    return round((1 - level) / 2, DIGITS), round((1 + level) / 2, DIGITS)
