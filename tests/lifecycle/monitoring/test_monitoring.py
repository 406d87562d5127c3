"""Watching: figures as a loop over forecasts finds them, once however often it is run, and people told once."""

import shutil
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from filelock import FileLock
from prefect.client.orchestration import get_client

from flows import alerts, deployments
from flows.monitor import BROKEN, FINE, NOTHING, monitor
from lifecycle.champions import comparison, registry
from lifecycle.champions.registry import Version
from lifecycle.monitoring import rules as monitoring
from lifecycle.monitoring.drift import drift
from lifecycle.monitoring.rules import Watched
from lifecycle.serving import forecast_log
from problems.errors import RecastError
from problems.problem import Problem
from project import paths
from project.settings.loading import load_settings
from project.settings.sections import Monitor
from stages.tracking import store
from stages.training.trials import expand
from tests.support.checkout import Checkout

TABLE = Path("data/ingest/demo/table.parquet")
DAY = timedelta(days=1)


@pytest.fixture(scope="module")
def versions(finished: Checkout, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Version]]:
    """The versions of a checkout in which this process works; the second is the champion."""
    with finished.copy(tmp_path_factory.mktemp("monitored") / "checkout").entered():
        tags = {comparison.VALIDATED_UNTIL: comparison.validated_until("demo")}
        trials = expand(load_settings(), "demo", paths.stage("window", "demo"))
        found = [registry.register(trial, tags) for trial in trials if registry.is_stored(trial)]
        registry.promote("demo", found[0], None)
        registry.promote("demo", found[1], None)
        yield found


@pytest.fixture
def log(versions: list[Version]) -> Iterator[pl.DataFrame]:
    """Forecasts of all windows: the first version's until 22 January, then the second's."""
    shutil.rmtree(forecast_log.FOLDER, ignore_errors=True)
    shutil.rmtree(monitoring.FOLDER, ignore_errors=True)
    alerts.LOG.unlink(missing_ok=True)
    before, rows = TABLE.read_bytes(), pl.read_parquet(TABLE)
    change = datetime(2020, 1, 22)
    for version, part in zip(versions, (rows.filter(pl.col("time") < change), rows), strict=False):
        made = registry.load(version).forecast(part, all_windows=True)
        made = made.filter((pl.col("origin") < change) == (version == versions[0]))
        forecast_log.record("demo", forecast_log.identified("demo", version.version, made))
    yield forecast_log.between("demo", *monitoring.ALL)
    TABLE.write_bytes(before)


def problem() -> Problem:
    declared = load_settings().problem("demo")
    assert isinstance(declared, Problem)
    return declared


def figures(**settings: Any) -> pl.DataFrame:
    ingested = paths.stage("ingest", "demo")
    return monitoring.figures(problem(), "demo", Monitor(**settings), ingested, monitoring.watched("demo"))


def with_monitor(**settings: Any) -> None:
    """Put settings of `monitor` into params.yaml."""
    from tests.support.checkout import Checkout

    Checkout(Path.cwd(), {}).settings(monitor=settings)


def test_figures_are_those_of_a_loop_over_forecasts(log: pl.DataFrame, versions: list[Version]) -> None:
    found = figures(window="2d")
    observed = dict(pl.read_parquet(TABLE).select("time", "T (degC)").iter_rows())
    until = datetime.fromisoformat(comparison.validated_until("demo"))
    seen = set()
    for row in found.iter_rows(named=True):
        last = datetime.combine(row["day"], datetime.min.time()) + DAY
        of = [
            each
            for each in log.iter_rows(named=True)
            if each["model_version"] == row["model_version"]
            and last - 2 * DAY <= each["target_time"] < last
            and each["target_time"] > until
            and each["target_time"] in observed
        ]
        errors = [abs(each["forecast"] - observed[each["target_time"]]) for each in of]
        naive = [abs(observed[each["origin"]] - observed[each["target_time"]]) for each in of]
        assert row["forecasts"] == len(of) > 0
        assert row["mae"] == pytest.approx(np.mean(errors))
        assert row["persistence_mae"] == pytest.approx(np.mean(naive))
        assert row["skill"] == pytest.approx(1 - np.mean(errors) / np.mean(naive))
        for level in ("0.5", "0.8", "0.95"):
            held = [each[f"low_{level}"] <= observed[each["target_time"]] <= each[f"high_{level}"] for each in of]
            assert row[f"coverage_{level}"] == pytest.approx(np.mean(held))
        seen.add(row["model_version"])
    assert seen == {1, 2} and versions[0].label.startswith("persistence")
    assert found.filter(pl.col("model_version") == 1)["skill"].abs().max() == pytest.approx(0, abs=1e-6)
    assert found["day"].max() == max(observed).date()


def test_the_same_observations_give_the_same_history_and_a_corrected_one_corrects_it(log: pl.DataFrame) -> None:
    with_monitor(window="3d")

    def metrics() -> dict[tuple[str, str], list[tuple[int, float]]]:
        client = store.client()
        experiment = client.get_experiment_by_name("demo")
        assert experiment is not None
        runs = client.search_runs([experiment.experiment_id], "tags.`recast.kind` = 'monitor'")
        assert len(runs) == 2
        return {
            (run.data.tags["recast.version"], name): [
                (metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name)
            ]
            for run in runs
            for name in run.data.metrics
        }

    assert monitor("demo", return_state=True).name == FINE
    file, page = (monitoring.folder("demo") / name for name in ("history.parquet", "monitor.html"))
    first, logged = file.read_bytes(), metrics()
    assert monitor("demo", return_state=True).name == FINE
    assert (file.read_bytes(), metrics()) == (first, logged)
    days = monitoring.history("demo").filter(pl.col("model_version") == 2)
    # The last day is not over: its figures may change.
    steps = [(day - date(1970, 1, 1)).days for day in days["day"][:-1]]
    assert sorted(logged["2", "mae"]) == sorted(zip(steps, days["mae"][:-1], strict=True))
    assert "version 2" in page.read_text() and not alerts.LOG.exists()

    at = datetime(2020, 1, 24, 6)
    warmer = pl.when(pl.col("time") == at).then(pl.col("T (degC)") + 50).otherwise(pl.col("T (degC)"))
    pl.read_parquet(TABLE).with_columns(warmer.alias("T (degC)")).write_parquet(TABLE)
    monitor("demo")
    now = monitoring.history("demo").filter(pl.col("model_version") == 2)
    changed = [one != other for one, other in zip(days["mae"], now["mae"], strict=True)]
    assert [day for day, each in zip(days["day"], changed, strict=True) if each] == [
        day for day in days["day"] if day >= at.date()
    ]


def test_a_broken_rule_is_told_once_and_starts_one_retraining(log: pl.DataFrame, servers: dict[str, Any]) -> None:
    # A pool of its own: other tests deploy the same problem from other folders.
    from tests.support.checkout import Checkout

    Checkout(Path.cwd(), {}).settings(deploy={"pool": "monitored"})
    with_monitor(window="3d", error=0.1, on_breach="retrain")
    settings = load_settings()
    (wanted,) = (each for each in deployments.planned(settings, ["demo"]) if each.flow == "retrain")
    (deployed,) = deployments.deploy(settings, [wanted]).values()

    def started() -> int:
        with get_client(sync_client=True) as client:
            found = client.read_flow_runs()
            asked = [run for run in found if run.deployment_id == deployed and not run.auto_scheduled]
            assert all(run.parameters == {"problem": "demo", "force": True} for run in asked)
            return len(asked)

    assert monitor("demo", return_state=True).name == BROKEN
    told = alerts.LOG.read_text()
    assert "monitor: demo: 1 rule is broken" in told and "A retraining is started." in told
    assert "times that on the test rows" in told and started() == 1
    assert monitor("demo", return_state=True).name == BROKEN
    assert alerts.LOG.read_text() == told and started() == 1
    # Mended, and broken again.
    with_monitor(window="3d")
    assert monitor("demo", return_state=True).name == FINE
    with_monitor(window="3d", error=0.1)
    monitor("demo")
    assert alerts.LOG.read_text().count("1 rule is broken") == 2 and started() == 1
    assert "`recast retrain demo` trains anew" in alerts.LOG.read_text()


def test_where_nothing_is_deployed_a_retraining_that_fails_is_begun_once(log: pl.DataFrame) -> None:
    Checkout(Path.cwd(), {}).settings(deploy={"pool": "nowhere"})
    with_monitor(window="3d", error=0.1, on_breach="retrain")
    # Another retraining, as it were.
    with FileLock(paths.STATE / "retrain-demo.lock"), pytest.raises(RecastError, match="another retraining of demo"):
        monitor("demo")
    told = alerts.LOG.read_text()
    assert told.count("1 rule is broken") == 1
    assert monitor("demo", return_state=True).name == BROKEN
    assert alerts.LOG.read_text() == told


def test_that_forecasts_stop_is_a_figure_too(log: pl.DataFrame) -> None:
    rows = pl.read_parquet(TABLE)
    further = rows.tail(240).with_columns(pl.col("time") + 10 * DAY)
    pl.concat([rows, further]).write_parquet(TABLE)
    row = monitoring.judged(figures(window="2d"), 2)
    assert (row["forecasts"], row["mae"], row["missing"]) == (0, None, 1.0)
    found = monitoring.breaches(Monitor(missing=0.5), row, 1.0, "°C")
    assert [each.rule for each in found] == ["missing"] and "of 100.0 % of what was observed" in found[0].message


def test_without_a_forecast_there_is_nothing_to_tell(versions: list[Version]) -> None:
    shutil.rmtree(forecast_log.FOLDER, ignore_errors=True)
    shutil.rmtree(monitoring.FOLDER, ignore_errors=True)
    assert monitor("demo", return_state=True).name == NOTHING


ROW = {
    "forecasts": 100,
    "mae": 2.6,
    "error": 1.3,
    "skill": 0.1,
    "missing": 0.5,
    "drift": 1.5,
    "drift_column": "p",
    "coverage_0.8": 0.71,
}


@pytest.mark.parametrize(
    ("row", "rules"),
    [
        ({}, []),
        ({"error": 1.31}, ["error"]),
        ({"skill": -0.01}, ["skill"]),
        ({"coverage_0.8": 0.69}, ["coverage"]),
        ({"missing": 0.51}, ["missing"]),
        ({"drift": 1.51}, ["drift"]),
        ({"drift": None, "error": None, "skill": None, "coverage_0.8": None, "missing": None}, []),
        ({"error": 9.0, "drift": 9.0, "forecasts": 47}, []),
        ({"error": 9.0, "missing": 0.9, "forecasts": 47}, ["missing"]),
    ],
)
def test_the_rules(row: dict[str, Any], rules: list[str]) -> None:
    found = monitoring.breaches(Monitor(skill=0.0, missing=0.5), ROW | row, 2.0, "°C")
    assert [each.rule for each in found] == rules
    off = Monitor(error=None, skill=None, coverage=None, missing=None, drift=None)
    assert not monitoring.breaches(off, ROW | row, 2.0, "°C")


# Drift

KNOWN_UNTIL = np.datetime64("2022-01-01")


def weather(days: int = 3 * 365 + 60) -> pl.DataFrame:
    """Three hourly columns over years: with a season, without, and one that is nearly always 0."""
    random = np.random.default_rng(0)
    moments = np.datetime64("2019-01-01", "ms") + np.arange(24 * days) * np.timedelta64(1, "h")
    slow = np.repeat(random.normal(size=days), 24)
    season = 10 * np.sin(np.arange(24 * days) / (24 * 365.25) * 2 * np.pi)
    return pl.DataFrame(
        {
            "time": moments,
            "season": season + 3 * slow + random.normal(size=24 * days),
            "plain": slow + random.normal(size=24 * days),
            "rain": np.where(random.random(24 * days) < 0.03, random.exponential(size=24 * days), 0.0),
        }
    )


def drifted(rows: pl.DataFrame, *days: str) -> list[dict[str, float | None]]:
    last = np.array(days, dtype="datetime64[D]").astype(np.int64)
    return [{each.column: each.times for each in of} for of in drift(rows, rows.columns[1:], KNOWN_UNTIL, 14, last)]


def test_what_is_as_in_former_years_has_not_drifted_and_another_unit_has() -> None:
    rows = weather()
    (usual,) = drifted(rows, "2022-02-10")
    assert all(times is not None and times < 1.5 for times in usual.values())
    late = pl.col("time") >= datetime(2022, 1, 28)
    fahrenheit = pl.when(late).then(pl.col("season") * 1.8 + 32).otherwise(pl.col("season"))
    (found,) = drifted(rows.with_columns(fahrenheit.alias("season")), "2022-02-10")
    assert found["season"] is not None and found["season"] > 1.5
    assert {**found, "season": None} == {**usual, "season": None}
    # Pouring every hour, where it is nearly always dry.
    wet = pl.when(late).then(1.0).otherwise(pl.col("rain"))
    assert (drifted(rows.with_columns(wet.alias("rain")), "2022-02-10")[0]["rain"] or 0) > 1.5


def test_a_season_that_is_not_known_is_not_judged_and_later_rows_change_nothing() -> None:
    rows = weather()
    young = rows.filter(pl.col("time") >= datetime(2021, 6, 1))
    assert drifted(young, "2022-02-10")[0]["plain"] is not None, "December is of the same season"
    assert not drifted(young.filter(pl.col("time").dt.month() != 12), "2022-02-10")[0]
    until = rows.filter(pl.col("time") < datetime(2022, 1, 21))
    assert drifted(until, "2022-01-12", "2022-01-20") == drifted(rows, "2022-01-12", "2022-01-20")
    # Of a window with hardly a row nothing is said.
    gone = rows.filter(~pl.col("time").is_between(datetime(2022, 1, 2), datetime(2022, 1, 12)))
    assert drifted(gone, "2022-01-12") == [{}]


def test_a_version_that_mlflow_lost_is_left_out(log: pl.DataFrame) -> None:
    there = monitoring.watched("demo")
    assert all(isinstance(each, Watched) and each.test_mae for each in there.values())
    made = forecast_log.identified("demo", 77, log.drop("model_version", "forecast_id"))
    forecast_log.record("demo", made)
    assert set(monitoring.watched("demo")) == set(there) == {1, 2}
    assert set(figures()["model_version"]) == {1, 2}
