"""Champion against challenger: the same windows, none that the champion knows, and a difference that is no noise."""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest

from lifecycle.champions import comparison, decisions, evidence, pages, promotion, registry
from lifecycle.champions.comparison import Decision
from lifecycle.champions.history import Version, champion_folder
from lifecycle.champions.registry import VALIDATED_UNTIL_TAG
from problems.errors import RecastError
from project import paths
from project.settings.loading import load_settings
from project.settings.sections import Settings
from stages.evaluation.forecasts import Targets
from stages.tracking import store
from stages.training.expansion import list_trials
from stages.training.trials import Trial
from tests.support.champions import roll_back
from tests.support.checkout import Checkout


@pytest.fixture(scope="module")
def checkout(finished: Checkout, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    """A finished checkout that this process works in; decisions of one test are not those of another."""
    copied = finished.copy(tmp_path_factory.mktemp("comparison") / "checkout")
    copied.settings(retrain={"windows": 50, "slice_windows": 10})
    with copied.entered():
        yield copied


def changed(**retrain: Any) -> Settings:
    """The settings with some of `retrain` changed."""
    settings = load_settings()
    return settings.model_copy(update={"retrain": settings.retrain.model_copy(update=retrain)})


def registered(architecture: str) -> tuple[Trial, Version]:
    """The trial of an architecture whose model is stored, and its version."""
    trials = list_trials(load_settings(), "demo", paths.stage_folder("window", "demo"))
    trial = next(t for t in trials if t.configuration.architecture == architecture and registry.is_stored(t))
    return trial, registry.register_version(trial, {VALIDATED_UNTIL_TAG: decisions.find_validated_until("demo")})


def compared(challenger: str, champion: str | None, **retrain: Any) -> Decision:
    """A decision about two architectures."""
    trial, version = registered(challenger)
    return decisions.decide(trial, version, registered(champion)[1] if champion else None, changed(**retrain))


def test_the_challenger_is_the_best_by_validation(checkout: Checkout) -> None:
    assert decisions.select_challenger("demo", load_settings()).configuration.architecture == "persistence"


def test_a_better_challenger_is_promoted_and_a_worse_one_refused(checkout: Checkout) -> None:
    better, worse = compared("persistence", "dense"), compared("dense", "persistence")
    assert better.promoted
    assert not worse.promoted
    assert better.comparison
    assert worse.comparison
    assert better.comparison.high < 0 < worse.comparison.low
    assert "significantly better than the champion at the 95" in better.reasons[0]
    assert "significantly worse than the champion at the 95" in worse.reasons[0]
    # Both are the errors that the leaderboard has of the same rows.
    board = json.loads(checkout.file("data/evaluate/demo/leaderboard.json").read_text())
    persistence = next(row for row in board["rows"] if row["configuration"] == "persistence")
    assert better.challenger.mae == pytest.approx(persistence["test"]["mae"]["mean"], abs=1e-5)
    dense = next(row for row in board["rows"] if row["architecture"] == "dense")
    assert (
        min(abs(worse.challenger.mae - each) for each in dense["test"]["mae"]["values"] if worse.challenger.mae) < 1e-5
    )
    assert better.windows == board["windows"]["windows"]["test"]
    assert better.left_out == 0
    assert better.challenger.mae == worse.champion.mae
    assert better.champion.mae == worse.challenger.mae


def test_the_first_champion_has_to_beat_persistence(checkout: Checkout) -> None:
    same, worse = compared("persistence", None), compared("gru", None)
    assert not same.promoted
    assert "not significantly better than persistence" in same.reasons[0]
    assert not worse.promoted
    assert "worse than persistence" in worse.reasons[0]


def test_windows_that_the_champion_was_selected_on_are_left_out(checkout: Checkout) -> None:
    _, champion = registered("gru")
    known = np.datetime64("2020-01-24T00:00")
    registry.set_tags(champion, {VALIDATED_UNTIL_TAG: str(known)})
    found = compared("persistence", "gru", windows=20)
    assert found.left_out
    assert found.first
    assert np.datetime64(found.first) > known
    few = compared("persistence", "gru", windows=70)
    assert not few.promoted
    assert few.comparison is None
    assert "too few windows" in few.reasons[0]
    assert few.windows == found.windows < 70
    pages.render_decision(few)


def test_the_number_of_windows_follows_from_blocks_and_every_decision_names_it(checkout: Checkout) -> None:
    few = compared("persistence", "dense", windows=None)
    # Hourly rows, one day ahead, blocks of two days; the window reaches two days back.
    assert few.required == 7 * 48 > (few.moments or 0) == few.windows
    assert few.comparison is None
    assert f"{few.windows:,} times, and a comparison needs 336 times: 7 blocks of 2d" in few.reasons[0]
    assert "lengthen the test part of problems.demo.split to at least 407h." in few.reasons[0]
    assert "336" in pages.render_decision(few)
    judged = replace(compared("persistence", "dense"), required=49)
    _, reasons = comparison.judge(judged, changed().retrain)
    assert f"on {judged.windows:,} windows at {judged.moments:,} times (at least 49 are needed)" in " ".join(reasons)
    assert "49 needed" in pages.render_decision(judged)


def test_no_part_may_be_worse_by_more_than_the_limit(checkout: Checkout) -> None:
    found = compared("persistence", "dense")
    change = max(each.change for each in found.slices if each.judged and each.change is not None)
    assert change < 0, "the better one is better everywhere"
    again = compared("persistence", "dense", worse=0.2)
    assert again.promoted
    assert again.id != found.id, "other rules are another decision"


def test_parts_are_of_the_targets_time_and_size() -> None:
    times_N1 = np.arange("2020-01-01", "2021-01-01", dtype="datetime64[h]").astype("datetime64[ms]")[:, None]
    observed_N1 = np.arange(len(times_N1), dtype=np.float64)[:, None]
    hours_N1 = times_N1.astype("datetime64[h]").astype(np.int64) % 24
    months_N1 = times_N1.astype("datetime64[M]").astype(np.int64) % 12
    targets = Targets(observed_N1, np.arange(len(times_N1))[:, None], times_N1)
    champion_N1 = np.ones_like(observed_N1)
    challenger_N1 = np.where(hours_N1 == 5, 1.5, 0.5) + np.where(months_N1 == 11, 0.25, 0.0)
    found = {
        (each.group, each.name): each for each in comparison.compare_slices(targets, challenger_N1, champion_N1, 366)
    }
    assert len(found) == 4 + 24 + 2
    hour = found["hour", "05"]
    assert hour.targets == 366
    assert hour.challenger == pytest.approx(1.5 + 0.25 * 31 / 366)
    assert hour.is_worse(0.5)
    assert not hour.is_worse(0.6)
    assert not found["hour", "06"].is_worse(0.0)
    winter = found["season", "Dec to Feb"]
    assert winter.targets == 24 * (31 + 31 + 29)
    assert found["extreme", "highest tenth"].targets == found["extreme", "lowest tenth"].targets == 879
    few = {each.name: each for each in comparison.compare_slices(targets, challenger_N1, champion_N1, 367)}
    assert not few["05"].judged
    assert not few["05"].is_worse(0.0)


def test_a_gain_does_not_make_up_for_a_part_that_gets_worse(checkout: Checkout) -> None:
    """The verdict on a challenger that is better overall, and worse at one hour."""
    found = compared("persistence", "dense")
    worse = comparison.Slice("hour", "05", 40, 1.5, 1.0, judged=True)
    promoted, reasons = comparison.judge(replace(found, slices=[*found.slices, worse]), changed().retrain)
    assert not promoted
    assert "worse by more than 10" in reasons[0]
    assert "hour 05" in reasons[0]
    promoted, _ = comparison.judge(replace(found, slices=[worse]), changed(worse=0.5).retrain)
    assert promoted


def test_what_was_decided_is_not_decided_again(checkout: Checkout) -> None:
    first = compared("persistence", "dense")
    before = (first.folder / "decision.json").stat().st_mtime_ns
    assert compared("persistence", "dense") == first
    assert (first.folder / "decision.json").stat().st_mtime_ns == before
    text = (first.folder / "decision.json").read_text()
    (first.folder / "decision.json").write_text(text.replace('"windows"', '"panes"'))
    with pytest.raises(RecastError, match="another version of Recast"):
        compared("persistence", "dense")
    (first.folder / "decision.json").unlink()
    assert compared("persistence", "dense") == first
    assert (first.folder / "decision.json").read_text() == text


def test_a_champion_of_other_leads_is_told(checkout: Checkout) -> None:
    _, champion = registered("dense")
    trial, version = registered("persistence")
    first, second = registry.load_model(version).about, registry.load_model(champion).about
    assert evidence.find_mismatch(first, second) is None
    assert "other columns" in str(evidence.find_mismatch(first, replace(second, preparation=None)))
    assert "4h ahead, the challenger 1d" in str(evidence.find_mismatch(first, replace(second, leads=(3,))))
    assert "°F" in str(evidence.find_mismatch(first, replace(second, unit="°F")))
    assert trial.key == version.key


def test_a_champion_that_serves_no_more_stops_no_retraining(checkout: Checkout) -> None:
    _, champion = registered("dense")
    registry.load_model(champion)
    (model,) = checkout.root.glob(f".recast/models/demo/{champion.version}-*/**/model.json")
    text = model.read_text()
    model.write_text(text.replace('"dense"', '"a cell of another time"'))
    found = compared("persistence", "dense", worse=0.3)
    assert not found.promoted
    assert "The champion cannot be loaded" in found.reasons[0]
    pages.render_decision(found)
    model.write_text(text)
    rows = pl.read_parquet("data/ingest/demo/table.parquet")
    rows.drop("p (mbar)").write_parquet("data/ingest/demo/table.parquet")
    found = compared("dense", "gru", worse=0.3)
    assert not found.promoted
    assert "there is no column 'p (mbar)'" in found.reasons[0]
    rows.write_parquet("data/ingest/demo/table.parquet")


def test_the_evidence_is_a_page_an_artifact_and_tags(checkout: Checkout) -> None:
    trial, version = registered("persistence")
    decision = compared("persistence", "dense")
    page = pages.render_decision(decision)
    decisions.publish_decision(decision, version, page)
    decisions.publish_decision(decision, version, page)
    assert "src=" not in page
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org", "")
    assert page.count("<svg role") == 4
    assert "Promote" in page
    client = store.get_client()
    artifacts = {each.path for each in client.list_artifacts(version.run, f"decisions/{decision.id}")}
    assert artifacts == {f"decisions/{decision.id}/decision.json", f"decisions/{decision.id}/page.html"}
    assert client.get_model_version("demo", str(version.version)).tags["recast.decision"] == decision.id
    promotion.promote("demo", version, decision.id, decision.reasons[0])
    assert trial.label in pages.write_history_page("demo").read_text()


def test_what_a_person_has_chosen_stays_until_the_rules_change(checkout: Checkout) -> None:
    history = champion_folder("demo") / "history.json"
    history.unlink(missing_ok=True)
    (_, first), (_, second), (trial, version) = (registered(each) for each in ("gru", "dense", "persistence"))
    for champion in (first, second):
        promotion.promote("demo", champion, None, by="a person")
    assert decisions.reason_not_to_compare(trial, second, changed()) is None, "it is no challenger yet"
    decision = compared("persistence", "dense")
    promotion.promote("demo", version, decision.id, expected=second)
    roll_back("demo")
    assert decisions.reason_not_to_compare(trial, second, changed()) == "it was decided on before (promotion)"
    roll_back("demo")
    assert decisions.reason_not_to_compare(trial, first, changed()) == "it was promoted and rolled back before"
    assert decisions.reason_not_to_compare(trial, first, changed(level=0.5)) is None
    history.unlink()
    promotion.refuse(version, decision.id, "it is worse")
    promotion.promote("demo", second, "a decision", expected=None)
    assert decisions.reason_not_to_compare(trial, first, changed()) is None, "no person has chosen"
    promotion.promote("demo", first, None, by="a person")
    expected = f"a person has chosen version {first.version} since it was a challenger"
    assert decisions.reason_not_to_compare(trial, first, changed()) == expected
    assert decisions.reason_not_to_compare(trial, first, changed(level=0.5)) is None
