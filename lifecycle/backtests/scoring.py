"""The errors of all configurations at an origin."""

from collections.abc import Sequence

import numpy as np
import torch

from lifecycle.backtests.plan import Origin
from lifecycle.backtests.result import OriginInfo, OriginResult, OriginScore
from problems.problem import Problem
from stages.evaluation.answers import collect_answers, measure_baseline
from stages.evaluation.leaderboard import MeasureInfo, Spread
from stages.evaluation.metrics import skill_score
from stages.evaluation.ranking import group_by_configuration, summarize_validation
from stages.tables.table import Table
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
    test = read_batches(normalized, windowed, torch.device("cpu"))["test"]
    scale = table.preparation.target_scaling[1]
    baseline_error = measure_baseline(test, windows, trials[0], objective, scale)

    scores: dict[str, OriginScore] = {}
    networks: dict[str, tuple[str, int | None]] = {}
    failed: list[str] = []
    for label, group in group_by_configuration(trials).items():
        row = summarize_validation(group, {trial.key: read_trial(trial) for trial in group})
        networks[label] = row.architecture, row.parameters
        failed += [f"{label} {reason}" for reason in row.failed]
        if row.complete:
            answers = [
                collect_answers(load_network(trial, windows), test, objective, windows.objective) for trial in group
            ]
            errors = Spread.of([objective.compute_measures(of_seed.means, scale)[measure] for of_seed in answers])
            skill = None if baseline_error is None else skill_score(errors.mean, baseline_error)
            scores[label] = OriginScore(row.validation[measure], errors, skill)
    split = origin.split
    return OriginResult(
        OriginInfo(
            name=origin.name,
            train_from=np.datetime_as_string(np.load(normalized / "time.npy", mmap_mode="r")[0], unit="m"),
            validation_from=split.validation_from.isoformat(timespec="minutes"),
            test_from=split.test_from.isoformat(timespec="minutes"),
            test_until=split.test_until.isoformat(timespec="minutes") if split.test_until else "",
            windows=windows.windows,
            persistence=baseline_error,
            best=min(scores, key=lambda label: scores[label].validation.mean, default=None),
            failed=failed,
        ),
        scores,
        networks,
    )


def describe_selection_measure(problem: Problem, trial: Trial) -> MeasureInfo:
    """The measure by which the problem's configurations are selected."""
    measure = choose_objective(TableWindows.read(trial.windowed), trial.train).selection_measure
    return MeasureInfo.of(measure, problem.unit)
