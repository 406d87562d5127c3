"""The errors of all configurations at an origin."""

from collections.abc import Sequence

import numpy as np
import torch

from learning.measures import MAE
from lifecycle.backtests.plan import Origin
from lifecycle.backtests.result import OriginInfo, OriginResult, OriginScore
from problems.problem import Problem
from stages.evaluation.answers import collect_answers, measure_baseline
from stages.evaluation.baseline import BASELINE
from stages.evaluation.leaderboard import MeasureInfo, Spread
from stages.evaluation.metrics import measure_skill
from stages.evaluation.ranking import group_by_configuration, summarize_validation
from stages.tables.table import Table, read_times
from stages.tables.windows import TableWindows
from stages.training.networks import load_network
from stages.training.objectives import choose_objective
from stages.training.reading import read_batches
from stages.training.trials import Trial, read_trial


def measure_origin(problem: Problem, origin: Origin, trials: Sequence[Trial]) -> OriginResult:
    """Test the configurations whose seeds have all finished on the rows after an origin. Validation alone selects."""
    # The last bits of a forecast depend on the number of threads, but the result must not.
    torch.set_num_threads(1)
    normalized, windowed = trials[0].normalized, trials[0].windowed
    windows, table = TableWindows.read(windowed), Table.read(normalized)
    objective = choose_objective(windows, trials[0].train)
    measure = objective.selection_measure.name
    splits = read_batches(normalized, windowed, torch.device("cpu"))
    scale = table.preparation.target_scaling[1]

    groups = group_by_configuration(trials)
    rows = {
        label: summarize_validation(group, {trial.key: read_trial(trial) for trial in group})
        for label, group in groups.items()
    }

    def measure_trial(trial: Trial) -> dict[str, float]:
        answers = collect_answers(load_network(trial, windows), splits["test"], objective, windows.objective)
        return objective.compute_measures(answers.mean_scores, scale)

    errors = {
        label: Spread.by_name([measure_trial(trial) for trial in group])
        for label, group in groups.items()
        if rows[label].complete
    }
    means = {label: {name: spread.mean for name, spread in spreads.items()} for label, spreads in errors.items()}
    baseline = means[BASELINE] if BASELINE in means else measure_baseline(splits, windows, trials[0], scale)
    scores = {
        label: OriginScore(
            rows[label].validation[measure],
            spreads[measure],
            measure_skill(measure, means[label], baseline),
            measure_skill(MAE, means[label], baseline),
        )
        for label, spreads in errors.items()
    }
    split = origin.split
    return OriginResult(
        OriginInfo(
            name=origin.name,
            train_from=np.datetime_as_string(read_times(normalized).min(), unit="m"),
            validation_from=split.validation_from.isoformat(timespec="minutes"),
            test_from=split.test_from.isoformat(timespec="minutes"),
            test_until=split.test_until.isoformat(timespec="minutes") if split.test_until else "",
            windows=windows.windows,
            persistence=baseline.get(measure),
            persistence_mae=baseline.get(MAE),
            best=min(scores, key=lambda label: scores[label].validation.mean, default=None),
            failed=[f"{label} {reason}" for label, row in rows.items() for reason in row.failed],
        ),
        scores,
        {label: (row.architecture, row.parameters) for label, row in rows.items()},
    )


def describe_selection_measure(problem: Problem, trial: Trial) -> MeasureInfo:
    """The measure by which the problem's configurations are selected."""
    measure = choose_objective(TableWindows.read(trial.windowed), trial.train).selection_measure
    return MeasureInfo.of(measure, problem.unit)
