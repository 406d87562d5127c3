"""Measures of a forecast, and whether one forecast is better than another beyond noise."""

from dataclasses import dataclass

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


@dataclass(frozen=True)
class Comparison:
    """Mean absolute error of one forecast minus that of another on the same windows.

    Attributes:
        difference: in the target's unit; below 0, the first is better.
        low, high: ends of the confidence interval.
        better: share of the resamples in which the first is better.
    """

    difference: float
    low: float
    high: float
    level: float
    better: float
    block: int
    resamples: int


def paired_block_bootstrap(
    first_N: Errors, second_N: Errors, block: int, resamples: int, level: float, seed: int = 0
) -> Comparison:
    """Compare two forecasts of the same windows, in order of time, by the moving-block bootstrap (Künsch 1989).

    Blocks keep what makes neighbouring errors alike; drawing the same blocks from both keeps the pairs.

    Args:
        first_N, second_N: absolute errors by window, in the same order.
        block: windows in a block; at most a quarter of the windows is used.
    """
    difference_N = first_N - second_N
    n = len(difference_N)
    block = max(1, min(block, n // 4))
    drawn = -(-n // block)
    sums = np.concatenate([[0.0], np.cumsum(difference_N)])
    block_means = (sums[block:] - sums[:-block]) / block
    generator = np.random.default_rng(seed)
    means = np.array([block_means[generator.integers(len(block_means), size=drawn)].mean() for _ in range(resamples)])
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Comparison(
        difference=float(difference_N.mean()),
        low=float(low),
        high=float(high),
        level=level,
        better=float((means < 0).mean()),
        block=block,
        resamples=resamples,
    )
