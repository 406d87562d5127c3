"""Trials: what is trained once and never again, each in a folder named by the hash of all that decides its result."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from architectures import REGISTRY, ShapeError
from problems.errors import RecastError
from project import paths
from project.atomic import write_json
from project.paths import PARAMS
from project.settings.grid import Configuration, configurations
from project.settings.sections import Settings, Train
from stages.tables.windows import AnyWindows
from stages.training import fit, objectives
from stages.training.source import trial_code


@dataclass(frozen=True)
class Trial:
    """A configuration, a seed and the data it is trained on.

    Attributes:
        train: how it is trained.
        data: identity of the windows and the table they index.
        code: hash of the source that trains it.
        origin: of a backtest, whose data these are; None: the problem's own. It is no part of the key.
        key: the content address: the first 16 digits of the specification's SHA-256. It is fixed when the grid is
            expanded, and travels with the trial: a worker must not find another one for code edited since.
    """

    problem: str
    configuration: Configuration
    seed: int
    train: Train
    data: str
    code: str
    origin: str | None = None
    key: str = field(init=False)

    def __post_init__(self) -> None:
        digest = hashlib.sha256(json.dumps(self.specification, sort_keys=True).encode())
        object.__setattr__(self, "key", digest.hexdigest()[:16])

    @property
    def specification(self) -> dict[str, Any]:
        """All that decides the result of the trial on CPU, as JSON."""
        return {
            "problem": self.problem,
            "architecture": self.configuration.architecture,
            "hyperparameters": self.configuration.hyperparameters.model_dump(mode="json"),
            "seed": self.seed,
            "train": self.train.model_dump(mode="json"),
            "data": self.data,
            "code": self.code,
            "torch": torch.__version__.partition("+")[0],
        }

    @property
    def normalized(self) -> Path:
        """The folder of the table that it is trained on."""
        return paths.stage("normalize", self.problem, self.origin)

    @property
    def windowed(self) -> Path:
        """The folder of the windows that it is trained on."""
        return paths.stage("window", self.problem, self.origin)

    @property
    def label(self) -> str:
        """A name for people: gru units=32 seed=1."""
        return f"{self.configuration.label} seed={self.seed}"

    @property
    def trainable(self) -> bool:
        """Whether it has weights to train; a baseline has not."""
        return REGISTRY[self.configuration.architecture].trainable


def trial_folder(trial: Trial) -> Path:
    """Where a trial keeps its files.

    `trial.json` (what it is and how it ended; written last), `history.json`, `weights.safetensors`; and, not tracked by
    DVC, `run.json` (how it ran) and, while it trains, `checkpoint.pt`.
    """
    return paths.trials(trial.problem, trial.origin) / trial.key


def read_trial(trial: Trial) -> dict[str, Any]:
    """What `trial.json` says of a trial that has ended.

    Raises:
        RecastError: the trial has not ended, or it is one of other code, data or settings than those that are here.
    """
    try:
        about: dict[str, Any] = json.loads((trial_folder(trial) / "trial.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecastError(
            f"{trial_folder(trial)}: {trial.label} was not trained with the code, data and settings that are here: "
            f"recast run {trial.problem}"
        ) from None
    return about


def read_run(folder: Path) -> dict[str, Any]:
    """What is noted of how a trial runs: its epoch, its MLflow run, whether all of it is logged, seconds."""
    file = folder / "run.json"
    noted: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return noted


def note_run(folder: Path, **fields: Any) -> None:
    """Add to what is noted of how a trial runs."""
    write_json(folder / "run.json", read_run(folder) | fields)


def check_shapes(trials: Iterable[Trial], windows: AnyWindows) -> None:
    """
    Raises:
        RecastError: an architecture of the grid cannot work on these windows.
    """
    for trial in {trial.configuration.label: trial for trial in trials}.values():
        configuration, shape = trial.configuration, objectives.shape_for(windows, trial.train)
        try:
            fit.build(configuration.architecture, configuration.hyperparameters, shape, seed=0)
        except ShapeError as error:
            raise RecastError(f"{PARAMS}: grid.architectures.{error}") from None


def check_code(trial: Trial) -> None:
    """
    Raises:
        RecastError: the source that trains the trial was edited after the grid was expanded.
    """
    if trial_code(trial.configuration.architecture) != trial.code:
        raise RecastError(
            f"{trial.label}: the source that trains it was edited while the pipeline ran; run again (finished trials "
            "of the former source are kept under their own keys)"
        )


def expand(settings: Settings, problem: str, windowed: Path, origin: str | None = None) -> list[Trial]:
    """The trials of the grid on a problem, or on an origin of its backtest: each configuration once a seed, a baseline
    once.
    """
    data = hashlib.sha256((windowed / "windows.json").read_bytes())
    for split in ("train", "validation"):
        data.update((windowed / f"{split}.npy").read_bytes())
    return [
        Trial(
            problem,
            configuration,
            seed,
            settings.train,
            data.hexdigest(),
            trial_code(configuration.architecture),
            origin,
        )
        for configuration in configurations(settings.grid)
        for seed in settings.grid.seeds[: None if REGISTRY[configuration.architecture].trainable else 1]
    ]


def bundles(trials: Iterable[Trial], size: int) -> list[list[Trial]]:
    """The trials in groups of one architecture and shape, at most `size` each: what one task trains.

    Trials of one shape differ in nothing but seed, learning rate and optimizer: a trainer may one day fuse them.
    """
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        values = trial.configuration.hyperparameters.model_dump(exclude={"learning_rate", "optimizer"})
        groups.setdefault(json.dumps([trial.configuration.architecture, values], sort_keys=True), []).append(trial)
    return [group[i : i + size] for group in groups.values() for i in range(0, len(group), size)]
