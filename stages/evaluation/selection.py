"""The trial that stands for its architecture: what is stored as a model, and looked at."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from stages.evaluation.leaderboard import Row
from stages.training.trials import Trial


def best_trials(rows: Sequence[Row], trials: Sequence[Trial]) -> Iterator[tuple[Row, Trial]]:
    """Of each selected configuration, and so of each architecture, the trial that is best on validation."""
    for row in rows:
        if not row.selected:
            continue
        # The measure that selects is the first.
        errors = dict(zip(row.finished_seeds, next(iter(row.validation.values())).values, strict=True))
        finished = [t for t in trials if t.configuration.label == row.configuration and t.seed in errors]
        yield row, min(finished, key=lambda trial: errors[trial.seed])


INSIDE = "inside"
"""The folder of pictures of networks at work, beside the report and among a run's artifacts."""


def pictures_of(evaluated: Path, trial: Trial) -> Path:
    """Where `evaluate` writes the pictures of the best trial of an architecture, in the folder of its results."""
    return evaluated / INSIDE / trial.configuration.family.replace(" ", "_")
