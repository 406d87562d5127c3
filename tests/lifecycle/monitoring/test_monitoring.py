"""Monitoring: figures as a loop over forecasts computes them, the same however often it runs, each alert sent once."""

import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from filelock import FileLock, Timeout
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId

from flows import alerts, deployments
from flows.monitor import BROKEN, FINE, NOTHING, monitor
from learning.losses import LOSSES
from lifecycle import forecast_log
from lifecycle.champions import decisions, promotion, registry
from lifecycle.champions.history import Version
from lifecycle.monitoring import history
from lifecycle.monitoring import rules as monitoring
from lifecycle.monitoring.drift import measure_drift
from lifecycle.monitoring.figures import daily_figures
from lifecycle.monitoring.page import render_page
from lifecycle.monitoring.versions import MonitoredVersion, read_monitored_versions
from problems.errors import RecastError
from problems.problem import Problem
from project import paths
from project.settings.loading import load_settings
from project.settings.operation import MonitorSettings
from stages.tracking import store
from stages.training.expansion import list_trials
from tests.support.checkout import Checkout

TABLE = Path("data/ingest/demo/table.parquet")
DAY = timedelta(days=1)


@pytest.fixture(scope="module")
def versions(finished: Checkout, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Version]]:
    """The versions of a checkout in which this process works; the second is the champion."""
    with finished.copy(tmp_path_factory.mktemp("monitored") / "checkout").entered():
        tags = {
            registry.VALIDATED_FROM_TAG: decisions.find_validated_from("demo"),
            registry.VALIDATED_UNTIL_TAG: decisions.find_validated_until("demo"),
        }
        trials = list_trials(load_settings(), "demo", paths.stage_folder("window", "demo"))
        registered = [registry.register_version(trial, tags) for trial in trials if registry.is_stored(trial)]
        promotion.promote("demo", registered[0], None)
        promotion.promote("demo", registered[1], None)
        yield registered


@pytest.fixture
def log(versions: list[Version]) -> Iterator[pl.DataFrame]:
    """Forecasts of all windows: the first version's until 22 January, then the second's."""
    shutil.rmtree(forecast_log.FORECASTS_FOLDER, ignore_errors=True)
    shutil.rmtree(history.MONITOR_FOLDER, ignore_errors=True)
    alerts.ALERT_LOG.unlink(missing_ok=True)
    before, rows = TABLE.read_bytes(), pl.read_parquet(TABLE)
    change = datetime(2020, 1, 22)
    for version, part in zip(versions, (rows.filter(pl.col("time") < change), rows), strict=False):
        made = registry.load_model(version).forecast(part, all_windows=True)
        made = made.filter((pl.col("origin") < change) == (version == versions[0]))
        forecast_log.record_forecasts("demo", forecast_log.add_ids("demo", version.version, made))
    yield forecast_log.read_forecasts("demo")
    TABLE.write_bytes(before)


def problem() -> Problem:
    declared = load_settings().problem("demo")
    assert isinstance(declared, Problem)
    return declared


def figures(**settings: Any) -> pl.DataFrame:
    ingested = paths.stage_folder("ingest", "demo")
    return daily_figures(problem(), "demo", MonitorSettings(**settings), ingested, read_monitored_versions("demo"))


def with_monitor(**settings: Any) -> None:
    """Put settings of `monitor` into params.yaml."""
    from tests.support.checkout import Checkout

    Checkout(Path.cwd(), {}).settings(monitor=settings)


def test_figures_are_those_of_a_loop_over_forecasts(log: pl.DataFrame, versions: list[Version]) -> None:
    computed = figures(window="2d")
    observed = dict(pl.read_parquet(TABLE).select("time", "T (degC)").iter_rows())
    until = datetime.fromisoformat(decisions.find_validated_until("demo"))
    seen = set()
    for row in computed.iter_rows(named=True):
        last = datetime.combine(row["day"], datetime.min.time()) + DAY
        forecasts = [
            forecast
            for forecast in log.iter_rows(named=True)
            if forecast["model_version"] == row["model_version"]
            and last - 2 * DAY <= forecast["target_time"] < last
            and forecast["target_time"] > until
            and forecast["target_time"] in observed
        ]
        targets = [observed[forecast["target_time"]] for forecast in forecasts]
        errors = [abs(forecast["forecast"] - y) for forecast, y in zip(forecasts, targets, strict=True)]
        naive = [abs(observed[forecast["origin"]] - y) for forecast, y in zip(forecasts, targets, strict=True)]
        assert row["forecasts"] == len(forecasts) > 0
        assert row["selection_measure"] == "mae"
        assert row["mae"] == pytest.approx(np.mean(errors))
        assert row["persistence_mae"] == pytest.approx(np.mean(naive))
        assert row["skill"] == pytest.approx(1 - np.mean(errors) / np.mean(naive))
        for level in ("0.5", "0.8", "0.95"):
            inside = [
                forecast[f"low_{level}"] <= y <= forecast[f"high_{level}"]
                for forecast, y in zip(forecasts, targets, strict=True)
            ]
            assert row[f"coverage_{level}"] == pytest.approx(np.mean(inside))
        seen.add(row["model_version"])
    assert seen == {1, 2}
    assert versions[0].label.startswith("persistence")
    assert computed.filter(pl.col("model_version") == 1)["skill"].abs().max() == pytest.approx(0, abs=1e-6)
    assert computed["day"].max() == max(observed).date()


def test_the_same_observations_give_the_same_history_and_a_corrected_one_corrects_it(log: pl.DataFrame) -> None:
    with_monitor(window="3d")

    def metrics() -> dict[tuple[str, str], list[tuple[int, float]]]:
        client = store.get_client()
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
    file, page = (history.monitor_folder("demo") / name for name in ("history.parquet", "monitor.html"))
    first, logged = file.read_bytes(), metrics()
    assert monitor("demo", return_state=True).name == FINE
    assert (file.read_bytes(), metrics()) == (first, logged)
    days = history.read_history("demo").filter(pl.col("model_version") == 2)
    # The last day is not over: its figures may change.
    steps = [(day - date(1970, 1, 1)).days for day in days["day"][:-1]]
    assert sorted(logged["2", "mae"]) == sorted(zip(steps, days["mae"][:-1], strict=True))
    assert "version 2" in page.read_text()
    assert not alerts.ALERT_LOG.exists()

    at = datetime(2020, 1, 24, 6)
    warmer = pl.when(pl.col("time") == at).then(pl.col("T (degC)") + 50).otherwise(pl.col("T (degC)"))
    pl.read_parquet(TABLE).with_columns(warmer.alias("T (degC)")).write_parquet(TABLE)
    monitor("demo")
    now = history.read_history("demo").filter(pl.col("model_version") == 2)
    is_changed = [before != after for before, after in zip(days["mae"], now["mae"], strict=True)]
    assert [day for day, changed in zip(days["day"], is_changed, strict=True) if changed] == [
        day for day in days["day"] if day >= at.date()
    ]


def test_a_broken_rule_is_announced_once_and_starts_one_retraining(log: pl.DataFrame, servers: dict[str, Any]) -> None:
    # A pool of its own: other tests deploy the same problem from other folders.
    from tests.support.checkout import Checkout

    Checkout(Path.cwd(), {}).settings(deploy={"pool": "monitored"})
    with_monitor(window="3d", error=0.1, on_breach="retrain")
    settings = load_settings()
    plans = deployments.plan_deployments(settings, ["demo"])
    (deployed,) = deployments.apply_deployments(settings, [plan for plan in plans if plan.flow == "retrain"]).values()

    def started() -> int:
        with get_client(sync_client=True) as client:
            own = DeploymentFilter(id=DeploymentFilterId(any_=[deployed]))
            retrainings = [run for run in client.read_flow_runs(deployment_filter=own) if not run.auto_scheduled]
            assert all(run.parameters == {"problem": "demo", "force": True} for run in retrainings)
            return len(retrainings)

    assert monitor("demo", return_state=True).name == BROKEN
    sent = alerts.ALERT_LOG.read_text()
    assert "monitor: demo: 1 rule is broken" in sent
    assert "A retraining is started." in sent
    assert "times the MAE on the test rows" in sent
    assert started() == 1
    assert monitor("demo", return_state=True).name == BROKEN
    assert alerts.ALERT_LOG.read_text() == sent
    assert started() == 1
    # Fixed, and broken again.
    with_monitor(window="3d")
    assert monitor("demo", return_state=True).name == FINE
    with_monitor(window="3d", error=0.1)
    monitor("demo")
    assert alerts.ALERT_LOG.read_text().count("1 rule is broken") == 2
    assert started() == 1
    assert "`recast retrain demo` trains again" in alerts.ALERT_LOG.read_text()


def test_where_nothing_is_deployed_a_retraining_that_fails_is_started_once(log: pl.DataFrame) -> None:
    Checkout(Path.cwd(), {}).settings(deploy={"pool": "nowhere"})
    with_monitor(window="3d", error=0.1, on_breach="retrain")
    # Another retraining, as it were.
    with FileLock(paths.STATE / "retrain-demo.lock"), pytest.raises(RecastError, match="another retraining of demo"):
        monitor("demo")
    sent = alerts.ALERT_LOG.read_text()
    assert sent.count("1 rule is broken") == 1
    assert monitor("demo", return_state=True).name == BROKEN
    assert alerts.ALERT_LOG.read_text() == sent


def test_one_process_monitors_a_problem_at_a_time_but_not_for_as_long_as_a_retraining_takes(
    log: pl.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    Checkout(Path.cwd(), {}).settings(deploy={"pool": "nowhere"})
    with_monitor(window="3d", error=0.1, on_breach="retrain")
    locked = {}

    def is_locked() -> bool:
        try:
            with FileLock(paths.STATE / "monitor-demo.lock", timeout=0):
                return False
        except Timeout:
            return True

    def send_alert(*arguments: Any) -> None:
        locked["alert"] = is_locked()

    def retrain(problem: str, force: bool) -> None:
        locked["retraining"] = is_locked()

    monkeypatch.setattr("flows.monitor.send_monitor_alert", send_alert)
    monkeypatch.setattr("flows.monitor.retrain", retrain)
    monitor("demo")
    assert locked == {"alert": True, "retraining": False}


def test_that_forecasts_stop_is_a_figure_too(log: pl.DataFrame) -> None:
    rows = pl.read_parquet(TABLE)
    further = rows.tail(240).with_columns(pl.col("time") + 10 * DAY)
    pl.concat([rows, further]).write_parquet(TABLE)
    row = history.newest_figures(figures(window="2d"), 2)
    assert (row["forecasts"], row["mae"], row["missing"]) == (0, None, 1.0)
    (broken,) = monitoring.broken_rules(MonitorSettings(missing=0.5), row, "°C")
    assert broken.rule == "missing"
    assert "100.0 % of the observations had no forecast" in broken.message


def test_without_a_forecast_there_is_nothing_to_report(versions: list[Version]) -> None:
    shutil.rmtree(forecast_log.FORECASTS_FOLDER, ignore_errors=True)
    shutil.rmtree(history.MONITOR_FOLDER, ignore_errors=True)
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
    broken = monitoring.broken_rules(MonitorSettings(skill=0.0, missing=0.5), ROW | row, "°C")
    assert [rule.rule for rule in broken] == rules
    if rules == ["error"]:
        assert "the MAE, 2.6 °C, is 1.31 times the MAE on the test rows, 1.985 °C" in broken[0].message
    off = MonitorSettings(error=None, skill=None, coverage=None, missing=None, drift=None)
    assert not monitoring.broken_rules(off, ROW | row, "°C")


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
    by_day = measure_drift(rows, rows.columns[1:], KNOWN_UNTIL, 14, last)
    return [{drift.column: drift.ratio for drift in drifts} for drifts in by_day]


def test_what_is_as_in_former_years_has_not_drifted_and_another_unit_has() -> None:
    rows = weather()
    (usual,) = drifted(rows, "2022-02-10")
    assert all(ratio is not None and ratio < 1.5 for ratio in usual.values())
    late = pl.col("time") >= datetime(2022, 1, 28)
    fahrenheit = pl.when(late).then(pl.col("season") * 1.8 + 32).otherwise(pl.col("season"))
    (changed,) = drifted(rows.with_columns(fahrenheit.alias("season")), "2022-02-10")
    assert changed["season"] is not None
    assert changed["season"] > 1.5
    assert {**changed, "season": None} == {**usual, "season": None}
    # Rain in every hour, where it is nearly always dry.
    wet = pl.when(late).then(1.0).otherwise(pl.col("rain"))
    assert (drifted(rows.with_columns(wet.alias("rain")), "2022-02-10")[0]["rain"] or 0) > 1.5


def test_a_season_that_is_not_known_is_not_judged_and_later_rows_change_nothing() -> None:
    rows = weather()
    young = rows.filter(pl.col("time") >= datetime(2021, 6, 1))
    assert drifted(young, "2022-02-10")[0]["plain"] is not None, "December is of the same season"
    assert not drifted(young.filter(pl.col("time").dt.month() != 12), "2022-02-10")[0]
    until = rows.filter(pl.col("time") < datetime(2022, 1, 21))
    assert drifted(until, "2022-01-12", "2022-01-20") == drifted(rows, "2022-01-12", "2022-01-20")
    # A window with hardly a row is not judged.
    gone = rows.filter(~pl.col("time").is_between(datetime(2022, 1, 2), datetime(2022, 1, 12)))
    assert drifted(gone, "2022-01-12") == [{}]


def test_a_version_that_mlflow_lost_is_left_out(log: pl.DataFrame) -> None:
    known = read_monitored_versions("demo")
    assert all(isinstance(version, MonitoredVersion) and version.test_errors["mae"] for version in known.values())
    made = forecast_log.add_ids("demo", 77, log.drop("model_version", "forecast_id"))
    forecast_log.record_forecasts("demo", made)
    assert set(read_monitored_versions("demo")) == set(known) == {1, 2}
    assert set(figures()["model_version"]) == {1, 2}


# The selection measure

QUANTILES = (0.025, 0.1, 0.25, 0.5, 0.75, 0.9, 0.975)


def figures_of_quantiles(quantiles: tuple[float, ...]) -> tuple[pl.DataFrame, dict[int, MonitoredVersion]]:
    """The figures if the second version had been trained with the pinball loss; its test error would be 0.5."""
    versions = read_monitored_versions("demo")
    objective = LOSSES["pinball"](quantiles)
    versions[2] = replace(versions[2], objective=objective, test_errors={"pinball": 0.5, "mae": 0.8})
    ingested = paths.stage_folder("ingest", "demo")
    return daily_figures(problem(), "demo", MonitorSettings(window="2d"), ingested, versions), versions


def test_a_version_that_the_wis_selected_is_judged_by_it(log: pl.DataFrame) -> None:
    computed, versions = figures_of_quantiles(QUANTILES)
    assert dict(computed.select("model_version", "selection_measure").iter_rows()) == {1: "mae", 2: "pinball"}
    observed = dict(pl.read_parquet(TABLE).select("time", "T (degC)").iter_rows())
    columns = ("low_0.95", "low_0.8", "low_0.5", "forecast", "high_0.5", "high_0.8", "high_0.95")

    def loss(forecasts: Sequence[float], target: float) -> float:
        errors = [target - forecast for forecast in forecasts]
        return 2 * float(np.mean([max(q * e, (q - 1) * e) for q, e in zip(QUANTILES, errors, strict=True)]))

    row = computed.filter(pl.col("model_version") == 2).row(-1, named=True)
    last = datetime.combine(row["day"], datetime.min.time()) + DAY
    forecasts = log.filter(
        pl.col("model_version") == 2, pl.col("target_time") >= last - 2 * DAY, pl.col("target_time") < last
    ).filter(pl.col("target_time").is_in(list(observed)))
    targets = [observed[moment] for moment in forecasts["target_time"]]
    losses = [loss(values, y) for values, y in zip(forecasts.select(columns).iter_rows(), targets, strict=True)]
    naive = [abs(observed[at] - y) for at, y in zip(forecasts["origin"], targets, strict=True)]
    errors = [abs(forecast - y) for forecast, y in zip(forecasts["forecast"], targets, strict=True)]
    assert row["pinball"] == pytest.approx(np.mean(losses))
    assert row["error"] == pytest.approx(np.mean(losses) / 0.5)
    assert row["mae_skill"] == pytest.approx(1 - np.mean(errors) / np.mean(naive))
    # Persistence has the quantiles of its errors on the windows that the version was selected on.
    first, until = (
        datetime.fromisoformat(find("demo")) for find in (decisions.find_validated_from, decisions.find_validated_until)
    )
    known = sorted(abs(observed[at] - observed[at + DAY]) for at in observed if first <= at and at + DAY <= until)
    reaches = [known[math.ceil((len(known) + 1) * level) - 1] for level in (0.95, 0.8, 0.5)]
    spread = [-reach for reach in reaches] + [0] + reaches[::-1]
    reference = [
        loss([observed[at] + distance for distance in spread], y)
        for at, y in zip(forecasts["origin"], targets, strict=True)
    ]
    assert row["persistence_pinball"] == pytest.approx(np.mean(reference))
    assert row["skill"] == pytest.approx(1 - np.mean(losses) / np.mean(reference))
    assert row["persistence_mae"] == pytest.approx(np.mean(naive))
    assert row["mae"] is not None
    assert computed["pinball"].null_count() == len(computed.filter(model_version=1))
    (broken,) = monitoring.broken_rules(
        MonitorSettings(error=0.01, skill=None, coverage=None, missing=None, drift=None, least=1), row, "°C"
    )
    assert "times the WIS on the test rows, 0.5 °C" in broken.message
    (broken,) = monitoring.broken_rules(
        MonitorSettings(error=None, skill=0.99, coverage=None, drift=None, least=1), row, "°C"
    )
    assert "by WIS" in broken.message
    page = render_page("demo", problem(), MonitorSettings(), computed, row, versions, [broken])
    assert "WIS or MAE" in page
    assert "Skill against persistence, by WIS" in page
    assert "is judged by the" not in page


def test_where_the_log_lacks_a_quantile_the_mae_judges_and_the_page_says_so(log: pl.DataFrame) -> None:
    computed, versions = figures_of_quantiles((0.05, 0.5, 0.95))
    assert set(computed["selection_measure"]) == {"mae"}
    assert "pinball" not in computed.columns
    row = computed.filter(pl.col("model_version") == 2).row(-1, named=True)
    assert row["error"] == pytest.approx(row["mae"] / 0.8)
    page = render_page("demo", problem(), MonitorSettings(), computed, row, versions, [])
    assert "was selected by its WIS, but it is judged by the MAE" in page


def test_a_history_of_an_earlier_version_was_judged_by_the_mae(log: pl.DataFrame) -> None:
    former = figures(window="2d").drop("selection_measure")
    history.write_history("demo", former.head(3))
    assert set(history.read_history("demo")["selection_measure"]) == {"mae"}
    merged = history.merge_history(history.read_history("demo"), figures_of_quantiles(QUANTILES)[0])
    assert merged["selection_measure"].null_count() == 0
    assert len(merged) == len(former)
    # Later versions had one skill score, by the MAE.
    computed = figures_of_quantiles(QUANTILES)[0].drop("mae_skill")
    history.write_history("demo", computed)
    read = history.read_history("demo")
    assert read["mae_skill"].equals(computed["skill"], check_names=False)
    assert read.filter(pl.col("selection_measure") == "pinball")["skill"].null_count() > 0


def test_forecasts_of_daily_rows_can_be_enough_to_judge() -> None:
    assert monitoring.limit_least(MonitorSettings(), timedelta(hours=1)).least == 48
    assert monitoring.limit_least(MonitorSettings(), DAY).least == 7
    assert monitoring.limit_least(MonitorSettings(), 30 * DAY).least == 1


def test_a_baseline_of_an_earlier_version_is_judged_by_the_mae(log: pl.DataFrame, versions: list[Version]) -> None:
    """Its test error by the pinball loss was that of one number for every quantile."""
    client = store.get_client()
    client.delete_model_version_tag("demo", "1", registry.VALIDATED_FROM_TAG)
    assert read_monitored_versions("demo")[1].selection_measure.name == "mae"
    registry.set_tags(versions[0], {registry.VALIDATED_FROM_TAG: decisions.find_validated_from("demo")})
