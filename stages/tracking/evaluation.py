"""The evaluation in MLflow: leaderboard and report in the parent run, test errors in the runs of the trials."""

from collections.abc import Sequence
from pathlib import Path

from stages.evaluation.leaderboard import Evaluation
from stages.evaluation.selection import select_best_trials
from stages.report.picture_files import PICTURES_FOLDER, picture_folder
from stages.tracking.runs import RunContext, end_pipeline_run, log_new_metrics
from stages.tracking.store import get_client, translate_artifact_errors, translate_errors
from stages.training.trials import Trial, read_run_notes, trial_folder


@translate_errors()
def log_evaluation(context: RunContext, evaluation: Evaluation, trials: Sequence[Trial], folder: Path) -> None:
    """Write the leaderboard and the report to the grid's parent run, and test errors to the runs of the tested trials.

    The pictures of each architecture's best trial are written to that trial's run as well. A parent run that is still
    open was opened for this evaluation, and is ended.

    Args:
        folder: where the stage `evaluate` has written its files.

    Raises:
        TrackingError: MLflow cannot be reached.
    """
    parent = context.parent
    with translate_artifact_errors():
        get_client().log_artifacts(parent, str(folder), "evaluation")
    selection_measure = evaluation.selection_measure.name
    grid_metrics: dict[str, float] = {}
    if evaluation.persistence_test is not None:
        grid_metrics[f"persistence_test_{selection_measure}"] = evaluation.persistence_test
    for row in evaluation.rows:
        if not row.selected:
            continue
        for position, seed in enumerate(row.finished_seeds):
            (trial,) = (
                trial for trial in trials if trial.configuration.label == row.configuration and trial.seed == seed
            )
            trial_metrics = {
                f"test_{measure.name}": row.test[measure.name].values[position] for measure in evaluation.measures
            }
            for interval in row.intervals:
                trial_metrics[f"coverage_of_{interval.level:g}"] = interval.coverage.values[position]
                trial_metrics[f"width_of_{interval.level:g}"] = interval.width.values[position]
            log_new_metrics(read_run_notes(trial_folder(trial))["mlflow_run_id"], trial_metrics)
        if row.configuration == evaluation.best:
            get_client().set_tag(parent, "recast.best", row.configuration)
            grid_metrics[f"best_validation_{selection_measure}"] = row.validation[selection_measure].mean
            grid_metrics[f"best_test_{selection_measure}"] = row.test[selection_measure].mean
            if row.skill is not None:
                grid_metrics["best_skill"] = row.skill
    log_new_metrics(parent, grid_metrics)
    for _, trial in select_best_trials(evaluation.rows, trials):
        pictures = picture_folder(folder, trial)
        if pictures.exists():
            with translate_artifact_errors():
                run = read_run_notes(trial_folder(trial))["mlflow_run_id"]
                get_client().log_artifacts(run, str(pictures), PICTURES_FOLDER)
    if get_client().get_run(parent).info.status == "RUNNING":
        end_pipeline_run(context, sum(len(row.failed) for row in evaluation.rows))
