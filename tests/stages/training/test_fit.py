"""A trial's training is a function of its specification, also when it is killed and goes on; and so is its key."""

import dataclasses
import hashlib
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from architectures import REGISTRY, Network, WindowShape
from problems.errors import RecastError
from problems.problem import Problem
from project.settings.grid import configurations
from project.settings.sections import Grid, Runner, Settings, Train
from stages.normalize import normalize
from stages.tables.windows import Windowing
from stages.training import batches, trials
from stages.training.batches import Batch, Batches, Data
from stages.training.fit import Progress, TrialFailed, failure, fit, forecast, means
from stages.training.objectives import Objective, objective, shape_for
from stages.training.trials import Trial, bundles, check_shapes, expand
from stages.window import window

CPU = torch.device("cpu")
SMALL = Train(epochs=4, steps_per_epoch=5, batch_size=16)


class Killed(BaseException):
    """The process ends here."""


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A problem up to its windows."""

    folder: Path
    windowing: Windowing
    splits: dict[str, Batches]

    @property
    def shape(self) -> WindowShape:
        return self.windowing.shape


@pytest.fixture(scope="module")
def prepared(
    tmp_path_factory: pytest.TempPathFactory, make_problem: Callable[..., Problem], write_ingested: Any
) -> Prepared:
    """400 hours with a day's course, and noise that no network can learn."""
    folder = tmp_path_factory.mktemp("prepared")
    hours = np.arange(400)[:, None]
    noise = np.random.default_rng(0).normal(0, 1, (400, 3))
    write_ingested(folder / "ingest", [5 * np.sin(2 * np.pi * (hours / 24 + [0, 0.2, 0.6])) + noise])
    problem = make_problem(window={"lookback": "12h", "step": "1h", "delay": "3h"})
    normalize(problem, "standard", folder / "ingest", folder / "normalize")
    windowing = window(problem, 1, folder / "normalize", folder / "window")
    return Prepared(folder, windowing, batches.read_rows(folder / "normalize", folder / "window", windowing, CPU))


def trained(
    prepared: Prepared,
    checkpoint: Path,
    name: str = "gru",
    settings: Train = SMALL,
    seed: int = 0,
    after_epoch: Callable[[Progress], None] = lambda progress: None,
    splits: dict[str, Data] | None = None,
    **axes: Any,
) -> Progress:
    hyperparameters = REGISTRY[name].Hyperparameters(**({"units": 4} | axes))
    splits = splits or prepared.splits
    shape, aim = shape_for(prepared.windowing, settings), objective(prepared.windowing, settings)
    return fit(name, hyperparameters, seed, settings, shape, aim, splits, CPU, checkpoint, after_epoch)


def errors(network: Network, prepared: Prepared, split: str) -> dict[str, float]:
    aim = objective(prepared.windowing, SMALL)
    return aim.measured(means(network, prepared.splits[split], aim))


def weights(progress: Progress) -> list[bytes]:
    return [value.numpy().tobytes() for value in progress.network.state_dict().values()]


def result(progress: Progress) -> Any:
    """All that a trial records but the time that it took."""
    return weights(progress), progress.history, progress.best_epoch


CASES: dict[str, dict[str, Any]] = {
    "gru": {},
    "dropout": {"dropout": 0.3, "layers": 2},
    "dense": {"name": "dense", "dropout": 0.3, "optimizer": "adam"},
    "momentum": {"optimizer": "sgd", "learning_rate": 0.05},
    "schedule": {"schedule": "cosine", "epochs": 3},
    "members": {"members": 2, "residual": "persistence", "dropout": 0.3},
    "every window": {"settings": Train(epochs=3, steps_per_epoch=None, batch_size=50)},
    "clip and patience": {
        "optimizer": "adamw",
        "learning_rate": 0.5,
        "settings": Train(epochs=30, steps_per_epoch=3, batch_size=16, patience=2, clip=0.5),
    },
}
cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@cases
def test_the_same_trial_gives_the_same_bits(prepared: Prepared, tmp_path: Path, case: dict[str, Any]) -> None:
    one = trained(prepared, tmp_path / "one", **case)
    torch.rand(17)  # whatever ran before in this process
    again = trained(prepared, tmp_path / "again", **case)
    assert result(one) == result(again)
    assert weights(one) != weights(trained(prepared, tmp_path / "other", seed=1, **case))


@cases
def test_a_killed_trial_goes_on_as_if_nothing_had_happened(
    prepared: Prepared, tmp_path: Path, case: dict[str, Any]
) -> None:
    """Killed after every single epoch, the last one too."""
    expected = trained(prepared, tmp_path / "whole", **case)

    def die(progress: Progress) -> None:
        raise Killed

    checkpoint = tmp_path / "killed"
    for _ in expected.history:
        with pytest.raises(Killed):
            trained(prepared, checkpoint, after_epoch=die, **case)
    told: list[int] = []
    resumed = trained(prepared, checkpoint, after_epoch=lambda progress: told.append(len(progress.history)), **case)
    assert not told, "nothing was left to train"
    assert result(resumed) == result(expected)


def test_the_step_size_falls_as_the_schedule_says(prepared: Prepared, tmp_path: Path) -> None:
    """Half a cosine over all steps of all epochs, the last of which is not 0: as PyTorch's own schedule has it."""
    rates: list[float] = []
    trained(
        prepared,
        tmp_path / "checkpoint",
        after_epoch=lambda progress: rates.append(progress.optimizer.param_groups[0]["lr"]),
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
    assert len(trained(prepared, tmp_path / "four").history) == 4
    assert len(trained(prepared, tmp_path / "six", epochs=6).history) == 6


@pytest.mark.parametrize("at", [0, 1, 2, 3])
def test_a_trial_killed_within_an_epoch_goes_on_from_the_last_one(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    case = CASES["dropout"]
    expected = trained(prepared, tmp_path / "whole", **case)
    validated, epochs = means, []

    def die(network: Network, data: Data, aim: Objective) -> dict[str, float]:
        epochs.append(None)
        if len(epochs) > at:
            raise Killed
        return validated(network, data, aim)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("stages.training.fit.means", die)
        trained(prepared, tmp_path / "killed", **case)
    told: list[int] = []
    resumed = trained(
        prepared, tmp_path / "killed", after_epoch=lambda progress: told.append(len(progress.history)), **case
    )
    assert told == list(range(at + 1, 5))
    assert result(resumed) == result(expected)


def test_a_trial_may_be_given_more_epochs_than_it_was_killed_with(prepared: Prepared, tmp_path: Path) -> None:
    """Each epoch draws by its own number, so the first ones do not depend on how many follow."""
    short = trained(prepared, tmp_path / "short", settings=SMALL.model_copy(update={"epochs": 2}))
    long = trained(prepared, tmp_path / "long")
    assert long.history[:2] == short.history


def test_the_best_weights_are_those_of_the_lowest_validation_mae(prepared: Prepared, tmp_path: Path) -> None:
    kept: list[list[bytes]] = []
    settings = Train(epochs=12, steps_per_epoch=3, batch_size=16)
    progress = trained(
        prepared, tmp_path / "c", settings=settings, learning_rate=0.1, after_epoch=lambda p: kept.append(weights(p))
    )
    maes = [epoch.validation["mae"] for epoch in progress.history]
    assert [epoch.epoch for epoch in progress.history] == list(range(1, 13))
    assert progress.best_epoch == 1 + int(np.argmin(maes))
    assert 1 <= progress.best_epoch < 12, "else the test is none"
    assert weights(progress) == kept[progress.best_epoch - 1]
    assert errors(progress.network, prepared, "validation")["mae"] == min(maes)


@pytest.mark.parametrize("patience", [1, 3])
def test_training_stops_when_the_best_epoch_is_too_long_ago(prepared: Prepared, tmp_path: Path, patience: int) -> None:
    settings = Train(epochs=60, steps_per_epoch=2, batch_size=16, patience=patience)
    progress = trained(prepared, tmp_path / "c", settings=settings, learning_rate=0.5)
    assert len(progress.history) == progress.best_epoch + patience
    assert len(progress.history) < 60


def test_training_learns(prepared: Prepared, tmp_path: Path) -> None:
    settings = Train(epochs=5, steps_per_epoch=60, batch_size=32)
    progress = trained(prepared, tmp_path / "c", settings=settings, units=16, learning_rate=0.01)
    naive = REGISTRY["persistence"](prepared.shape, REGISTRY["persistence"].Hyperparameters())
    assert progress.history[-1].train_loss < progress.history[0].train_loss
    persistence = errors(naive, prepared, "validation")["mae"]
    assert progress.history[progress.best_epoch - 1].validation["mae"] < 0.8 * persistence


def test_validation_errors_follow_their_definition(prepared: Prepared, tmp_path: Path) -> None:
    progress = trained(prepared, tmp_path / "c")
    data = prepared.splits["validation"]
    found = forecast(progress.network, data)
    assert found.shape == (len(data), 1, 1)
    difference = (found - data.at(torch.arange(len(data))).y_BSK).double().numpy()
    measured = errors(progress.network, prepared, "validation")
    assert measured["mae"] == pytest.approx(np.abs(difference).mean())
    assert measured["rmse"] == pytest.approx(math.sqrt(np.square(difference).mean()))


@pytest.mark.parametrize("loss", ["mae", "mse", "huber"])
def test_the_training_loss_is_the_mean_over_the_batches(prepared: Prepared, tmp_path: Path, loss: str) -> None:
    """With a learning rate that moves nothing, over every window in batches of one size."""
    size = len(prepared.splits["train"]) // 2
    settings = Train(epochs=1, steps_per_epoch=None, batch_size=size, loss=loss)
    if len(prepared.splits["train"]) % 2:
        settings = settings.model_copy(update={"batch_size": len(prepared.splits["train"])})
    progress = trained(prepared, tmp_path / "c", settings=settings, optimizer="sgd", learning_rate=1e-12)
    data = prepared.splits["train"]
    error = (forecast(progress.network, data) - data.at(torch.arange(len(data))).y_BSK).numpy()
    small = np.abs(error) < 1
    expected = {
        "mae": np.abs(error),
        "mse": error**2,
        "huber": np.where(small, error**2 / 2, np.abs(error) - 0.5),
    }[loss].mean()
    assert progress.history[0].train_loss == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("steps", "visits"), [(None, 1), (7, None)])
def test_an_epoch_sees_every_window_once_or_so_many_batches(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int | None, visits: int | None
) -> None:
    seen: list[list[int]] = []
    gather, data = Batches.gather, prepared.splits["train"]

    def noted(self: Batches, rows_B: torch.Tensor) -> Any:
        if self is data:
            seen.append(rows_B.tolist())
        return gather(self, rows_B)

    monkeypatch.setattr(Batches, "gather", noted)
    trained(prepared, tmp_path / "c", settings=Train(epochs=2, steps_per_epoch=steps, batch_size=30))
    rows = data.rows(torch.arange(len(data))).tolist()
    half = len(seen) // 2
    if visits is None:
        assert [len(each) for each in seen] == [30] * 14
        assert {row for each in seen for row in each} <= set(rows)
    else:
        for epoch in (seen[:half], seen[half:]):
            assert sorted(row for each in epoch for row in each) == rows
    assert seen[:half] != seen[half:], "another epoch draws otherwise"


def test_a_trial_that_diverges_fails_and_says_when(prepared: Prepared, tmp_path: Path) -> None:
    told: list[int] = []
    settings = Train(epochs=50, steps_per_epoch=20, batch_size=16, loss="mse")
    with pytest.raises(TrialFailed, match=r"diverged in epoch (\d+): the training loss is (nan|inf)") as failed:
        trained(
            prepared,
            tmp_path / "c",
            "dense",
            settings,
            optimizer="sgd",
            learning_rate=10,
            after_epoch=lambda progress: told.append(len(progress.history)),
        )
    assert f"epoch {len(told) + 1}:" in str(failed.value)
    assert not failed.value.transient, "it would diverge again"


@pytest.mark.parametrize(
    ("split", "message"),
    [("train", "epoch 1: the training loss is nan"), ("validation", "epoch 1: the validation MAE is nan")],
)
def test_a_table_that_is_no_number_fails_the_trial(
    prepared: Prepared, tmp_path: Path, split: str, message: str
) -> None:
    class Broken(Batches):
        """Windows of nothing."""

        def __init__(self, whole: Batches) -> None:
            self.__dict__ |= whole.__dict__

        def gather(self, rows_B: torch.Tensor) -> Batch:
            batch = super().gather(rows_B)
            return batch._replace(x_BTF=batch.x_BTF * math.nan)

    with pytest.raises(TrialFailed, match=message):
        trained(prepared, tmp_path / "c", splits=prepared.splits | {split: Broken(prepared.splits[split])})


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.cuda.OutOfMemoryError("no"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_want_of_memory_may_pass(error: Exception) -> None:
    failed = failure(error)
    assert failed.transient and str(failed).startswith("out of memory: ")


def test_any_other_error_is_named() -> None:
    failed = failure(RuntimeError("mat1 and mat2\ncannot be multiplied"))
    assert not failed.transient and str(failed) == "RuntimeError: mat1 and mat2 cannot be multiplied"


def test_a_baseline_is_not_trained(prepared: Prepared, tmp_path: Path) -> None:
    axes = REGISTRY["persistence"].Hyperparameters()
    aim = objective(prepared.windowing, SMALL)
    progress = fit("persistence", axes, 0, SMALL, prepared.shape, aim, prepared.splits, CPU, tmp_path / "c", print)
    assert (progress.history, progress.best_epoch) == ([], 0)
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision_trains_and_resumes_too(prepared: Prepared, tmp_path: Path, precision: str) -> None:
    case: dict[str, Any] = {"name": "dense", "settings": SMALL.model_copy(update={"precision": precision})}
    expected = trained(prepared, tmp_path / "whole", **case)
    assert all(value.dtype == torch.float32 for value in expected.network.state_dict().values())
    trained(prepared, tmp_path / "c", **case | {"settings": case["settings"].model_copy(update={"epochs": 2})})
    assert result(trained(prepared, tmp_path / "c", **case)) == result(expected)


# Keys and bundles of trials.


@pytest.fixture
def of(prepared: Prepared) -> Callable[..., list[Trial]]:
    """The trials of a grid."""

    def trials_of(
        architectures: dict[str, Any], seeds: Sequence[int] = (0, 1), train: Train = SMALL, problem: str = "test"
    ) -> list[Trial]:
        grid = Grid(seeds=tuple(seeds), architectures=architectures)
        settings = Settings.model_construct(grid=grid, train=train, runner=Runner())
        return expand(settings, problem, prepared.folder / "window")

    return trials_of


def keys(found: Sequence[Trial]) -> set[str]:
    return {trial.key for trial in found}


def test_the_grid_has_a_trial_a_configuration_and_seed_and_a_baseline_one(of: Callable[..., list[Trial]]) -> None:
    found = of({"persistence": {}, "gru": {"units": [4, 8]}}, seeds=(3, 5))
    assert [trial.label for trial in found] == [
        "persistence seed=3",
        "gru units=4 seed=3",
        "gru units=4 seed=5",
        "gru units=8 seed=3",
        "gru units=8 seed=5",
    ]
    assert len(keys(found)) == 5
    assert all(len(trial.key) == 16 for trial in found)
    assert [trial.trainable for trial in found] == [False, True, True, True, True]


OTHER_TRAIN: dict[str, Any] = {
    "epochs": 5,
    "steps_per_epoch": None,
    "batch_size": 17,
    "loss": "mse",
    "patience": 2,
    "clip": 1.0,
    "precision": "bfloat16",
    "threads": 2,
    "quantiles": (0.25, 0.5, 0.75),
}


def test_a_key_changes_with_every_part_of_the_specification(
    of: Callable[..., list[Trial]], monkeypatch: pytest.MonkeyPatch
) -> None:
    (trial,) = of({"gru": {}}, seeds=(0,))
    others = [
        *of({"gru": {}}, seeds=(1,)),
        *of({"lstm": {}}, seeds=(0,)),
        *of({"gru": {}}, seeds=(0,), problem="other"),
        dataclasses.replace(trial, data="other"),
    ]
    axes: dict[str, list[Any]] = {
        "learning_rate": [0.01],
        "optimizer": ["adam"],
        "units": [33],
        "layers": [2],
        "activation": ["relu"],
        "dropout": [0.1],
        "recurrent_dropout": [0.1],
        "bidirectional": [True],
        "reversed": [True],
        "regressor": [8],
        "initial": ["keras"],
        "schedule": ["cosine"],
        "epochs": [3],
        "residual": ["persistence"],
        "members": [2],
        "lookback": [3],
        "inputs": ["measured"],
        "embedding": [8],
    }
    assert set(axes) == set(REGISTRY["gru"].Hyperparameters.model_fields)
    others += [each for axis, values in axes.items() for each in of({"gru": {axis: values}}, seeds=(0,))]
    assert set(OTHER_TRAIN) == set(Train.model_fields)
    for name, value in OTHER_TRAIN.items():
        others += of({"gru": {}}, seeds=(0,), train=SMALL.model_copy(update={name: value}))
    found = [trial.key, *(each.key for each in others), dataclasses.replace(trial, code="other").key]
    monkeypatch.setattr(torch, "__version__", "0.0.1")
    found.append(dataclasses.replace(trial).key)
    assert len(set(found)) == len(found) == 4 + len(axes) + len(OTHER_TRAIN) + 3


def test_a_key_changes_with_the_windows_and_the_table(
    prepared: Prepared, tmp_path: Path, make_problem: Callable[..., Problem], write_ingested: Any
) -> None:
    raw = np.random.default_rng(0).normal(size=(200, 3))
    changed = raw.copy()
    changed[3, 2] += 1
    grid = Grid(seeds=(0,), architectures={"gru": {}})
    settings = Settings.model_construct(grid=grid, train=SMALL, runner=Runner())
    found = []
    for rows, delay, stride, target in (
        (raw, "4h", 1, "b"),
        (raw, "4h", 1, "b"),
        (changed, "4h", 1, "b"),
        (raw, "6h", 1, "b"),
        (raw, "4h", 2, "b"),
        (raw, "4h", 1, "c"),
    ):
        problem = make_problem(window={"lookback": "6h", "step": "2h", "delay": delay}, target=target)
        write_ingested(tmp_path / "ingest", [rows])
        normalize(problem, "standard", tmp_path / "ingest", tmp_path / "normalize")
        window(problem, stride, tmp_path / "normalize", tmp_path / "window")
        found.append(expand(settings, "test", tmp_path / "window")[0].key)
    assert found[0] == found[1]
    assert len(set(found)) == 5


@pytest.mark.parametrize(("split", "changes"), [("train", True), ("validation", True), ("test", False)])
def test_a_key_changes_with_the_rows_that_a_trial_sees(
    prepared: Prepared, tmp_path: Path, split: str, changes: bool
) -> None:
    """As many windows elsewhere are other windows; those of the test decide no trial."""
    shutil.copytree(prepared.folder / "window", tmp_path / "window")
    settings = Settings.model_construct(grid=Grid(seeds=(0,), architectures={"gru": {}}), train=SMALL, runner=Runner())
    before = expand(settings, "test", tmp_path / "window")[0].key
    np.save(tmp_path / "window" / f"{split}.npy", np.load(tmp_path / "window" / f"{split}.npy") + 1)
    assert (expand(settings, "test", tmp_path / "window")[0].key != before) == changes


def test_a_key_does_not_change_with_what_decides_no_result(of: Callable[..., list[Trial]], prepared: Prepared) -> None:
    expected = keys(of({"dense": {"units": [4, 8]}, "gru": {}}))
    assert keys(of({"gru": {}, "dense": {"units": [8, 4]}}, seeds=(1, 0))) == expected, "the grid's order"
    assert keys(of({"dense": {"units": [4, 8], "layers": [1]}, "gru": {"learning_rate": [1e-3]}})) == expected, (
        "a default that is written out"
    )
    grid = Grid(seeds=(0, 1), architectures={"dense": {"units": [4, 8]}, "gru": {}})
    runner = Runner(kind="inline", workers=7, slots_per_gpu=3, devices="cpu", bundle=5)
    other = Settings.model_construct(grid=grid, train=SMALL, runner=runner)
    assert keys(expand(other, "test", prepared.folder / "window")) == expected


def test_one_more_value_adds_exactly_its_trials(of: Callable[..., list[Trial]]) -> None:
    axes = {"units": [4, 8], "learning_rate": [0.001, 0.01]}
    before, after = of({"gru": axes}), of({"gru": axes | {"learning_rate": [0.001, 0.003, 0.01]}})
    assert keys(before) < keys(after)
    new = [trial for trial in after if trial.key not in keys(before)]
    assert len(new) == 4
    assert {trial.configuration.hyperparameters.model_dump()["learning_rate"] for trial in new} == {0.003}
    assert len(keys(of({"gru": axes}, seeds=(0, 1, 2))) - keys(before)) == 4


SOURCE = '''
class Cell:
    """What it is."""

    def forward(self, x):
        # It is doubled.
        return x * 2, f"{x:{'.3f'}} # {self!r}"
'''


def test_comments_and_blank_lines_are_no_part_of_the_code() -> None:
    same = SOURCE.replace("        # It is doubled.\n", "\n\n  # twice\n").replace('self!r}"', 'self!r}"  # and more')
    assert trials.significant(same) == trials.significant(SOURCE)
    for other in (SOURCE.replace("2", "3"), SOURCE.replace("        return", "    return"), SOURCE + "y = 1\n"):
        assert trials.significant(other) != trials.significant(SOURCE)


def test_the_code_of_a_key_is_the_same_under_every_python() -> None:
    """Versions of Python differ in how they take an f-string apart; a shared key must not."""
    digest = hashlib.sha256(trials.significant(SOURCE).encode()).hexdigest()
    assert digest == "1c7520dc113a4a80b02a3bfcdee2be93ff0bb23ce236aac0931bb61235c04d52"


@pytest.mark.parametrize(
    ("module", "changed"),
    [("recurrent", {"gru"}), ("dense", {"dense"}), ("network", {"gru", "dense"}), ("view", set())],
)
def test_the_code_of_a_key_is_that_of_its_own_architecture(tmp_path: Path, module: str, changed: set[str]) -> None:
    def codes(added: str) -> dict[str, str]:
        package = tmp_path / str(len(added)) / "architectures"
        shutil.copytree(trials.PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
        with (package / f"{module}.py").open("a", encoding="utf-8") as file:
            file.write(added)
        return {name: trials.code(name, package) for name in ("gru", "dense")}

    before = codes("")
    assert before == {name: trials.code(name) for name in before}
    assert codes("\n\n# a comment\n") == before
    after = codes("\nx = 1\n")
    assert {name for name in after if after[name] != before[name]} == changed


def test_a_module_is_part_of_the_code_of_all_that_import_it(tmp_path: Path) -> None:
    package = tmp_path / "architectures"
    package.mkdir()
    for name, text in {
        "dense": "from architectures import network, constants\ndef f():\n    from .inner import g\n",
        "network": "import architectures.deep\n",
        "constants": "X = 1\n",
        "inner": "",
        "deep": "",
        "combined": "",
        "other": "",
    }.items():
        (package / f"{name}.py").write_text(text)
    before = trials.code("dense", package)
    for name in ("dense", "network", "constants", "inner", "deep", "combined", "other"):
        (package / f"{name}.py").write_text((package / f"{name}.py").read_text() + "Y = 2\n")
        after = trials.code.__wrapped__("dense", package)
        assert (after != before) == (name != "other"), name
        before = after


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_a_bundle_holds_trials_of_one_architecture_and_shape(of: Callable[..., list[Trial]], size: int) -> None:
    found = of(
        {
            "gru": {"units": [4, 8], "learning_rate": [0.001, 0.01]},
            "lstm": {"units": [4], "optimizer": ["adam", "sgd"]},
            "persistence": {},
        },
        seeds=(0, 1, 2),
    )
    made = bundles(found, size)
    together = [trial for bundle in made for trial in bundle]
    assert sorted(trial.key for trial in together) == sorted(trial.key for trial in found), "each once"
    assert all(1 <= len(bundle) <= size for bundle in made)
    for bundle in made:
        apart = {"learning_rate", "optimizer"}
        shapes = {str(trial.configuration.hyperparameters.model_dump(exclude=apart)) for trial in bundle}
        assert len({trial.configuration.architecture for trial in bundle}) == len(shapes) == 1
    groups = [12 / 2, 12 / 2, 6, 1]
    assert len(made) == sum(math.ceil(group / size) for group in groups), "no more bundles than need be"
    assert bundles(found, size) == made


def test_an_architecture_that_cannot_work_on_the_windows_is_named(
    of: Callable[..., list[Trial]], prepared: Prepared
) -> None:
    check_shapes(of({"gru": {}, "persistence": {}}), prepared.windowing)
    with pytest.raises(RecastError, match=r"grid\.architectures\.seasonal_naive looks .* lengthen window\.lookback"):
        check_shapes(of({"seasonal_naive": {}}), prepared.windowing)


def test_a_trial_is_an_immutable_value(of: Callable[..., list[Trial]]) -> None:
    (configuration,) = configurations(Grid(seeds=(0,), architectures={"gru": {}}))
    (trial,) = of({"gru": {}}, seeds=(0,))
    assert trial == Trial("test", configuration, 0, SMALL, trial.data, trial.code)
    with pytest.raises(dataclasses.FrozenInstanceError):
        trial.seed = 1  # type: ignore[misc]
