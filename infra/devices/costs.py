"""How many seconds and how much memory a trial is expected to take, learnt from the trials trained here before."""

import hashlib
import json
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

from project.records import read_disposable_record
from stages.tables.windows import AnyWindows, read_windows
from stages.training import fit
from stages.training.failures import TrialFailed
from stages.training.objectives import choose_shape
from stages.training.trials import Trial, trial_folder

MAX_TRIALS_READ = 2000
"""The most trials to learn from: those of a problem's folder that were written last."""

HYPERPARAMETERS_WITHOUT_SHAPE = ("learning_rate", "schedule", "epochs")
"""Hyperparameters that change neither the memory of a trial nor the time of an epoch."""


@dataclass(frozen=True)
class Observation:
    """What a trial took.

    Attributes:
        shape: see `cost_shape`; empty for trials that did not note it.
        parameters: the number of weights.
        epoch_seconds: the seconds of an epoch; of a baseline, which has no epochs, those of the whole trial.
        peak: the most memory that it took, in bytes; None: not measured.
    """

    shape: str
    architecture: str
    parameters: int
    epoch_seconds: float
    peak: int | None


@dataclass(frozen=True)
class _RunNotes:
    """The fields of run.json that say what a trial took; trials of earlier versions lack some."""

    device: str = ""
    epoch: int = 0
    seconds: float | None = None
    training_seconds: float | None = None
    shape: str = ""
    peak_bytes: int | None = None


@dataclass(frozen=True)
class _TrialNotes:
    """The fields of trial.json that say what was trained."""

    status: str
    architecture: str
    parameters: int | None


def read_observations(folder: Path, device: str) -> list[Observation]:
    """What the newest trials in a folder took on this kind of device. Trials whose files cannot be read are left out.

    Args:
        device: cpu or cuda.
    """
    if not folder.exists():
        return []
    with os.scandir(folder) as entries:
        newest = sorted(((entry.stat().st_mtime, entry.path) for entry in entries if entry.is_dir()), reverse=True)
    observations = []
    for _, path in newest[:MAX_TRIALS_READ]:
        run = read_disposable_record(Path(path) / "run.json", _RunNotes)
        trial = read_disposable_record(Path(path) / "trial.json", _TrialNotes)
        if run is None or trial is None or trial.status != "finished" or run.seconds is None:
            continue
        if run.device.partition(":")[0] != device:
            continue
        trained = run.training_seconds
        seconds = trained / run.epoch if run.epoch and trained is not None else run.seconds
        observations.append(Observation(run.shape, trial.architecture, trial.parameters or 0, seconds, run.peak_bytes))
    return observations


@dataclass(frozen=True)
class Costs:
    """What trials are expected to take, from what others took."""

    observations: Sequence[Observation]
    _parameters: dict[str, int] = field(default_factory=dict)

    @classmethod
    def read(cls, trials: Iterable[Trial], device: str) -> "Costs":
        """From the trials in the same folders as these.

        Args:
            device: cpu or cuda.
        """
        folders = sorted({trial_folder(trial).parent for trial in trials})
        return cls([observation for folder in folders for observation in read_observations(folder, device)])

    @cached_property
    def peaks(self) -> dict[str, int]:
        """The most memory that a trial took, in bytes, by shape, as far as it was measured."""
        peaks: dict[str, int] = {}
        for observation in self.observations:
            if observation.shape and observation.peak:
                peaks[observation.shape] = max(observation.peak, peaks.get(observation.shape, 0))
        return peaks

    @cached_property
    def _by_shape(self) -> Mapping[str, float]:
        """The seconds of an epoch."""
        return _medians(
            (observation.shape, observation.epoch_seconds) for observation in self.observations if observation.shape
        )

    @cached_property
    def _by_architecture(self) -> Mapping[str, float]:
        """The seconds of an epoch for each weight."""
        return _medians(
            (observation.architecture, observation.epoch_seconds / max(1, observation.parameters))
            for observation in self.observations
        )

    @cached_property
    def _of_all(self) -> float | None:
        """The seconds of an epoch for each weight, of all architectures."""
        per_weight = [
            observation.epoch_seconds / max(1, observation.parameters)
            for observation in self.observations
            if observation.parameters
        ]
        return statistics.median(per_weight) if per_weight else None

    @property
    def are_seconds(self) -> bool:
        """Whether `seconds` are seconds; if nothing was observed, they only serve to compare trials."""
        return bool(self.observations)

    def seconds(self, trial: Trial) -> float:
        """How long a trial is expected to take to its last epoch.

        As others of its shape; else as those of its architecture, or as all, in proportion to the number of weights;
        else its weights times its epochs, which is not a time.
        """
        epochs = max(1, fit.count_epochs(trial.configuration.hyperparameters, trial.train))
        if (epoch_seconds := self._by_shape.get(cost_shape(trial))) is not None:
            return epochs * epoch_seconds
        per_weight = self._by_architecture.get(trial.configuration.architecture, self._of_all)
        return epochs * max(1, self.parameters(trial)) * (1.0 if per_weight is None else per_weight)

    def parameters(self, trial: Trial) -> int:
        """The number of weights that a trial has to train; 0 for one that is too large, and fails at once."""
        configuration = trial.configuration
        name = f"{trial.problem} {configuration.label}"
        if name not in self._parameters:
            windows = _windows_of_trial(trial)
            inputs = choose_shape(windows, trial.train)
            self._parameters[name] = 0
            with suppress(TrialFailed):
                network = fit.outline_network(configuration.architecture, configuration.hyperparameters, inputs)
                self._parameters[name] = sum(weight.numel() for weight in network.parameters())
        return self._parameters[name]


@dataclass
class Pace:
    """How fast bundles are trained now, compared with what was expected: the machine may be busy, or another one.

    Attributes:
        known: whether the expected times are in seconds; see `Costs.are_seconds`.
        taken, expected: what all bundles that have ended took, and were expected to take.
    """

    known: bool
    taken: float = 0.0
    expected: float = 0.0

    def record(self, taken: float, expected: float) -> None:
        """Record what a bundle took that has ended, and what it was expected to take."""
        self.taken += taken
        self.expected += expected

    def seconds(self, expected: float) -> float | None:
        """How many seconds to expect now for something; None: not known.

        Args:
            expected: what `Costs` expects for it.
        """
        if self.expected:
            return expected * self.taken / self.expected
        return expected if self.known else None


def cost_shape(trial: Trial) -> str:
    """A hash of all that the memory of a trial and the time of its epochs depend on."""
    about = [
        trial.problem,
        trial.configuration.architecture,
        trial.configuration.hyperparameters.model_dump(mode="json", exclude=set(HYPERPARAMETERS_WITHOUT_SHAPE)),
        trial.train.model_dump(mode="json", exclude={"epochs", "patience", "clip"}),
        asdict(_windows_of_trial(trial).shape),
    ]
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]


_windows_read: dict[tuple[Path, str], AnyWindows] = {}


def _windows_of_trial(trial: Trial) -> AnyWindows:
    """The windows of a trial's data, which are read once."""
    key = trial.windowed, trial.data
    if key not in _windows_read:
        _windows_read[key] = read_windows(trial.windowed)
    return _windows_read[key]


def _medians(pairs: Iterable[tuple[str, float]]) -> dict[str, float]:
    groups: dict[str, list[float]] = {}
    for name, value in pairs:
        groups.setdefault(name, []).append(value)
    return {name: statistics.median(values) for name, values in groups.items()}
