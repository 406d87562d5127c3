"""Measures of a forecast, and the bootstrap that says whether one forecast is better than another."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.metrics import mae, paired_block_bootstrap, rmse, skill

errors = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50)


@given(errors)
def test_mae_and_rmse_follow_their_definitions(values: list[float]) -> None:
    found = np.array(values)
    assert mae(found) == pytest.approx(math.fsum(map(abs, values)) / len(values), abs=1e-9)
    assert rmse(found) == pytest.approx(math.sqrt(math.fsum(v * v for v in values) / len(values)), abs=1e-9)
    assert mae(found) <= rmse(found) * (1 + 1e-12) + 1e-150


@given(st.floats(0, 100), st.floats(0.01, 100))
def test_skill_is_the_share_of_the_reference_error_that_is_gone(error: float, reference: float) -> None:
    found = skill(error, reference)
    assert found is not None
    assert (1 - found) * reference == pytest.approx(error, abs=1e-9)


def test_skill_of_known_forecasts() -> None:
    assert skill(0, 2.5) == 1
    assert skill(2.5, 2.5) == 0
    assert skill(5, 2.5) == -1
    assert skill(1, 0) is None, "nothing is better or worse than a perfect reference by a share of it"


def persistent(seed: int, n: int, keep: float = 0.8) -> np.ndarray:
    """Differences of errors that are alike from one window to the next: AR(1) with mean 0 and deviation 1."""
    random = np.random.default_rng(seed)
    values = random.standard_normal(n)
    values[1:] *= math.sqrt(1 - keep**2)
    for k in range(1, n):
        values[k] += keep * values[k - 1]
    return values


def covered(block: int, mean: float = 0.3) -> float:
    """How often the 90 % interval holds the true mean."""
    intervals = [
        paired_block_bootstrap(persistent(seed, 1500) + mean, np.zeros(1500), block, resamples=200, level=0.9)
        for seed in range(150)
    ]
    return float(np.mean([each.low <= mean <= each.high for each in intervals]))


def test_the_interval_covers_the_true_difference_as_often_as_it_says() -> None:
    """Somewhat below 90 %, as for every block bootstrap; with no blocks, far below."""
    assert 0.8 < covered(block=40) < 0.95
    assert covered(block=1) < 0.6


def test_swapping_the_forecasts_mirrors_the_comparison() -> None:
    first, second = np.abs(persistent(0, 500)) + 0.05, np.abs(persistent(1, 500))
    one = paired_block_bootstrap(first, second, 24, 500, 0.95)
    other = paired_block_bootstrap(second, first, 24, 500, 0.95)
    assert one.difference == pytest.approx(first.mean() - second.mean())
    assert one.difference == pytest.approx(-other.difference)
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low))
    assert one.better == pytest.approx(1 - other.better)
    assert one.low < one.difference < one.high


def test_identical_forecasts_differ_by_nothing() -> None:
    values = np.abs(persistent(0, 300))
    found = paired_block_bootstrap(values, values, 24, 200, 0.95)
    assert (found.difference, found.low, found.high, found.better) == (0, 0, 0, 0)


def test_a_forecast_that_is_always_better_is_surely_better() -> None:
    values = np.abs(persistent(0, 300))
    found = paired_block_bootstrap(values, values + 1, 24, 200, 0.95)
    assert (found.difference, found.low, found.high) == pytest.approx((-1, -1, -1))
    assert found.better == 1


def test_the_same_errors_give_the_same_comparison() -> None:
    first, second = np.abs(persistent(0, 300)), np.abs(persistent(1, 300))
    found = [paired_block_bootstrap(first, second, 24, 200, 0.95) for _ in range(2)]
    assert found[0] == found[1]
    assert found[0] != paired_block_bootstrap(first, second, 24, 200, 0.95, seed=1)


@given(n=st.integers(1, 60), block=st.integers(1, 100))
def test_a_block_takes_a_quarter_of_the_windows_at_most(n: int, block: int) -> None:
    first, second = np.arange(float(n)), np.ones(n)
    found = paired_block_bootstrap(first, second, block, 100, 0.95)
    assert found.block == max(1, min(block, n // 4))
    assert found.low <= found.high
    assert 0 <= found.better <= 1
    assert found.difference == pytest.approx(first.mean() - 1)
    assert (first - second).min() - 1e-9 <= found.low <= found.high <= (first - second).max() + 1e-9


def test_pairs_are_kept() -> None:
    """Both forecasts fail on the same windows; compared in pairs, a small steady lead is seen."""
    hard = np.abs(persistent(0, 500)) * 100
    found = paired_block_bootstrap(hard, hard + 0.01, 24, 200, 0.95)
    assert found.high < 0
