"""The Neural Programmer against a transcription of its equations, and the questions that it is trained on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from architectures import REGISTRY, ShapeError, WindowShape
from architectures.network import Network
from architectures.programmer import OPERATIONS, NeuralProgrammer
from problems.problem import Problem
from problems.sources.questions import (
    QUESTION_LENGTH,
    QUESTION_WORDS,
    QuestionsSource,
    generate_episodes,
    question_columns,
)
from project.settings.loading import load_settings
from project.settings.sections import TrainSettings
from stages.normalize import normalize
from stages.tables.windows import TableWindows, read_ranges
from stages.training import batches, reading
from stages.training.fit import fit, initialize_network
from stages.training.objectives import choose_objective
from stages.training.scoring import mean_scores
from stages.window import window

ROWS, COLUMNS = 5, 3
NAMES = question_columns(COLUMNS)
SHAPE = WindowShape(steps=ROWS + QUESTION_LENGTH, features=len(NAMES), target=len(NAMES) - 1, horizon=1, day=24)
KINDS = ("sum", "count", "sum where", "count and", "count or")
RTOL = 1e-6
Values = NDArray[np.float64]


def programmer(seed: int = 0, shape: WindowShape = SHAPE, **axes: Any) -> NeuralProgrammer:
    network = initialize_network(
        "neural_programmer", NeuralProgrammer.Hyperparameters(**({"units": 7, "columns": COLUMNS} | axes)), shape, seed
    )
    assert isinstance(network, NeuralProgrammer)
    return network.double().eval()


def windows(count: int = 9, seed: int = 0) -> Values:
    return generate_episodes(KINDS, count, ROWS, COLUMNS, np.random.default_rng(seed))[:, :-1]


# The network.


def softmax(x: Values) -> Values:
    return np.exp(x - x.max()) / np.exp(x - x.max()).sum()


def transcribed(network: NeuralProgrammer, x_TF: Values) -> tuple[float, Values, Values]:
    """The paper's equations for one window, in loops over rows, columns and words."""
    weights = {name: value.detach().numpy() for name, value in network.named_parameters()}
    U, P = weights["U"], weights["P"]
    d = U.shape[1]
    if network.axes.columns:
        table = x_TF[:ROWS, :COLUMNS]
        divisor = 1
        states = [np.zeros(d)]
        for word in x_TF[ROWS:]:
            embedded = weights["V.weight"] @ word[COLUMNS + 2 : -1]
            states.append(np.tanh(weights["W_q.weight"] @ np.concatenate([states[-1], embedded])))
        q = states[-1]
        carried = [(z, word[COLUMNS]) for z, word in zip(states[1:], x_TF[ROWS:], strict=True) if word[COLUMNS] != 0]
        pivots = {}
        for operation in ("greater", "lesser"):
            scores = np.array([z @ U[OPERATIONS.index(operation)] for z, _ in carried])
            pivots[operation] = softmax(scores) @ np.array([n for _, n in carried]) if carried else 0.0
    else:
        table, divisor, q, pivots = x_TF, len(x_TF), weights["q"], {"greater": 0.0, "lesser": 0.0}
    rows, columns = table.shape
    h = np.zeros(d)
    answers, selections = {-2: 0.0, -1: 0.0, 0: 0.0}, {-1: np.ones(rows), 0: np.ones(rows)}
    programs: list[tuple[Values, Values]] = []
    for t in range(1, network.axes.timesteps + 1):
        if t > 1:
            c = np.concatenate([programs[-1][0] @ U, programs[-1][1] @ P])
            h = np.tanh(weights["W_h.weight"] @ np.concatenate([c, h]))
        a = softmax(U @ np.tanh(weights["W_op.weight"] @ np.concatenate([q, h])))
        of_column = softmax(P @ np.tanh(weights["W_col.weight"] @ np.concatenate([q, h])))
        by_name = dict(zip(OPERATIONS, a, strict=True))
        s = selections[t - 1]
        answers[t] = by_name["count"] * sum(s) / divisor + by_name["difference"] * (answers[t - 3] - answers[t - 1])
        for j in range(columns):
            answers[t] += of_column[j] * by_name["sum"] * sum(s[i] * table[i, j] for i in range(rows)) / divisor
        selections[t] = np.array(
            [
                by_name["and"] * min(s[i], selections[t - 2][i])
                + by_name["or"] * max(s[i], selections[t - 2][i])
                + by_name["reset"]
                + sum(
                    of_column[j]
                    * (
                        by_name["greater"] * (table[i, j] > pivots["greater"])
                        + by_name["lesser"] * (table[i, j] < pivots["lesser"])
                    )
                    for j in range(columns)
                )
                for i in range(rows)
            ]
        )
        programs.append((a, of_column))
    answer = answers[network.axes.timesteps]
    if not network.axes.columns:
        answer = float((answer * weights["output.weight"][0] + weights["output.bias"])[0])
    return answer, np.array([a for a, _ in programs]), np.array([c for _, c in programs])


@pytest.mark.parametrize("timesteps", [1, 4, 6])
def test_it_follows_the_papers_equations(timesteps: int) -> None:
    network = programmer(timesteps=timesteps)
    # Larger weights than the initial ones, so that no selection is nearly uniform.
    for weight in network.parameters():
        weight.data *= 2
    x_BTF = windows()
    actual, (operations, columns) = network(torch.from_numpy(x_BTF)), network.program(torch.from_numpy(x_BTF))
    for i, x_TF in enumerate(x_BTF):
        answer, of_operations, of_columns = transcribed(network, x_TF)
        assert actual[i].item() == pytest.approx(answer, rel=RTOL, abs=1e-9)
        np.testing.assert_allclose(operations[i].detach(), of_operations, rtol=RTOL)
        np.testing.assert_allclose(columns[i].detach(), of_columns, rtol=RTOL)


def test_without_a_question_the_window_is_the_table() -> None:
    shape = WindowShape(steps=8, features=4, target=1, horizon=4, day=4)
    network = programmer(shape=shape, columns=0)
    x_BTF = np.random.default_rng(0).normal(size=(5, 8, 4))
    expected = [transcribed(network, x_TF)[0] for x_TF in x_BTF]
    np.testing.assert_allclose(network(torch.from_numpy(x_BTF)).detach()[:, 0, 0], expected, rtol=RTOL)


def test_probabilities_sum_to_one() -> None:
    for probabilities in programmer().program(torch.from_numpy(windows())):
        torch.testing.assert_close(probabilities.sum(dim=2), torch.ones(9, 4, dtype=torch.float64))


def test_the_program_can_be_looked_at() -> None:
    x_BTF = torch.from_numpy(windows(3))
    network = programmer()
    with torch.no_grad():
        views, probabilities = network.views(x_BTF), network.program(x_BTF)
    for view, chosen_BSK, names in zip(views, probabilities, (OPERATIONS, NAMES[:COLUMNS]), strict=True):
        torch.testing.assert_close(view.values, chosen_BSK.transpose(1, 2))
        assert view.names == tuple(names)


def test_gradients_by_finite_differences() -> None:
    network = programmer(units=2, timesteps=3)
    x_BTF = torch.from_numpy(windows(3))
    names = [name for name, _ in network.named_parameters()]

    def answer(*weights: Tensor) -> Tensor:
        actual: Tensor = torch.func.functional_call(network, dict(zip(names, weights, strict=True)), (x_BTF,))
        return actual

    weights = [value.detach().requires_grad_() for value in network.parameters()]
    assert torch.autograd.gradcheck(answer, weights)


def test_windows_without_words_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"^neural_programmer\.columns: 20 leave no words among 16 features"):
        programmer(columns=20)


# The questions.


def answered(x_TF: Values) -> float:
    """The answer, from the marks of the words alone."""
    table = x_TF[:ROWS, :COLUMNS]
    words = [
        (name.removeprefix("word "), step[NAMES.index("number")])
        for step in x_TF[ROWS:]
        for name in NAMES
        if name.startswith("word ") and step[NAMES.index(name)] == 1
    ]
    verb, rest = words[0][0], words[1:]
    asked = None
    if rest[0][0].startswith("column"):
        asked = int(rest.pop(0)[0].removeprefix("column ")) - 1
    is_kept = np.ones(ROWS, dtype=bool)
    joint = "where"
    while rest:
        (joint, _), (column, _), (comparison, number) = rest[:3]
        rest = rest[3:]
        values = table[:, int(column.removeprefix("column ")) - 1]
        holds = values > number if comparison == "greater" else values < number
        is_kept = is_kept | holds if joint == "or" else is_kept & holds
    return float(is_kept.sum() if verb == "count" else table[is_kept, asked].sum())


@hypothesis_settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_every_answer_is_right(seed: int) -> None:
    made = generate_episodes(KINDS, 12, ROWS, COLUMNS, np.random.default_rng(seed))
    assert made.shape == (12, ROWS + QUESTION_LENGTH + 1, len(NAMES))
    for episode in made:
        assert episode[-1, -1] == pytest.approx(answered(episode[:-1]))
        assert not episode[:-1, -1].any(), "no input knows the answer"
        assert episode[:, NAMES.index("row")].tolist() == [1.0] * ROWS + [0.0] * (QUESTION_LENGTH + 1)


def test_each_kind_is_asked_as_often() -> None:
    made = generate_episodes(KINDS, 5000, ROWS, COLUMNS, np.random.default_rng(0))
    asked = {word: made[:, :, NAMES.index(f"word {word}")].any(axis=1).mean() for word in QUESTION_WORDS}
    assert asked["sum"] == pytest.approx(2 / 5, abs=0.03)
    assert asked["and"] == pytest.approx(1 / 5, abs=0.03)
    assert asked["or"] == pytest.approx(1 / 5, abs=0.03)


@pytest.fixture
def declared() -> Problem:
    """The problem as params.yaml has it, of fewer episodes."""
    problem = load_settings(Path(__file__).parents[2] / "params.yaml").problem("questions")
    assert isinstance(problem.source, QuestionsSource)
    source = problem.source.model_copy(update={"episodes": 4000, "kinds": ("sum", "count")})
    return problem.model_copy(update={"source": source})


def test_a_window_is_an_episode(declared: Problem, tmp_path: Path) -> None:
    """Through the stages; a cut of the split costs no more than the episode that it falls into."""
    splits = prepared(declared, tmp_path)
    assert 3998 <= sum(len(data) for data in splits.values()) <= 4000
    assert isinstance(declared.source, QuestionsSource)
    rows = declared.source.rows
    for data in splits.values():
        x_BTF, y_BSK, *_ = data.select(torch.arange(50))
        assert (x_BTF[:, :rows, NAMES.index("row")] == 1).all()
        assert (x_BTF[:, rows:, NAMES.index("row")] == 0).all()
        assert not x_BTF[:, :, -1].any()
        for x_TF, y in zip(x_BTF.double().numpy(), y_BSK[:, 0, 0], strict=True):
            asked = x_TF[rows:, NAMES.index("word sum")].any()
            if asked:
                (column,) = (j for j in range(3) if x_TF[rows:, NAMES.index(f"word column {j + 1}")].any())
                assert y.item() == pytest.approx(x_TF[:rows, column].sum(), abs=1e-4)
            else:
                assert y.item() == int(y.item())


def prepared(problem: Problem, folder: Path) -> dict[str, batches.SplitData]:
    """The stages up to the windows."""
    (folder / "scratch").mkdir()
    frame = problem.source.read(folder, folder / "scratch").frame.collect()
    table = frame.select("time", pl.lit("all").alias("series"), *problem.table.features)
    (folder / "ingest").mkdir()
    table.write_parquet(folder / "ingest" / "table.parquet")
    (folder / "ingest" / "quality.json").write_text('{"cadence_seconds": 3600}')
    assert problem.table.scale
    normalize(problem, problem.table.scale, folder / "ingest", folder / "normalize")
    window(problem, 1, folder / "normalize", folder / "window")
    assert read_ranges(folder / "window", "train").shape[1] == 2
    return reading.read_batches(folder / "normalize", folder / "window", torch.device("cpu"))


def test_it_learns_programs_that_an_lstm_does_not(declared: Problem, tmp_path: Path) -> None:
    """Sums and counts, exactly, by the project's own trainer; an LSTM with as many weights is far off by then."""
    splits = prepared(declared, tmp_path)
    windowing = TableWindows.read(tmp_path / "window")
    objective = choose_objective(windowing, TRAINING)
    axes: dict[str, dict[str, Any]] = {"neural_programmer": {"columns": 3, "units": 32}, "lstm": {"units": 42}}
    maes, parameters = {}, {}
    for name, own in axes.items():
        hyperparameters = REGISTRY[name].Hyperparameters(optimizer="adam", learning_rate=0.003, **own)
        network = trained(name, hyperparameters, windowing, splits, tmp_path / name)
        maes[name] = objective.compute_measures(mean_scores(network, splits["test"], objective))["mae"]
        parameters[name] = sum(weight.numel() for weight in network.parameters())
    assert parameters["lstm"] == pytest.approx(parameters["neural_programmer"], rel=0.1)
    assert maes["neural_programmer"] < 0.05
    assert maes["lstm"] > 10 * maes["neural_programmer"]


TRAINING = TrainSettings(epochs=4, steps_per_epoch=300, batch_size=128)


def trained(
    name: str, hyperparameters: Any, windowing: TableWindows, splits: dict[str, batches.SplitData], checkpoint: Path
) -> Network:
    on_epoch: Callable[[Any], None] = lambda progress: None  # noqa: E731
    objective, cpu = choose_objective(windowing, TRAINING), torch.device("cpu")
    return fit(
        name, hyperparameters, 0, TRAINING, windowing.shape, objective, splits, cpu, checkpoint, on_epoch
    ).network
