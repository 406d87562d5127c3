"""Trials: what is trained once and never again, each in a folder named by the hash of all that decides its result."""

import hashlib
import inspect
import io
import json
import sys
import tokenize
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from architectures import REGISTRY, ShapeError, WindowShape
from problems.errors import RecastError
from stages import batches, places, training
from stages.atomic import write_json
from stages.grid import Configuration, configurations
from stages.settings import FILE, Settings, Train


@dataclass(frozen=True)
class Trial:
    """A configuration, a seed and the data it is trained on.

    Attributes:
        train: how it is trained.
        data: identity of the windows and the table they index.
    """

    problem: str
    configuration: Configuration
    seed: int
    train: Train
    data: str

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
            "code": code(self.configuration.architecture),
            "torch": torch.__version__.partition("+")[0],
        }

    @property
    def key(self) -> str:
        """The content address: the first 16 digits of the specification's SHA-256."""
        return hashlib.sha256(json.dumps(self.specification, sort_keys=True).encode()).hexdigest()[:16]

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
    return places.trials(trial.problem) / trial.key


def read_trial(trial: Trial) -> dict[str, Any]:
    """What `trial.json` says of a trial that has ended."""
    about: dict[str, Any] = json.loads((trial_folder(trial) / "trial.json").read_text(encoding="utf-8"))
    return about


def read_run(folder: Path) -> dict[str, Any]:
    """What is noted of how a trial runs: its epoch, its MLflow run, whether all of it is logged, seconds."""
    file = folder / "run.json"
    noted: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return noted


def note_run(folder: Path, **fields: Any) -> None:
    """Add to what is noted of how a trial runs."""
    write_json(folder / "run.json", read_run(folder) | fields)


def check_shapes(trials: Iterable[Trial], shape: WindowShape) -> None:
    """
    Raises:
        RecastError: an architecture of the grid cannot work on windows of this shape.
    """
    for configuration in {trial.configuration.label: trial.configuration for trial in trials}.values():
        try:
            training.build(configuration.architecture, configuration.hyperparameters, shape, seed=0)
        except ShapeError as error:
            raise RecastError(f"{FILE}: grid.architectures.{error}") from None


@cache
def code(architecture: str) -> str:
    """Hash of the source that decides a trial of the architecture; comments and layout do not count."""
    digest = hashlib.sha256()
    for name in sorted(_modules(REGISTRY[architecture].__module__, set())):
        digest.update(_significant(inspect.getsource(sys.modules[name])).encode())
    for module in (batches, training):
        digest.update(_significant(inspect.getsource(module)).encode())
    return digest.hexdigest()


def _modules(name: str, found: set[str]) -> set[str]:
    """The module of this name and those of `architectures` that it uses something of, directly or by way of others."""
    found.add(name)
    for used in vars(sys.modules[name]).values():
        other = used.__name__ if inspect.ismodule(used) else getattr(used, "__module__", None)
        if isinstance(other, str) and other.startswith("architectures.") and other not in found:
            _modules(other, found)
    return found


def _significant(source: str) -> str:
    """The source without comments, blank lines and the width of its spaces."""
    passed_over = {tokenize.COMMENT, tokenize.NL}
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    kinds = {tokenize.INDENT: "<indent>", tokenize.DEDENT: "<dedent>"}
    return " ".join(kinds.get(token.type, token.string) for token in tokens if token.type not in passed_over)


def expand(settings: Settings, problem: str, windowed: Path) -> list[Trial]:
    """The trials of the grid on a problem: each configuration once a seed, a baseline once."""
    data = hashlib.sha256((windowed / "windows.json").read_bytes())
    for split in ("train", "validation"):
        data.update((windowed / f"{split}.npy").read_bytes())
    return [
        Trial(problem, configuration, seed, settings.train, data.hexdigest())
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
