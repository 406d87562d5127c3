"""Forecasts by file: the champion's, for rows of a user or the newest ingested, and the same when repeated."""

from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from flows.predict import predict, read_rows
from lifecycle import forecast_log
from lifecycle.champions import promotion, registry
from lifecycle.champions.history import Version
from problems.errors import RecastError
from project import paths
from project.settings.loading import load_settings
from stages.training.expansion import list_trials
from tests.support.champions import roll_back
from tests.support.checkout import Checkout

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
    made, first = pl.read_parquet(file), file.read_bytes()
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
    assert predict("demo").read_bytes() == first
    assert read_log().equals(log)
    assert log.drop("made", "inputs").select(made.columns).equals(made)
    assert forecast_log.find_forecast(made["forecast_id"][0]) == {"problem": "demo", **log.row(0, named=True)}
    assert forecast_log.find_forecast("0" * 16) is None


def test_another_version_has_other_ids(versions: list[Version]) -> None:
    before = pl.read_parquet(predict("demo"))
    promotion.promote("demo", versions[1], None)
    after = pl.read_parquet(predict("demo"))
    roll_back("demo")
    assert pl.read_parquet(predict("demo")).equals(before)
    assert after["model_version"].to_list() == [2]
    assert after["forecast_id"][0] != before["forecast_id"][0]
    assert read_log().height == 2


def test_what_is_in_a_file_is_in_the_log_before(versions: list[Version], tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        predict("demo", out=tmp_path)
    assert read_log().height == 1


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
    assert every.tail(1).equals(made)
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
