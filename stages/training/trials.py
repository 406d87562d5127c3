"""Trials: each is trained once, in a folder named by the hash of all that decides its result."""

import hashlib
import json
import shutil
import time
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from architectures import REGISTRY
from problems.errors import RecastError
from problems.files.file_hash import file_sha256
from project import paths
from project.atomic import write_json
from project.records import read_disposable_record, read_record
from project.settings.grid import Configuration
from project.settings.sections import TrainSettings
from stages.training.history import HISTORY_FILE
from stages.training.trial_code import digest_trial_code

TRIAL_FILE, WEIGHTS_FILE, NOTES_FILE = "trial.json", "weights.safetensors", "run.json"

RESULT_FILES = (HISTORY_FILE, WEIGHTS_FILE)
"""The files whose digests are in `trial.json`. A failed trial has no weights; neither has a baseline that forecasts one
number.
"""


class DamagedTrial(RecastError):
    """A file of a trial is missing, or is not as training wrote it."""


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
            "numba": _numba_version(),
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
        """Whether it has weights to train; a baseline is not trained."""
        return REGISTRY[self.configuration.architecture].trainable


@cache
def _numba_version() -> str:
    """Of the compiler of the recurrent layers' loops."""
    return version("numba")


def trial_folder(trial: Trial) -> Path:
    """The folder of a trial's files.

    `trial.json` (what it is and how it ended; written last), `history.json`, `weights.safetensors`; and, not tracked by
    DVC, `run.json` (how it ran), while it trains `checkpoint.pt` and, once it was evaluated, `answers.npz`.
    """
    return paths.trials_folder(trial.problem, trial.origin) / trial.key


def read_trial(trial: Trial) -> dict[str, Any]:
    """The content of `trial.json` of a trial that has ended, after all of its files have been checked.

    Raises:
        DamagedTrial: a file is missing, or is not as training wrote it.
        RecastError: the trial has not ended, or what was trained had other code, data or settings than the present.
    """
    folder = trial_folder(trial)
    if not (folder / TRIAL_FILE).exists():
        raise RecastError(
            f"{folder}: {trial.label} was not trained with the present code, data and settings: "
            f"recast run {trial.problem}"
        )
    record = read_disposable_record(folder / TRIAL_FILE, dict[str, Any])
    if record is None or record.get("digest") != digest_record(record) or record["key"] != trial.key:
        raise _damage(trial, TRIAL_FILE)
    for name, digest in record["files"].items():
        file = folder / name
        if not file.is_file() or file_sha256(file) != digest:
            raise _damage(trial, name)
    return record


def _damage(trial: Trial, name: str) -> DamagedTrial:
    return DamagedTrial(
        f"{trial_folder(trial) / name} of {trial.label} is missing, or is not as it was written: "
        f"`recast run {trial.problem}` sets the trial aside and trains it again"
    )


def write_trial(folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Write `trial.json`, the last of all files that others read of a trial: when it exists, the trial has ended.

    Args:
        record: what it says, without digests.

    Returns:
        The record with the digests of the files of the result, and one of itself.
    """
    files = {name: file_sha256(folder / name) for name in RESULT_FILES if (folder / name).exists()}
    complete = record | {"files": files}
    complete["digest"] = digest_record(complete)
    write_json(folder / TRIAL_FILE, complete)
    return complete


def digest_record(record: dict[str, Any]) -> str:
    """The SHA-256 of what a `trial.json` says beside this digest itself."""
    content = {name: value for name, value in record.items() if name != "digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def set_aside_if_damaged(trial: Trial) -> DamagedTrial | None:
    """Move the folder of a damaged trial out of the way, so that the trial is trained again.

    Returns:
        What is damaged; None: nothing is, or the trial has not ended.
    """
    folder = trial_folder(trial)
    if not (folder / TRIAL_FILE).exists():
        return None
    try:
        read_trial(trial)
    except DamagedTrial as damage:
        target = paths.STATE / "damaged" / trial.problem / f"{trial.key}-{time.time_ns()}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(folder, target)
        # The next attempt continues the same run in MLflow.
        if run := _read_run_id(target):
            add_run_notes(folder, mlflow_run_id=run)
        return damage
    return None


def _read_run_id(folder: Path) -> str | None:
    """The trial's run in MLflow, if its notes can be read."""
    notes = read_disposable_record(folder / NOTES_FILE, dict[str, Any])
    return notes.get("mlflow_run_id") if notes else None


def read_run_notes(folder: Path) -> dict[str, Any]:
    """What is noted of how a trial ran: its epoch, its MLflow run, whether all of it is logged, its seconds."""
    file = folder / NOTES_FILE
    return read_record(file, dict[str, Any], fix=f"delete {folder} and train the trial again") if file.exists() else {}


def add_run_notes(folder: Path, **fields: Any) -> None:
    """Add to what is noted of how a trial ran."""
    write_json(folder / NOTES_FILE, read_run_notes(folder) | fields)


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
