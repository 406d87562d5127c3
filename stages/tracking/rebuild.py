"""MLflow's store, written again from the trials that DVC tracks."""

from problems.errors import RecastError
from project import paths
from project.lock import hold_pipeline_lock
from project.settings.sections import Settings
from stages.evaluation import leaderboard
from stages.evaluation.selection import select_best_trials
from stages.sequences.reading import WINDOWS_FILE
from stages.tracking import runs, trial_run
from stages.tracking.evaluation import log_evaluation
from stages.tracking.packaging import store_best_models
from stages.training.expansion import list_trials
from stages.training.outcomes import read_outcome


def rebuild(settings: Settings, problem: str) -> int:
    """Write the ended trials of the grid, the leaderboard and the models to MLflow; return how many trials it lacked.

    What the store has already stays as it is, so this can be called again.

    Raises:
        RecastError: nothing has been trained in this checkout, the leaderboard is of another grid, or a pipeline is
            running, which writes the same runs.
        TrackingError: MLflow cannot be reached.
    """
    with hold_pipeline_lock():
        return write_missing(settings, problem)


def write_missing(settings: Settings, problem: str) -> int:
    """The same for a caller that holds the lock of the checkout."""
    windowed = paths.stage_folder("window", problem)
    if not (windowed / WINDOWS_FILE).exists():
        raise RecastError(f"{windowed} does not exist; `dvc checkout` or `dvc pull` restores what was trained")
    trials = [trial for trial in list_trials(settings, problem, windowed) if read_outcome(trial)]
    if not trials:
        raise RecastError(
            f"no trial of {problem} has ended in this checkout; `dvc checkout` or `dvc pull` restores trials/{problem}"
        )
    context = runs.open_pipeline_run(problem, settings, trials, newest=True)
    count = trial_run.log_missing_runs(context, trials)
    failed = sum(outcome.status == "failed" for trial in trials if (outcome := read_outcome(trial)))
    runs.end_pipeline_run(context, failed)
    evaluation = leaderboard.read_leaderboard(paths.stage_folder("evaluate", problem))
    if evaluation is not None:
        # Raises an error where the leaderboard is of another grid.
        list(select_best_trials(evaluation.rows, trials))
        log_evaluation(context, evaluation, trials, paths.stage_folder("evaluate", problem))
        store_best_models(evaluation, trials)
    return count
