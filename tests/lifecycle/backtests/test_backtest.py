"""Backtests: regular origins, data that end where they should, selection by validation, nothing trained twice."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.entities import Run

from flows.backtest import backtest
from flows.cli.backtest import backtest as command
from lifecycle.backtests import scoring
from lifecycle.backtests.plan import ORIGIN_EPOCH, Plan, find_data_end, place_origins
from lifecycle.backtests.result import Backtest, read_backtest, result_folder
from problems.errors import RecastError
from problems.problem import Problem
from project import paths
from project.settings.loading import load_settings
from stages.evaluation.number_format import format_number
from stages.tables.table import read_times
from stages.tracking import store
from stages.training.expansion import list_trials
from tests.support.checkout import Checkout

DAY = timedelta(days=1)
hours = st.integers(1, 24 * 40).map(lambda count: timedelta(hours=count))


@given(
    count=st.integers(1, 8),
    every=hours,
    test=hours,
    end=st.datetimes(datetime(2005, 1, 1), datetime(2030, 1, 1)),
    later=st.integers(0, 200).map(lambda count: timedelta(hours=count)),
)
def test_origins_are_the_latest_multiples_of_the_distance_between_them(
    count: int, every: timedelta, test: timedelta, end: datetime, later: timedelta
) -> None:
    plan = Plan(count, every, test, 3 * test, None, None)
    splits = [origin.split for origin in place_origins(plan, end)]
    assert len(splits) == count
    assert all(one.test_from + every == other.test_from for one, other in pairwise(splits))
    for split in splits:
        assert (split.test_from - ORIGIN_EPOCH) % every == timedelta(0)
        assert split.test_until is not None
        assert split.test_until - split.test_from == test
        assert split.test_from - split.validation_from == 3 * test
        assert split.train_from is None
    assert splits[-1].test_until is not None
    assert splits[-1].test_until <= end < splits[-1].test_until + every
    # A later backtest has the origins that still belong to it.
    later_origins = {origin.split.test_from for origin in place_origins(plan, end + later)}
    shift = (place_origins(plan, end + later)[0].split.test_from - splits[0].test_from) // every
    assert later_origins.issuperset(split.test_from for split in splits[shift:])


@pytest.fixture(scope="module")
def checkout(finished: Checkout, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    """A copy of a finished checkout, as the current folder of this process."""
    copied = finished.copy(tmp_path_factory.mktemp("backtest") / "checkout")
    with copied.entered():
        yield copied


@pytest.fixture(scope="module")
def found(checkout: Checkout) -> Backtest:
    return backtest("demo", origins=2, every="3d", validation="5d", train="8d")


def runs(kind: str) -> list[Run]:
    client = store.get_client()
    experiment = client.get_experiment_by_name("demo")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], f"tags.`recast.kind` = '{kind}'"))


def test_each_origin_has_the_rows_that_there_were_then(found: Backtest) -> None:
    assert [origin.name for origin in found.origins] == ["2020-01-19", "2020-01-22"]
    for origin in found.origins:
        normalized = paths.stage_folder("normalize", "demo", origin.name)
        moments = read_times(normalized)
        begin, end = datetime.fromisoformat(origin.train_from), datetime.fromisoformat(origin.test_until)
        assert moments[0] == np.datetime64(begin)
        assert moments[-1] == np.datetime64(end - timedelta(hours=1))
        assert datetime.fromisoformat(origin.test_from) - begin == 13 * DAY
        assert origin.windows["test"] == 72 - 48 - 24 + 1


def test_errors_are_those_of_a_loop_over_rows_and_validation_chooses(found: Backtest) -> None:
    table = pl.read_parquet("data/ingest/demo/table.parquet")
    target = dict(zip(table["time"], table["T (degC)"], strict=True))
    (persistence,) = (line for line in found.configurations if line.configuration == "persistence")
    for place, origin in enumerate(found.origins):
        test_from, until = datetime.fromisoformat(origin.test_from), datetime.fromisoformat(origin.test_until)
        errors = [
            abs(target[moment] - target[moment - DAY])
            for moment in target
            if test_from + 3 * DAY - timedelta(hours=1) <= moment < until
        ]
        cell = persistence.by_origin[place]
        assert cell is not None
        assert cell.test.mean == pytest.approx(np.mean(errors), rel=1e-5)
        assert origin.persistence == pytest.approx(cell.test.mean)
        by_validation = {
            line.configuration: score.validation.mean
            for line in found.configurations
            if (score := line.by_origin[place])
        }
        assert len(by_validation) == 3
        assert origin.best == min(by_validation, key=lambda label: by_validation[label])
        (chosen,) = (line for line in found.configurations if line.configuration == origin.best)
        assert found.chosen.by_origin[place] == chosen.by_origin[place]
    assert sum(line.times_chosen for line in found.configurations) == len(found.origins)
    assert read_backtest(result_folder("demo")) == found
    page = (result_folder("demo") / "backtest.html").read_text()
    assert all(line.configuration in page for line in found.configurations)
    assert "http://" not in page.replace("http://www.w3", "")


def test_the_training_rows_begin_with_the_first_of_any_series(found: Backtest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tables of all series follow each other, and the first one need not begin first."""
    monkeypatch.setattr(scoring, "read_times", lambda folder: np.roll(read_times(folder), 100))
    plan = Plan(2, 3 * DAY, 3 * DAY, 5 * DAY, 8 * DAY, None)
    origin = place_origins(plan, find_data_end(paths.stage_folder("ingest", "demo")))[-1]
    settings = load_settings()
    declared = settings.problem("demo")
    assert isinstance(declared, Problem)
    trials = list_trials(settings, "demo", paths.stage_folder("window", "demo", origin.name), origin.name)
    assert scoring.measure_origin(declared, origin, trials).origin.train_from == found.origins[-1].train_from


def test_mlflow_has_a_run_of_it_with_one_of_each_origin_below(found: Backtest) -> None:
    (whole,) = runs("backtest")
    by_origin = {run.data.tags["recast.origin"]: run for run in runs("origin")}
    assert set(by_origin) == {origin.name for origin in found.origins}
    assert {run.info.status for run in (whole, *by_origin.values())} == {"FINISHED"}
    assert {run.data.tags["mlflow.parentRunId"] for run in by_origin.values()} == {whole.info.run_id}
    trials = [
        run
        for run in runs("trial")
        if run.data.tags["mlflow.parentRunId"] in {r.info.run_id for r in by_origin.values()}
    ]
    assert len(trials) == 2 * 5
    assert all("test_mae" in run.data.metrics for run in trials)
    assert found.chosen.test is not None
    assert whole.data.metrics["mean_test_mae"] == pytest.approx(found.chosen.test.mean)
    history = store.get_client().get_metric_history(whole.info.run_id, "best_test_mae")
    assert [metric.value for metric in history] == found.chosen.test.values


def test_nothing_is_trained_twice_and_the_pipeline_does_not_notice(checkout: Checkout, found: Backtest) -> None:
    trained = {file: file.stat().st_mtime_ns for file in paths.backtest_folder("demo").glob("trials/*/trial.json")}
    before = {kind: len(runs(kind)) for kind in ("pipeline", "backtest", "origin", "trial")}
    assert len(trained) == 10
    assert backtest("demo", origins=2, every="3d", validation="5d", train="8d") == found
    assert {kind: len(runs(kind)) for kind in before} == before
    (whole,) = runs("backtest")
    assert len(store.get_client().get_metric_history(whole.info.run_id, "mean_test_mae")) == 1
    # With one origin less, the data of the other are deleted, but not the trials.
    fewer = backtest("demo", origins=1, every="3d", validation="5d", train="8d")
    assert fewer.origins == found.origins[1:]
    assert not paths.stage_folder("window", "demo", found.origins[0].name).exists()
    assert {file: file.stat().st_mtime_ns for file in trained} == trained
    assert "up to date" in checkout.dvc("status")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": "a month"}, "every: 'a month': write a number above 0 and a unit"),
        ({"every": "5d", "until": "soon"}, "until: 'soon': write a date"),
        ({"origins": 0, "every": "5d"}, "origins: must be at least 1; it is 0"),
        ({"origins": 9, "every": "5d"}, r"origin 2019-12-\d\d: .* leave a part of the series empty"),
        ({"origins": 1, "every": "2d"}, r"origin 2020-01-2\d: test: no window fits"),
    ],
)
def test_what_does_not_fit_is_said(checkout: Checkout, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecastError, match=message):
        backtest("demo", **options)


def test_the_command_shows_the_table(checkout: Checkout, found: Backtest, capsys: pytest.CaptureFixture[str]) -> None:
    command("demo", origins=2, every="3d", validation="5d", train="8d")
    printed = capsys.readouterr().out
    assert all(text in printed for text in ("2020-01-19", "2020-01-22", "chosen by validation", "dense units=4"))
    assert found.chosen.test is not None
    assert format_number(found.chosen.test.mean, 3) in printed
