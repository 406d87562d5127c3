"""Errors of a forecast, conformal intervals, and the bootstrap that compares two forecasts."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from learning.answers import ANSWER_KINDS, LearningTask
from learning.conformal import conformal_half_width, spread_quantiles
from stages.evaluation.bootstrap import Comparison, choose_block, count_required_moments, paired_block_bootstrap
from stages.evaluation.metrics import coverage, mae, skill_score


def one_series(first: np.ndarray, second: np.ndarray, *rest: Any, **keys: Any) -> Comparison:
    """Compare forecasts of which each window has a moment of its own, in order."""
    return paired_block_bootstrap(first, second, np.arange(len(first)), *rest, **keys)


errors = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50)


@given(errors)
def test_mae_and_rmse_follow_their_definitions(values: list[float]) -> None:
    expected_mae = math.fsum(map(abs, values)) / len(values)
    expected_rmse = math.sqrt(math.fsum(v * v for v in values) / len(values))
    objective = ANSWER_KINDS["value"].choose_objective(LearningTask(outputs=1, token=None, loss="mae", quantiles=()))
    error_B11 = torch.tensor(values, dtype=torch.float64)[:, None, None]
    scores = objective.score_answers(error_B11, torch.zeros_like(error_B11))
    measures = objective.compute_measures({name: float(score_B1.mean()) for name, score_B1 in scores.items()})
    assert mae(np.array(values)) == pytest.approx(expected_mae, abs=1e-9)
    assert measures["mae"] == pytest.approx(expected_mae, abs=1e-9)
    assert measures["rmse"] == pytest.approx(expected_rmse, abs=1e-9)
    assert measures["mae"] <= measures["rmse"] * (1 + 1e-12) + 1e-150


@given(st.floats(0, 100), st.floats(0.01, 100))
def test_skill_is_the_share_of_the_reference_error_that_is_gone(error: float, reference: float) -> None:
    found = skill_score(error, reference)
    assert found is not None
    assert (1 - found) * reference == pytest.approx(error, abs=1e-9)


@given(
    errors=st.lists(st.floats(-100, 100), min_size=1, max_size=60),
    level=st.sampled_from([0.1, 0.5, 0.8, 0.9, 0.95]),
)
def test_an_interval_reaches_to_the_error_whose_rank_its_level_asks(errors: list[float], level: float) -> None:
    rank = math.ceil((len(errors) + 1) * level)
    reach = conformal_half_width(np.array(errors), level)
    if rank > len(errors):
        assert reach is None
    else:
        assert reach == sorted(map(abs, errors))[rank - 1]
        assert coverage(np.array(errors), reach) >= level


def test_intervals_hold_as_many_new_targets_as_they_should() -> None:
    """Lei et al. 2018: between the level and one window's share more, over draws of both sets of windows."""
    random = np.random.default_rng(0)
    held = []
    for _ in range(4000):
        known, new = random.standard_t(3, 49), random.standard_t(3, 20)
        reach = conformal_half_width(known, 0.8)
        assert reach is not None
        held.append(coverage(new, reach))
    assert 0.8 - 0.005 < np.mean(held) < 0.8 + 1 / 50 + 0.005


def test_the_quantiles_of_a_single_number_are_the_ends_of_its_intervals() -> None:
    errors_NL = np.random.default_rng(0).standard_t(3, (99, 2))
    spread_LO = spread_quantiles(errors_NL, (0.025, 0.1, 0.25, 0.5, 0.75, 0.9, 0.975))
    for lead in (0, 1):
        reaches = [conformal_half_width(errors_NL[:, lead], level) for level in (0.95, 0.8, 0.5)]
        assert None not in reaches
        expected = [-reach for reach in reaches if reach] + [0] + [reach for reach in reversed(reaches) if reach]
        assert spread_LO[lead].tolist() == expected
    few = spread_quantiles(errors_NL[:5], (0.025, 0.5))
    assert few[:, 0].tolist() == (-np.abs(errors_NL[:5]).max(axis=0)).tolist(), "too few windows for this level"


def test_a_comparison_needs_blocks_that_overlapping_forecasts_cannot_fill() -> None:
    hour, day, week = 1 / 24, 1, 7
    assert count_required_moments(choose_block(7 / hour, 24)) == 7 * 168
    # What `recast new` proposes for daily rows leaves 56 windows in 90 days of test rows.
    assert count_required_moments(choose_block(7 / day, 7)) == 49 < 90 - 28 - 7 + 1
    assert choose_block(7 / week, 4) == 4, "the forecasts of successive weeks have three weeks in common"
    assert choose_block(7 / 30, 1) == 1


def test_skill_of_known_forecasts() -> None:
    assert skill_score(0, 2.5) == 1
    assert skill_score(2.5, 2.5) == 0
    assert skill_score(5, 2.5) == -1
    assert skill_score(1, 0) is None, "nothing is better or worse than a perfect reference by a share of it"


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
        one_series(persistent(seed, 1500) + mean, np.zeros(1500), block, resamples=200, level=0.9)
        for seed in range(150)
    ]
    return float(np.mean([interval.low <= mean <= interval.high for interval in intervals]))


def test_the_interval_covers_the_true_difference_as_often_as_it_says() -> None:
    """Somewhat below 90 %, as for every block bootstrap; with no blocks, far below."""
    assert 0.8 < covered(block=40) < 0.95
    assert covered(block=1) < 0.6


def test_swapping_the_forecasts_mirrors_the_comparison() -> None:
    first, second = np.abs(persistent(0, 500)) + 0.05, np.abs(persistent(1, 500))
    one = one_series(first, second, 24, 500, 0.95)
    other = one_series(second, first, 24, 500, 0.95)
    assert one.difference == pytest.approx(first.mean() - second.mean())
    assert one.difference == pytest.approx(-other.difference)
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low))
    assert one.better == pytest.approx(1 - other.better)
    assert one.low < one.difference < one.high


def test_identical_forecasts_differ_by_nothing() -> None:
    values = np.abs(persistent(0, 300))
    found = one_series(values, values, 24, 200, 0.95)
    assert (found.difference, found.low, found.high, found.better) == (0, 0, 0, 0)


def test_a_forecast_that_is_always_better_is_surely_better() -> None:
    values = np.abs(persistent(0, 300))
    found = one_series(values, values + 1, 24, 200, 0.95)
    assert (found.difference, found.low, found.high) == pytest.approx((-1, -1, -1))
    assert found.better == 1


def test_the_same_errors_give_the_same_comparison() -> None:
    first, second = np.abs(persistent(0, 300)), np.abs(persistent(1, 300))
    found = [one_series(first, second, 24, 200, 0.95) for _ in range(2)]
    assert found[0] == found[1]
    assert found[0] != one_series(first, second, 24, 200, 0.95, seed=1)


@given(n=st.integers(1, 60), block=st.integers(1, 100))
def test_a_block_takes_a_quarter_of_the_moments_at_most(n: int, block: int) -> None:
    first, second = np.arange(float(n)), np.ones(n)
    found = one_series(first, second, block, 100, 0.95)
    assert found.block == max(1, min(block, n // 4))
    assert found.low <= found.high
    assert 0 <= found.better <= 1
    assert found.difference == pytest.approx(first.mean() - 1)
    assert (first - second).min() - 1e-9 <= found.low <= found.high <= (first - second).max() + 1e-9


def block_means(first: np.ndarray, second: np.ndarray, moments: np.ndarray, block: int, drawn: list[list[int]]) -> Any:
    """The mean over windows of each resample, by a loop: the reference. Blocks are named by their first moment."""
    present = sorted(set(moments.tolist()))
    for blocks in drawn:
        windows = [
            float(first[i] - second[i])
            for begin in blocks
            for moment in present[begin : begin + block]
            for i in np.flatnonzero(moments == moment)
        ]
        yield sum(windows) / len(windows)


@given(data=st.data(), moments=st.integers(4, 40), block=st.integers(1, 12), series=st.integers(1, 4))
def test_a_moment_is_drawn_with_the_windows_of_all_series(
    data: st.DataObject, moments: int, block: int, series: int
) -> None:
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    # Some series have no window at some moments; windows come in any order.
    by_series = [np.flatnonzero(random.random(3 * moments) < 0.5) for _ in range(series)]
    moment_N = random.permutation(np.concatenate([*by_series, [0, 1, 2, 3]]))
    first, second = random.random((2, len(moment_N)))
    found = paired_block_bootstrap(first, second, moment_N, block, resamples=20, level=0.8, seed=7)
    present = len(np.unique(moment_N))
    assert found.block == max(1, min(block, present // 4))
    generator = np.random.default_rng(7)
    drawn = [
        generator.integers(present - found.block + 1, size=math.ceil(present / found.block)).tolist() for _ in range(20)
    ]
    means = list(block_means(first, second, moment_N, found.block, drawn))
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(means, [0.1, 0.9])), abs=1e-12)
    assert found.difference == pytest.approx(first.mean() - second.mean(), abs=1e-12)


@given(seed=st.integers(0, 2**32), n=st.integers(4, 200), block=st.integers(1, 60), copies=st.integers(2, 4))
def test_copies_of_a_series_tell_no_more_than_the_series(seed: int, n: int, block: int, copies: int) -> None:
    first, second = np.random.default_rng(seed).random((2, n))
    alone = one_series(first, second, block, 50, 0.95)
    several = paired_block_bootstrap(
        np.tile(first, copies), np.tile(second, copies), np.tile(np.arange(n), copies), block, 50, 0.95
    )
    assert (several.block, several.better) == (alone.block, alone.better)
    assert (several.difference, several.low, several.high) == pytest.approx(
        (alone.difference, alone.low, alone.high), abs=1e-12
    )


def covered_series(apart: bool) -> float:
    """How often the 90 % interval holds the true mean of three series that share their weather.

    Args:
        apart: tell the bootstrap that each window has a moment of its own.
    """
    n, intervals = 600, []
    for seed in range(100):
        shared = persistent(seed, n)
        errors = np.concatenate([shared + 0.3 * persistent(1000 * k + seed, n) for k in (1, 2, 3)]) + 0.3
        moments = np.arange(3 * n) if apart else np.tile(np.arange(n), 3)
        intervals.append(paired_block_bootstrap(errors, np.zeros(3 * n), moments, 40, resamples=200, level=0.9))
    return float(np.mean([interval.low <= 0.3 <= interval.high for interval in intervals]))


def test_series_side_by_side_are_no_independent_evidence() -> None:
    assert 0.75 < covered_series(apart=False) < 0.97
    assert covered_series(apart=True) < 0.7


def test_pairs_are_kept() -> None:
    """Both forecasts fail on the same windows; compared in pairs, a small steady lead is seen."""
    hard = np.abs(persistent(0, 500)) * 100
    found = one_series(hard, hard + 0.01, 24, 200, 0.95)
    assert found.high < 0
