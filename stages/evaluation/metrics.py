"""Errors of forecasts, conformal intervals, and a significance test for the difference of two forecasts."""

import math
from dataclasses import dataclass
from typing import Any

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


@dataclass(frozen=True)
class Comparison:
    """The mean error of one forecast minus that of another forecast of the same windows.

    Attributes:
        difference: in the errors' unit; the first forecast is better where it is below 0.
        low, high: the ends of the confidence interval of the difference.
        level: the confidence level.
        better: the share of the resamples in which the first forecast is better.
        block: moments in a block.
        resamples: how many there are.
    """

    difference: float
    low: float
    high: float
    level: float
    better: float
    block: int
    resamples: int


def paired_block_bootstrap(
    first_N: Errors,
    second_N: Errors,
    moment_N: NDArray[np.int64],
    block: int,
    resamples: int,
    level: float,
    seed: int = 0,
) -> Comparison:
    """Compare two forecasts of the same windows by the moving-block bootstrap (Künsch 1989).

    Blocks of successive moments preserve the correlation of neighbouring errors. A moment is drawn with all of its
    windows, one for each series: parallel series share their weather, so they are not independent evidence, and copies
    of a series do not make the interval narrower. Drawing the same blocks from both forecasts preserves the pairs.

    Args:
        first_N, second_N: the errors by window, in the same order.
        moment_N: when each window's target is observed, counted in rows from any time; in any order.
        block: moments in a block; never more than a quarter of the moments that have a window.
        resamples: how many resamples are drawn.
        level: the confidence level of the interval.
        seed: the seed of the random draws.
    """
    moments, position_N = np.unique(moment_N, return_inverse=True)
    block = max(1, min(block, len(moments) // 4))
    blocks_to_draw = -(-len(moments) // block)
    # A moment at which fewer series have a window has a smaller weight, so that the result is the mean over windows.
    difference_K = _sum_blocks(np.bincount(position_N, weights=first_N - second_N), block)
    windows_K = _sum_blocks(np.bincount(position_N), block)
    generator = np.random.default_rng(seed)
    means = np.empty(resamples)
    for i in range(resamples):
        drawn = generator.integers(len(windows_K), size=blocks_to_draw)
        means[i] = difference_K[drawn].sum() / windows_K[drawn].sum()
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Comparison(
        difference=float((first_N - second_N).mean()),
        low=float(low),
        high=float(high),
        level=level,
        better=float((means < 0).mean()),
        block=block,
        resamples=resamples,
    )


def _sum_blocks(values_T: NDArray[Any], block: int) -> NDArray[np.float64]:
    """The sum of each run of `block` successive values."""
    sums = np.concatenate([[0.0], np.cumsum(values_T)])
    blocks: NDArray[np.float64] = sums[block:] - sums[:-block]
    return blocks
