"""Trials: each is trained once, in a folder named by the hash of all that decides its result."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from architectures import REGISTRY
from problems.errors import RecastError
from project import paths
from project.atomic import write_json
from project.records import read_record
from project.settings.grid import Configuration
from project.settings.sections import TrainSettings
from stages.training.trial_code import digest_trial_code


@dataclass(frozen=True)
class Trial:
    """A configuration, a seed and the data that it is trained on.

    Attributes:
        train: how it is trained.
        data: the identity of the windows and of the table that they index.
        code: the hash of the source code that decides its result.
        origin: the origin of the backtest that the data belong to; None: the problem's own data. It is not part of the
            key.
        key: the content address: the first 16 digits of the specification's SHA-256. It is fixed when the grid is
            expanded and travels with the trial: a worker must not compute another one from code edited since.
    """

    problem: str
    configuration: Configuration
    seed: int
    train: TrainSettings
    data: str
    code: str
    origin: str | None = None
    key: str = field(init=False)

    def __post_init__(self) -> None:
        digest = hashlib.sha256(json.dumps(self.specification, sort_keys=True).encode())
        object.__setattr__(self, "key", digest.hexdigest()[:16])

    @property
    def specification(self) -> dict[str, Any]:
        """All that decides the result of the trial on a CPU, as JSON."""
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
        return paths.stage_folder("normalize", self.problem, self.origin)

    @property
    def windowed(self) -> Path:
        """The folder of the windows that it is trained on."""
        return paths.stage_folder("window", self.problem, self.origin)

    @property
    def label(self) -> str:
        """The name for people: gru units=32 seed=1."""
        return f"{self.configuration.label} seed={self.seed}"

    @property
    def trainable(self) -> bool:
        """Whether it has weights to train; a baseline has none."""
        return REGISTRY[self.configuration.architecture].trainable


def trial_folder(trial: Trial) -> Path:
    """The folder of a trial's files.

    `trial.json` (what it is and how it ended; written last), `history.json`, `weights.safetensors`; and, not tracked by
    DVC, `run.json` (how it ran) and, while it trains, `checkpoint.pt`.
    """
    return paths.trials_folder(trial.problem, trial.origin) / trial.key


def read_trial(trial: Trial) -> dict[str, Any]:
    """The content of `trial.json` of a trial that has ended.

    Raises:
        RecastError: the trial has not ended, or what was trained had other code, data or settings than the present.
    """
    try:
        record = read_record(
            trial_folder(trial) / "trial.json",
            dict[str, Any],
            fix=f"delete {trial_folder(trial)} and run `recast run {trial.problem}`",
        )
    except FileNotFoundError:
        raise RecastError(
            f"{trial_folder(trial)}: {trial.label} was not trained with the present code, data and settings: "
            f"recast run {trial.problem}"
        ) from None
    return record


def read_run_notes(folder: Path) -> dict[str, Any]:
    """What is noted of how a trial ran: its epoch, its MLflow run, whether all of it is logged, its seconds."""
    file = folder / "run.json"
    return read_record(file, dict[str, Any], fix=f"delete {folder} and train the trial again") if file.exists() else {}


def add_run_notes(folder: Path, **fields: Any) -> None:
    """Add to what is noted of how a trial ran."""
    write_json(folder / "run.json", read_run_notes(folder) | fields)


def check_trial_code(trial: Trial) -> None:
    """
    Raises:
        RecastError: the source code that decides the trial's result was edited after the grid was expanded.
    """
    if digest_trial_code(trial.configuration.architecture) != trial.code:
        raise RecastError(
            f"{trial.label}: the source that trains it was edited while the pipeline ran; run again (finished trials "
            "of the former source are kept under their own keys)"
        )
