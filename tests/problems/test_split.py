"""Splits: the cuts are those that a loop over rows finds, and rows that are left out have no effect."""

import tempfile
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from problems.durations import format_duration
from problems.errors import RecastError
from problems.problem import Problem
from problems.split import SPLITS, DateSplit, RecentSplit, Split
from stages import normalize as stage
from stages.normalize import normalize

Make = Callable[..., Problem]
Write = Callable[..., None]

START = datetime(2020, 1, 1)
HOUR = timedelta(hours=1)
FILES = ("table.npy", "time.npy", "observed.npy", "table.json")


@st.composite
def moments(draw: st.DrawFn) -> list[datetime]:
    """Of a series with gaps, after which the rows need not stand on the same beat."""
    steps = draw(st.lists(st.sampled_from([1.0] * 12 + [1.5, 5.0]), min_size=30, max_size=120))
    return [START + float(hours) * HOUR for hours in np.cumsum(steps)]


hours = st.integers(1, 90).map(lambda count: count * HOUR)


@st.composite
def splits(draw: st.DrawFn) -> Split:
    """Recent ones that grow or roll, and dates with and without an end on either side."""
    if draw(st.booleans()):
        return RecentSplit.model_validate(
            {
                "train": format_duration(draw(hours)) if draw(st.booleans()) else None,
                "validation": format_duration(draw(hours)),
                "test": format_duration(draw(hours)),
            }
        )
    ends = sorted(draw(st.lists(st.integers(0, 150), min_size=4, max_size=4, unique=True)))
    names = ("train_from", "validation_from", "test_from", "test_until")
    given = {name: START + end * HOUR for name, end in zip(names, ends, strict=True)}
    for name in ("train_from", "test_until"):
        if draw(st.booleans()):
            given[name] = None
    return DateSplit.model_validate(given)


def parts(split: Split, series: list[datetime]) -> dict[str, list[datetime]]:
    """The moments of each part, row by row, as the documentation says it."""
    by_split: dict[str, list[datetime]] = {name: [] for name in SPLITS}
    for moment in series:
        if isinstance(split, RecentSplit):
            ago = series[-1] + HOUR - moment
            if ago <= split.test:
                by_split["test"].append(moment)
            elif ago <= split.test + split.validation:
                by_split["validation"].append(moment)
            elif split.train is None or ago <= split.test + split.validation + split.train:
                by_split["train"].append(moment)
        elif isinstance(split, DateSplit):
            if split.train_from is not None and moment < split.train_from:
                continue
            if split.test_until is not None and moment >= split.test_until:
                continue
            part = 0 if moment < split.validation_from else 1 if moment < split.test_from else 2
            by_split[SPLITS[part]].append(moment)
    return by_split


@given(series=moments(), split=splits())
def test_cuts_are_those_of_a_loop_over_rows(series: list[datetime], split: Split) -> None:
    def before(moment: datetime) -> int:
        return sum(time < moment for time in series)

    expected = parts(split, series)
    if not all(expected.values()):
        with pytest.raises(RecastError, match=r"^split: .* leave a part of the series empty: of its "):
            split.find_cuts(len(series), HOUR, series[-1], before)
        return
    begin, train, validation, end = split.find_cuts(len(series), HOUR, series[-1], before)
    assert series[begin:train] == expected["train"]
    assert series[train:validation] == expected["validation"]
    assert series[validation:end] == expected["test"]


@settings(max_examples=60)
@given(data=st.data(), split=splits(), several=st.lists(moments(), min_size=1, max_size=3))
def test_rows_that_are_left_out_have_no_effect(
    data: st.DataObject, split: Split, several: list[list[datetime]], make_problem: Make, write_ingested: Write
) -> None:
    """The same bytes as of a table without those rows: nothing of them is in fills, scaling or climatology."""
    kept = [parts(split, series) for series in several]
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    columns = [random.normal(10, 3, (len(series), 2)) for series in several]
    for column in columns:
        column[random.random(column.shape) < 0.1] = np.nan
    derived = {"fill": "3h", "calendar": {"year": 1, "day": 1}, "climatology": {"year": 0, "day": 1}}
    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "CHUNK_ROWS", data.draw(st.sampled_from([7, 10_000])))
        folder = Path(place)
        write_ingested(folder / "all", columns, several)

        def made(name: str, split: Any) -> tuple[bytes, ...]:
            problem = make_problem(2, split=split, window={"lookback": "2h", "step": "1h", "delay": "2h"}, **derived)
            normalize(problem, "standard", folder / name, folder / f"{name}.out")
            return tuple((folder / f"{name}.out" / file).read_bytes() for file in FILES)

        if not all(all(by_split.values()) for by_split in kept):
            with pytest.raises(RecastError, match=r"leave a part of the series empty"):
                made("all", split)
            return
        inside = [
            np.isin(np.array(series), np.array([moment for part in own.values() for moment in part]))
            for series, own in zip(several, kept, strict=True)
        ]
        if not all(
            (~np.isnan(column[: len(own["train"]), 1])).any()
            for column, own in zip((c[i] for c, i in zip(columns, inside, strict=True)), kept, strict=True)
        ):
            return
        write_ingested(
            folder / "inside",
            [column[where] for column, where in zip(columns, inside, strict=True)],
            [list(np.array(series)[where]) for series, where in zip(several, inside, strict=True)],
        )
        alone = (
            split
            if isinstance(split, RecentSplit)
            else {"validation_from": split.validation_from.isoformat(), "test_from": split.test_from.isoformat()}
        )
        assert made("all", split) == made("inside", alone)
