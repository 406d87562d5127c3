"""Forecasts by file: the champion's, for rows of a user or the newest there are, and the same when repeated."""

import json
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from filelock import FileLock, Timeout
from mlflow import MlflowClient
from prefect.exceptions import FailedRun
from typer.testing import CliRunner

from flows.cli import app
from flows.predict import NOT_REFRESHED, STALE, predict, read_rows
from lifecycle import forecast_log
from lifecycle.champions import history, lineage, promotion, registry
from lifecycle.champions.history import Version
from lifecycle.new_rows.quarantine import list_quarantine
from problems.errors import RecastError
from problems.files.file_hash import file_sha256
from project import paths
from project.atomic import write_json
from project.lock import hold_pipeline_lock
from project.settings.loading import load_settings
from stages.training.expansion import list_trials
from tests.support.champions import roll_back
from tests.support.checkout import Checkout, write_table

TABLE = Path("data/ingest/demo/table.parquet")


@pytest.fixture(scope="module")
def versions(finished: Checkout, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Version]]:
    """The versions 1, 2 and 3 of a checkout in which this process works; the first is the champion."""
    with finished.copy(tmp_path_factory.mktemp("predicted") / "checkout").entered():
        trials = list_trials(load_settings(), "demo", paths.stage_folder("window", "demo"))
        with pytest.raises(RecastError, match="demo has no champion yet"):
            predict("demo")
        registered = [registry.register_version(trial, {}) for trial in trials if registry.is_stored(trial)]
        promotion.promote("demo", registered[0], None)
        yield registered


@pytest.fixture(autouse=True)
def empty_log() -> Iterator[None]:
    yield
    for file in forecast_log.FORECASTS_FOLDER.glob("*"):
        file.unlink()


def read_log() -> pl.DataFrame:
    return forecast_log.read_forecasts("demo")


def test_the_newest_rows_are_forecast_from_and_again_gives_the_same_bytes(versions: list[Version]) -> None:
    file = predict("demo")
    assert file == Path("data/forecasts/demo.parquet")
    made = pl.read_parquet(file)
    table = pl.read_parquet(TABLE)
    assert made.columns[:7] == [
        "forecast_id", "model_version", "series", "origin", "target_time", "lead", "forecast",
    ]  # fmt: skip
    assert made["origin"].to_list() == [table["time"][-1]]
    assert made["model_version"].to_list() == [1]
    expected = registry.load_model(versions[0]).forecast(table)
    numbers = ["forecast", "low_0.5", "high_0.5", "low_0.8", "high_0.8", "low_0.95", "high_0.95"]
    assert made.select(numbers).equals(expected.select(numbers))
    log = read_log()
    again = pl.read_parquet(predict("demo"))
    assert again.drop("age").equals(made.drop("age"))
    assert again["age"][0] >= made["age"][0] > timedelta(days=365), "its newest row gets older"
    assert read_log().equals(log)
    assert log.drop("made", "inputs").equals(made.drop("age").select(log.drop("made", "inputs").columns))
    assert forecast_log.find_forecast(made["forecast_id"][0]) == {"problem": "demo", **log.row(0, named=True)}
    assert forecast_log.find_forecast("0" * 16) is None


def test_another_version_has_other_ids(versions: list[Version]) -> None:
    before = pl.read_parquet(predict("demo"))
    promotion.promote("demo", versions[1], None)
    after = pl.read_parquet(predict("demo"))
    roll_back("demo")
    assert pl.read_parquet(predict("demo")).drop("age").equals(before.drop("age"))
    assert after["model_version"].to_list() == [2]
    assert after["forecast_id"][0] != before["forecast_id"][0]
    assert read_log().height == 2


def test_what_is_in_a_file_is_in_the_log_before(versions: list[Version], tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        predict("demo", out=tmp_path)
    assert read_log().height == 1


def test_one_process_writes_the_forecasts_of_a_problem_at_a_time(
    versions: list[Version], monkeypatch: pytest.MonkeyPatch
) -> None:
    def record(problem: str, forecasts: pl.DataFrame) -> None:
        with pytest.raises(Timeout), FileLock(paths.STATE / "forecasts-demo.lock", timeout=0):
            pass
        recorded.append(forecasts.height)

    recorded: list[int] = []
    monkeypatch.setattr(forecast_log, "record_forecasts", record)
    predict("demo")
    assert recorded == [1]


def test_a_log_that_cannot_be_written_is_named_with_the_fix(
    versions: list[Version], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forecast_log, "LOCK_WAIT_SECONDS", 0)
    predict("demo")
    log = forecast_log.log_file("demo")
    with closing(sqlite3.connect(log)) as other:
        other.execute("begin immediate")
        with pytest.raises(RecastError, match="database is locked; wait for the process that writes to it, or end it"):
            predict("demo")
    log.write_bytes(b"not a database" * 100)
    with pytest.raises(RecastError, match=r"demo\.db: .* cannot be used: file is not a database; restore it"):
        predict("demo")


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_rows_of_a_file_are_forecast_from(versions: list[Version], tmp_path: Path, suffix: str) -> None:
    """With an empty cell in a row that no window needs, and columns that are not asked for."""
    rows = pl.read_parquet(TABLE).slice(200, 60).drop("series").with_columns(station=pl.lit("Jena"))
    rows = rows.with_columns(pl.when(pl.int_range(pl.len()) > 0).then("p (mbar)").alias("p (mbar)"))
    file, out = tmp_path / f"rows.{suffix}", tmp_path / "some" / "folder" / "out.parquet"
    if suffix == "csv":
        rows.write_csv(file)
    else:
        rows.write_parquet(file)
    assert predict("demo", file, out) == out
    made = pl.read_parquet(out)
    expected = registry.load_model(versions[0]).forecast(pl.read_parquet(TABLE).slice(200, 60))
    assert made["forecast"].to_list() == expected["forecast"].to_list()
    predict("demo", file, out, all_windows=True)
    every = pl.read_parquet(out)
    assert len(every) == 60 - 48
    assert every["origin"].is_sorted()
    assert every.tail(1).drop("age").equals(made.drop("age"))
    assert read_log().height == 12


def test_rows_that_cannot_be_forecast_from_leave_nothing(versions: list[Version], tmp_path: Path) -> None:
    file, out = tmp_path / "rows.csv", tmp_path / "out.parquet"
    file.write_text("time,T (degC),p (mbar)\n2020-01-01T00:00:00Z,1,2\n")
    with pytest.raises(RecastError, match="1 rows are too few; a window takes 48 rows"):
        predict("demo", file, out)
    assert not out.exists()
    assert read_log().is_empty()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.csv", "time,T (degC),p (mbar)\nnoon,1,2\n", r"rows\.csv: column 'time' must hold times in one form of"),
        ("rows.csv", "", r"rows\.csv: empty"),
        ("rows.parquet", "no Parquet", r"rows\.parquet: "),
        ("gone.csv", None, r"gone\.csv: there is no such file"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(RecastError, match=message):
        read_rows(tmp_path / name)


def test_the_newest_complete_window_is_found_behind_rows_with_nulls(versions: list[Version]) -> None:
    table = pl.read_parquet(TABLE)
    pl.concat(
        [table.head(100), table.tail(480).with_columns(pl.lit(None).alias("p (mbar)").cast(pl.Float64))]
    ).write_parquet(TABLE)
    try:
        assert pl.read_parquet(predict("demo"))["origin"].to_list() == [table["time"][99]]
        table.head(40).write_parquet(TABLE)
        with pytest.raises(RecastError, match="no window is complete; a window takes 48 rows"):
            predict("demo")
    finally:
        table.write_parquet(TABLE)


def grow(max_age: str | None = "36500d") -> None:
    """The problem's new rows come from a folder; the newest may be of this age."""
    Path("incoming").mkdir(exist_ok=True)
    fresh = {"kind": "folder", "path": "incoming", "max_age": max_age}
    Checkout(Path.cwd(), {}).settings(problems__demo__fresh=fresh)


def increments() -> list[Path]:
    return sorted(Path("data/raw/demo/fresh").glob("*.csv"))


def alerts() -> str:
    log = Path(".recast/alerts.log")
    return log.read_text() if log.exists() else ""


def test_new_rows_are_taken_in_before_the_forecast_and_nothing_is_trained(versions: list[Version]) -> None:
    grow()
    before, trials = TABLE.read_bytes(), sorted(Path("trials/demo").iterdir())
    write_table(Path("incoming/demo.csv"), 624)
    made = pl.read_parquet(predict("demo"))
    assert made["origin"].to_list() == [datetime(2020, 1, 26, 23)]
    assert made["age"].to_list() > [timedelta(days=365)]
    assert len(increments()) == 1
    assert Path("data/raw/demo/fresh.dvc").exists(), "DVC tracks them"
    assert (TABLE.read_bytes(), sorted(Path("trials/demo").iterdir())) == (before, trials)
    write_table(Path("all.csv"), 624)
    rows = pl.read_csv("all.csv").with_columns(pl.col("time").str.to_datetime())
    assert made["forecast"].to_list() == registry.load_model(versions[0]).forecast(rows)["forecast"].to_list()


def test_while_a_pipeline_runs_new_rows_are_used_and_accepted_later(versions: list[Version]) -> None:
    grow()
    write_table(Path("incoming/demo.csv"), 630)
    with hold_pipeline_lock():
        made = pl.read_parquet(predict("demo"))
    assert made["origin"].to_list() == [datetime(2020, 1, 27, 5)]
    assert len(increments()) == 1
    assert pl.read_parquet(predict("demo")).drop("age").equals(made.drop("age"))
    assert len(increments()) == 2


def test_rows_that_break_the_contract_are_not_forecast_from(versions: list[Version]) -> None:
    grow()
    write_table(Path("all.csv"), 640)
    header, *lines = Path("all.csv").read_text().splitlines()
    warm = [line.split(",") for line in lines[630:]]
    fahrenheit = [f"{time},{float(value) * 1.8 + 32:.3f},{pressure}" for time, value, pressure in warm]
    Path("incoming/demo.csv").write_text("\n".join([header, *lines[:630], *fahrenheit, ""]))
    state = predict("demo", return_state=True)
    assert (state.name, state.is_completed()) == (NOT_REFRESHED, True)
    assert "The forecasts are made without these rows. `recast quarantine demo`" in str(state.message)
    assert pl.read_parquet("data/forecasts/demo.parquet")["origin"].to_list() == [datetime(2020, 1, 27, 5)]
    (quarantined,) = list_quarantine("demo")
    assert {"change"} <= {breach["rule"] for breach in quarantined.breaches}
    assert "breach: demo: new rows break the data contract" in alerts()
    assert predict("demo").exists(), "what is in quarantine is not reported again"


def test_forecasts_from_old_rows_end_as_stale_and_people_are_told_once(versions: list[Version]) -> None:
    grow(max_age=None)
    state = predict("demo", return_state=True)
    assert (state.name, state.is_failed()) == (STALE, True)
    assert "old, at most 3h (problems.demo.fresh.max_age)" in str(state.message)
    assert "Nothing newer has arrived at its source" in str(state.message)
    assert Path("data/forecasts/demo.parquet").exists()
    assert CliRunner().invoke(app, ["predict", "demo"]).exit_code == 5
    assert alerts().count("failure: demo: the forecasts are stale") == 1
    assert "2020-01-27 05:00 UTC" in CliRunner().invoke(app, ["status"]).output
    grow()
    assert predict("demo").exists()
    grow(max_age="1d")
    with pytest.raises(FailedRun, match="are stale"):
        predict("demo")
    assert alerts().count("failure: demo: the forecasts are stale") == 2


def test_there_is_a_forecast_where_new_rows_cannot_be_had(versions: list[Version]) -> None:
    grow()
    shutil.rmtree("incoming")
    state = predict("demo", return_state=True)
    assert (state.name, state.is_completed()) == (NOT_REFRESHED, True)
    assert "no new rows could be taken in: problems.demo.fresh.path: there is no file or folder" in str(state.message)


def test_rows_can_be_taken_back_with_the_champion_that_was_trained_on_them(versions: list[Version]) -> None:
    grow()
    trials = list_trials(load_settings(), "demo", paths.stage_folder("window", "demo"))
    for trial, version in zip(trials, versions, strict=False):
        lineage.record_lineage(trial, version)
    bad = increments()[0]
    file = Path("data/champion/demo/versions/2.json")
    made_of = json.loads(file.read_text())
    write_json(file, made_of | {"raw": made_of["raw"] | {f"fresh/{bad.name}": file_sha256(bad)}})
    promotion.promote("demo", versions[1], None)
    ended = CliRunner().invoke(app, ["refresh", "--undo", bad.stem])
    assert ended.exit_code == 0, ended.output
    assert history.find_champion("demo") == versions[0]
    assert not bad.exists()
    client = MlflowClient()
    assert client.get_model_version("demo", "2").tags["recast.undone"] == bad.stem
    assert int(client.get_model_version_by_alias("demo", "champion").version) == 1
    assert CliRunner().invoke(app, ["refresh", "--undo", "0009-00000000"]).exception is not None
