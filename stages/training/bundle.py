"""TODO: what stages.training.bundle is for."""

import logging
import socket
import time
import traceback
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from architectures import Network, Output
from problems.errors import RecastError
from project import git
from project.atomic import replaced_file, write_json
from stages.tables.table import Table
from stages.tables.windows import Windowing, read_windows
from stages.tracking import store
from stages.training import batches, history, peaks
from stages.training.fit import Progress, TrialFailed, failure, fit, means
from stages.training.history import Epoch
from stages.training.objectives import objective, shape_for
from stages.training.outcomes import Outcome, outcome_of
from stages.training.trials import Trial, check_code, note_run, trial_folder


def train_bundle(
    bundle: Sequence[Trial],
    device: torch.device,
    context: store.Context | None,
    before_step: Callable[[], None] = lambda: None,
) -> list[Outcome]:
    """Train trials of one architecture and shape, one after the other; a trial that fails does not stop the next.

    Args:
        context: of the MLflow runs; None: none is written.
        before_step: called before every step of training; what it raises ends the bundle.

    Raises:
        RecastError: the code was edited after the grid was expanded.
        OSError: the disk refuses.
        torch.AcceleratorError: the device is of no more use to this process.
    """
    return [train_trial(trial, device, context, before_step) for trial in bundle]


@lru_cache(maxsize=1)
def _data(normalized: Path, windowed: Path, data: str, device: torch.device) -> dict[str, batches.Data]:
    """The batches of a problem on a device; `data` is their identity. Bundle after bundle uses the same."""
    return batches.read(normalized, windowed, device)


def train_trial(
    trial: Trial, device: torch.device, context: store.Context | None, before_step: Callable[[], None]
) -> Outcome:
    """Train one trial into its folder, resuming what a killed run left there.

    Whatever its training meets, but for the disk and the device, is the failure of this trial alone. MLflow's refusals
    are left to the train flow, which logs what the store lacks when the grid is complete.

    Raises:
        RecastError, OSError, torch.AcceleratorError: see `train_bundle`.
    """
    check_code(trial)
    folder = trial_folder(trial)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / "checkpoint.pt"
    scale = target_scale(trial)
    begun = time.perf_counter()
    windows = read_windows(trial.windowed)
    aim = objective(windows, trial.train)
    about = description(trial) | {"scaled": {each.name: scale for each in aim.measures if each.scaled}}
    note_run(
        folder,
        begun=time.time(),
        device=str(device),
        host=socket.gethostname(),
        commit=git.commit(),
        prefect_run=context.prefect_run if context else None,
    )
    run = _Tracked(lambda: store.TrialRun(context, folder, about, str(device))) if context else None
    epochs: list[Epoch] = []
    peaks.reset(device)

    def after_epoch(progress: Progress) -> None:
        epochs[:] = progress.history
        note_run(folder, epoch=len(epochs), peak_bytes=peaks.peak(device))
        if run:
            run.tell(lambda told: told.epochs(epochs))

    network: Network | None = None
    try:
        data = _data(trial.normalized, trial.windowed, trial.data, device)
        progress = fit(
            trial.configuration.architecture,
            trial.configuration.hyperparameters,
            trial.seed,
            trial.train,
            shape_for(windows, trial.train),
            aim,
            data,
            device,
            checkpoint,
            after_epoch,
            before_step,
        )
        epochs[:] = progress.history
        note_run(folder, training_seconds=progress.seconds)
        validation = aim.measured(means(progress.network, data["validation"], aim), scale)
        network = progress.network
    except (RecastError, OSError, torch.AcceleratorError):
        raise
    except Exception as error:
        failed = error if isinstance(error, TrialFailed) else failure(error)
        about |= result(None, 0, {}, str(failed), failed.transient)
        if failed is not error:
            note_run(folder, traceback=traceback.format_exc())
        # It holds this frame by its traceback, and with it the network on the device.
        del failed
        if device.type == "cuda":
            torch.cuda.empty_cache()
    else:
        about |= result(network, progress.best_epoch, validation, None, False)
        weights = {name: value.contiguous().cpu() for name, value in network.state_dict().items()}
        if weights:
            with replaced_file(folder / "weights.safetensors") as temporary:
                temporary.write_bytes(save(weights))
    history.write(folder, epochs)
    seconds = time.perf_counter() - begun
    note_run(folder, seconds=seconds, peak_bytes=peaks.peak(device))
    # The last of what others read of the trial: with it the trial has ended.
    write_json(folder / "trial.json", about)
    if not about["transient"]:
        checkpoint.unlink(missing_ok=True)
    if run:
        run.tell(lambda told: told.end(about, epochs, seconds))
    return outcome_of(trial, about, trained=True)


class _Tracked:
    """A trial's MLflow run that does not stop the training when MLflow fails: from then on it writes nothing."""

    def __init__(self, open_run: Callable[[], store.TrialRun]) -> None:
        self.failed = False
        self.run: store.TrialRun | None = None
        self._keep(lambda: setattr(self, "run", open_run()))

    def tell(self, what: Callable[[store.TrialRun], None]) -> None:
        """Write something to the run, unless an earlier time has failed."""
        run = self.run
        if run and not self.failed:
            self._keep(lambda: what(run))

    def _keep(self, action: Callable[[], None]) -> None:
        try:
            with store.reported():
                action()
        except store.TrackingError as error:
            self.failed = True
            logging.getLogger(__name__).warning("%s", error)


def target_scale(trial: Trial) -> float:
    """What a normalised error is multiplied by to be in the target's unit."""
    if not isinstance(read_windows(trial.windowed), Windowing):
        return 1.0
    table = Table.read(trial.normalized)
    return table.preparation.of_target[1]


def description(trial: Trial) -> dict[str, Any]:
    """What trial.json says of a trial before it has a result."""
    return {
        "key": trial.key,
        "label": trial.label,
        "configuration": trial.configuration.label,
        **trial.specification,
    }


def result(
    network: Network | None, best_epoch: int, validation: dict[str, float], reason: str | None, transient: bool
) -> dict[str, Any]:
    """What trial.json says of how a trial ended. Errors are in the target's unit unless named normalised."""
    return {
        "status": "failed" if reason else "finished",
        "reason": reason,
        "transient": transient,
        "parameters": sum(weight.numel() for weight in network.parameters()) if network else None,
        "output_parameters": _of_outputs(network) if network else None,
        "best_epoch": best_epoch,
        "validation": validation,
    }


def _of_outputs(network: Network) -> int:
    """The weights of the last layers: a table of networks may count them or not."""
    outputs = [layer for layer in network.modules() if isinstance(layer, Output)]
    return sum(weight.numel() for layer in outputs for weight in layer.parameters())


def record_lost(trial: Trial, reason: str) -> Outcome:
    """Record a trial whose process died, so that the grid can end; it is tried again the next time."""
    folder = trial_folder(trial)
    folder.mkdir(parents=True, exist_ok=True)
    about = description(trial) | {"scaled": {}} | result(None, 0, {}, reason, True)
    history.write(folder, [])
    write_json(folder / "trial.json", about)
    return outcome_of(trial, about, trained=True)
