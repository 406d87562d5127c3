"""A trial's training is a function of its specification, also when it is killed and resumed."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from architectures import REGISTRY, Network, WindowShape
from learning.objectives import Objective
from project.settings.sections import TrainSettings
from stages.sequences.reading import SequenceWindows
from stages.training import fit as fit_module
from stages.training import scoring
from stages.training.batches import Batch, SplitData
from stages.training.checkpoint import FitResult, TrainingState
from stages.training.failures import TrialFailed, to_trial_failure
from stages.training.fit import fit
from stages.training.objectives import choose_objective, choose_shape
from stages.training.scoring import answer_windows, mean_scores
from stages.training.sequence_batches import SequenceBatches
from stages.training.table_batches import TableBatches
from tests.stages.training.conftest import CPU, SMALL, Prepared, answer_all


class Killed(BaseException):
    """The process ends."""


def train(
    prepared: Prepared,
    checkpoint: Path,
    name: str = "gru",
    settings: TrainSettings = SMALL,
    seed: int = 0,
    after_epoch: Callable[[TrainingState], None] = lambda training: None,
    splits: dict[str, SplitData] | None = None,
    **axes: Any,
) -> FitResult:
    hyperparameters = REGISTRY[name].Hyperparameters(**({"units": 4} | axes))
    splits = splits or prepared.splits
    shape, objective = choose_shape(prepared.windowing, settings), choose_objective(prepared.windowing, settings)
    return fit(name, hyperparameters, seed, settings, shape, objective, splits, CPU, checkpoint, after_epoch)


def errors(network: Network, prepared: Prepared, split: str) -> dict[str, float]:
    objective = choose_objective(prepared.windowing, SMALL)
    return objective.compute_measures(mean_scores(network, prepared.splits[split], objective))


def weights(training: FitResult) -> list[bytes]:
    return [value.numpy().tobytes() for value in training.network.state_dict().values()]


def result(training: FitResult) -> Any:
    """All that a trial records except the time that it took."""
    return weights(training), training.history, training.best_epoch


CASES: dict[str, dict[str, Any]] = {
    "gru": {},
    "dropout": {"dropout": 0.3, "layers": 2},
    "dense": {"name": "dense", "dropout": 0.3, "optimizer": "adam"},
    "momentum": {"optimizer": "sgd", "learning_rate": 0.05},
    "schedule": {"schedule": "cosine", "epochs": 3},
    "members": {"members": 2, "residual": "persistence", "dropout": 0.3},
    "every window": {"settings": TrainSettings(epochs=3, steps_per_epoch=None, batch_size=50)},
    "clip and patience": {
        "optimizer": "adamw",
        "learning_rate": 0.5,
        "settings": TrainSettings(epochs=30, steps_per_epoch=3, batch_size=16, patience=2, clip=0.5),
    },
}
cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@cases
def test_the_same_trial_gives_the_same_bits(prepared: Prepared, tmp_path: Path, case: dict[str, Any]) -> None:
    one = train(prepared, tmp_path / "one", **case)
    torch.rand(17)  # whatever ran before in this process
    again = train(prepared, tmp_path / "again", **case)
    assert result(one) == result(again)
    assert weights(one) != weights(train(prepared, tmp_path / "other", seed=1, **case))


@cases
def test_a_killed_trial_resumes_as_if_nothing_had_happened(
    prepared: Prepared, tmp_path: Path, case: dict[str, Any]
) -> None:
    """Killed after every single epoch, the last one too."""
    expected = train(prepared, tmp_path / "whole", **case)

    checkpoint = tmp_path / "killed"
    for epoch in expected.history:

        def die(training: TrainingState, epoch: int = epoch.epoch) -> None:
            if len(training.history) == epoch:
                raise Killed

        with pytest.raises(Killed):
            train(prepared, checkpoint, after_epoch=die, **case)
    finished_epochs: list[int] = []
    resumed = train(
        prepared, checkpoint, after_epoch=lambda training: finished_epochs.append(len(training.history)), **case
    )
    assert finished_epochs == [len(expected.history)], "nothing was left to train"
    assert result(resumed) == result(expected)


def test_the_step_size_falls_as_the_schedule_says(prepared: Prepared, tmp_path: Path) -> None:
    """Half a cosine over all steps of all epochs, the last of which is not 0: as in PyTorch's own schedule."""
    rates: list[float] = []
    train(
        prepared,
        tmp_path / "checkpoint",
        after_epoch=lambda training: rates.append(training.optimizer.param_groups[0]["lr"]),
        schedule="cosine",
        epochs=3,
        learning_rate=0.01,
    )
    reference = torch.optim.SGD([torch.zeros(1)], lr=0.01)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(reference, T_max=3 * 5)
    expected = []
    for _ in range(3 * 5):
        expected.append(reference.param_groups[0]["lr"])
        reference.step()
        cosine.step()
    assert rates == pytest.approx(expected[4::5])


def test_an_architecture_may_train_longer_than_the_rest(prepared: Prepared, tmp_path: Path) -> None:
    assert len(train(prepared, tmp_path / "four").history) == 4
    assert len(train(prepared, tmp_path / "six", epochs=6).history) == 6


@pytest.mark.parametrize("at", [0, 1, 2, 3])
def test_a_trial_killed_within_an_epoch_resumes_from_the_last_one(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    case = CASES["dropout"]
    expected = train(prepared, tmp_path / "whole", **case)
    validations: list[None] = []

    def die(network: Network, data: SplitData, objective: Objective) -> dict[str, float]:
        validations.append(None)
        if len(validations) > at:
            raise Killed
        return mean_scores(network, data, objective)

    with monkeypatch.context() as patch:
        patch.setattr("stages.training.fit.mean_scores", die)
        with pytest.raises(Killed):
            train(prepared, tmp_path / "killed", **case)
    finished_epochs: list[int] = []
    resumed = train(
        prepared,
        tmp_path / "killed",
        after_epoch=lambda training: finished_epochs.append(len(training.history)),
        **case,
    )
    assert finished_epochs == list(range(max(at, 1), 5)), "first those that the checkpoint has"
    assert result(resumed) == result(expected)


def test_a_trial_may_be_given_more_epochs_than_it_was_killed_with(prepared: Prepared, tmp_path: Path) -> None:
    """Each epoch draws by its own number, so the first ones do not depend on how many follow."""
    short = train(prepared, tmp_path / "short", settings=SMALL.model_copy(update={"epochs": 2}))
    long = train(prepared, tmp_path / "long")
    assert long.history[:2] == short.history


def test_the_best_weights_are_those_of_the_lowest_validation_mae(prepared: Prepared, tmp_path: Path) -> None:
    weights_by_epoch: list[list[bytes]] = []
    settings = TrainSettings(epochs=12, steps_per_epoch=3, batch_size=16)
    training = train(
        prepared,
        tmp_path / "c",
        settings=settings,
        learning_rate=0.1,
        after_epoch=lambda p: weights_by_epoch.append(weights(p)),
    )
    maes = [epoch.validation["mae"] for epoch in training.history]
    assert [epoch.epoch for epoch in training.history] == list(range(1, 13))
    assert training.best_epoch == 1 + int(np.argmin(maes))
    assert 1 <= training.best_epoch < 12, "otherwise this tests nothing"
    assert weights(training) == weights_by_epoch[training.best_epoch - 1]
    assert errors(training.network, prepared, "validation")["mae"] == min(maes)


@pytest.mark.parametrize("patience", [1, 3])
def test_training_stops_when_the_best_epoch_is_too_long_ago(prepared: Prepared, tmp_path: Path, patience: int) -> None:
    settings = TrainSettings(epochs=60, steps_per_epoch=2, batch_size=16, patience=patience)
    training = train(prepared, tmp_path / "c", settings=settings, learning_rate=0.5)
    assert len(training.history) == training.best_epoch + patience
    assert len(training.history) < 60


def test_training_learns(prepared: Prepared, tmp_path: Path) -> None:
    settings = TrainSettings(epochs=5, steps_per_epoch=60, batch_size=32)
    training = train(prepared, tmp_path / "c", settings=settings, units=16, learning_rate=0.01)
    naive = REGISTRY["persistence"](prepared.shape, REGISTRY["persistence"].Hyperparameters())
    assert training.history[-1].train_loss < training.history[0].train_loss
    persistence = errors(naive, prepared, "validation")["mae"]
    assert training.history[training.best_epoch - 1].validation["mae"] < 0.8 * persistence


def test_validation_errors_follow_their_definition(prepared: Prepared, tmp_path: Path) -> None:
    training = train(prepared, tmp_path / "c")
    data = prepared.splits["validation"]
    answers_NSO = answer_all(training.network, data)
    assert answers_NSO.shape == (len(data), 1, 1)
    difference = (answers_NSO - data.select(torch.arange(len(data))).y_BSK).double().numpy()
    measures = errors(training.network, prepared, "validation")
    assert measures["mae"] == pytest.approx(np.abs(difference).mean())
    assert measures["rmse"] == pytest.approx(math.sqrt(np.square(difference).mean()))


@pytest.mark.parametrize("loss", ["mae", "mse", "huber"])
def test_the_training_loss_is_the_mean_over_the_batches(prepared: Prepared, tmp_path: Path, loss: str) -> None:
    """With a learning rate that moves nothing, over every window in batches of one size."""
    size = len(prepared.splits["train"]) // 2
    settings = TrainSettings(epochs=1, steps_per_epoch=None, batch_size=size, loss=loss)
    if len(prepared.splits["train"]) % 2:
        settings = settings.model_copy(update={"batch_size": len(prepared.splits["train"])})
    training = train(prepared, tmp_path / "c", settings=settings, optimizer="sgd", learning_rate=1e-12)
    data = prepared.splits["train"]
    error = (answer_all(training.network, data) - data.select(torch.arange(len(data))).y_BSK).numpy()
    small = np.abs(error) < 1
    expected = {
        "mae": np.abs(error),
        "mse": error**2,
        "huber": np.where(small, error**2 / 2, np.abs(error) - 0.5),
    }[loss].mean()
    assert training.history[0].train_loss == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("steps", "visits"), [(None, 1), (7, None)])
def test_an_epoch_has_every_window_once_or_a_number_of_batches(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int | None, visits: int | None
) -> None:
    gathered: list[list[int]] = []
    gather, data = TableBatches.gather, prepared.splits["train"]

    def record_gather(self: TableBatches, rows_B: torch.Tensor) -> Any:
        if self is data:
            gathered.append(rows_B.tolist())
        return gather(self, rows_B)

    monkeypatch.setattr(TableBatches, "gather", record_gather)
    train(prepared, tmp_path / "c", settings=TrainSettings(epochs=2, steps_per_epoch=steps, batch_size=30))
    rows = data.find_rows(torch.arange(len(data))).tolist()
    half = len(gathered) // 2
    if visits is None:
        assert [len(batch) for batch in gathered] == [30] * 14
        assert {row for batch in gathered for row in batch} <= set(rows)
    else:
        for epoch in (gathered[:half], gathered[half:]):
            assert sorted(row for batch in epoch for row in batch) == rows
    assert gathered[:half] != gathered[half:], "another epoch draws other batches"


def test_a_trial_that_diverges_fails_and_says_when(prepared: Prepared, tmp_path: Path) -> None:
    finished_epochs: list[int] = []
    settings = TrainSettings(epochs=50, steps_per_epoch=20, batch_size=16, loss="mse")
    with pytest.raises(TrialFailed, match=r"diverged in epoch (\d+): the training loss is (nan|inf)") as failed:
        train(
            prepared,
            tmp_path / "c",
            "dense",
            settings,
            optimizer="sgd",
            learning_rate=10,
            after_epoch=lambda training: finished_epochs.append(len(training.history)),
        )
    assert f"epoch {len(finished_epochs) + 1}:" in str(failed.value)
    assert not failed.value.transient, "it would diverge again"


@pytest.mark.parametrize(
    ("split", "message"),
    [("train", "epoch 1: the training loss is nan"), ("validation", "epoch 1: the validation MAE is nan")],
)
def test_values_that_are_not_numbers_fail_the_trial(
    prepared: Prepared, tmp_path: Path, split: str, message: str
) -> None:
    class Broken(TableBatches):
        """Windows that hold no numbers."""

        def __init__(self, whole: TableBatches) -> None:
            self.__dict__ |= whole.__dict__

        def gather(self, rows_B: torch.Tensor) -> Batch:
            batch = super().gather(rows_B)
            return batch._replace(x_BTF=batch.x_BTF * math.nan)

    with pytest.raises(TrialFailed, match=message):
        train(prepared, tmp_path / "c", splits=prepared.splits | {split: Broken(prepared.splits[split])})


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.cuda.OutOfMemoryError("no"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_a_lack_of_memory_is_transient(error: Exception) -> None:
    failed = to_trial_failure(error)
    assert failed.transient
    assert str(failed).startswith("out of memory: ")


def test_any_other_error_is_named() -> None:
    failed = to_trial_failure(RuntimeError("mat1 and mat2\ncannot be multiplied"))
    assert not failed.transient
    assert str(failed) == "RuntimeError: mat1 and mat2 cannot be multiplied"


def test_a_baseline_is_not_trained(prepared: Prepared, tmp_path: Path) -> None:
    axes = REGISTRY["persistence"].Hyperparameters()
    objective = choose_objective(prepared.windowing, SMALL)
    training = fit(
        "persistence", axes, 0, SMALL, prepared.shape, objective, prepared.splits, CPU, tmp_path / "c", print
    )
    assert (training.history, training.best_epoch) == ([], 0)
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision_trains_and_resumes_too(prepared: Prepared, tmp_path: Path, precision: str) -> None:
    case: dict[str, Any] = {"name": "dense", "settings": SMALL.model_copy(update={"precision": precision})}
    expected = train(prepared, tmp_path / "whole", **case)
    assert all(value.dtype == torch.float32 for value in expected.network.state_dict().values())
    train(prepared, tmp_path / "c", **case | {"settings": case["settings"].model_copy(update={"epochs": 2})})
    assert result(train(prepared, tmp_path / "c", **case)) == result(expected)


def test_as_many_windows_are_answered_at_once_as_the_longest_ones_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one may be short, where each step of a sequence is answered."""
    shape = WindowShape(steps=100, features=1, target=None, horizon=1, day=0, each=True)
    windows = SequenceWindows(None, 0, None, False, {}, {}, "", "value", None, shape)
    pieces_K4 = torch.tensor([[0, 0, 1, 0], [1, 1, 101, 1]])
    data = SequenceBatches(torch.zeros(101, 1), torch.zeros(101, 1), pieces_K4, windows, CPU)
    monkeypatch.setattr(scoring, "EVALUATION_NUMBERS", 32 * 100)
    network = fit_module.initialize_network("gru", REGISTRY["gru"].Hyperparameters(units=4), shape, seed=0)
    assert [y_BSO.shape[1] for y_BSO, _ in answer_windows(network, data)] == [1, 100]
