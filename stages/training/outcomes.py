"""How trials ended, read from their folders."""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from project.progress import print_warning
from stages.training.trials import TRIAL_FILE, DamagedTrial, Trial, read_trial, set_aside_if_damaged, trial_folder


@dataclass(frozen=True)
class Outcome:
    """How a trial ended.

    Attributes:
        status: finished or failed.
        reason: why it failed.
        transient: it failed because something was missing that another attempt may have: memory, or a living process.
        trained: it was trained by this run; otherwise it was finished before.
        measure, error: the name and the value on validation of the selection measure; None where the trial failed.
    """

    key: str
    label: str
    status: str
    reason: str | None
    transient: bool
    trained: bool
    measure: str | None
    error: float | None


def read_outcome(trial: Trial) -> Outcome | None:
    """How the trial ended when it last ran, or None when it has not ended.

    Raises:
        DamagedTrial: a file of the trial is missing, or is not as training wrote it.
    """
    if not (trial_folder(trial) / TRIAL_FILE).exists():
        return None
    return summarize_outcome(trial, read_trial(trial), trained=False)


def summarize_outcome(trial: Trial, record: dict[str, Any], trained: bool) -> Outcome:
    """The outcome that trial.json describes.

    Args:
        record: its content.
    """
    # The selection measure is the first.
    measure, error = next(iter(record["validation"].items()), (None, None))
    return Outcome(
        trial.key, trial.label, record["status"], record["reason"], record["transient"], trained, measure, error
    )


def is_done(trial: Trial) -> bool:
    """Whether the trial need not be trained: it has ended, and another attempt would end in the same way."""
    outcome = read_outcome(trial)
    return outcome is not None and not outcome.transient


def list_missing(trials: Iterable[Trial]) -> list[Trial]:
    """The trials that have to be trained. Those that are damaged are set aside first, with a warning."""
    missing = []
    for trial in trials:
        damage = set_aside_if_damaged(trial)
        if damage:
            print_warning(str(damage))
        if damage or not is_done(trial):
            missing.append(trial)
    return missing


def list_retryable(trials: Iterable[Trial]) -> list[Trial]:
    """The trials that have failed and that another attempt may finish."""
    retryable = []
    for trial in trials:
        # A damaged trial is trained again in any case.
        with suppress(DamagedTrial):
            outcome = read_outcome(trial)
            if outcome is not None and outcome.transient:
                retryable.append(trial)
    return retryable
