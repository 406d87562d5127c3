"""Evaluate a grid: rank its configurations by validation error, and test the best one of each architecture, once."""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch

from architectures import Network
from learning.measures import MAE
from learning.objectives import Objective
from problems.durations import format_duration
from problems.problem import AnyProblem, Problem
from project.settings.sections import BootstrapSettings, EvaluateSettings
from stages.evaluation.answer_files import read_answers, remove_answers, write_answers
from stages.evaluation.answers import Answers, TrialAnswers, collect_trial_answers, measure_baseline
from stages.evaluation.baseline import BASELINE
from stages.evaluation.bootstrap import Comparison, choose_block, paired_block_bootstrap
from stages.evaluation.forecasts import (
    Band,
    Forecasts,
    Targets,
    TargetValues,
    average_absolute_errors,
    average_by_hour,
    average_by_month,
    build_bands,
    choose_stretch,
    number_moments,
    tabulate_stretch,
)
from stages.evaluation.leaderboard import Evaluation, LeaderboardRow, MeasureInfo, Spread
from stages.evaluation.metrics import Errors, measure_skill
from stages.evaluation.ranking import group_by_configuration, rank_configurations
from stages.evaluation.selection import select_configurations
from stages.evaluation.warnings import list_warnings
from stages.tables.ingested import read_quality
from stages.tables.table import Table, read_times
from stages.tables.windows import AnyWindows, TableWindows, read_windows
from stages.training import history, reading
from stages.training.batches import SplitData
from stages.training.history import Epoch
from stages.training.networks import load_network
from stages.training.objectives import choose_objective
from stages.training.recurrent_loops import compile_missing_loops, list_loops
from stages.training.scoring import EVALUATION_BATCH
from stages.training.table_batches import TableBatches
from stages.training.trials import Trial, trial_folder


@dataclass(frozen=True)
class EvaluationData:
    """The data on which a grid is evaluated.

    Attributes:
        splits: the windows by the name of the split.
        table: None for sequences.
        normalized: the folder of the table or the sequences.
    """

    windows: AnyWindows
    splits: Mapping[str, SplitData]
    table: Table | None
    normalized: Path

    @classmethod
    def read(cls, normalized: Path, windowed: Path) -> "EvaluationData":
        """The data in the folders of the stages `normalize` and `window`."""
        windows = read_windows(windowed)
        splits = reading.read_batches(normalized, windowed, torch.device("cpu"))
        table = Table.read(normalized) if isinstance(windows, TableWindows) else None
        return cls(windows, splits, table, normalized)

    @property
    def center_and_scale(self) -> tuple[float, float]:
        """The normalised target is (target - center) / scale."""
        return self.table.preparation.target_scaling if self.table else (0.0, 1.0)

    @property
    def horizon_rows(self) -> int:
        """Rows from the last input to the last target; 0 where the data have no clock."""
        return self.windows.horizon if isinstance(self.windows, TableWindows) else 0

    @property
    def lead_names(self) -> list[str]:
        """The time from the last input to each target, the shortest first; empty where the data have no clock."""
        windows, table = self.windows, self.table
        if table is None or not isinstance(windows, TableWindows):
            return []
        return [format_duration(timedelta(seconds=(windows.step + lead) * table.cadence)) for lead in windows.leads]

    def count_rows(self, duration: timedelta) -> int:
        """The number of rows in a length of time; a step of a sequence counts as a second."""
        return round(duration / timedelta(seconds=self.table.cadence if self.table else 1))


@dataclass(frozen=True)
class GridResult:
    """The result of evaluating a grid.

    Attributes:
        validation_errors: the normalised errors (N, L) on validation of each tested trial, by its key; empty unless the
            answers are numbers.
    """

    evaluation: Evaluation
    validation_errors: dict[str, Errors]


@dataclass(frozen=True)
class SelectedConfiguration:
    """The results of a selected configuration.

    Attributes:
        answers: of each seed to the test windows.
        test: the measures on test, over seeds.
        forecasts: of validation and test; None where the answers are not numbers.
        curves: the training history by seed; empty for a baseline.
    """

    answers: list[Answers]
    test: dict[str, Spread]
    forecasts: Forecasts | None
    curves: dict[str, list[Epoch]]

    @property
    def errors(self) -> Errors:
        """The mean score (N,) of the selection measure by test window, averaged over seeds."""
        mean_N: Errors = np.mean([answers.window_N for answers in self.answers], axis=0)
        return mean_N

    @property
    def confusion(self) -> list[list[float]]:
        """How often each class got each answer, averaged over seeds; empty where that was not counted."""
        counts = [answers.confusion_CC for answers in self.answers if answers.confusion_CC is not None]
        means: list[list[float]] = np.mean(counts, axis=0).tolist() if counts else []
        return means


def evaluate_grid(
    name: str,
    problem: AnyProblem,
    settings: EvaluateSettings,
    trials: Sequence[Trial],
    ingested: Path,
    normalized: Path,
    windowed: Path,
) -> GridResult:
    """Rank the configurations by the selection measure on validation, and test the best one of each architecture, once.

    Only a configuration of which all trials have finished is ranked and may be selected.

    Args:
        name: the problem's name.
        trials: all trials of the grid.
        ingested, normalized, windowed: the folders of the stages `ingest`, `normalize` and `window`.
    """
    # The last bits of a forecast depend on the number of threads, but the leaderboard must not.
    torch.set_num_threads(1)
    data = EvaluationData.read(normalized, windowed)
    objective = choose_objective(data.windows, trials[0].train)
    measure, scale = objective.selection_measure, data.center_and_scale[1]
    groups = group_by_configuration(trials)
    rows = rank_configurations(groups.values(), objective)
    selected_groups = {row.configuration: groups[row.configuration] for row in select_configurations(rows)}
    answers = _collect_answers_of_trials(
        [trial for group in selected_groups.values() for trial in group], data, objective
    )
    for trial in trials:
        if trial.key not in answers:
            remove_answers(trial)
    selected = {label: _test_configuration(group, answers, data, objective) for label, group in selected_groups.items()}

    if BASELINE in selected:
        baseline = {name: spread.mean for name, spread in selected[BASELINE].test.items()}
    else:
        baseline = measure_baseline(data.splits, data.windows, trials[0], scale)
    forecasts = {label: result.forecasts for label, result in selected.items() if result.forecasts}
    targets = {split: _read_targets(data, split) for split in ("validation", "test")} if forecasts else {}
    bands = {
        label: build_bands(values, targets["validation"], targets["test"], settings.intervals)
        for label, values in forecasts.items()
    }
    best, runner_up = (*selected, None, None)[:2]
    comparison = None
    if best and runner_up:
        factor = scale if measure.scaled else 1.0
        first_N, second_N = factor * selected[best].errors, factor * selected[runner_up].errors
        comparison = _compare(first_N, second_N, data, targets, settings.bootstrap)

    # Errors by time, and forecasts along a stretch of it, need a clock.
    errors = {}
    series_name, stretch = "", slice(0)
    if data.table and forecasts:
        errors = {label: average_absolute_errors(values, targets["test"]) for label, values in forecasts.items()}
        series_name, stretch = choose_stretch(targets["test"], data.table.series, data.count_rows(settings.forecasts))
    evaluation = Evaluation(
        problem=name,
        title=problem.title,
        target=problem.target,
        unit=problem.unit,
        synthetic=problem.source.synthetic,
        split=problem.split.model_dump(mode="json"),
        window=problem.window.model_dump(mode="json"),
        measures=[MeasureInfo.of(shown, problem.unit) for shown in objective.measures],
        rows=[
            _complete_row(row, selected[row.configuration], bands.get(row.configuration, []), measure.name, baseline)
            if row.configuration in selected
            else row
            for row in rows
        ],
        best=best,
        runner_up=runner_up,
        comparison=comparison,
        comparison_unit=problem.unit if measure.scaled else "nats",
        persistence_test=baseline.get(measure.name),
        curves={label: result.curves for label, result in selected.items() if result.curves},
        leads={label: error_NL.mean(axis=0).tolist() for label, error_NL in errors.items() if len(data.lead_names) > 1},
        lead_names=data.lead_names,
        hours={label: average_by_hour(targets["test"], error_NL) for label, error_NL in errors.items()},
        months={label: average_by_month(targets["test"], error_NL) for label, error_NL in errors.items()},
        forecasts=tabulate_stretch(targets["test"], forecasts, stretch) if errors else {},
        forecasts_of=series_name,
        fans={label: [band.cut_fan(stretch) for band in reversed(bands[label])] for label in errors},
        confusion={label: result.confusion for label, result in selected.items() if result.confusion},
        quality=read_quality(ingested),
        windows=asdict(data.windows),
        persistence_mae=baseline.get(MAE),
        warnings=list_warnings(name, problem, normalized, windowed) if isinstance(problem, Problem) else [],
    )
    errors_by_key = {
        key: trial_answers.validation.errors_NL
        for key, trial_answers in answers.items()
        if trial_answers.validation is not None and trial_answers.validation.errors_NL is not None
    }
    return GridResult(evaluation, errors_by_key)


def _collect_answers_of_trials(
    trials: Sequence[Trial], data: EvaluationData, objective: Objective
) -> dict[str, TrialAnswers]:
    """The answers of several trials, by key: as many trials at once as there are cores, each on one thread.

    Those of a trial that was evaluated before are read from its folder.
    """

    def collect(network: Network) -> TrialAnswers:
        return collect_trial_answers(network, data.splits, objective, data.windows.objective)

    answers = {trial.key: read_answers(trial) for trial in trials}
    new = [trial for trial in trials if answers[trial.key] is None]
    # In this thread, because creating a network sets the seed of the process.
    networks = [load_network(trial, data.windows) for trial in new]
    # Those that trained here are kept; trials that came by `dvc pull` may need others.
    compile_missing_loops(list_loops(networks, ["forward"]))
    # The number of threads in which PyTorch computes is a setting of each thread.
    with ThreadPoolExecutor(os.cpu_count() or 1, "answers", torch.set_num_threads, (1,)) as pool:
        for trial, collected in zip(new, pool.map(collect, networks), strict=True):
            write_answers(trial, collected)
            answers[trial.key] = collected
    return {key: kept for key, kept in answers.items() if kept is not None}


def _test_configuration(
    group: Sequence[Trial], answers_by_key: Mapping[str, TrialAnswers], data: EvaluationData, objective: Objective
) -> SelectedConfiguration:
    """The results of a configuration's trials on the test rows, and their forecasts on validation."""
    center, scale = data.center_and_scale
    answers = [answers_by_key[trial.key].test for trial in group]
    validation = [split for trial in group if (split := answers_by_key[trial.key].validation) is not None]
    forecasts = None
    if validation:
        validation_SNLO, test_SNLO = (_stack_values(split_answers) for split_answers in (validation, answers))
        forecasts = Forecasts(validation_SNLO * scale + center, test_SNLO * scale + center, objective.quantiles)
    measures = [objective.compute_measures(seed_answers.mean_scores, scale) for seed_answers in answers]
    return SelectedConfiguration(
        answers,
        Spread.by_name(measures),
        forecasts,
        {str(trial.seed): history.read_history(trial_folder(trial)) for trial in group} if group[0].trainable else {},
    )


def _stack_values(answers: Sequence[Answers]) -> TargetValues:
    """The answers of each seed in one array (S, N, L, O)."""
    return np.stack([seed_answers.values_NLO for seed_answers in answers if seed_answers.values_NLO is not None])


def _compare(
    first_N: Errors,
    second_N: Errors,
    data: EvaluationData,
    targets: Mapping[str, Targets],
    settings: BootstrapSettings,
) -> Comparison:
    """Compare the errors of two configurations by test window."""
    return paired_block_bootstrap(
        first_N,
        second_N,
        number_moments(targets["test"], data.table.cadence) if data.table else np.arange(len(data.splits["test"])),
        # Sequences do not follow each other in time: each is a block of its own.
        block=choose_block(data.count_rows(settings.block), data.horizon_rows) if data.table else 1,
        resamples=settings.resamples,
        level=settings.level,
    )


def _complete_row(
    row: LeaderboardRow,
    result: SelectedConfiguration,
    bands: Sequence[Band],
    measure: str,
    baseline: Mapping[str, float],
) -> LeaderboardRow:
    """The row of a selected configuration with its test results.

    Args:
        measure: the name of the selection measure.
        baseline: the test errors of the baseline, by the name of the measure.
    """
    errors = {name: spread.mean for name, spread in result.test.items()}
    return replace(
        row,
        selected=True,
        test=result.test,
        skill=measure_skill(measure, errors, baseline),
        intervals=[band.interval for band in bands],
        mae_skill=measure_skill(MAE, errors, baseline),
    )


def _read_targets(data: EvaluationData, split: str) -> Targets:
    """The targets of a split, in order, in the target's unit."""
    windows, table = data.splits[split], data.table
    if table is None or not isinstance(windows, TableBatches):
        y_NLK = torch.cat([batch.y_BSK for batch in windows.iterate_in_order(EVALUATION_BATCH)])
        no_times = np.empty((0, 1), dtype="datetime64[ms]")
        return Targets(y_NLK[:, :, 0].double().numpy(), np.arange(len(windows))[:, None], no_times)
    rows_NL = windows.find_target_rows(windows.find_rows(torch.arange(len(windows))))
    center, scale = data.center_and_scale
    observed_NL = windows.targets_N[rows_NL].double().numpy() * scale + center
    return Targets(observed_NL, rows_NL.numpy(), read_times(data.normalized)[rows_NL.numpy()])
