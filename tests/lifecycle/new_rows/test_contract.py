"""The data contract: right months pass, poisoned ones do not, and every rule can be set or switched off."""

import json
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from lifecycle.new_rows import clock
from lifecycle.new_rows.contract import check_contract, find_breaches
from lifecycle.new_rows.known_table import KnownTable
from lifecycle.new_rows.quarantine import Breach, accept_increment
from lifecycle.new_rows.refresh import fetch_increment
from problems.problem import Problem
from problems.sources.station import simulate_rows
from project import paths
from project.atomic import write_json
from project.settings.sections import Settings
from stages.fetching import fetch
from stages.ingest import ingest
from tests.support.checkout import SETTINGS, write_table

HOUR = timedelta(hours=1)
T, P = "T (degC)", "p (mbar)"
FEATURES = [P, T, "rh (%)", "wv (m/s)"]
FROM = datetime(2010, 10, 1)

Check = Callable[..., list[Breach]]


@pytest.fixture(scope="module")
def rows() -> pl.DataFrame:
    """Two years of a simulated station by the hour, as `ingest` leaves them."""
    table = pl.concat(simulate_rows(17_520, HOUR, seed=1))
    return table.select(pl.col("time").cast(pl.Datetime("ms")), pl.lit("all").alias("series"), *FEATURES)


def problem(cadence: str | None = None, thin: bool = False, **contract: Any) -> Problem:
    """The station's problem with a contract."""
    table = {"features": FEATURES, "target": T, "unit": "°C", "cadence": cadence, "thin": thin}
    return Problem.model_validate_json(
        json.dumps(
            {
                "title": "test",
                "source": {"kind": "table", "path": "none.csv", "time": "time"},
                "table": table,
                "contract": contract,
                "split": "half",
                "window": {"lookback": "6h", "step": "1h", "delay": "4h"},
            }
        ),
        strict=True,
    )


@pytest.fixture(scope="module")
def checked(rows: pl.DataFrame) -> Check:
    """What new rows break against all rows before `FROM`."""

    def check(new: pl.DataFrame, declared: Problem | None = None, first: bool = False) -> list[Breach]:
        known = KnownTable(rows.filter(pl.col("time") < FROM).lazy(), HOUR, first)
        return find_breaches(declared or problem(), new, known)

    return check


@pytest.fixture(scope="module")
def month(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.filter(pl.col("time").is_between(FROM, FROM + timedelta(days=30), closed="left"))


def rules(breaches: list[Breach]) -> set[str]:
    return {breach.rule for breach in breaches}


def hold_value(rows: pl.DataFrame, column: str, first: int, count: int) -> pl.DataFrame:
    """Rows with a column that stays as it is in the first of `count` rows."""
    is_constant = pl.int_range(pl.len()).is_between(first, first + count - 1)
    return rows.with_columns(
        pl.when(is_constant).then(pl.col(column).get(first)).otherwise(pl.col(column)).alias(column)
    )


def test_right_rows_break_nothing(month: pl.DataFrame, checked: Check) -> None:
    for count in (1, 2, 24, 168, 720):
        assert checked(month.head(count)) == []


@pytest.mark.parametrize(
    ("poison", "rule", "column"),
    [
        (lambda month: hold_value(month, T, 300, 24), "stuck", T),
        (lambda month: month.with_columns(pl.col(T) * 1.8 + 32), "drift", T),
        (lambda month: month.with_columns(pl.col("time") + HOUR), "clock", None),
        (lambda month: month.with_columns(pl.col("time") - HOUR), "clock", None),
        (lambda month: month.sample(fraction=0.5, seed=0).sort("time"), "missing", None),
        (lambda month: month.gather_every(2), "cadence", None),
        (lambda month: month.tail(360), "gap", None),
        (lambda month: month.with_columns(pl.when(pl.int_range(720) % 2 == 0).then(pl.col(T))), "missing", T),
        (lambda month: month.with_columns(pl.when(pl.int_range(720) == 5).then(9e3).otherwise(P).alias(P)), "range", P),
    ],
)
def test_poison_is_found(
    poison: Callable[[pl.DataFrame], pl.DataFrame],
    rule: str,
    column: str | None,
    month: pl.DataFrame,
    checked: Check,
) -> None:
    breaches = [breach for breach in checked(poison(month)) if breach.rule == rule]
    assert [breach.column for breach in breaches] == [column]
    json.dumps(breaches[0].evidence, allow_nan=False)


def test_the_clock_says_by_how_much_and_since_when(month: pl.DataFrame, checked: Check) -> None:
    (breach,) = (item for item in checked(month.with_columns(pl.col("time") - HOUR)) if item.rule == "clock")
    assert breach.evidence["hours"] == -1
    # The rows of one week are few, but together with those that were taken for right they say enough.
    assert "clock" not in rules(checked(month.head(24).with_columns(pl.col("time") + HOUR)))


def test_rows_that_overlap_known_ones_an_hour_apart(rows: pl.DataFrame, checked: Check) -> None:
    again = rows.filter(pl.col("time").is_between(FROM - timedelta(hours=12), FROM)).with_columns(pl.col("time") - HOUR)
    (breach,) = (item for item in checked(again) if item.rule == "clock")
    assert (breach.evidence["hours"], breach.evidence["same"]) == (-1, 12)
    assert "12 of 12 new rows repeat the known rows of 1 h after: the clock is 1 h behind" in breach.message


def test_a_gap_may_lie_before_the_first_increment(month: pl.DataFrame, checked: Check) -> None:
    assert rules(checked(month.tail(360))) == {"gap", "missing"}
    assert checked(month.tail(360), first=True) == []


@pytest.mark.parametrize("days", [10, 45, 80])
def test_a_gap_of_any_length_is_found(days: int, rows: pl.DataFrame, checked: Check) -> None:
    later = rows.filter(pl.col("time").is_between(FROM + timedelta(days=days), FROM + timedelta(days=days + 7)))
    (breach,) = (item for item in checked(later) if item.rule == "gap")
    assert breach.evidence["after"] == str(FROM - HOUR)
    assert checked(later, first=True) == []


def repeat_series(rows: pl.DataFrame, *names: str) -> pl.DataFrame:
    return pl.concat([rows.with_columns(series=pl.lit(name)) for name in names])


def test_an_unknown_series_is_reported(month: pl.DataFrame, checked: Check) -> None:
    (breach,) = checked(repeat_series(month, "all", "al"))
    assert (breach.rule, breach.evidence) == ("series", {"series": "al", "rows": 720, "known": ["all"]})
    assert "series 'al' is not known; the known series are all. " in breach.message
    assert "recast quarantine --accept" in breach.message


def test_a_series_that_stops_while_others_continue_is_reported_once(rows: pl.DataFrame, month: pl.DataFrame) -> None:
    before = repeat_series(rows.filter(pl.col("time") < FROM), "a", "b")

    def find_in(new: pl.DataFrame, known: pl.DataFrame = before, first: bool = False, **contract: Any) -> list[Breach]:
        return find_breaches(problem(**contract), new, KnownTable(known.sort("series", "time").lazy(), HOUR, first))

    assert find_in(repeat_series(month, "a", "b")) == []
    (stopped,) = find_in(repeat_series(month, "a"))
    assert stopped.evidence == {"series": "b", "after": str(FROM - HOUR), "until": str(month["time"][-1])}
    assert [
        breach.rule for breach in find_in(pl.concat([repeat_series(month, "a"), repeat_series(month.head(48), "b")]))
    ] == ["series"]
    assert find_in(repeat_series(month.head(110), "a")) == []
    assert find_in(repeat_series(month, "a"), gap=None) == find_in(repeat_series(month, "a"), gap="40d") == []
    # It was silent already, as others went on.
    head = pl.concat([before, repeat_series(month.head(240), "a")])
    assert find_in(repeat_series(month.tail(480), "a"), head) == []
    # Before the first increment any time may lie, for all series.
    assert find_in(repeat_series(month.slice(240, 48), "a"), first=True) == []
    assert [breach.rule for breach in find_in(repeat_series(month.tail(480), "a"), first=True)] == ["series"]


def test_bounds_and_lengths_can_be_set_and_rules_switched_off(month: pl.DataFrame, checked: Check) -> None:
    least, most = month[T].min(), month[T].max()
    assert rules(checked(month, problem(ranges={T: [None, most]}))) == set()
    (breach,) = checked(month, problem(ranges={T: [least + 0.01, None]}))  # type: ignore[operator]
    assert (breach.rule, breach.evidence["value"], breach.evidence["rows"]) == ("range", least, 1)
    stuck = hold_value(month, T, 300, 24)
    assert rules(checked(stuck, problem(stuck="1d"))) == set()
    assert rules(checked(stuck, problem(stuck={P: "1h"}))) == {"stuck"}
    assert rules(checked(month, problem(stuck={P: "1h"}))) == set()
    # It never stayed for longer than three hours.
    assert rules(checked(stuck, problem(stuck=2.5))) == {"stuck"}
    assert rules(checked(stuck, problem(stuck=30))) == rules(checked(stuck, problem(stuck={T: 30.0}))) == set()
    assert rules(checked(stuck, problem(stuck=None))) == rules(checked(stuck, problem(stuck={T: None}))) == set()
    half = month.sample(fraction=0.5, seed=0).sort("time")
    assert rules(checked(half, problem(missing=0.6))) == set()
    assert rules(checked(month.tail(360), problem(gap=None, missing=None))) == set()
    ahead = month.with_columns(pl.col("time") + HOUR)
    assert rules(checked(ahead, problem(clock=False))) == set()
    warm = month.with_columns(pl.col(T) * 1.8 + 32)
    assert rules(checked(warm, problem(drift=None, margin=None))) == {"change"}
    assert rules(checked(warm, problem(drift=None, margin=None, change=None))) == set()


def test_rows_that_come_more_often_are_thinned_or_reported(
    rows: pl.DataFrame, month: pl.DataFrame, checked: Check
) -> None:
    often = month.upsample("time", every="10m").with_columns(pl.col(FEATURES).interpolate(), series=pl.lit("all"))
    (breach,) = checked(often)
    assert breach.rule == "cadence"
    assert "table.cadence: 1h and table.thin: true" in breach.message
    assert checked(often, problem("1h", thin=True)) == []
    assert rules(checked(often.gather_every(4), problem("1h", thin=True))) >= {"cadence"}


def to_fahrenheit(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.with_columns(pl.col(T) * 1.8 + 32)


@pytest.mark.parametrize("count", [1, 24, 240])
def test_another_unit_is_found_by_the_rows_just_before(count: int, month: pl.DataFrame, checked: Check) -> None:
    """An hour in degrees Fahrenheit is within the range and hardly moves the mean of its day."""
    by_column = {"rh (%)": 0.01, P: 0.750062, T: 1.8}
    for column, factor in by_column.items():
        converted = month.head(count).with_columns(pl.col(column) * factor + (32 if column == T else 0))
        (breach,) = (item for item in checked(converted) if item.rule == "change")
        assert breach.column == column
        assert breach.evidence["times"] > 2
        assert "(contract.change). Has its unit changed, or its sensor?" in breach.message
        json.dumps(breach.evidence, allow_nan=False)


def test_ten_days_of_june_in_another_unit_are_found_before_there_is_a_year_of_rows(rows: pl.DataFrame) -> None:
    june = datetime(2009, 6, 1)
    known = KnownTable(rows.filter(pl.col("time") < june).lazy(), HOUR, first=False)
    days = rows.filter(pl.col("time").is_between(june, june + timedelta(days=10), closed="left"))
    assert find_breaches(problem(), days, known) == []
    found = find_breaches(problem(margin=None, drift=None), to_fahrenheit(days), known)
    assert [(breach.rule, breach.column) for breach in found] == [("change", T)]
    assert "times as much as with a year of known rows" in found[0].message


def test_a_column_that_changes_in_the_middle_of_an_increment_is_found(month: pl.DataFrame, checked: Check) -> None:
    changed = pl.concat([month.head(400), to_fahrenheit(month.slice(400, 100))])
    (breach,) = (item for item in checked(changed) if item.rule == "change")
    assert breach.evidence["figure"] == "step"
    assert breach.evidence["time"] == str(month["time"][400])


def test_a_change_that_a_person_has_accepted_is_not_refused_again(rows: pl.DataFrame, month: pl.DataFrame) -> None:
    before = pl.concat([rows.filter(pl.col("time") < FROM), to_fahrenheit(month.head(12))])
    known, declared = KnownTable(before.lazy(), HOUR, first=False), problem(drift=None, margin=None)
    later = to_fahrenheit(month.slice(12, 12))
    assert rules(find_breaches(declared, later, known)) == {"change"}, "a day of which most is in another unit"
    assert find_breaches(declared, later, known, [FROM]) == []
    back = find_breaches(declared, month.slice(12, 1), known, [FROM])
    assert rules(back) == {"change"}, "the step that was accepted is not a usual one"


def test_a_day_turns_with_its_clock() -> None:
    def waves(hours_ahead: int) -> clock.Floats:
        moments = [datetime(2020, 1, 1) + i * HOUR for i in range(72)]
        angles = np.array([(i - hours_ahead) * 2 * np.pi / 24 for i in range(72)])
        values = np.cos(angles) + 0.5 * np.sin(2 * angles)
        rows = pl.DataFrame({"time": moments, T: values, P: 1000 - values})
        days, found_DKF = clock.fit_daily_waves(rows, [T, P], HOUR)
        assert days.tolist() == [18262, 18263, 18264]
        assert found_DKF.shape == (3, 12, 2)
        return found_DKF.mean(axis=0)

    for hours in (-5, 1, 3):
        # A slope is fitted too, which a wave is not quite free of: the same in each day, not at each hour.
        assert np.abs(clock.shift_waves(waves(0), hours) - waves(hours)).max() < 0.3
        assert np.abs(waves(0) - waves(hours)).max() > 0.2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2020-01-26T00:00:00,warm,1000", "'warm', which is not a finite number"),
        ("26.01.2020,5,1000", "which is not a time"),
        ("2020-01-26T00:00:00,5,1e999", "not a finite number"),
    ],
)
def test_cells_that_cannot_be_read_are_a_breach_of_types(
    line: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = growing(tmp_path, monkeypatch)
    Path("incoming/a.csv").write_text(f"time,T (degC),p (mbar)\n{line}\n")
    arrival = fetch_increment("demo", settings, lambda received, total: None)
    assert arrival is not None
    (breach,) = check_contract("demo", settings, arrival)
    assert breach.rule == "types"
    assert message in breach.message


def test_a_missing_column_is_a_breach_of_types(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = growing(tmp_path, monkeypatch)
    Path("incoming/a.csv").write_text("time,temperature,p (mbar)\n2020-01-26T00:00:00,5,1000\n")
    arrival = fetch_increment("demo", settings, lambda received, total: None)
    assert arrival is not None
    (breach,) = check_contract("demo", settings, arrival)
    assert "there is no column 'T (degC)'; the columns are" in breach.message


def test_rows_that_were_accepted_since_ingest_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = growing(tmp_path, monkeypatch)
    write_table(Path("all.csv"), 900)
    lines = Path("all.csv").read_text().splitlines(keepends=True)
    for begin, end in ((601, 801), (801, 841)):
        Path("incoming/a.csv").write_text("".join([lines[0], *lines[begin:end]]))
        arrival = fetch_increment("demo", settings, lambda received, total: None)
        assert arrival is not None
        # Without the rows between, the second would come after a gap of 8 days.
        assert check_contract("demo", settings, arrival) == []
        accept_increment(arrival)
        if begin == 601:
            declared = settings.problem("demo")
            assert isinstance(declared, Problem)
            ingest(declared, paths.raw_folder("demo"), paths.stage_folder("ingest", "demo"))
            quality = paths.stage_folder("ingest", "demo") / "quality.json"
            about = json.loads(quality.read_text())
            about["files"] = {name: sha for name, sha in about["files"].items() if "/" not in name}
            write_json(quality, about)


def test_rows_are_compared_with_what_the_store_holds_now_read_by_the_settings_of_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = growing(tmp_path, monkeypatch)
    lines = Path("demo.csv").read_text().splitlines(keepends=True)
    time, _, pressure = lines[300].split(",")
    lines[300] = f"{time},-9999,{pressure}"
    Path("demo.csv").write_text("".join(lines))
    fetch("demo", settings)
    declared = settings.problem("demo")
    assert isinstance(declared, Problem)
    ingest(declared, paths.raw_folder("demo"), paths.stage_folder("ingest", "demo"))
    Path("incoming/a.csv").write_text("time,T (degC),p (mbar)\n2020-01-26T00:00:00,-500,1000\n")
    arrival = fetch_increment("demo", settings, lambda received, total: None)
    assert arrival is not None
    assert "range" not in rules(check_contract("demo", settings, arrival))
    # The range of what was ingested holds the sentinel, which is none until it is declared.
    table = declared.table.model_copy(update={"sentinels": {T: (-9999.0,)}})
    changed_settings = settings.model_copy(update={"problems": {"demo": declared.model_copy(update={"table": table})}})
    assert "range" in rules(check_contract("demo", changed_settings, arrival))
    # A file of the same name with other rows.
    Path("demo.csv").write_text("".join(line for line in lines if "-9999" not in line))
    assert "range" in rules(check_contract("demo", settings, arrival))


def growing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A problem whose rows come from a folder, with 600 rows, in the current folder."""
    monkeypatch.chdir(folder)
    write_table(Path("demo.csv"), 600)
    Path("incoming").mkdir()
    document = json.loads(json.dumps(SETTINGS))
    document["problems"]["demo"]["fresh"] = {"kind": "folder", "path": "incoming"}
    return Settings.model_validate_json(json.dumps(document), strict=True)
