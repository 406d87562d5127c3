"""The selection by validation: the configuration that is tested for its architecture, and its best trial."""

from collections.abc import Iterator, Sequence

from problems.errors import RecastError
from stages.evaluation.leaderboard import LeaderboardRow
from stages.training.trials import Trial


def select_configurations(rows: Sequence[LeaderboardRow]) -> list[LeaderboardRow]:
    """The best complete configuration of each architecture.

    Args:
        rows: the ranked configurations, the best first.
    """
    selected: dict[str, LeaderboardRow] = {}
    for row in rows:
        if row.complete:
            selected.setdefault(row.architecture, row)
    return list(selected.values())


def select_best_trials(
    rows: Sequence[LeaderboardRow], trials: Sequence[Trial]
) -> Iterator[tuple[LeaderboardRow, Trial]]:
    """The trial with the lowest validation error of each selected configuration, and so of each architecture.

    Raises:
        RecastError: the rows are of another grid than the trials.
    """
    for row in rows:
        if not row.selected:
            continue
        # The selection measure is the first one.
        errors = dict(zip(row.finished_seeds, next(iter(row.validation.values())).values, strict=True))
        finished = [
            trial for trial in trials if trial.configuration.label == row.configuration and trial.seed in errors
        ]
        if {trial.seed for trial in finished} != set(errors):
            raise RecastError(
                f"{row.configuration}: the leaderboard is of another grid than params.yaml: recast run "
                f"{trials[0].problem}"
            )
        yield row, min(finished, key=lambda trial: errors[trial.seed])
