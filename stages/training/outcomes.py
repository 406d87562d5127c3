"""How trials ended, as their folders say."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from stages.training.trials import Trial, read_trial, trial_folder


@dataclass(frozen=True)
class Outcome:
    """How a trial ended.

    Attributes:
        status: finished or failed.
        reason: why it failed.
        transient: it failed for want of something that may be there another time: memory, a living process.
        trained: it was trained now, not found finished.
    """

    key: str
    label: str
    status: str
    reason: str | None
    transient: bool
    trained: bool
    measure: str | None
    error: float | None


def outcome(trial: Trial) -> Outcome | None:
    """How the trial ended when it last ran, or None when it has not ended."""
    if not (trial_folder(trial) / "trial.json").exists():
        return None
    return outcome_of(trial, read_trial(trial), trained=False)


def outcome_of(trial: Trial, about: dict[str, Any], trained: bool) -> Outcome:
    """What trial.json says, in short."""
    # The measure that selects is the first.
    measure, error = next(iter(about["validation"].items()), (None, None))
    return Outcome(
        trial.key, trial.label, about["status"], about["reason"], about["transient"], trained, measure, error
    )


def is_done(trial: Trial) -> bool:
    """Whether the trial need not be trained: it has ended, and not for want of something that may be back."""
    ended = outcome(trial)
    return ended is not None and not ended.transient


def retryable(trials: Iterable[Trial]) -> list[Trial]:
    """The trials that have failed for want of something that may be back."""
    return [trial for trial in trials if (ended := outcome(trial)) and ended.transient]
