"""The columns that are derived from the time: the calendar's and the climatology's."""

import itertools
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import ValidationError

from forecasting import climatology
from forecasting.climatology import YEAR_DAYS, Climatology, compute_harmonics
from problems.columns import Harmonics, derived_columns
from problems.errors import RecastError
from problems.problem import Problem
from stages.normalize import normalize
from stages.tables.table import Table, read_times, read_values
from stages.window import window

START = np.datetime64("2009-01-01T00:00", "ms")
HOURS = START + np.arange(6 * 8766) * np.timedelta64(1, "h")
"""Six years."""


def angle(moments: np.ndarray, days: float) -> np.ndarray:
    """2 pi times the periods since 1970."""
    return 2 * np.pi * (moments.astype("datetime64[ms]").astype(np.int64) / 86_400_000) / days


def test_the_waves_are_those_of_the_year_then_those_of_the_day() -> None:
    moments = HOURS[::5]
    actual = compute_harmonics(moments, Harmonics(year=2, day=1))
    year, day = angle(moments, YEAR_DAYS), angle(moments, 1)
    expected = [np.sin(year), np.cos(year), np.sin(2 * year), np.cos(2 * year), np.sin(day), np.cos(day)]
    np.testing.assert_allclose(actual, np.stack(expected, axis=1), atol=1e-9)
    assert compute_harmonics(moments, Harmonics(year=0, day=0)).shape == (len(moments), 0)


def test_the_climatology_is_the_mean_by_day_of_year_and_hour() -> None:
    """A day's course that is larger in summer, found again under noise; times a horizon on are as good."""
    year, day = angle(HOURS, YEAR_DAYS), angle(HOURS, 1)
    truth = 9 - 10 * np.cos(year) + (3 - 2 * np.cos(year)) * np.sin(day) + np.sin(2 * day)
    noise = np.random.default_rng(0).normal(0, 3, len(HOURS))
    fitted = Climatology.fit(Harmonics(year=1, day=2), [(HOURS, truth + noise)])
    assert fitted
    assert np.abs(fitted.values_at(HOURS) - truth).max() < 0.2
    later = HOURS + np.timedelta64(30, "h")
    assert np.abs(fitted.values_at(later)[:-30] - truth[30:]).max() < 0.2


@hypothesis_settings(max_examples=20, deadline=None)
@given(cuts=st.lists(st.integers(0, 4000), max_size=4), year=st.integers(0, 2), day=st.integers(0, 2))
def test_pieces_and_nulls_give_least_squares_over_the_known(cuts: list[int], year: int, day: int) -> None:
    moments = HOURS[::13]
    target = np.random.default_rng(1).normal(5, 2, len(moments))
    target[::7] = np.nan
    ends = [0, *sorted(cuts), len(moments)]
    pieces = [(moments[a:b], target[a:b]) for a, b in itertools.pairwise(ends)]
    fitted = Climatology.fit(Harmonics(year=year, day=day), pieces)
    assert fitted
    known = ~np.isnan(target)
    columns = np.stack(
        [
            a * b
            for a in [np.ones(len(moments)), *compute_harmonics(moments, Harmonics(year=year, day=0)).T]
            for b in [np.ones(len(moments)), *compute_harmonics(moments, Harmonics(year=0, day=day)).T]
        ],
        axis=1,
    )
    expected = columns @ np.linalg.lstsq(columns[known], target[known], rcond=None)[0]
    np.testing.assert_allclose(fitted.values_at(moments), expected, atol=1e-6)


def test_memory_is_bounded_by_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    target = np.random.default_rng(2).normal(size=len(HOURS))
    whole = Climatology.fit(Harmonics(year=1, day=1), [(HOURS, target)])
    monkeypatch.setattr(climatology, "BLOCK_ROWS", 1000)
    blocks = Climatology.fit(Harmonics(year=1, day=1), [(HOURS, target)])
    assert whole
    assert blocks
    np.testing.assert_allclose(whole.values_at(HOURS), blocks.values_at(HOURS), atol=1e-9)


@pytest.mark.parametrize(("split", "hours"), [("half", 4), ("lecture", 6)])
def test_the_table_has_the_climatology_now_and_at_the_target(
    split: Any, hours: int, tmp_path: Path, make_problem: Callable[..., Problem], write_ingested: Any
) -> None:
    """Of each series its own, fitted on its training rows; and the window's target lies where the column says."""
    raw = [np.random.default_rng(i).normal(10 * i, 1, (4000, 3)) for i in range(2)]
    if split == "lecture":
        raw = [np.random.default_rng(0).normal(0, 1, (60_000, 3))]
    write_ingested(tmp_path / "ingest", raw)
    derived = {"calendar": {"year": 1, "day": 1}, "climatology": {"year": 0, "day": 1}}
    problem = make_problem(split=split, **derived)
    table = normalize(problem, "standard", tmp_path / "ingest", tmp_path / "normalize")
    assert table == Table.read(tmp_path / "normalize")
    assert table.preparation.features == ("a", "b", "c", *derived_columns(problem.table))
    assert table.preparation.features[3:] == (
        "year sin 1",
        "year cos 1",
        "day sin 1",
        "day cos 1",
        "climatology",
        "climatology at the target",
    )
    assert table.preparation.climatology_indices == (7, 8)
    actual, moments = np.array(read_values(tmp_path / "normalize")), np.array(read_times(tmp_path / "normalize"))
    np.testing.assert_allclose(actual[:, 3:7], compute_harmonics(moments, Harmonics(year=1, day=1)), atol=1e-6)
    for series in table.series:
        rows = slice(series.first, series.first + series.rows)
        raw_target = raw[table.series.index(series)][: series.train, 1]
        fitted = Climatology.fit(Harmonics(year=0, day=1), [(moments[rows][: series.train], raw_target)])
        assert fitted
        for column, ahead in ((7, 0), (8, hours)):
            expected = fitted.values_at(moments[rows] + np.timedelta64(ahead, "h"))
            in_unit = actual[rows, column] * table.preparation.scale[1] + table.preparation.center[1]
            np.testing.assert_allclose(in_unit, expected, atol=1e-4)
    windowing = window(problem, 1, tmp_path / "normalize", tmp_path / "window")
    assert windowing.shape.climatology == (7, 8)
    assert windowing.shape.derived == 6
    assert windowing.shape.horizon * 2 == hours
    assert problem.horizon == timedelta(hours=hours)


def test_a_series_without_a_target_is_named(
    tmp_path: Path, make_problem: Callable[..., Problem], write_ingested: Any
) -> None:
    raw = np.random.default_rng(0).normal(0, 1, (200, 3))
    without = raw.copy()
    without[:100, 1] = np.nan
    write_ingested(tmp_path / "ingest", [raw, without])
    problem = make_problem(climatology={"year": 0, "day": 1})
    with pytest.raises(RecastError, match=r"'b' has no value in the training rows that a climatology could be fitted"):
        normalize(problem, "standard", tmp_path / "ingest", tmp_path / "normalize")


def test_no_feature_has_the_name_of_a_derived_column(make_problem: Callable[..., Problem]) -> None:
    with pytest.raises(ValidationError, match="'day sin 1': Recast adds a column of that name"):
        Problem.model_validate(
            make_problem().model_dump(mode="json")
            | {"table": {"features": ["b", "day sin 1"], "target": "b", "unit": "", "calendar": {"year": 0, "day": 1}}}
        )


def test_the_start_is_a_time_in_utc() -> None:
    """What the columns call an hour is the hour of the table's times."""
    noon = np.array([np.datetime64(datetime(2020, 6, 1, 12, tzinfo=UTC).replace(tzinfo=None), "ms")])
    np.testing.assert_allclose(compute_harmonics(noon, Harmonics(year=0, day=1)), [[0, -1]], atol=1e-9)
