"""What trial.json says of a trial and of how it ended."""

from typing import Any

from architectures import Network, Output
from stages.tables.table import Table
from stages.tables.windows import TableWindows, read_windows
from stages.training.history import write_history
from stages.training.outcomes import Outcome, summarize_outcome
from stages.training.trials import TRIAL_FILE, Trial, trial_folder, write_trial


def read_target_scale(trial: Trial) -> float:
    """The factor that turns a normalised error into the target's unit."""
    if not isinstance(read_windows(trial.windowed), TableWindows):
        return 1.0
    table = Table.read(trial.normalized)
    return table.preparation.target_scaling[1]


def describe_trial(trial: Trial) -> dict[str, Any]:
    """What trial.json says of a trial before it has a result."""
    return {
        "key": trial.key,
        "label": trial.label,
        "configuration": trial.configuration.label,
        **trial.specification,
    }


def describe_result(network: Network, best_epoch: int, validation: dict[str, float]) -> dict[str, Any]:
    """What trial.json says of the result of a trial. Errors are in the target's unit unless named normalised."""
    return {
        "status": "finished",
        "reason": None,
        "transient": False,
        "parameters": sum(weight.numel() for weight in network.parameters()),
        "output_parameters": _count_output_parameters(network),
        "best_epoch": best_epoch,
        "validation": validation,
    }


def describe_failure(reason: str, transient: bool) -> dict[str, Any]:
    """What trial.json says of a trial that has failed.

    Args:
        transient: another attempt may succeed.
    """
    return {
        "status": "failed",
        "reason": reason,
        "transient": transient,
        "parameters": None,
        "output_parameters": None,
        "best_epoch": 0,
        "validation": {},
    }


def _count_output_parameters(network: Network) -> int:
    """The number of weights of the last layers: a table of networks may count them or not."""
    outputs = [layer for layer in network.modules() if isinstance(layer, Output)]
    return sum(weight.numel() for layer in outputs for weight in layer.parameters())


def record_lost_trial(trial: Trial, reason: str) -> Outcome:
    """Record a trial whose process died, so that the grid can end; the next run tries it again."""
    folder = trial_folder(trial)
    folder.mkdir(parents=True, exist_ok=True)
    # With another history it would count as damaged; see `train_trial`.
    (folder / TRIAL_FILE).unlink(missing_ok=True)
    record = describe_trial(trial) | {"scaled": {}} | describe_failure(reason, transient=True)
    write_history(folder, [])
    record = write_trial(folder, record)
    return summarize_outcome(trial, record, trained=True)
