"""The paired block bootstrap: whether the difference between two forecasts is significant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from problems.lazy_modules import np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stages.evaluation.metrics import Errors


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


LEAST_BLOCKS = 7
"""The fewest blocks that a comparison may rest on; see docs/retraining.md for what more and fewer would do."""


def choose_block(block: float, horizon: float) -> int:
    """The moments in a block: at least as many as a forecast reaches ahead.

    Errors of forecasts that have a part of their horizon in common are correlated.

    Args:
        block: the length of a block in the settings, in moments.
        horizon: moments from the last input to the last target.
    """
    return max(round(block), round(horizon), 1)


def count_required_moments(block: int) -> int:
    """The fewest moments, at which targets were observed, that a comparison may rest on.

    Args:
        block: moments in a block.
    """
    return LEAST_BLOCKS * block


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
