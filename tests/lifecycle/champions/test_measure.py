"""Champion and challenger are compared by the measure that selects: the WIS, where quantiles are forecast."""

import json
from collections.abc import Iterator
from dataclasses import asdict

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from learning.losses import LOSSES
from lifecycle.champions import comparison, decisions, history, pages, registry
from lifecycle.champions.comparison import Contender, Decision
from lifecycle.champions.evidence import ModelForecasts, choose_measure, compute_errors
from lifecycle.champions.history import Version
from lifecycle.champions.registry import VALIDATED_UNTIL_TAG
from project import paths
from project.settings.loading import load_settings
from stages import evaluate
from stages.tracking import store
from stages.training.bundle import train_bundle
from stages.training.expansion import list_trials
from stages.training.trials import Trial
from tests.support.checkout import Checkout

CPU = torch.device("cpu")
QUANTILES = (0.1, 0.5, 0.9)


def registered(architecture: str) -> tuple[Trial, Version]:
    """The trial of an architecture in the grid of params.yaml, and its version."""
    trials = list_trials(load_settings(), "demo", paths.stage_folder("window", "demo"))
    trial = next(t for t in trials if t.configuration.architecture == architecture and registry.is_stored(t))
    return trial, registry.register_version(trial, {VALIDATED_UNTIL_TAG: decisions.find_validated_until("demo")})


@pytest.fixture(scope="module")
def point_champion(quantile_grid: tuple[Checkout, Version]) -> Version:
    """The version of a network that was trained with the MAE."""
    return quantile_grid[1]


@pytest.fixture(scope="module")
def checkout(quantile_grid: tuple[Checkout, Version]) -> Checkout:
    """A checkout with a trained grid of networks that forecast quantiles, in which this process works."""
    return quantile_grid[0]


@pytest.fixture(scope="module")
def quantile_grid(finished: Checkout, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Checkout, Version]]:
    copied = finished.copy(tmp_path_factory.mktemp("measure") / "checkout")
    copied.settings(retrain={"windows": 50, "slice_windows": 10})
    with copied.entered():
        _, champion = registered("dense")
        copied.settings(
            train__loss="pinball",
            train__quantiles=list(QUANTILES),
            grid__seeds=[0],
            grid__architectures={"persistence": {}, "dense": {"units": [4]}, "linear": {}},
        )
        train_bundle(list_trials(load_settings(), "demo", paths.stage_folder("window", "demo")), CPU, None)
        evaluate.main("demo")
        yield copied, champion


def test_the_decision_is_by_the_measure_that_selects_and_names_it(checkout: Checkout) -> None:
    trial, version = registered("dense")
    _, champion = registered("linear")
    # The champion was selected on the same rows as the challenger; only later windows count.
    first = decisions.decide(trial, version, champion, load_settings())
    assert (first.measure, first.measure_title) == ("pinball", "WIS")
    assert "its WIS is" in first.reasons[0]
    board = json.loads(checkout.file("data/evaluate/demo/leaderboard.json").read_text())
    dense, linear = (next(row for row in board["rows"] if row["architecture"] == name) for name in ("dense", "linear"))
    assert first.challenger.error == pytest.approx(dense["test"]["pinball"]["mean"], abs=1e-5)
    assert first.challenger.mae == pytest.approx(dense["test"]["mae"]["mean"], abs=1e-5)
    assert first.challenger.error != pytest.approx(first.challenger.mae, rel=0.01)
    assert first.champion.error == pytest.approx(linear["test"]["pinball"]["mean"], abs=1e-5)
    assert first.challenger.error is not None
    assert first.champion.error is not None
    assert first.comparison is not None
    assert first.comparison.difference == pytest.approx(first.challenger.error - first.champion.error)
    page = pages.render_decision(first)
    assert "WIS of the challenger" in page
    assert "The models are compared by WIS" in page
    decisions.publish_decision(first, version, page)
    tags = store.get_client().get_model_version("demo", str(version.version)).tags
    assert tags["recast.measure"] == "pinball"
    history.append_entry(
        "demo",
        lambda entries: history.make_entry("refusal", version, entries, first.id, first.reasons[0], "retrain"),
    )
    assert "WIS" in pages.write_history_page("demo").read_text()


def test_the_first_challenger_is_compared_with_the_reference_of_its_skill_score(checkout: Checkout) -> None:
    trial, version = registered("dense")
    first = decisions.decide(trial, version, None, load_settings())
    assert first.measure == "pinball"
    board = json.loads(checkout.file("data/evaluate/demo/leaderboard.json").read_text())
    assert first.champion.error == pytest.approx(board["persistence_test"], abs=1e-5)
    assert first.champion.mae == pytest.approx(board["persistence_mae"], abs=1e-5)
    assert first.champion.error < 0.95 * first.champion.mae, "it has quantiles"
    # A baseline that is itself a version has the same.
    _, baseline = registered("persistence")
    second = decisions.decide(trial, version, baseline, load_settings())
    assert (second.measure, second.champion.error) == ("pinball", pytest.approx(first.champion.error, abs=1e-5))
    assert len(second.reasons) == 1, "it needs no remark"


def test_the_intervals_of_a_champion_with_another_loss_are_its_quantiles_and_the_decision_says_so(
    checkout: Checkout, point_champion: Version
) -> None:
    trial, version = registered("dense")
    decision = decisions.decide(trial, version, point_champion, load_settings())
    assert decision.measure == "pinball"
    assert decision.champion.error < decision.champion.mae
    assert decision.reasons[-1] == (
        "The champion was trained with another loss; both are compared by WIS, the measure that selects by the "
        "settings of the challenger; the ends of its intervals are taken for its quantiles."
    )


def forecasts(quantiles: tuple[float, ...]) -> ModelForecasts:
    outputs_NLO = np.sort(np.random.default_rng(0).normal(size=(5, 2, max(1, len(quantiles)))), axis=2)
    by_quantile = {quantile: outputs_NLO[:, :, output] for output, quantile in enumerate(quantiles or (0.5,))}
    return ModelForecasts(by_quantile, quantiles)


def test_the_measure_is_the_challengers_where_both_can_give_it() -> None:
    point, quantile = LOSSES["mae"](QUANTILES), LOSSES["pinball"](QUANTILES)
    assert choose_measure(point, forecasts(()), forecasts(())) == (point.selection_measure, None)
    assert choose_measure(quantile, forecasts(QUANTILES), forecasts(QUANTILES)) == (quantile.selection_measure, None)
    measure, remark = choose_measure(quantile, forecasts(QUANTILES), forecasts((0.05, *QUANTILES, 0.95)))
    assert measure.name == "pinball"
    assert remark is not None
    assert "trained with another loss; both are compared by WIS" in remark
    measure, remark = choose_measure(point, forecasts(()), forecasts(QUANTILES))
    assert measure.name == "mae"
    assert remark is not None
    assert "another loss; both are compared by MAE" in remark
    measure, remark = choose_measure(quantile, forecasts(QUANTILES), forecasts((0.2, 0.5, 0.8)))
    assert measure.name == "mae"
    assert remark is not None
    assert "instead of WIS" in remark
    measure, remark = choose_measure(quantile, forecasts(QUANTILES), forecasts(()))
    assert measure.name == "mae", "almost any quantiles beat a single number by the WIS"
    assert remark is not None
    assert "does not forecast the quantiles 0.1, 0.5, 0.9" in remark


def test_the_errors_are_those_of_the_quantiles_that_the_challenger_forecasts() -> None:
    measure = LOSSES["pinball"](QUANTILES).selection_measure
    observed_NL = np.random.default_rng(1).normal(size=(5, 2))
    model = forecasts((0.05, *QUANTILES, 0.95))
    errors_NL = compute_errors(measure, QUANTILES, model, observed_NL)
    expected_NL = np.zeros((5, 2))
    for quantile in QUANTILES:
        error_NL = observed_NL - model.by_quantile[quantile]
        expected_NL += 2 / 3 * np.maximum(quantile * error_NL, (quantile - 1) * error_NL)
    assert errors_NL == pytest.approx(expected_NL)


def test_decisions_of_earlier_versions_are_read_as_decisions_by_mae(checkout: Checkout) -> None:
    trial, version = registered("dense")
    content = asdict(decisions.decide(trial, version, None, load_settings()))
    for key in ("measure", "measure_title"):
        del content[key]
    for name in ("challenger", "champion"):
        del content[name]["error"]
    old = TypeAdapter(Decision).validate_json(json.dumps(content))
    assert (old.measure, old.measure_title) == ("mae", "MAE")
    assert old.challenger.error == old.challenger.mae is not None
    assert "MAE of the challenger" in pages.render_decision(old)
    assert Contender(None, None, "persistence").error is None
    promoted, reasons = comparison.judge(old, load_settings().retrain)
    assert promoted == old.promoted
    assert "its MAE is" in " ".join(reasons)
