"""The trials of a grid, and the bundles in which they are dispatched."""

import hashlib
import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from architectures import REGISTRY, ShapeError
from problems.errors import RecastError
from project.paths import PARAMS
from project.settings.grid import expand_grid
from project.settings.sections import Settings
from stages.sequences.reading import WINDOWS_FILE
from stages.tables.windows import AnyWindows
from stages.training.failures import TrialFailed
from stages.training.fit import outline_network
from stages.training.objectives import choose_shape
from stages.training.trial_code import digest_trial_code
from stages.training.trials import Trial


def list_trials(settings: Settings, problem: str, windowed: Path, origin: str | None = None) -> list[Trial]:
    """The trials of the grid on a problem: every configuration once for each seed, a baseline once.

    Args:
        origin: the origin of a backtest whose windows these are; None: the problem's own.
    """
    data = hashlib.sha256((windowed / WINDOWS_FILE).read_bytes())
    for split in ("train", "validation"):
        data.update((windowed / f"{split}.npy").read_bytes())
    return [
        Trial(
            problem,
            configuration,
            seed,
            settings.train,
            data.hexdigest(),
            digest_trial_code(configuration.architecture),
            origin,
        )
        for configuration in expand_grid(settings.grid)
        for seed in settings.grid.seeds[: None if REGISTRY[configuration.architecture].trainable else 1]
    ]


def check_grid_shapes(trials: Iterable[Trial], windows: AnyWindows) -> None:
    """Check that the architectures of a grid can work on these windows. One that is too large fails in its own trials.

    Raises:
        RecastError: an architecture of the grid cannot work on these windows.
    """
    for trial in {trial.configuration.label: trial for trial in trials}.values():
        configuration, shape = trial.configuration, choose_shape(windows, trial.train)
        try:
            with suppress(TrialFailed):
                outline_network(configuration.architecture, configuration.hyperparameters, shape)
        except ShapeError as error:
            raise RecastError(f"{PARAMS}: grid.architectures.{error}") from None


def bundle_trials(trials: Iterable[Trial], size: int) -> list[list[Trial]]:
    """The trials in groups of one architecture and shape, at most `size` in each: what one task trains.

    Trials of one shape differ only in seed, learning rate and optimizer: a trainer could fuse them.
    """
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        axes = trial.configuration.hyperparameters.model_dump(exclude={"learning_rate", "optimizer"})
        groups.setdefault(json.dumps([trial.configuration.architecture, axes], sort_keys=True), []).append(trial)
    return [group[i : i + size] for group in groups.values() for i in range(0, len(group), size)]
