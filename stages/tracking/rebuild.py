"""MLflow's store made again from the trials that DVC tracks."""

from problems.errors import RecastError
from project import paths
from project.lock import only_pipeline
from project.settings.sections import Settings
from stages.evaluation import leaderboard
from stages.tracking import store
from stages.tracking.packaging import package
from stages.training.outcomes import outcome
from stages.training.trials import expand


def rebuild(settings: Settings, problem: str) -> int:
    """Write the ended trials of the grid, the leaderboard and the models to MLflow; how many trials were missing.

    What the store has already is left as it is, so it may be run again.

    Raises:
        RecastError: nothing has been trained here, or a pipeline runs, which writes these runs.
        TrackingError: MLflow cannot be reached.
    """
    with only_pipeline():
        return write_missing(settings, problem)


def write_missing(settings: Settings, problem: str) -> int:
    """`rebuild`, for who holds the lock of the checkout."""
    windowed = paths.stage("window", problem)
    if not (windowed / "windows.json").exists():
        raise RecastError(f"{windowed} is not there; `dvc checkout` or `dvc pull` restores what was trained")
    trials = [trial for trial in expand(settings, problem, windowed) if outcome(trial)]
    if not trials:
        raise RecastError(
            f"no trial of {problem} has ended here; `dvc checkout` or `dvc pull` restores trials/{problem}"
        )
    context = store.open_pipeline(problem, settings, trials, newest=True)
    written = store.log_unlogged(context, trials)
    failed = sum(each.status == "failed" for trial in trials if (each := outcome(trial)))
    store.close_pipeline(context, failed)
    evaluation = leaderboard.read(paths.stage("evaluate", problem))
    if evaluation is not None:
        store.log_evaluation(context, evaluation, trials, paths.stage("evaluate", problem))
        package(evaluation, trials)
    return written
