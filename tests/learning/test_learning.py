"""What an experiment may choose: the tables that the settings are made of, losses, measures and kinds of answers."""

import math
import subprocess
import sys
from typing import Annotated, Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from architectures import REGISTRY
from learning.answers import ANSWER_KINDS, LearningTask
from learning.choices import Choice
from learning.losses import LOSSES
from learning.objectives import Objective
from learning.optimizers import OPTIMIZERS
from learning.schedules import SCHEDULES
from learning.scores import pinball
from project.settings.sections import TrainSettings
from project.source_code import ROOT, list_modules

QUANTILES = (0.1, 0.5, 0.75)


def test_twice_the_mean_pinball_loss_is_the_weighted_interval_score() -> None:
    """Bracher et al. 2021: of the median m and K intervals (l, u) of level 1 - a, with the weights 1/2 and a/2."""
    quantiles, alphas = (0.025, 0.1, 0.25, 0.5, 0.75, 0.9, 0.975), (0.05, 0.2, 0.5)
    random = np.random.default_rng(0)
    forecasts, targets = np.sort(random.normal(size=(50, 7)), axis=1), 2 * random.normal(size=50)
    expected = np.abs(targets - forecasts[:, 3]) / 2
    for k, alpha in enumerate(alphas):
        low, high = forecasts[:, k], forecasts[:, 6 - k]
        score = high - low + 2 / alpha * (np.maximum(low - targets, 0) + np.maximum(targets - high, 0))
        expected += alpha / 2 * score
    measure = LOSSES["pinball"](quantiles).selection_measure
    scores = measure.score(torch.tensor(forecasts)[:, None], torch.tensor(targets)[:, None, None])
    assert scores[:, 0].numpy() == pytest.approx(expected / 3.5)
    assert measure.title == "WIS"
    assert LOSSES["pinball"](QUANTILES).selection_measure.title == "pinball loss", "they are the ends of no intervals"


def test_the_tables_do_not_load_pytorch() -> None:
    """Settings and problems read them, in commands that must start at once."""
    modules = [module for module in list_modules() if module.startswith("learning")]
    script = f"import sys, {', '.join(modules)}; print(sorted({{'torch', 'mlflow'}} & set(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_a_choice_is_an_entry_of_its_table() -> None:
    adapter: TypeAdapter[str] = TypeAdapter(Annotated[str, Choice({"mae": None, "huber": None})])
    assert adapter.validate_python("huber") == "huber"
    assert adapter.json_schema() == {"enum": ["mae", "huber"], "type": "string"}
    with pytest.raises(ValidationError, match="Input should be 'mae' or 'huber'"):
        adapter.validate_python("hubert")


@pytest.mark.parametrize(
    ("settings", "table"),
    [
        (lambda name: TrainSettings(loss=name), LOSSES),
        (lambda name: REGISTRY["gru"].Hyperparameters(optimizer=name), OPTIMIZERS),
        (lambda name: REGISTRY["gru"].Hyperparameters(schedule=name), SCHEDULES),
    ],
)
def test_settings_take_the_names_of_the_tables_and_no_others(settings: Any, table: dict[str, Any]) -> None:
    for name in table:
        settings(name)
    with pytest.raises(ValidationError, match="Input should be"):
        settings("another")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_makes_a_step(name: str) -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = OPTIMIZERS[name]([parameter], 0.1)
    parameter.grad = torch.ones(3)
    optimizer.step()
    assert (parameter < 1).all()
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_schedules_begin_at_the_whole_learning_rate() -> None:
    assert {name: factor(0.0) for name, factor in SCHEDULES.items()} == dict.fromkeys(SCHEDULES, 1.0)
    assert SCHEDULES["cosine"](0.5) == pytest.approx(0.5)
    assert SCHEDULES["cosine"](1.0) == pytest.approx(0)


def test_the_pinball_loss_follows_its_definition() -> None:
    y_BSO, target_BSK = torch.randn(5, 2, 3), torch.randn(5, 2, 1)
    error_BSO = (target_BSK - y_BSO).numpy()
    expected = 2 * np.maximum(np.array(QUANTILES) * error_BSO, (np.array(QUANTILES) - 1) * error_BSO).mean(axis=2)
    assert pinball(y_BSO, target_BSK, QUANTILES).numpy() == pytest.approx(expected, rel=1e-5)
    median = pinball(y_BSO[:, :, :1], target_BSK, (0.5,))
    assert torch.equal(median, (target_BSK - y_BSO[:, :, :1]).abs().squeeze(2))


def measure(objective: Objective, y_BSO: torch.Tensor, target_BSK: torch.Tensor) -> dict[str, float]:
    scores = objective.score_answers(y_BSO, target_BSK)
    assert all(score_BS.dtype == torch.float64 for score_BS in scores.values())
    assert all(score_BS.shape == y_BSO.shape[:2] for score_BS in scores.values())
    return objective.compute_measures({name: float(score_BS.mean()) for name, score_BS in scores.items()}, scale=3.0)


@pytest.mark.parametrize("loss", LOSSES)
def test_numbers_are_measured_in_their_unit_and_normalised(loss: str) -> None:
    objective = ANSWER_KINDS["value"].choose_objective(LearningTask(1, None, loss, QUANTILES))
    y_BSO, target_BSK = torch.randn(50, 2, objective.outputs), torch.randn(50, 2, 1)
    point_BSO = y_BSO.sort(dim=2)[0][:, :, 1:2] if objective.quantiles else y_BSO
    error = (point_BSO - target_BSK).double().numpy()
    values = measure(objective, y_BSO, target_BSK)
    assert values["mae_normalized"] == pytest.approx(np.abs(error).mean())
    assert values["mae"] == pytest.approx(3 * np.abs(error).mean())
    assert values["rmse"] == pytest.approx(3 * math.sqrt(np.square(error).mean()))
    assert objective.selection_measure.name == ("pinball" if loss == "pinball" else "mae")
    assert objective.quantiles == (QUANTILES if loss == "pinball" else ())
    equal_BS = torch.full((50, 2), 2.0)
    assert objective.loss(y_BSO, target_BSK, None) == pytest.approx(objective.loss(y_BSO, target_BSK, equal_BS))


@pytest.mark.parametrize(
    ("kind", "answers", "token", "names"),
    [
        ("binary", 1, None, ["cross_entropy", "accuracy"]),
        ("classes", 4, None, ["cross_entropy", "accuracy"]),
        ("classes", 4, "characters", ["bits", "accuracy"]),
        ("classes", 4, "words", ["perplexity", "accuracy"]),
        ("labels", 3, None, ["nll"]),
    ],
)
def test_every_kind_of_answer_has_its_measures(kind: str, answers: int, token: str | None, names: list[str]) -> None:
    answer_kind = ANSWER_KINDS[kind]
    objective = answer_kind.choose_objective(LearningTask(answers, token, "mae", QUANTILES))
    largest = answer_kind.largest_target(answers)
    assert largest is not None
    y_BSO = torch.randn(40, 2, answer_kind.count_outputs(answers))
    target_BSK = torch.randint(largest + 1, (40, 2, answer_kind.count_target_values(answers))).float()
    values = measure(objective, y_BSO, target_BSK)
    assert list(values) == names
    in_nats: dict[str, Any] = {"bits": lambda bits: bits * math.log(2), "perplexity": math.log}
    nats = in_nats.get(names[0], float)(values[names[0]])
    assert nats == pytest.approx(float(objective.loss(y_BSO, target_BSK, None)), rel=1e-5)
    probabilities = answer_kind.decode(y_BSO)
    assert ((probabilities >= 0) & (probabilities <= 1)).all()
    if answer_kind.has_classes:
        right = (answer_kind.choose_class(y_BSO[:, 0]) == target_BSK[:, 0, 0]).double()
        first = measure(objective, y_BSO[:, :1], target_BSK[:, :1])
        assert first["accuracy"] == pytest.approx(100 * float(right.mean()))


def test_quantiles_are_decoded_in_order() -> None:
    number = ANSWER_KINDS["value"]
    assert number.decode(torch.tensor([[[3.0, 1.0, 2.0]]])).tolist() == [[[1.0, 2.0, 3.0]]]
    assert number.is_number
    assert (number.count_outputs(1), number.count_target_values(1), number.largest_target(1)) == (1, 1, None)
