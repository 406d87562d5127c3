"""The stage `evaluate`: the leaderboard and the report.

Validation alone selects; the test rows are read once, for the selected configurations.
"""

from dataclasses import asdict
from pathlib import Path

from project import paths
from project.atomic import replace_folder, write_json
from project.command import run_stage
from project.retry import retry_while_unreachable
from project.settings.loading import load_settings
from stages.evaluation.dvc_outputs import summarize_metrics, tabulate_plots
from stages.evaluation.grid_evaluation import evaluate_grid
from stages.evaluation.leaderboard import Evaluation
from stages.report.page import render_report
from stages.tracking import runs, store, trial_run
from stages.tracking.evaluation import log_evaluation
from stages.tracking.packaging import store_best_models
from stages.training.expansion import list_trials


def write_results(evaluation: Evaluation, out: Path) -> None:
    """Write the leaderboard, the metrics, the plots and the report into the folder `out`."""
    with replace_folder(out) as folder:
        write_json(folder / "leaderboard.json", asdict(evaluation))
        write_json(folder / "metrics.json", summarize_metrics(evaluation))
        for name, frame in tabulate_plots(evaluation).items():
            frame.write_csv(folder / name)
        (folder / "report.html").write_text(render_report(evaluation), encoding="utf-8")


def main(problem: str) -> None:
    """Rank the trained grid of a problem, test the selected configurations, write the report, and log it to MLflow."""
    settings = load_settings()
    normalized, windowed = paths.stage_folder("normalize", problem), paths.stage_folder("window", problem)
    out = paths.stage_folder("evaluate", problem)
    trials = list_trials(settings, problem, windowed)
    result = evaluate_grid(
        problem,
        settings.problem(problem),
        settings.evaluate,
        trials,
        paths.stage_folder("ingest", problem),
        normalized,
        windowed,
    )
    evaluation = result.evaluation
    write_results(evaluation, out)

    def log_to_mlflow() -> None:
        context = runs.open_pipeline_run(problem, settings, trials, newest=True)
        trial_run.log_missing_runs(context, trials)
        log_evaluation(context, evaluation, trials, out)
        store_best_models(evaluation, trials, result.validation_errors)

    retry_while_unreachable(log_to_mlflow, store.PATIENCE_SECONDS, "MLflow")


if __name__ == "__main__":
    run_stage(main)
