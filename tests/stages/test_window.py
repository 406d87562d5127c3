"""window and the batches it makes: the lecture's generator row for row, and a loop over rows for all else."""

import os
import tempfile
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from architectures import REGISTRY, Axes
from problems.errors import RecastError
from problems.problem import Problem
from problems.sources.jena import ARCHIVE_VARIABLE
from problems.split import LectureSplit
from project.settings.sections import TrainSettings
from stages import window as stage
from stages.ingest import ingest
from stages.normalize import normalize
from stages.tables.windows import TableWindows, read_ranges
from stages.training import reading, table_batches
from stages.training.objectives import choose_objective
from stages.training.scoring import mean_scores
from stages.window import SPLITS, count_rows, subtract_ranges, window

Make = Callable[..., Problem]
Write = Callable[..., None]
START = datetime(2020, 1, 1)
CPU = torch.device("cpu")


def never(moment: datetime) -> int:
    """The lecture's split counts rows and asks for no moment."""
    raise AssertionError(moment)


# The lecture's "Timeseries Data Generator", word for word.
# fmt: off
def generator(data, lookback, delay, min_index, max_index, shuffle=False,
              batch_size=128, step=6):
    if max_index is None:
        max_index = len(data) - delay - 1
    i = min_index + lookback
    while 1:
        if shuffle:
            rows = np.random.randint(min_index + lookback, max_index, size=batch_size)
        else:
            if i + batch_size >= max_index:
                i = min_index + lookback
            rows = np.arange(i, min(i + batch_size, max_index))
            i += len(rows)
        samples = np.zeros((len(rows), lookback // step, data.shape[-1]))
        targets = np.zeros((len(rows),))
        for j, row in enumerate(rows):  # noqa: B007
            indices = range(rows[j] - lookback, rows[j], step)
            samples[j] = data[indices]
            targets[j] = data[rows[j] + delay][1]
        yield samples, targets
# fmt: on


def list_rows(rows_K2: np.ndarray) -> list[int]:
    """The rows of ranges, one by one."""
    return [row for first, until in rows_K2.tolist() for row in range(first, until)]


class Lecture:
    """A gapless series of one row a day under the split `lecture`, as Recast and as the lecture read it.

    The lecture's 200,000 and 300,000 rows of ten minutes are 1,388 and 2,083 days.
    """

    lookback, step, delay, cuts, rows = 20, 2, 3, (1388, 2083), 2600

    def __init__(self, folder: Path, make_problem: Make, write_ingested: Write) -> None:
        self.raw = np.random.default_rng(0).normal(5, 3, (self.rows, 3)).round(2)
        self.raw[:, 0] = np.arange(self.rows)  # which identifies a window
        write_ingested(folder / "ingest", [self.raw], cadence=timedelta(days=1))
        problem = make_problem(split="lecture", window={"lookback": "20d", "step": "2d", "delay": "3d"})
        self.table = normalize(problem, "standard", folder / "ingest", folder / "normalize")
        self.windowing = window(problem, 1, folder / "normalize", folder / "window")
        self.data = reading.read_batches(folder / "normalize", folder / "window", CPU)
        self.rows_by_split = {split: list_rows(read_ranges(folder / "window", split)) for split in SPLITS}

    def generated(self, min_index: int, max_index: int | None, shuffle: bool) -> Iterator[tuple[Any, Any, Any]]:
        """The lecture's batches, with the rows that they are of."""
        data = (self.raw - self.table.preparation.center) / self.table.preparation.scale
        for samples, targets in generator(
            data, self.lookback, self.delay, min_index, max_index, shuffle, 128, self.step
        ):
            first = samples[:, 0, 0] * self.table.preparation.scale[0] + self.table.preparation.center[0]
            yield first.round().astype(int) + self.lookback, samples, targets


@pytest.fixture(scope="module")
def lecture(tmp_path_factory: pytest.TempPathFactory, make_problem: Make, write_ingested: Write) -> Lecture:
    return Lecture(tmp_path_factory.mktemp("lecture"), make_problem, write_ingested)


def test_lecture_scales_by_mean_and_deviation_of_its_training_rows(lecture: Lecture) -> None:
    training = lecture.raw[: lecture.cuts[0]]
    np.testing.assert_allclose(lecture.table.preparation.center, training.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(lecture.table.preparation.scale, training.std(axis=0), rtol=1e-12)


def test_lecture_trains_on_the_rows_that_its_generator_draws(lecture: Lecture) -> None:
    np.random.seed(0)
    drawn = lecture.generated(0, lecture.cuts[0], shuffle=True)
    rows = {row for _ in range(300) for row in next(drawn)[0].tolist()}
    assert rows == set(lecture.rows_by_split["train"]), "38,400 draws of 1,368 rows leave none out"


@pytest.mark.parametrize(("split", "first", "until"), [("validation", 1389, 2083), ("test", 2084, None)])
def test_lecture_evaluates_the_rows_that_its_generator_counts_through(
    lecture: Lecture, split: str, first: int, until: int | None
) -> None:
    """The lecture's generator wraps before its last rows, whole batch or not; Recast forecasts these as well."""
    counted: list[int] = []
    for rows, _, _ in lecture.generated(first, until, shuffle=False):
        if counted and rows[0] == counted[0]:
            break
        counted += rows.tolist()
    window_rows = lecture.rows_by_split[split]
    assert window_rows[: len(counted)] == counted
    assert 0 < len(window_rows) - len(counted) <= 128
    end = until or lecture.rows - lecture.delay - 1
    assert window_rows == list(range(first + lecture.lookback, end))


@pytest.mark.parametrize(
    ("split", "first", "until", "shuffle"),
    [("train", 0, 1388, True), ("validation", 1389, 2083, False), ("test", 2084, None, False)],
)
def test_lecture_windows_are_equal_bit_for_bit(
    lecture: Lecture, split: str, first: int, until: int | None, shuffle: bool
) -> None:
    drawn = lecture.generated(first, until, shuffle)
    for _ in range(5):
        rows, samples, targets = next(drawn)
        x_BTF, y_BSK, *_ = lecture.data[split].gather(torch.from_numpy(rows))
        np.testing.assert_array_equal(x_BTF.numpy(), samples.astype(np.float32))
        np.testing.assert_array_equal(y_BSK[:, 0, 0].numpy(), targets.astype(np.float32))


def test_a_network_is_told_the_horizon_from_the_last_input(lecture: Lecture) -> None:
    shape = lecture.windowing.shape
    assert (shape.steps, shape.features, shape.target) == (10, 3, 1)
    assert shape.horizon == 2.5, "the last input is a step of two days before the row, the target three days after it"
    assert shape.day == 0.5


@given(minutes=st.integers(1, 60 * 24 * 30))
def test_lecture_cuts_are_whole_rows_of_exact_time(minutes: int) -> None:
    cadence = timedelta(minutes=minutes)
    rows = 300_000 * 10 // minutes + 1
    assert LectureSplit().find_cuts(rows, cadence, START, never)[:3] == (
        0,
        200_000 * 10 // minutes,
        300_000 * 10 // minutes,
    )
    with pytest.raises(RecastError, match="lecture needs more than"):
        LectureSplit().find_cuts(rows - 1, cadence, START, never)


def test_lecture_cuts_do_not_suffer_from_rounding() -> None:
    cadence = timedelta(seconds=15625)  # 200,000 * (600 / 15,625) is 7,679.999... in floats
    assert LectureSplit().find_cuts(11_521, cadence, START, never) == (0, 7680, 11_520, 11_521)


# Windows by a loop over rows, for any table. A row is 100 days, so that `lecture` cuts at rows 13 and 20.

ROW = timedelta(days=100)


def format_days(rows: int) -> str:
    return f"{rows * ROW.days}d"


class Case:
    """One series or more with gaps and nulls, under some split and windows."""

    def __init__(self, data: st.DataObject) -> None:
        draw = data.draw
        self.split: Any = draw(st.sampled_from(["lecture", "half", "fractions", "dates"]))
        self.fill = draw(st.integers(0, 3))
        self.step = draw(st.integers(1, 4))
        self.lookback = self.step * draw(st.integers(1, 4))
        self.delay = draw(st.integers(1, 6))
        lengths = draw(st.lists(st.integers(30, 90), min_size=1, max_size=3))
        random = np.random.default_rng(draw(st.integers(0, 2**32)))
        gappy, nullish = draw(st.sampled_from([0, 0.02, 0.1])), draw(st.sampled_from([0, 0.02, 0.1]))
        self.series, self.times = [], []
        for rows in lengths:
            # After a gap the rows need not stand on the same beat.
            extra = np.where(random.random(rows) < gappy, random.choice([-0.5, 0.5, 1, 7], rows), 0)
            self.times.append([START + float(k) * ROW for k in np.arange(rows) + np.cumsum(extra)])
            values = random.normal(size=(rows, 2)).astype(np.float32)
            values[random.random(values.shape) < nullish] = np.nan
            values[0] = 1
            self.series.append(values)
        self.filled = [self.fill_forward(*pair) for pair in zip(self.series, self.times, strict=True)]
        if self.split == "fractions":
            self.split = {"train": 0.3, "validation": 0.4}
        if self.split == "dates":
            self.split = {"validation_from": "2022-06-01", "test_from": "2024-01-01"}

    def fill_forward(self, values: np.ndarray, times: list[datetime]) -> np.ndarray:
        """The last value of at most `fill` rows before, where no row is missing since."""
        filled = values.copy()
        for row, column in np.argwhere(np.isnan(values)):
            for past in range(row - 1, max(row - self.fill, 0) - 1, -1):
                if times[past + 1] - times[past] != ROW:
                    break
                if not np.isnan(values[past, column]):
                    filled[row, column] = values[past, column]
                    break
        return filled

    def problem(self, make_problem: Make) -> Problem:
        lengths = {
            "lookback": format_days(self.lookback),
            "step": format_days(self.step),
            "delay": format_days(self.delay),
        }
        filled = {"fill": format_days(self.fill)} if self.fill else {}
        return make_problem(2, split=self.split, window=lengths, **filled)

    def cuts(self, times: list[datetime]) -> tuple[int, int]:
        n = len(times)
        if self.split == "lecture":
            return 13, 20
        if self.split == "half":
            return n // 2, n // 2 + n // 4
        if "train" in self.split:
            return int(0.3 * n), int(0.3 * n) + int(0.4 * n)
        moments = [datetime.fromisoformat(self.split[key]) for key in ("validation_from", "test_from")]
        return sum(time < moments[0] for time in times), sum(time < moments[1] for time in times)

    def windows(self, split: str, gaps: bool = True, nulls: bool = True) -> list[int]:
        """The rows at which a window may stand, each tried by itself: inputs may be filled, a target may not."""
        lecture = self.split == "lecture"
        ahead = self.delay if lecture else self.delay - self.step
        rows, first = [], 0
        for values, filled, times in zip(self.series, self.filled, self.times, strict=True):
            n, (train, validation) = len(values), self.cuts(times)
            begin, end = {"train": (0, train), "validation": (train, validation), "test": (validation, n)}[split]
            begin += lecture and split != "train"
            for row in range(n + self.step):
                inputs, target = range(row - self.lookback, row, self.step), row + ahead
                inside = begin <= inputs[0] and inputs[-1] < end and target < n
                # The lecture's generator stops before the row `max_index`, and one row before the table's end.
                inside &= (row < end and target < n - 1) if lecture else target < end
                if not inside:
                    continue
                span = range(inputs[0], max(inputs[-1], target) + 1)
                if gaps and any(times[k + 1] - times[k] != ROW for k in span[:-1]):
                    continue
                if nulls and (np.isnan(filled[inputs[0] : inputs[-1] + 1]).any() or np.isnan(values[target, 1])):
                    continue
                rows.append(first + row)
            first += n
        return rows


@settings(max_examples=100)
@given(data=st.data())
def test_windows_equal_a_loop_over_rows(data: st.DataObject, make_problem: Make, write_ingested: Write) -> None:
    case = Case(data)
    problem = case.problem(make_problem)
    expected = {split: case.windows(split) for split in SPLITS}
    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "CHUNK_ROWS", 7)
        folder = Path(place)
        write_ingested(folder / "ingest", case.series, case.times, ROW)

        def run_stages() -> TableWindows:
            normalize(problem, "none", folder / "ingest", folder / "normalize")
            return window(problem, 1, folder / "normalize", folder / "window")

        if not all(expected.values()):
            with pytest.raises(RecastError, match=r"no window fits|leave a part of the series empty"):
                run_stages()
            return
        assume(
            all(0 < train < validation < len(times) for times in case.times for train, validation in [case.cuts(times)])
        )
        about = run_stages()
        ranges = {split: read_ranges(folder / "window", split) for split in SPLITS}
        loaded = reading.read_batches(folder / "normalize", folder / "window", CPU)
        values = np.concatenate(case.filled)
        for split, rows_K2 in ranges.items():
            rows = list_rows(rows_K2)
            assert rows == expected[split]
            assert (np.diff(rows_K2.ravel()) > 0).all(), "sorted, not empty, apart from each other"
            gapless, whole = len(case.windows(split, nulls=False)), len(case.windows(split, gaps=False, nulls=False))
            assert about.windows[split] == len(loaded[split]) == len(rows)
            assert about.lost_to_gaps[split] == whole - gapless
            assert about.lost_to_nulls[split] == gapless - len(rows)
            positions = torch.arange(len(rows))
            assert loaded[split].find_rows(positions).tolist() == rows
            x_BTF, y_BSK, *_ = loaded[split].select(positions)
            last = [row - case.step for row in rows]
            ahead = case.delay + (case.step if case.split == "lecture" else 0)
            np.testing.assert_array_equal(x_BTF[:, -1].numpy(), values[last])
            np.testing.assert_array_equal(y_BSK[:, 0, 0].numpy(), values[[row + ahead for row in last], 1])
            assert not x_BTF.isnan().any()
            assert not np.isnan(np.concatenate(case.series)[[row + ahead for row in last], 1]).any(), "observed"
        assert TableWindows.read(folder / "window") == about


@settings(max_examples=60)
@given(data=st.data())
def test_no_row_is_seen_by_two_splits(data: st.DataObject) -> None:
    """Of the reference above, to which the stage is equal: inputs never, targets under `lecture` only."""
    case = Case(data)
    lecture = case.split == "lecture"
    inputs = [{k for row in case.windows(s) for k in range(row - case.lookback, row, case.step)} for s in SPLITS]
    assert not (inputs[0] & inputs[1])
    assert not (inputs[1] & inputs[2])
    assert not (inputs[0] & inputs[2])
    ahead = case.delay if lecture else case.delay - case.step
    seen = [own | {row + ahead for row in case.windows(s)} for s, own in zip(SPLITS, inputs, strict=True)]
    assert lecture or not (seen[0] & seen[1] or seen[1] & seen[2] or seen[0] & seen[2])


spans = st.lists(st.tuples(st.integers(-5, 60), st.integers(0, 15)).map(lambda span: (span[0], sum(span))), max_size=8)


@given(spoilt=spans, cuts=st.sets(st.integers(0, 60), max_size=8))
def test_subtract_is_the_difference_of_sets(spoilt: list[tuple[int, int]], cuts: set[int]) -> None:
    ends = sorted(cuts)[: len(cuts) // 2 * 2]
    rows_K2 = np.array(ends, dtype=np.int64).reshape(-1, 2)
    left = subtract_ranges(rows_K2, np.array(spoilt, dtype=np.int64).reshape(-1, 2))
    expected = set(list_rows(rows_K2)) - {row for first, until in spoilt for row in range(first, until)}
    assert list_rows(left) == sorted(expected)
    assert count_rows(left) == len(expected)
    assert left.shape == (len(left), 2)
    assert (np.diff(left.ravel()) > 0).all(), "no empty range, and none that touches the next"


def test_a_length_that_is_no_whole_number_of_rows_is_named(
    tmp_path: Path, make_problem: Make, write_ingested: Write
) -> None:
    write_ingested(tmp_path / "ingest", [np.ones((60, 2))])
    problem = make_problem(2, window={"lookback": "6h", "step": "1h", "delay": "90m"})
    normalize(problem, "none", tmp_path / "ingest", tmp_path / "normalize")
    message = r"^problems\.weather\.window\.delay: 90m is not a whole number of rows, which come every 1h"
    with pytest.raises(RecastError, match=message):
        window(problem, 1, tmp_path / "normalize", tmp_path / "weather")


def test_a_cadence_below_a_second_is_a_whole_number_of_rows(
    tmp_path: Path, make_problem: Make, write_ingested: Write
) -> None:
    """0.3 / 0.1 is 2.9999999999999996 in floats."""
    write_ingested(tmp_path / "ingest", [np.ones((60, 2))], cadence=timedelta(milliseconds=100))
    problem = make_problem(2, window={"lookback": "0.3s", "step": "0.1s", "delay": "0.7s"})
    normalize(problem, "none", tmp_path / "ingest", tmp_path / "normalize")
    about = window(problem, 1, tmp_path / "normalize", tmp_path / "window")
    assert (about.lookback, about.step, about.delay) == (3, 1, 6)


def test_a_split_without_a_window_says_what_one_takes(
    tmp_path: Path, make_problem: Make, write_ingested: Write
) -> None:
    write_ingested(tmp_path / "ingest", [np.ones((30, 2))])
    problem = make_problem(2)
    normalize(problem, "none", tmp_path / "ingest", tmp_path / "normalize")
    with pytest.raises(
        RecastError, match=r"validation: no window fits.*30 rows every 1h; a window takes 9 consecutive rows"
    ) as it:
        window(problem, 1, tmp_path / "normalize", tmp_path / "weather")
    assert "problems.weather.window.lookback" in str(it.value)
    assert "problems.weather.table.fill" in str(it.value)
    assert not (tmp_path / "weather").exists()


def test_a_filled_target_makes_no_window_and_a_filled_input_does(
    tmp_path: Path, make_problem: Make, write_ingested: Write
) -> None:
    """In every split; b is the target."""
    raw = np.random.default_rng(0).normal(size=(120, 2))
    target_rows = [20, 70, 110]
    raw[target_rows, 1] = np.nan
    raw[40, 0] = np.nan
    write_ingested(tmp_path / "ingest", [raw])
    lengths = {"lookback": "4h", "step": "1h", "delay": "3h"}
    targets = {}
    for fill in ({}, {"fill": "2h"}):
        problem = make_problem(2, window=lengths, **fill)
        normalize(problem, "standard", tmp_path / "ingest", tmp_path / "normalize")
        about = window(problem, 1, tmp_path / "normalize", tmp_path / "window")
        # The delay counts from the last input, which is the row before the one that names the window.
        targets[bool(fill)] = {
            row + 2 for split in SPLITS for row in list_rows(read_ranges(tmp_path / "window", split))
        }
        whole = {"train": 60 - 6, "validation": 30 - 6, "test": 30 - 6}
        assert {s: about.windows[s] + about.lost_to_nulls[s] for s in SPLITS} == whole
    inside = {target for first, until in ((0, 60), (60, 90), (90, 120)) for target in range(first + 6, until)}
    assert targets[True] == inside - set(target_rows)
    # Unfilled, a null also spoils each window of which it is an input: those with targets 3 to 6 rows later.
    assert targets[False] == targets[True] - {row + k for row in [*target_rows, 40] for k in (3, 4, 5, 6)}


@pytest.fixture
def loaded(
    tmp_path: Path, make_problem: Make, write_ingested: Write
) -> Callable[[int], dict[str, table_batches.TableBatches]]:
    """Batches of two series under a training stride."""

    def load(stride: int) -> dict[str, table_batches.TableBatches]:
        random = np.random.default_rng(0)
        write_ingested(tmp_path / "ingest", [random.normal(size=(n, 2)) for n in (90, 131)])
        problem = make_problem(2)
        normalize(problem, "standard", tmp_path / "ingest", tmp_path / "normalize")
        window(problem, stride, tmp_path / "normalize", tmp_path / "window")
        return reading.read_batches(tmp_path / "normalize", tmp_path / "window", CPU)

    return load


@pytest.mark.parametrize("stride", [1, 2, 7])
def test_a_stride_takes_every_nth_training_window(loaded: Any, stride: int) -> None:
    every, some = loaded(1), loaded(stride)
    rows = {split: data.find_rows(torch.arange(len(data))).tolist() for split, data in every.items()}
    assert some["train"].find_rows(torch.arange(len(some["train"]))).tolist() == rows["train"][::stride]
    for split in ("validation", "test"):
        assert some[split].find_rows(torch.arange(len(some[split]))).tolist() == rows[split]


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_every_window_once_in_order_or_shuffled(loaded: Any, size: int) -> None:
    data = loaded(1)["train"]
    x_NTF, y_NSK, *_ = data.select(torch.arange(len(data)))
    in_order = list(data.iterate_in_order(size))
    assert len(in_order) == data.count_batches(size)
    assert torch.equal(torch.cat([batch.x_BTF for batch in in_order]), x_NTF)
    assert torch.equal(torch.cat([batch.y_BSK for batch in in_order]), y_NSK)
    shuffled = list(data.iterate_shuffled(size, None, torch.Generator().manual_seed(1)))
    y_shuffled_N = torch.cat([batch.y_BSK for batch in shuffled]).flatten()
    assert not torch.equal(y_shuffled_N, y_NSK.flatten())
    assert torch.equal(y_shuffled_N.sort().values, y_NSK.flatten().sort().values)
    assert all(len(batch.y_BSK) == size for batch in shuffled[:-1])


def test_an_epoch_of_steps_draws_with_replacement_from_all_windows(loaded: Any) -> None:
    data = loaded(1)["train"]
    drawn = list(data.iterate_shuffled(8, 200, torch.Generator().manual_seed(1)))
    again = list(data.iterate_shuffled(8, 200, torch.Generator().manual_seed(1)))
    assert [batch.y_BSK.tolist() for batch in drawn] == [batch.y_BSK.tolist() for batch in again]
    assert {len(batch.y_BSK) for batch in drawn} == {8}
    y_N = data.select(torch.arange(len(data))).y_BSK.flatten()
    assert set(torch.cat([batch.y_BSK for batch in drawn]).flatten().tolist()) == set(y_N.tolist())


@pytest.mark.skipif(
    not os.environ.get(ARCHIVE_VARIABLE), reason=f"{ARCHIVE_VARIABLE} names no file of the Jena station"
)
@pytest.mark.parametrize(
    ("split", "part", "celsius", "normalized"),
    [("lecture", "validation", 2.56, 0.290), ("half", "validation", 2.44, None), ("half", "test", 2.62, None)],
)
def test_the_last_temperature_is_off_by_what_the_lecture_says(
    tmp_path: Path, split: str, part: str, celsius: float, normalized: float | None
) -> None:
    problem = Problem.model_validate(
        {
            "title": "Jena",
            "source": {"kind": "jena"},
            "table": {"features": ["p (mbar)", "T (degC)"], "target": "T (degC)", "unit": "°C"},
            "split": split,
            "window": {"lookback": "5d", "step": "1h", "delay": "24h"},
        }
    )
    (tmp_path / "raw").mkdir()
    problem.source.fetch(tmp_path / "raw", lambda done, total: None, 1)
    ingest(problem, tmp_path / "raw", tmp_path / "ingest")
    table = normalize(problem, "standard", tmp_path / "ingest", tmp_path / "normalize")
    windowing = window(problem, 1, tmp_path / "normalize", tmp_path / "window")
    objective = choose_objective(windowing, TrainSettings())
    data = reading.read_batches(tmp_path / "normalize", tmp_path / "window", CPU)[part]
    persistence = REGISTRY["persistence"](windowing.shape, Axes())
    mae = objective.compute_measures(mean_scores(persistence, data, objective))["mae"]
    assert mae * table.preparation.target_scaling[1] == pytest.approx(celsius, abs=0.01)
    assert normalized is None or mae == pytest.approx(normalized, abs=0.001)
