"""The evaluation in MLflow: leaderboard and report in the parent run, test errors in the runs of the trials."""

from collections.abc import Sequence
from pathlib import Path

from learning.measures import MAE
from stages.evaluation.leaderboard import Evaluation
from stages.evaluation.selection import select_best_trials
from stages.report.pictures import PICTURES_FOLDER, picture_folder
from stages.tracking.runs import RunContext, end_pipeline_run, log_new_metrics, read_runs
from stages.tracking.store import get_client, translate_artifact_errors, translate_errors
from stages.training.trials import Trial, read_run_notes, trial_folder

BEST_TAG = "recast.best"
"""Tag of a grid's parent run: the best configuration."""


@translate_errors()
def log_evaluation(context: RunContext, evaluation: Evaluation, trials: Sequence[Trial], folder: Path) -> None:
    """Write the leaderboard and the report to the grid's parent run, and test errors to the runs of the tested trials.

    A parent run that is still open was opened for this evaluation, and is ended.

    Args:
        folder: where the stage `evaluate` has written its files.

    Raises:
        TrackingError: MLflow cannot be reached.
    """
    parent = get_client().get_run(context.parent)
    with translate_artifact_errors():
        get_client().log_artifacts(context.parent, str(folder), "evaluation")
    _log_trial_metrics(context, evaluation, trials)
    log_new_metrics(parent, _list_grid_metrics(evaluation))
    if evaluation.best is not None and parent.data.tags.get(BEST_TAG) != evaluation.best:
        get_client().set_tag(context.parent, BEST_TAG, evaluation.best)
    if parent.info.status == "RUNNING":
        end_pipeline_run(context, sum(len(row.failed) for row in evaluation.rows))


def _log_trial_metrics(context: RunContext, evaluation: Evaluation, trials: Sequence[Trial]) -> None:
    """Write the test errors and the coverage of intervals to the runs of the tested trials."""
    by_name = {(trial.configuration.label, trial.seed): trial for trial in trials}
    metrics_by_run: dict[str, dict[str, float]] = {}
    for row in evaluation.rows:
        if not row.selected:
            continue
        for position, seed in enumerate(row.finished_seeds):
            metrics = {
                f"test_{measure.name}": row.test[measure.name].values[position] for measure in evaluation.measures
            }
            for interval in row.intervals:
                metrics[f"coverage_of_{interval.level:g}"] = interval.coverage.values[position]
                metrics[f"width_of_{interval.level:g}"] = interval.width.values[position]
            metrics_by_run[_find_run_id(by_name[row.configuration, seed])] = metrics
    runs = read_runs(context.experiment, list(metrics_by_run))
    for run_id, metrics in metrics_by_run.items():
        log_new_metrics(runs[run_id], metrics)


def _list_grid_metrics(evaluation: Evaluation) -> dict[str, float]:
    """The metrics of the parent run: errors and skill scores of the best configuration, and errors of persistence."""
    measure = evaluation.selection_measure.name
    metrics: dict[str, float] = {}
    for name, error in ((measure, evaluation.persistence_test), (MAE, evaluation.persistence_mae)):
        if error is not None:
            metrics[f"persistence_test_{name}"] = error
    best = evaluation.find_row(evaluation.best)
    if best is not None and best.selected:
        metrics[f"best_validation_{measure}"] = best.validation[measure].mean
        metrics[f"best_test_{measure}"] = best.test[measure].mean
        for name, skill in (("best_skill", best.skill), ("best_mae_skill", best.mae_skill)):
            if skill is not None:
                metrics[name] = skill
    return metrics


@translate_errors()
def log_pictures(context: RunContext, evaluation: Evaluation, trials: Sequence[Trial], folder: Path) -> None:
    """Write a full report to the grid's parent run, and the pictures of each best trial to that trial's run.

    Args:
        folder: of the full report.

    Raises:
        TrackingError: MLflow cannot be reached.
    """
    with translate_artifact_errors():
        get_client().log_artifacts(context.parent, str(folder), "evaluation")
    for _, trial in select_best_trials(evaluation.rows, trials):
        pictures = picture_folder(folder, trial)
        if pictures.exists():
            with translate_artifact_errors():
                get_client().log_artifacts(_find_run_id(trial), str(pictures), PICTURES_FOLDER)


def _find_run_id(trial: Trial) -> str:
    """The id of a trial's run, which has been logged."""
    return str(read_run_notes(trial_folder(trial))["mlflow_run_id"])
