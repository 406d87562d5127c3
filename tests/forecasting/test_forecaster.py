"""What is served is what was evaluated: a forecaster from a user's rows against the stages' windows of the same."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file

from architectures import REGISTRY, Axes, WindowShape
from architectures.combined import build_network
from forecasting.about import About
from forecasting.forecaster import DamagedModel, Forecaster
from forecasting.windows import InputError
from learning.scores import sort_quantiles
from lifecycle.serving.requests import parse_request
from problems.errors import RecastError
from problems.problem import Problem
from project import paths
from project.settings.grid import expand_grid
from project.settings.sections import Grid, TrainSettings
from stages.evaluation.forecasts import Forecasts, Targets, build_bands
from stages.normalize import normalize
from stages.tables.table import Table, read_times
from stages.tables.windows import TableWindows
from stages.tracking.served_model import build_forecaster, describe_model, read_example_rows
from stages.training import fit, table_batches
from stages.training.networks import load_network
from stages.training.objectives import choose_objective, choose_shape
from stages.training.results import describe_trial
from stages.training.scoring import answer_windows
from stages.training.trials import Trial, trial_folder, write_trial
from stages.window import window
from tests.conftest import CADENCE, START

ROWS = 400
LEVELS = (0.5, 0.8)


@dataclass(frozen=True)
class Offline:
    """A trial with weights, the rows that it is of, and what the stages make of them.

    Attributes:
        ingested: the table that `ingest` has written.
        forecasts: by split, series and time of the last input: (L, O), in the target's unit.
    """

    trial: Trial
    ingested: pl.DataFrame
    forecasts: dict[str, dict[tuple[str, datetime], np.ndarray]]


@pytest.fixture(scope="module")
def make_offline(
    make_problem: Callable[..., Problem], write_ingested: Callable[..., None], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Offline]]:
    """A problem of two series with a gap and nulls, and a network with its initial weights, in an empty folder.

    The folder is the current one until the next is made.
    """

    def make(architecture: str = "gru", train: dict[str, Any] | None = None, **problem: Any) -> Offline:
        patch.chdir(tmp_path_factory.mktemp("offline"))
        ingested, normalized, windowed = (
            paths.stage_folder(name, "demo") for name in ("ingest", "normalize", "window")
        )
        generator = np.random.default_rng(0)
        series, moments = [], []
        for i in range(2):
            hours = np.arange(ROWS)
            daily = 10 + i + 5 * np.sin(2 * np.pi * hours / 24)[:, None] * [1.0, 0.5, 2.0]
            values = np.round(daily + generator.normal(size=(ROWS, 3)), 2)
            values[generator.random((ROWS, 3)) < 0.01] = np.nan
            later = (hours >= 150) * timedelta(hours=7)
            series.append(values)
            moments.append([START + k * CADENCE + gap for k, gap in zip(hours.tolist(), later, strict=True)])
        write_ingested(ingested, series, moments)
        declared = make_problem(**{"fill": "3h", **problem})
        normalize(declared, "standard", ingested, normalized)
        windowing = window(declared, 1, normalized, windowed)
        grid = Grid.model_validate_json(json.dumps({"seeds": [0], "architectures": {architecture: {}}}))
        (configuration,) = expand_grid(grid)
        trial = Trial("demo", configuration, 0, TrainSettings.model_validate(train or {}), "data", "code")
        trial_folder(trial).mkdir(parents=True)
        if trial.trainable:
            network = fit.initialize_network(
                architecture, configuration.hyperparameters, choose_shape(windowing, trial.train), trial.seed
            )
            save_file(network.state_dict(), trial_folder(trial) / "weights.safetensors")
        write_trial(trial_folder(trial), describe_trial(trial))
        return Offline(trial, pl.read_parquet(ingested / "table.parquet"), _forecasts(trial, normalized, windowed))

    with pytest.MonkeyPatch.context() as patch:
        yield make


def _forecasts(trial: Trial, normalized: Path, windowed: Path) -> dict[str, dict[tuple[str, datetime], np.ndarray]]:
    """What `evaluate` would forecast at every window."""
    windowing, table = TableWindows.read(windowed), Table.read(normalized)
    network, moments = load_network(trial, windowing), read_times(normalized)
    center, scale = table.preparation.target_scaling
    actual: dict[str, dict[tuple[str, datetime], np.ndarray]] = {}
    for split, data in table_batches.read_table_batches(normalized, windowed, windowing, torch.device("cpu")).items():
        y_NSO = (
            torch.cat([sort_quantiles(y_BSO) for y_BSO, _ in answer_windows(network, data)]).double().numpy() * scale
            + center
        )
        rows = data.find_rows(torch.arange(len(data))).tolist()
        names = [next(s.name for s in table.series if row < s.first + s.rows) for row in rows]
        origins = [moments[row - windowing.step].item() for row in rows]
        actual[split] = dict(zip(zip(names, origins, strict=True), y_NSO, strict=True))
    return actual


def forecaster(offline: Offline, levels: tuple[float, ...] = LEVELS) -> Forecaster:
    about = describe_model(offline.trial, "°C", synthetic=False, levels=levels, commit="0123abc")
    return build_forecaster(offline.trial, about)


SEASONS = {"calendar": {"year": 1, "day": 2}, "climatology": {"year": 1, "day": 1}}
LEADS = {"lookback": "6h", "step": "2h", "delay": "6h", "first": "2h"}


@pytest.mark.parametrize(
    "problem",
    [
        {},
        {"fill": None},
        SEASONS,
        {"window": LEADS, **SEASONS},
        {"known": ["c"]},
        {"known": ["a", "c"], "window": LEADS, **SEASONS},
        {"window": {"lookback": "5h", "step": "1h", "delay": "3h"}, "train": {"loss": "pinball"}},
        {"architecture": "seasonal_naive", "window": {"lookback": "72h", "step": "1h", "delay": "24h"}},
    ],
    ids=["fill", "no fill", "seasons", "leads", "known", "all", "quantiles", "baseline"],
)
def test_a_served_forecast_is_the_offline_forecast_of_the_same_window(
    make_offline: Callable[..., Offline], problem: dict[str, Any]
) -> None:
    offline = make_offline(**problem)
    served = forecaster(offline)
    about, table = served.about, offline.ingested
    middle = about.quantiles.index(0.5) if about.quantiles else 0

    actual = served.forecast(table, all_windows=True)
    by_window = {
        (series, origin): part for (series, origin), part in actual.group_by("series", "origin", maintain_order=True)
    }
    offline_windows = {**offline.forecasts["train"], **offline.forecasts["validation"], **offline.forecasts["test"]}
    assert len({series for series, _ in offline_windows}) == 2
    for key, y_SO in offline_windows.items():
        assert by_window[key]["forecast"].to_numpy() == pytest.approx(y_SO[:, middle], abs=1e-5)

    # From no more than the window's own rows, as a user sends them.
    carried = timedelta(hours=3) if about.preparation and about.preparation.table.fill else timedelta(0)
    others = [name for name in "abc" if name not in problem.get("known", ())]
    for (series, origin), y_SO in list(offline_windows.items())[:: len(offline_windows) // 7]:
        first = origin - (about.window_rows - 1) * CADENCE - carried
        last = origin + about.horizon_rows * CADENCE if "known" in problem else origin
        rows = table.filter(pl.col("series") == series, pl.col("time").is_between(first, last))
        rows = rows.with_columns(pl.when(pl.col("time") <= origin).then(pl.col(others)))
        alone = served.forecast(rows.sample(fraction=1, shuffle=True, seed=1))
        assert alone["forecast"].to_numpy() == pytest.approx(y_SO[:, middle], abs=1e-5)
        numbers = [name for name, dtype in alone.schema.items() if dtype == pl.Float64]
        np.testing.assert_allclose(alone.select(numbers), by_window[series, origin].select(numbers), atol=1e-5)
        assert alone["inputs"].to_list() == by_window[series, origin]["inputs"].to_list()
        assert alone["target_time"].to_list() == [origin + (about.step + lead) * CADENCE for lead in about.leads]


@pytest.mark.parametrize("train", [{}, {"loss": "pinball"}], ids=["conformal", "quantiles"])
def test_intervals_are_those_of_the_evaluation(make_offline: Callable[..., Offline], train: dict[str, Any]) -> None:
    offline = make_offline(window=LEADS, train=train)
    served = forecaster(offline, levels=(0.5, 0.6, 0.95))
    normalized, windowed = paths.stage_folder("normalize", "demo"), paths.stage_folder("window", "demo")
    windowing, table = TableWindows.read(windowed), Table.read(normalized)
    data = table_batches.read_table_batches(normalized, windowed, windowing, torch.device("cpu"))
    center, scale = table.preparation.target_scaling
    targets = {}
    for split in ("validation", "test"):
        rows_NL = data[split].find_target_rows(data[split].find_rows(torch.arange(len(data[split])))).numpy()
        observed_NL = data[split].targets_N[rows_NL].double().numpy() * scale + center
        targets[split] = Targets(observed_NL, rows_NL, read_times(normalized)[rows_NL])
    y_SNLO = {split: np.stack(list(offline.forecasts[split].values()))[None] for split in targets}
    quantiles = choose_objective(windowing, offline.trial.train).quantiles
    evaluated = build_bands(
        Forecasts(y_SNLO["validation"], y_SNLO["test"], quantiles), targets["validation"], targets["test"], (0.5, 0.6)
    )
    actual = served.forecast(offline.ingested, all_windows=True)
    keys = pl.DataFrame(
        list(offline.forecasts["test"]), schema={"series": pl.String, "origin": pl.Datetime("ms")}, orient="row"
    )
    same = keys.join(actual, on=["series", "origin"], how="left", maintain_order="left_right")
    for band in evaluated:
        for end, ends_SNL in (("low", band.low_SNL), ("high", band.high_SNL)):
            assert same[f"{end}_{band.interval.level:g}"].to_numpy() == pytest.approx(ends_SNL[0].ravel(), abs=1e-4)
    assert (actual["low_0.95"] <= actual["low_0.5"]).all()
    assert (actual["high_0.95"] >= actual["high_0.5"]).all()


def test_the_newest_window_is_cut_out_of_rows_that_end_with_gaps(make_offline: Callable[..., Offline]) -> None:
    """With what is known in advance after it, where anything is."""
    offline = make_offline(known=["c"], fill="2h")
    served = forecaster(offline)
    others = pl.when(pl.col("time") <= datetime(2020, 1, 12)).then(pl.col("a", "b"))
    rows = offline.ingested.with_columns(others)
    newest = served.forecast(served.window_builder.select_newest(rows))
    expected = served.forecast(rows, all_windows=True).group_by("series", maintain_order=True).last()
    numbers = ["origin", "inputs"]
    assert newest.select("series", *numbers).equals(expected.select("series", *numbers))
    assert newest["origin"].max() == datetime(2020, 1, 12)
    assert served.window_builder.select_newest(rows.head(3)).is_empty()


def test_a_sentinel_is_what_is_not_known(make_offline: Callable[..., Offline]) -> None:
    offline = make_offline(sentinels={"c": [-9999.0, 99.5]})
    served = forecaster(offline)
    rows = offline.ingested.filter(pl.col("series") == "series0").head(30).fill_null(1.0)
    for sentinel in (-9999.0, 99.5):
        with_sentinel, with_null = _cut(rows, "c", 28, sentinel), _cut(rows, "c", 28, None)
        for all_windows in (False, True):
            assert served.forecast(with_sentinel, all_windows).equals(served.forecast(with_null, all_windows))
        assert served.forecast(served.window_builder.select_newest(with_sentinel)).equals(served.forecast(with_null))
        both = [served.forecast_windows(parse_request(_body(part), served)) for part in (with_sentinel, with_null)]
        assert served.tabulate(both[0]).equals(served.tabulate(both[1]))
    # Of another column it is a value.
    assert (
        served.window_builder.find_implausible(_cut(rows, "a", 28, -9999.0).select("a", "b", "c").to_numpy())
        is not None
    )
    with pytest.raises(InputError, match="column 'c' has no value at 2020-01-02T01:00"):
        served.forecast(rows.with_columns(c=pl.lit(-9999.0)))


@pytest.fixture(scope="module")
def seasonal(make_offline: Callable[..., Offline]) -> tuple[Forecaster, pl.DataFrame]:
    """A forecaster that fills nothing and knows two series, and the rows that it is of."""
    offline = make_offline(fill=None, **SEASONS)
    return forecaster(offline), offline.ingested


def _body(rows: pl.DataFrame) -> bytes:
    """A request of the service for one window."""
    columns = rows.select("a", "b", "c").to_dict(as_series=False)
    times = [moment.isoformat() for moment in rows["time"]]
    return json.dumps({"time": times, "series": rows["series"][0], "columns": columns}).encode()


def _cut(rows: pl.DataFrame, column: str, at: int, value: Any) -> pl.DataFrame:
    return rows.with_columns(pl.when(pl.int_range(pl.len()) == at).then(pl.lit(value)).otherwise(column).alias(column))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows.tail(4), r"series series0: 4 rows are too few; a window takes 5 rows, one every 1h"),
        (lambda rows: rows.clear(), r"there are no rows; a window takes 5 rows"),
        (
            lambda rows: rows.filter(pl.col("time") != datetime(2020, 1, 4, 10)),
            r"series0: after 2020-01-04T09:00 comes 2020-01-04T11:00; a window takes 5 rows, .* up to 2020-01-04T12",
        ),
        (
            lambda rows: _cut(rows, "a", -3 + rows.height, None),
            r"series0: column 'a' has no value at 2020-01-04T10:00, which the window up to 2020-01-04T12:00 needs",
        ),
        (
            lambda rows: _cut(rows, "b", -1 + rows.height, float("nan")),
            r"column 'b' has no value at 2020-01-04T12:00",
        ),
        (lambda rows: _cut(rows, "b", 5, float("inf")), r"column 'b' is infinite at"),
        (lambda rows: pl.concat([rows, rows.tail(1)]), r"time 2020-01-04T12:00 does not come after the one before it"),
        (lambda rows: rows.drop("b"), r"there is no column 'b'; needed are time, a, b, c"),
        (lambda rows: rows.drop("time"), r"there is no column 'time'"),
        (
            lambda rows: rows.drop("series"),
            r"no column 'series', which says which series a row is of: series0, series1",
        ),
        (lambda rows: rows.with_columns(a=pl.lit("warm")), r"column 'a' holds String, not numbers"),
        (lambda rows: rows.with_columns(time=pl.lit(1)), r"column 'time' holds Int32, not times"),
        (lambda rows: _cut(rows, "time", 0, None), r"column 'time' is empty in 1 rows"),
        (
            lambda rows: rows.with_columns(series=pl.lit("elsewhere")),
            r"series elsewhere has no climatology",
        ),
    ],
)
def test_what_cannot_be_forecast_from_is_named(
    seasonal: tuple[Forecaster, pl.DataFrame], change: Callable[[pl.DataFrame], pl.DataFrame], message: str
) -> None:
    served, table = seasonal
    rows = table.filter(
        pl.col("series") == "series0", pl.col("time").is_between(datetime(2020, 1, 4), datetime(2020, 1, 4, 12))
    ).fill_null(10.0)
    assert served.forecast(rows).height == 1
    with pytest.raises(InputError, match=message):
        served.forecast(change(rows))


def test_what_is_known_in_advance_must_be_given_as_far_as_the_forecast_reaches(
    make_offline: Callable[..., Offline],
) -> None:
    offline = make_offline(known=["c"])
    rows = offline.ingested.filter(pl.col("series") == "series0").head(30).fill_null(10.0)
    future = pl.when(pl.int_range(pl.len()) < 26).then(pl.col("a", "b"))
    served = forecaster(offline)
    assert served.forecast(rows.with_columns(future))["origin"].item() == rows["time"][25]
    with pytest.raises(InputError, match=r"known in advance \(c\) must be given in 4 rows after 2020-01-02T01:00"):
        served.forecast(rows.with_columns(future).head(29))


def test_times_of_a_zone_and_columns_of_another_type_are_read(seasonal: tuple[Forecaster, pl.DataFrame]) -> None:
    served, table = seasonal
    rows = table.filter(pl.col("series") == "series0").head(20).fill_null(1.0)
    zoned = pl.col("time").dt.replace_time_zone("UTC").dt.convert_time_zone("Europe/Berlin").dt.cast_time_unit("us")
    other = rows.with_columns(zoned, pl.col("a").cast(pl.Float32), more=pl.lit("ignored"))
    assert served.forecast(other)["origin"].item() == rows["time"][-1]


def test_values_in_another_unit_are_told_from_those_of_training(seasonal: tuple[Forecaster, pl.DataFrame]) -> None:
    served, table = seasonal
    values = table.select("a", "b", "c").to_numpy().copy()
    assert served.window_builder.find_implausible(values) is None
    values[7, 1] = 10 + 273.15
    assert served.window_builder.find_implausible(values) == (
        "column 'b' holds 283.15, far outside "
        f"{served.about.ranges['b'][0]:g} to {served.about.ranges['b'][1]:g}, the range of the training rows: is it in "
        "another unit?"
    )


@pytest.fixture(scope="module")
def model_folder(make_offline: Callable[..., Offline], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A forecaster in a folder, as in that of an MLflow model."""
    served = forecaster(make_offline(**SEASONS))
    folder = tmp_path_factory.mktemp("model") / "artifacts"
    folder.mkdir(parents=True)
    places_ = (paths.stage_folder(name, "demo") for name in ("ingest", "normalize", "window"))
    served.write(folder, read_example_rows(served.about, *places_))
    return folder


@pytest.fixture
def stored(model_folder: Path, tmp_path: Path) -> Path:
    """The same, to be changed."""
    return Path(shutil.copytree(model_folder, tmp_path / "model" / "artifacts"))


def test_what_is_stored_is_loaded_and_forecasts_the_same(stored: Path) -> None:
    loaded = Forecaster.load(stored.parent)
    example = pl.read_parquet(stored / "example.parquet")
    assert loaded.forecast(example).equals(pl.read_parquet(stored / "answer.parquet"))
    assert example.height <= loaded.about.window_rows + 3, "the window and what is carried into it"
    assert (loaded.about.problem, loaded.about.unit, loaded.about.lead_names) == ("demo", "°C", ("4h",))
    assert not [file for file in stored.iterdir() if file.suffix not in (".json", ".parquet", ".safetensors")]


@pytest.mark.parametrize(
    ("objective", "shape", "answers"),
    [
        ("classes", {"codes": 9, "features": 1, "each": True, "outputs": 9, "carried": True}, (2, 12, 9)),
        ("labels", {"features": 5, "each": True, "outputs": 5}, (2, 12, 5)),
        ("binary", {"codes": 9, "features": 1}, (2,)),
        ("value", {"features": 2}, (2,)),
    ],
)
def test_a_forecaster_of_sequences_is_stored_and_takes_windows(
    objective: str, shape: dict[str, Any], answers: tuple[int, ...], tmp_path: Path
) -> None:
    windows = WindowShape(**{"steps": 12, "target": None, "horizon": 0, "day": 0, **shape})
    network = fit.initialize_network(
        "gru", REGISTRY["gru"].Hyperparameters.model_validate({"units": 4}), windows, seed=0
    )
    served = Forecaster(
        About("demo", "key", "gru", {"units": 4}, windows, objective, "", synthetic=True, code="", data="", commit=""),
        network,
    )
    example = np.arange(24 * windows.features).reshape(2, 12, -1) % 9
    served.write(tmp_path, example if windows.codes else example.astype(np.float32))
    loaded = Forecaster.load(tmp_path)
    actual = loaded.answer(example)
    assert actual.shape == answers
    assert (actual == served.answer(example)).all()
    assert objective != "classes" or actual.sum(axis=-1) == pytest.approx(1)
    with pytest.raises(InputError, match="demo is a problem of sequences: it takes windows, not rows"):
        loaded.forecast(pl.DataFrame({"time": []}))
    stored = load_file(tmp_path / "example.safetensors")
    save_file({**stored, "answer": stored["answer"] + 0.1}, tmp_path / "example.safetensors")
    with pytest.raises(RecastError, match=r"a forecast differs by 0\.1 .* check out the commit that trained it"):
        Forecaster.load(tmp_path)


@pytest.mark.parametrize("change", ["output", "shape", "architecture", "form", "not there"])
def test_weights_under_changed_code_are_refused_with_the_commit_to_check_out(stored: Path, change: str) -> None:
    """Code cannot change here, so what is stored does."""
    weights, about = load_file(stored / "weights.safetensors"), json.loads((stored / "model.json").read_text())
    message = r"demo [0-9a-f]{16}, gru: this code is not the code .*git checkout 0123abc;"
    match change:
        case "output":
            weights[next(name for name in weights if weights[name].dim() == 1)] += 0.1
            message = r"a forecast differs by .*" + message[-20:]
        case "shape":
            weights.popitem()
        case "architecture":
            about["architecture"], message = "gone", r"gone: this code is not .*'gone'.*git checkout 0123abc;"
        case "form":
            del about["objective"]
            message = r"model.json: not a forecaster that this version of Recast has stored"
        case "not there":
            shutil.rmtree(stored)
            message = r"not a forecaster"
    if stored.exists():
        save_file(weights, stored / "weights.safetensors")
        (stored / "model.json").write_text(json.dumps(about))
    with pytest.raises(RecastError, match=message):
        Forecaster.load(stored.parent)


@pytest.mark.parametrize("name", ["weights.safetensors", "example.parquet", "answer.parquet"])
def test_a_damaged_file_of_a_model_is_named(stored: Path, name: str) -> None:
    (stored / name).write_bytes((stored / name).read_bytes()[:-20])
    with pytest.raises(DamagedModel, match=rf"{name}: cannot be read"):
        Forecaster.load(stored)


def test_a_baseline_of_an_earlier_version_is_read(make_offline: Callable[..., Offline], tmp_path: Path) -> None:
    """It gave one number for every quantile, and had nothing to store."""
    offline = make_offline("persistence")
    expected = forecaster(offline)
    about = replace(expected.about, shape=replace(expected.about.shape, outputs=3))
    rows = expected.window_builder.select_newest(offline.ingested)
    Forecaster(about, build_network("persistence", Axes(), about.shape)).write(tmp_path, rows)
    (tmp_path / "weights.safetensors").unlink()
    columns = ["forecast", *(column for column in expected.forecast(rows).columns if column.startswith("low_"))]
    assert Forecaster.load(tmp_path).forecast(rows).select(columns).equals(expected.forecast(rows).select(columns))
