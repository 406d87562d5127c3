"""normalize: scaled by the training rows alone, filled from the past alone, the same however it is cut in pieces."""

import tempfile
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from forecasting.climatology import BLOCK_ROWS
from problems.errors import RecastError
from problems.problem import Problem
from stages import normalize as stage
from stages.normalize import normalize
from stages.tables.table import Table, read_observed, read_times, read_values
from stages.training import reading
from stages.window import window

START = datetime(2020, 1, 1)
HOUR = timedelta(hours=1)
RANDOM = np.random.default_rng(0)
Make = Callable[..., Problem]
Write = Callable[..., None]


@pytest.fixture
def normalized(tmp_path: Path, make_problem: Make, write_ingested: Write) -> Callable[..., tuple[Table, np.ndarray]]:
    """Run the stage on arrays, one a series."""

    def run(*series: np.ndarray, scale: Any = "standard", when: Any = None, **keys: Any) -> tuple[Table, np.ndarray]:
        write_ingested(tmp_path / "ingest", series, when)
        problem = make_problem(series[0].shape[1], **keys)
        about = normalize(problem, scale, tmp_path / "ingest", tmp_path / "out")
        return about, np.array(read_values(tmp_path / "out"))

    return run


def test_mean_and_deviation_are_those_of_the_training_rows_of_all_series(normalized: Any) -> None:
    one, two = RANDOM.normal(5, 3, (40, 3)), RANDOM.normal(-2, 7, (80, 3))
    about, table = normalized(one, two)
    training = np.concatenate([one[:20], two[:40]])
    np.testing.assert_allclose(about.preparation.center, training.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(about.preparation.scale, training.std(axis=0, ddof=0), rtol=1e-12)
    expected = (np.concatenate([one, two]) - about.preparation.center) / about.preparation.scale
    np.testing.assert_array_equal(table, expected.astype(np.float32))
    assert [(series.first, series.rows, series.train, series.validation) for series in about.series] == [
        (0, 40, 20, 30),
        (40, 80, 40, 60),
    ]


def test_rows_in_another_unit_are_other_data_although_they_look_the_same(normalized: Any) -> None:
    raw = RANDOM.normal(5, 3, (40, 2))
    about, table = normalized(raw)
    # A power of two, so that not even the last bits differ.
    about_other, table_other = normalized(raw * 128)
    np.testing.assert_array_equal(table, table_other)
    assert about.sha256 != about_other.sha256


def test_range_maps_the_training_rows_to_0_and_1(normalized: Any) -> None:
    raw = RANDOM.normal(5, 3, (40, 2))
    about, table = normalized(raw, scale="range")
    assert about.preparation.center == tuple(raw[:20].min(axis=0))
    np.testing.assert_allclose(table[:20].min(axis=0), 0)
    np.testing.assert_allclose(table[:20].max(axis=0), 1, rtol=1e-6)


def test_none_leaves_the_values_as_they_are(normalized: Any) -> None:
    raw = RANDOM.normal(5, 3, (40, 2))
    about, table = normalized(raw, scale="none")
    np.testing.assert_array_equal(table, raw.astype(np.float32))
    assert about.preparation.scale == (1, 1)


@pytest.mark.parametrize("scale", ["standard", "range"])
@pytest.mark.parametrize("constant", [0.0, 0.1, 1e9 + 0.1, -273.15])
def test_a_column_that_is_constant_in_training_is_only_shifted(normalized: Any, scale: str, constant: float) -> None:
    raw = RANDOM.normal(5, 3, (60, 2))
    raw[:, 0] = constant
    raw[50:, 0] = constant + 2
    about, table = normalized(raw, scale=scale)
    assert about.preparation.scale[0] == 1
    np.testing.assert_allclose(table[:50, 0], 0, atol=1e-6)
    np.testing.assert_allclose(table[50:, 0], 2, atol=1e-6)


def test_a_column_without_a_training_value_is_named(normalized: Any) -> None:
    raw = RANDOM.normal(5, 3, (40, 2))
    raw[:20, 0] = np.nan
    with pytest.raises(RecastError, match="column 'a' has no value in the training rows") as it:
        normalized(raw)
    assert "problems.out.table.features" in str(it.value), "the folder has the problem's name"


def test_a_series_too_short_for_the_split_is_named(normalized: Any) -> None:
    with pytest.raises(RecastError, match="series series1: 3 rows are too few for the split"):
        normalized(RANDOM.normal(size=(40, 2)), RANDOM.normal(size=(3, 2)))


def test_the_split_that_does_not_fit_is_named_with_its_problem(
    tmp_path: Path, make_problem: Make, write_ingested: Write
) -> None:
    write_ingested(tmp_path / "ingest", [RANDOM.normal(size=(40, 2))])
    with pytest.raises(RecastError, match=r"series series0: problems\.weather\.split: lecture needs more than"):
        normalize(make_problem(2, split="lecture"), "standard", tmp_path / "ingest", tmp_path / "weather")


def test_nulls_stay_nan_and_count_for_nothing(normalized: Any) -> None:
    raw = RANDOM.normal(5, 3, (40, 2))
    raw[[3, 4, 30], 0] = np.nan
    about, table = normalized(raw)
    np.testing.assert_array_equal(np.isnan(table), np.isnan(raw))
    np.testing.assert_allclose(about.preparation.center[0], np.nanmean(raw[:20, 0]), rtol=1e-12)
    np.testing.assert_allclose(about.preparation.scale[0], np.nanstd(raw[:20, 0]), rtol=1e-12)


def test_a_null_is_filled_from_the_past_up_to_the_limit(normalized: Any) -> None:
    raw = np.arange(40.0)[:, None].repeat(2, axis=1)
    raw[[0, 5, 10, 11, 12, 13], 0] = np.nan
    table = normalized(raw, scale="none", fill="3h")[1]
    np.testing.assert_array_equal(table[[0, 5, 10, 11, 12, 13], 0], [np.nan, 4, 9, 9, 9, np.nan])


def test_a_filled_target_is_not_taken_for_an_observed_one(tmp_path: Path, normalized: Any) -> None:
    """The features are a and b, and b is the target."""
    raw = np.arange(40.0)[:, None].repeat(2, axis=1)
    raw[[3, 4], 0] = np.nan
    raw[[7, 8, 39], 1] = np.nan
    _, table = normalized(raw, scale="none", fill="1h")
    np.testing.assert_array_equal(np.flatnonzero(~read_observed(tmp_path / "out")), [7, 8, 39])
    np.testing.assert_array_equal(table[[7, 8, 39], 1], [6, np.nan, 38])
    assert isinstance(read_observed(tmp_path / "out"), np.memmap)


def test_nothing_is_carried_across_a_gap_or_into_another_series(normalized: Any) -> None:
    one, two = np.ones((40, 2)), np.full((40, 2), 2.0)
    one[10, 0] = two[0, 0] = np.nan
    moments = [[START + (k + (k >= 10)) * HOUR for k in range(40)], [START + k * HOUR for k in range(40)]]
    table = normalized(one, two, scale="none", fill="9h", when=moments)[1]
    assert np.isnan(table[10, 0]), "the row before it is two hours older"
    assert np.isnan(table[40, 0]), "the row before it is of another series"
    assert np.isnan(table).sum() == 2


def test_without_fill_nothing_is_filled(normalized: Any) -> None:
    raw = np.arange(40.0)[:, None].repeat(2, axis=1)
    raw[7, 1] = np.nan
    assert np.isnan(normalized(raw)[1][7, 1])


def fill_by_loop(column: np.ndarray, starts: np.ndarray, limit: int) -> np.ndarray:
    """Fill forward row by row: the reference."""
    filled = column.copy()
    for row in range(len(column)):
        for back in range(1, limit + 1):
            if not np.isnan(filled[row]) or starts[row - back + 1 : row + 1].any() or row - back < 0:
                break
            filled[row] = column[row - back]
    return filled


@settings(max_examples=40)
@given(
    data=st.data(),
    chunk=st.integers(1, 30),
    limit=st.integers(0, 5),
    lengths=st.lists(st.integers(8, 40), min_size=1, max_size=3),
)
def test_pieces_and_fill_equal_a_loop_over_rows(
    data: st.DataObject, chunk: int, limit: int, lengths: list[int], make_problem: Make, write_ingested: Write
) -> None:
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    series = [random.normal(3, 2, (n, 2)) for n in lengths]
    gaps = [random.random(n) < 0.1 for n in lengths]
    moments = [[START + (k + int(late)) * HOUR for k, late in enumerate(np.cumsum(gap))] for gap in gaps]
    for values in series:
        values[random.random(values.shape) < 0.3] = np.nan
        values[0] = 1.0
    problem = make_problem(2, **({"fill": f"{limit}h"} if limit else {}))
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        write_ingested(Path(folder, "ingest"), series, moments)
        normalize(problem, "none", Path(folder, "ingest"), Path(folder, "whole"))
        patch.setattr(stage, "CHUNK_ROWS", chunk)
        patch.setattr(stage, "_PIECE_ROWS", chunk)
        normalize(problem, "none", Path(folder, "ingest"), Path(folder, "pieces"))
        for file in ("table.npy", "time.npy", "observed.npy", "table.json"):
            assert Path(folder, "whole", file).read_bytes() == Path(folder, "pieces", file).read_bytes()
        table = np.array(read_values(Path(folder, "whole")))
        moments_N = np.array(read_times(Path(folder, "whole")))
        observed_N = np.array(read_observed(Path(folder, "whole")))
    for i, gap in enumerate(gaps):
        gap[0] = True
        span = slice(sum(lengths[:i]), sum(lengths[: i + 1]))
        for column in range(2):
            expected = fill_by_loop(series[i][:, column].astype(np.float32), gap, limit)
            np.testing.assert_array_equal(table[span, column], expected)
        assert moments_N[span].tolist() == moments[i]
        np.testing.assert_array_equal(observed_N[span], ~np.isnan(series[i][:, 1]))


def test_the_statistics_of_pieces_are_those_of_the_whole(
    tmp_path: Path, make_problem: Make, write_ingested: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = RANDOM.normal(1000, 1e-3, (400, 2))
    raw[RANDOM.random(raw.shape) < 0.2] = np.nan
    raw[20:40, 0] = np.nan
    write_ingested(tmp_path / "ingest", [raw[:300], raw[300:]])
    monkeypatch.setattr(stage, "CHUNK_ROWS", 7)
    about = normalize(make_problem(2), "standard", tmp_path / "ingest", tmp_path / "out")
    training = np.concatenate([raw[:150], raw[300:350]])
    np.testing.assert_allclose(about.preparation.center, np.nanmean(training, axis=0), rtol=1e-14)
    np.testing.assert_allclose(about.preparation.scale, np.nanstd(training, axis=0), rtol=1e-9)


def test_many_pieces_give_the_same_bytes_as_one_also_with_derived_columns(
    tmp_path: Path, make_problem: Make, write_ingested: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = RANDOM.normal(10, 3, (3 * BLOCK_ROWS + 17, 2))
    raw[RANDOM.random(raw.shape) < 0.05] = np.nan
    write_ingested(tmp_path / "ingest", [raw])
    problem = make_problem(2, fill="3h", known=["a"], calendar={"year": 1, "day": 1}, climatology={"year": 1, "day": 2})
    for folder, rows in (("one", 4 * BLOCK_ROWS), ("many", BLOCK_ROWS)):
        monkeypatch.setattr(stage, "_PIECE_ROWS", rows)
        normalize(problem, "standard", tmp_path / "ingest", tmp_path / folder)
    for file in ("table.npy", "time.npy", "observed.npy"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "many" / file).read_bytes()


def test_the_same_rows_give_the_same_bytes(tmp_path: Path, make_problem: Make, write_ingested: Write) -> None:
    """Also of more rows than Polars adds up in one thread, so that neither DVC nor a trial's key sees a change."""
    write_ingested(tmp_path / "ingest", [RANDOM.normal(10, 3, (300_000, 3))])
    contents = set()
    for _ in range(3):
        normalize(make_problem(3), "standard", tmp_path / "ingest", tmp_path / "out")
        contents.add(b"".join(file.read_bytes() for file in sorted((tmp_path / "out").iterdir())))
    assert len(contents) == 1


def test_the_identity_changes_with_a_value_and_with_a_time(normalized: Any) -> None:
    raw = np.round(RANDOM.normal(5, 3, (40, 2)), 2)
    changed = raw.copy()
    changed[-1, -1] += 0.01
    later = [[START + (k + (k == 39)) * HOUR for k in range(40)]]
    keys = [normalized(values)[0].sha256 for values in (raw, raw, changed)] + [normalized(raw, when=later)[0].sha256]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3


def test_the_table_is_mapped_and_a_write_stays_private(
    tmp_path: Path, make_problem: Make, write_ingested: Write
) -> None:
    write_ingested(tmp_path / "ingest", [RANDOM.normal(size=(40, 2))])
    about = normalize(make_problem(2), "standard", tmp_path / "ingest", tmp_path / "out")
    table = read_values(tmp_path / "out")
    assert isinstance(table, np.memmap)
    assert isinstance(read_times(tmp_path / "out"), np.memmap)
    assert table.dtype == np.float32
    before = table[0, 0]
    table[0, 0] += 1
    assert read_values(tmp_path / "out")[0, 0] == before
    assert Table.read(tmp_path / "out") == about


@pytest.mark.parametrize("chunk", [7, 1000])
def test_what_is_known_in_advance_stands_a_horizon_before(
    normalized: Any, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    """In its own units, in each series by itself; windows of the fixture forecast four hours ahead."""
    monkeypatch.setattr(stage, "CHUNK_ROWS", chunk)
    one, two = RANDOM.normal(5, 3, (40, 3)), RANDOM.normal(-2, 7, (60, 3))
    about, table = normalized(one, two, known=["c", "a"], calendar={"year": 0, "day": 1})
    assert about.preparation.features == ("a", "b", "c", "c at the target", "a at the target", "day sin 1", "day cos 1")
    assert about.preparation.center[3:5] == (about.preparation.center[2], about.preparation.center[0])
    for first, rows in ((0, 40), (40, 60)):
        part = table[first : first + rows]
        np.testing.assert_array_equal(part[:-4, 3:5], part[4:, [2, 0]])
        assert np.isnan(part[-4:, 3:5]).all(), "beyond the last row nothing is known"


def test_what_is_known_in_advance_is_filled_like_an_input(normalized: Any) -> None:
    raw = RANDOM.normal(5, 3, (40, 2))
    raw[20, 0] = np.nan
    _, table = normalized(raw, known=["a"], fill="1h")
    assert table[16, 2] == table[20, 0] == table[19, 0]


def test_a_window_is_given_what_is_known_of_its_target(
    tmp_path: Path, make_problem: Make, write_ingested: Write
) -> None:
    """And loses no forecast by it: the rows at the end that know of nothing after them are inputs of none."""
    raw = RANDOM.normal(5, 3, (80, 2))
    write_ingested(tmp_path / "ingest", [raw])
    counts = []
    for known in ([], ["a"]):
        problem = make_problem(2, known=known)
        about = normalize(problem, "standard", tmp_path / "ingest", tmp_path / "out")
        windows = window(problem, 1, tmp_path / "out", tmp_path / "windows")
        counts.append(windows.windows)
        if known:
            test = reading.read_batches(tmp_path / "out", tmp_path / "windows", torch.device("cpu"))["test"]
            positions = torch.arange(len(test))
            targets = (test.find_rows(positions) + windows.delay).numpy()
            expected = (raw[targets, 0] - about.preparation.center[0]) / about.preparation.scale[0]
            x_BTF = test.select(positions).x_BTF
            np.testing.assert_allclose(x_BTF[:, -1, 2], expected, rtol=1e-6)
    assert counts[0] == counts[1]


@pytest.mark.parametrize(
    ("known", "message"),
    [(["b"], "the target is what is not known in advance"), (["x"], "not features"), (["a", "a"], "twice")],
)
def test_what_cannot_be_known_in_advance_is_refused(make_problem: Make, known: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_problem(known=known)
