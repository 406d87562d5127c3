"""The training of a bundle of trials, each into its own folder.

What this module imports decides the results, and is part of a trial's key; see `stages.training.trial_code`.
"""

import socket
import time
import traceback
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from architectures import Network
from architectures.cells.layer import describe_recurrent_loops
from problems.errors import RecastError
from project import git
from project.atomic import replace_file
from stages.tables.windows import read_windows
from stages.training.batches import SplitData
from stages.training.checkpoint import TrainingState
from stages.training.failures import TrialFailed, to_trial_failure
from stages.training.fit import fit
from stages.training.history import Epoch, write_history
from stages.training.objectives import choose_objective, choose_shape
from stages.training.outcomes import Outcome, summarize_outcome
from stages.training.peak_memory import measure_peak_memory, reset_peak_memory
from stages.training.reading import read_batches
from stages.training.results import describe_failure, describe_result, describe_trial, read_target_scale
from stages.training.scoring import mean_scores
from stages.training.trial_log import TrialLogger
from stages.training.trials import (
    TRIAL_FILE,
    WEIGHTS_FILE,
    Trial,
    add_run_notes,
    check_trial_code,
    trial_folder,
    write_trial,
)


def train_bundle(
    bundle: Sequence[Trial],
    device: torch.device,
    logger: TrialLogger | None,
    before_step: Callable[[], None] = lambda: None,
) -> list[Outcome]:
    """Train trials of one architecture and shape, one after the other; a trial that fails does not stop the next.

    Args:
        logger: opens the logs of the trials; None: nothing is logged.
        before_step: called before every step of training; what it raises ends the bundle.

    Raises:
        RecastError: the code was edited after the grid was expanded.
        OSError: a file cannot be written.
        torch.AcceleratorError: this process cannot use the device any more.
    """
    return [train_trial(trial, device, logger, before_step) for trial in bundle]


@lru_cache(maxsize=1)
def _read_data(normalized: Path, windowed: Path, data: str, device: torch.device) -> dict[str, SplitData]:
    """The batches of a problem on a device, the same for one bundle after the other.

    Args:
        data: the identity of the data, as in a trial's key.
    """
    return read_batches(normalized, windowed, device)


def train_trial(
    trial: Trial, device: torch.device, logger: TrialLogger | None, before_step: Callable[[], None]
) -> Outcome:
    """Train one trial into its folder, resuming what a killed run left in it.

    Every error but those of the disk and the device is the failure of this trial alone. The log does not
    stop the training when its server fails: the train flow logs what the store lacks when the grid is complete.

    Raises:
        RecastError, OSError, torch.AcceleratorError: see `train_bundle`.
    """
    check_trial_code(trial)
    folder = trial_folder(trial)
    folder.mkdir(parents=True, exist_ok=True)
    # Of a failed attempt. With the files of this one it would count as damaged, and after a kill the checkpoint would
    # be set aside with it.
    (folder / TRIAL_FILE).unlink(missing_ok=True)
    checkpoint = folder / "checkpoint.pt"
    scale = read_target_scale(trial)
    start = time.perf_counter()
    windows = read_windows(trial.windowed)
    objective = choose_objective(windows, trial.train)
    scaled = {measure.name: scale for measure in objective.measures if measure.scaled}
    record = describe_trial(trial) | {"scaled": scaled}
    add_run_notes(
        folder,
        begun=time.time(),
        device=str(device),
        host=socket.gethostname(),
        commit=git.describe_commit(),
        prefect_run=logger.prefect_run if logger else None,
    )
    log = logger.open_trial(folder, record, str(device)) if logger else None
    epochs: list[Epoch] = []
    reset_peak_memory(device)

    def after_epoch(training: TrainingState) -> None:
        epochs[:] = training.history
        add_run_notes(folder, epoch=len(epochs), peak_bytes=measure_peak_memory(device))
        if log:
            log.log_epochs(epochs)

    try:
        data = _read_data(trial.normalized, trial.windowed, trial.data, device)
        result = fit(
            trial.configuration.architecture,
            trial.configuration.hyperparameters,
            trial.seed,
            trial.train,
            choose_shape(windows, trial.train),
            objective,
            data,
            device,
            checkpoint,
            after_epoch,
            before_step,
        )
        epochs[:] = result.history
        add_run_notes(folder, training_seconds=result.seconds)
        validation = objective.compute_measures(mean_scores(result.network, data["validation"], objective), scale)
    except (RecastError, OSError, torch.AcceleratorError):
        raise
    except Exception as error:
        record |= _record_failure(error, folder)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    else:
        record |= describe_result(result.network, result.best_epoch, validation)
        record["recurrent_loops"] = describe_recurrent_loops(result.network, device)
        _save_weights(result.network, folder)
    write_history(folder, epochs)
    seconds = time.perf_counter() - start
    add_run_notes(folder, seconds=seconds, peak_bytes=measure_peak_memory(device))
    record = write_trial(folder, record)
    if not record["transient"]:
        checkpoint.unlink(missing_ok=True)
    if log:
        log.finish(record, epochs, seconds)
    return summarize_outcome(trial, record, trained=True)


def _record_failure(error: Exception, folder: Path) -> dict[str, Any]:
    """What trial.json says of a trial that has failed. The traceback of an unexpected error goes into its run notes."""
    if isinstance(error, TrialFailed):
        return describe_failure(str(error), error.transient)
    failure = to_trial_failure(error)
    add_run_notes(folder, traceback="".join(traceback.format_exception(error)))
    return describe_failure(str(failure), failure.transient)


def _save_weights(network: Network, folder: Path) -> None:
    """Write the weights of a network; a baseline of one number has none, and leaves no file."""
    weights = {name: value.cpu().clone() for name, value in network.state_dict().items()}
    if weights:
        with replace_file(folder / WEIGHTS_FILE) as temporary:
            temporary.write_bytes(save(weights))
