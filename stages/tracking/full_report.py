"""The full report: an evaluation with pictures of how its networks work, drawn when somebody wants to see them.

It is written to `data/report/<problem>/`, which DVC does not track, and to MLflow. The report that every run writes has
no such pictures: few people look at them, and to draw them takes as long as the rest of the report.
"""

from pathlib import Path

from problems.errors import RecastError
from project import paths
from project.atomic import replace_folder
from project.settings.sections import Settings
from stages.evaluation.leaderboard import read_leaderboard
from stages.evaluation.selection import select_best_trials
from stages.report.inspection import inspect_networks
from stages.report.page import render_report
from stages.tracking import runs, trial_run
from stages.tracking.evaluation import log_pictures
from stages.training.expansion import list_trials


def write_full_report(problem: str, settings: Settings) -> Path:
    """Draw the networks of the best trials, and write the report with these pictures; return its file.

    Raises:
        RecastError: the problem has not been evaluated with the present settings and code.
        TrackingError: MLflow cannot be reached; the report is written all the same.
    """
    evaluation = read_leaderboard(paths.stage_folder("evaluate", problem))
    if evaluation is None:
        raise RecastError(f"{problem} has not been evaluated, so there is nothing to report: recast run {problem}")
    normalized, windowed = paths.stage_folder("normalize", problem), paths.stage_folder("window", problem)
    trials = list_trials(settings, problem, windowed)
    pictures = inspect_networks(evaluation, trials, normalized, windowed)
    out = paths.stage_folder("report", problem)
    with replace_folder(out) as folder:
        pictures.write(folder)
        (folder / "report.html").write_text(render_report(evaluation, pictures), encoding="utf-8")
    context = runs.open_pipeline_run(problem, settings, trials, newest=True)
    # Trials that came by `dvc pull` have no run yet that the pictures could be added to.
    trial_run.log_missing_runs(context, [trial for _, trial in select_best_trials(evaluation.rows, trials)])
    log_pictures(context, evaluation, trials, out)
    return out / "report.html"
