"""MLflow's store made again from the trials that DVC tracks."""

from problems.errors import RecastError
from stages import leaderboard, places, tracking
from stages.lock import only_pipeline
from stages.outcomes import outcome
from stages.packaging import package
from stages.settings import Settings
from stages.trials import expand


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
    windowed = places.stage("window", problem)
    if not (windowed / "windows.json").exists():
        raise RecastError(f"{windowed} is not there; `dvc checkout` or `dvc pull` restores what was trained")
    trials = [trial for trial in expand(settings, problem, windowed) if outcome(trial)]
    if not trials:
        raise RecastError(
            f"no trial of {problem} has ended here; `dvc checkout` or `dvc pull` restores trials/{problem}"
        )
    context = tracking.open_pipeline(problem, settings, trials, newest=True)
    written = tracking.log_unlogged(context, trials)
    failed = sum(each.status == "failed" for trial in trials if (each := outcome(trial)))
    tracking.close_pipeline(context, failed)
    evaluation = leaderboard.read(places.stage("evaluate", problem))
    if evaluation is not None:
        tracking.log_evaluation(context, evaluation, trials, places.stage("evaluate", problem))
        package(evaluation, trials)
    return written
