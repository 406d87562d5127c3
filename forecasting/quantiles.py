"""Which quantiles are the ends of an interval."""

DIGITS = 9
"""Quantiles that are equal to so many digits are the same: (1 - 0.9) / 2 is 0.04999999999999999, which means 0.05. But
0.975 and 0.97501 may both be asked for.
"""


def find_interval_outputs(quantiles: tuple[float, ...], level: float) -> tuple[int, int] | None:
    """The positions of the quantiles that are the low and the high end of an interval; None unless both are forecast.

    Args:
        level: the share of the observations that the interval should contain, such as 0.9.
    """
    rounded = [round(quantile, DIGITS) for quantile in quantiles]
    low, high = list_interval_ends(level)
    return (rounded.index(low), rounded.index(high)) if low in rounded and high in rounded else None


def list_interval_ends(level: float) -> tuple[float, float]:
    """The quantiles that are the low and the high end of an interval: 0.1 and 0.9 for 0.8."""
    return round((1 - level) / 2, DIGITS), round((1 + level) / 2, DIGITS)
