"""The configurations of a grid in the order of their validation errors."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from architectures import REGISTRY
from learning.objectives import Objective
from stages.evaluation.leaderboard import LeaderboardRow, Spread
from stages.training.trials import Trial, read_trial


def group_by_configuration(trials: Iterable[Trial]) -> dict[str, list[Trial]]:
    """The trials by the label of their configuration."""
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        groups.setdefault(trial.configuration.label, []).append(trial)
    return groups


def rank_configurations(groups: Iterable[Sequence[Trial]], objective: Objective) -> list[LeaderboardRow]:
    """The leaderboard by validation: the complete configurations first, lower errors before higher ones.

    Args:
        groups: the trials of each configuration.
    """
    measure = objective.selection_measure.name

    def rank(row: LeaderboardRow) -> tuple[bool, float]:
        return not row.complete, row.validation[measure].mean if row.validation else math.inf

    rows = [summarize_validation(group, {trial.key: read_trial(trial) for trial in group}) for group in groups]
    return sorted(rows, key=rank)


def summarize_validation(group: Sequence[Trial], outcomes: Mapping[str, Any]) -> LeaderboardRow:
    """The row of a configuration, by the validation errors of its trials.

    Args:
        group: the configuration's trials.
        outcomes: the content of each trial's `trial.json`, by the trial's key.
    """
    finished = [trial for trial in group if outcomes[trial.key]["status"] == "finished"]
    failed = [trial for trial in group if outcomes[trial.key]["status"] == "failed"]
    errors = [outcomes[trial.key]["validation"] for trial in finished]
    configuration = group[0].configuration
    return LeaderboardRow(
        configuration=configuration.label,
        architecture=configuration.family,
        source=REGISTRY[configuration.architecture].source,
        parameters=outcomes[finished[0].key]["parameters"] if finished else None,
        finished_seeds=[trial.seed for trial in finished],
        failed=[f"seed {trial.seed}: {outcomes[trial.key]['reason']}" for trial in failed],
        selected=False,
        validation=Spread.by_name(errors),
        test={},
        skill=None,
        intervals=[],
    )
