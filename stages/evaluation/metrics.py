"""Measures of a forecast, and whether one forecast is better than another beyond noise."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Errors = NDArray[np.float64]


def mae(errors_N: Errors) -> float:
    """Mean absolute error, in the errors' unit."""
    return float(np.abs(errors_N).mean())


def rmse(errors_N: Errors) -> float:
    """Root of the mean squared error, in the errors' unit."""
    return float(np.sqrt(np.square(errors_N).mean()))


def skill(error: float, reference: float) -> float | None:
    """Skill against a reference forecast: 1 is perfect, 0 no better (Murphy 1988); None for a perfect reference."""
    return 1 - error / reference if reference > 0 else None


def conformal_reach(errors_N: Errors, level: float) -> float | None:
    """How far to each side of a forecast an interval reaches that holds the target with a probability of `level`.

    Split conformal prediction (Papadopoulos et al. 2002; Lei et al. 2018, "Distribution-Free Predictive Inference for
    Regression", theorem 2.2): the k-th smallest absolute error of N windows that the network was not fitted to, k being
    (N + 1) level rounded up. It holds for windows that could as well have come in another order; weather is not so, and
    the coverage on other windows tells how far off it is.

    Returns:
        In the errors' unit; None where the windows are too few for the level.
    """
    k = math.ceil((len(errors_N) + 1) * level)
    if k > len(errors_N):
        return None
    return float(np.partition(np.abs(errors_N), k - 1)[k - 1])


def coverage(errors_N: Errors, reach_N: Errors | float) -> float:
    """The share of windows whose target lies within so much of the forecast."""
    return float((np.abs(errors_N) <= reach_N).mean())


@dataclass(frozen=True)
class Comparison:
    """Mean absolute error of one forecast minus that of another on the same windows.

    Attributes:
        difference: in the target's unit; below 0, the first is better.
        low, high: ends of the confidence interval.
        level: of the interval.
        better: share of the resamples in which the first is better.
        block: moments in a block.
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

    Blocks of successive moments keep what makes neighbouring errors alike. A moment is drawn with all of its windows,
    one a series: series side by side share their weather, and count as so many more moments no more than copies of one
    series would. Drawing the same blocks from both forecasts keeps the pairs.

    Args:
        first_N, second_N: absolute errors by window, in the same order.
        moment_N: when each window's target is observed, counted in rows from anywhere; in any order.
        block: moments in a block; at most a quarter of those that have a window is used.
    """
    moments, place_N = np.unique(moment_N, return_inverse=True)
    block = max(1, min(block, len(moments) // 4))
    drawn = -(-len(moments) // block)
    # A moment at which fewer series have a window weighs less, so that the whole is the mean over windows.
    difference_K = _block_sums(np.bincount(place_N, weights=first_N - second_N), block)
    windows_K = _block_sums(np.bincount(place_N), block)
    generator = np.random.default_rng(seed)
    means = np.empty(resamples)
    for i in range(resamples):
        chosen = generator.integers(len(windows_K), size=drawn)
        means[i] = difference_K[chosen].sum() / windows_K[chosen].sum()
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


def _block_sums(values_T: NDArray[Any], block: int) -> NDArray[np.float64]:
    """The sum of every run of `block` successive values."""
    sums = np.concatenate([[0.0], np.cumsum(values_T)])
    blocks: NDArray[np.float64] = sums[block:] - sums[:-block]
    return blocks
