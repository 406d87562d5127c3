"""What a trial is expected to take, in seconds and in memory: learnt from those that were trained here before."""

import hashlib
import json
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from stages.tables.windows import AnyWindows, read_windows
from stages.training import fit
from stages.training.objectives import shape_for
from stages.training.trials import Trial, read_run, trial_folder

NEWEST = 2000
"""Trials that are learnt from, at most: of the folder of a problem, those that were written last."""

OF_NO_SHAPE = ("learning_rate", "schedule", "epochs")
"""Hyperparameters that change neither the memory of a trial nor the time of an epoch."""


@dataclass(frozen=True)
class Observation:
    """What a trial took.

    Attributes:
        epoch_seconds: an epoch; of a baseline, which has none, all of it.
        peak: bytes; None: not measured.
    """

    shape: str
    architecture: str
    parameters: int
    epoch_seconds: float
    peak: int | None


def observed(folder: Path, device: str) -> list[Observation]:
    """What the trials in a folder took on this kind of device, those that were written last.

    Args:
        device: cpu or cuda.
    """
    if not folder.exists():
        return []
    with os.scandir(folder) as entries:
        newest = sorted(((entry.stat().st_mtime, entry.path) for entry in entries if entry.is_dir()), reverse=True)
    found = []
    for _, path in newest[:NEWEST]:
        noted, about = read_run(Path(path)), _result(Path(path))
        if about is None or about["status"] != "finished" or "seconds" not in noted:
            continue
        if str(noted.get("device", "")).partition(":")[0] != device:
            continue
        epochs = int(noted.get("epoch", 0))
        seconds = float(noted["training_seconds"]) / epochs if epochs else float(noted["seconds"])
        shape, peak = str(noted.get("shape", "")), noted.get("peak_bytes")
        found.append(Observation(shape, about["architecture"], about["parameters"] or 0, seconds, peak))
    return found


def _result(folder: Path) -> dict[str, Any] | None:
    file = folder / "trial.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


@dataclass(frozen=True)
class Costs:
    """What trials are expected to take, from what others took."""

    observations: Sequence[Observation]
    _parameters: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, trials: Iterable[Trial], device: str) -> "Costs":
        """From the trials that stand in the same folders as these.

        Args:
            device: cpu or cuda.
        """
        folders = sorted({trial_folder(trial).parent for trial in trials})
        return cls([each for folder in folders for each in observed(folder, device)])

    @cached_property
    def peaks(self) -> dict[str, int]:
        """The most memory that a trial of a shape took, in bytes, where it was measured."""
        found: dict[str, int] = {}
        for each in self.observations:
            if each.shape and each.peak:
                found[each.shape] = max(each.peak, found.get(each.shape, 0))
        return found

    @cached_property
    def _by_shape(self) -> Mapping[str, float]:
        return _medians((each.shape, each.epoch_seconds) for each in self.observations if each.shape)

    @cached_property
    def _by_architecture(self) -> Mapping[str, float]:
        return _medians((each.architecture, each.epoch_seconds / max(1, each.parameters)) for each in self.observations)

    @cached_property
    def _by_all(self) -> float | None:
        each = [each.epoch_seconds / max(1, each.parameters) for each in self.observations if each.parameters]
        return statistics.median(each) if each else None

    @property
    def known(self) -> bool:
        """Whether the seconds are seconds; else they are of use only to compare trials."""
        return bool(self.observations)

    def seconds(self, trial: Trial) -> float:
        """What a trial is expected to take, to its last epoch: as others of its shape did; else, as those of its
        architecture, or as all, by parameters; else its parameters times its epochs, in no unit.
        """
        epochs = max(1, fit.epochs_of(trial.configuration.hyperparameters, trial.train))
        if (found := self._by_shape.get(shape(trial))) is not None:
            return epochs * found
        each = self._by_architecture.get(trial.configuration.architecture, self._by_all)
        return epochs * max(1, self.parameters(trial)) * (1.0 if each is None else each)

    def parameters(self, trial: Trial) -> int:
        """How many weights a trial has to train."""
        configuration = trial.configuration
        name = f"{trial.problem} {configuration.label}"
        if name not in self._parameters:
            windows = _windows(trial)
            inputs = shape_for(windows, trial.train)
            network = fit.build(configuration.architecture, configuration.hyperparameters, inputs, seed=0)
            self._parameters[name] = sum(weight.numel() for weight in network.parameters())
        return self._parameters[name]


@dataclass
class Pace:
    """How long trials take now, by what they were expected to take: this machine may be slower, or nothing be known.

    Attributes:
        taken, expected: by the bundles that have ended, in all.
    """

    known: bool
    taken: float = 0.0
    expected: float = 0.0

    def tell(self, taken: float, expected: float) -> None:
        """A bundle has ended."""
        self.taken += taken
        self.expected += expected

    def seconds(self, expected: float) -> float | None:
        """What is to be expected now; None: nothing is known."""
        if self.expected:
            return expected * self.taken / self.expected
        return expected if self.known else None


def shape(trial: Trial) -> str:
    """What the memory of a trial and the time of its epochs follow from, as a hash."""
    about = [
        trial.problem,
        trial.configuration.architecture,
        trial.configuration.hyperparameters.model_dump(mode="json", exclude=set(OF_NO_SHAPE)),
        trial.train.model_dump(mode="json", exclude={"epochs", "patience", "clip"}),
        asdict(_windows(trial).shape),
    ]
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]


_read: dict[tuple[Path, str], AnyWindows] = {}


def _windows(trial: Trial) -> AnyWindows:
    """The windows of a trial's data, read once."""
    key = trial.windowed, trial.data
    if key not in _read:
        _read[key] = read_windows(trial.windowed)
    return _read[key]


def _medians(pairs: Iterable[tuple[str, float]]) -> dict[str, float]:
    groups: dict[str, list[float]] = {}
    for name, value in pairs:
        groups.setdefault(name, []).append(value)
    return {name: statistics.median(values) for name, values in groups.items()}
