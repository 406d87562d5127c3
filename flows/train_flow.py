"""The train flow: the missing trials of a grid, in bundles, each of which is a Prefect task."""

import time
from collections.abc import Sequence

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.runtime import flow_run

from flows.dispatch import dispatch
from infra.servers import mlflow_page
from problems.errors import RecastError
from project import paths
from project.progress import console
from project.retry import retry_while_unreachable
from project.settings.loading import load_settings
from project.timings import Phase, add_phase
from stages.tables.windows import read_windows
from stages.tracking import runs, store, trial_run
from stages.train import write_trial_list
from stages.training.expansion import bundle_trials, check_grid_shapes, list_trials
from stages.training.outcomes import Outcome, list_missing
from stages.training.trials import Trial, read_run_notes, trial_folder


class TrialsFailed(RecastError):
    """The grid is complete, but some of its trials have failed. The message says which, and why."""


@flow(name="train", flow_run_name="train {problem}", persist_result=False)
def train(problem: str) -> list[Outcome]:
    """Train the missing trials of the grid, and write the list of all trials; how each ended.

    Raises:
        TrialsFailed: the grid is complete and written, but trials have failed.
        TrackingError: MLflow cannot be reached. What was trained is on disk, and the next run logs it.
        RecastError: a setting does not fit the data.
    """
    settings = load_settings()
    windowed = paths.stage_folder("window", problem)
    trials = list_trials(settings, problem, windowed)
    check_grid_shapes(trials, read_windows(windowed))
    missing = list_missing(trials)
    context = runs.open_pipeline_run(problem, settings, trials, flow_run.id)

    begun = time.time()
    trained = dispatch(f"train {problem}", bundle_trials(missing, settings.runner.bundle), settings, {None: context})
    _note_timings(problem, missing, begun)
    ended = write_trial_list(trials, paths.stage_folder("train", problem))
    # MLflow may lack trials that came by `dvc pull`, those of a run that lost MLflow, and those that it just refused.
    if added := retry_while_unreachable(
        lambda: trial_run.log_missing_runs(context, trials), store.PATIENCE_SECONDS, "MLflow"
    ):
        _print(f"{problem}: MLflow lacked {added} of {len(trials)} trials; it has them now")
    failed = [outcome for outcome in ended if outcome.status == "failed"]
    retry_while_unreachable(lambda: runs.end_pipeline_run(context, len(failed)), store.PATIENCE_SECONDS, "MLflow")
    _show_trials(problem, context, ended, len(trained))
    if failed:
        raise TrialsFailed(
            f"{problem}: {len(failed)} of {len(trials)} trials failed:\n"
            + "\n".join(f"  {outcome.label}: {outcome.reason}" for outcome in failed)
        )
    return ended


def _note_timings(problem: str, trained: Sequence[Trial], begun: float) -> None:
    """Note how long the first trial took to begin, how long all took, and what they took beyond their training."""
    notes = [read_run_notes(trial_folder(trial)) for trial in trained]
    complete = [note for note in notes if note.get("begun", 0) >= begun and "seconds" in note]
    if not complete:
        return
    first = min(note["begun"] for note in complete)
    last = max(note["begun"] + note["seconds"] for note in complete)
    beyond = sum(note["seconds"] - note.get("training_seconds", 0.0) for note in complete)
    add_phase(Phase(f"train@{problem}: until the first trial begins", begun, first - begun, None))
    add_phase(Phase(f"train@{problem}: trials ({len(complete)})", first, last - first, None))
    add_phase(Phase(f"train@{problem}: per trial, beyond its epochs", first, beyond / len(complete), None))


def _print(text: str) -> None:
    # Not in the flow itself: Prefect sends the flow to other processes by value, and the console cannot be sent.
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _show_trials(problem: str, context: runs.RunContext, outcomes: Sequence[Outcome], trained: int) -> None:
    """Show the trials on the flow run's page, with a link to MLflow.

    Args:
        trained: how many this flow has trained.
    """
    page = mlflow_page(f"/experiments/{context.experiment}/runs/{context.parent}")
    rows = "\n".join(
        f"| {outcome.label} | {outcome.status} | {'' if outcome.error is None else f'{outcome.error:.4f}'} |"
        for outcome in outcomes
    )
    measure = next((outcome.measure for outcome in outcomes if outcome.measure), "error")
    create_markdown_artifact(
        f"**{problem}**: {len(outcomes)} trials, {trained} trained now. Compare them: "
        f"[the run in MLflow]({page}), which `recast up` starts\n\n"
        f"| trial | status | validation {measure} |\n|---|---|---|\n{rows}\n",
        key=f"trials-{problem.replace('_', '-')}",
        description="The trials of the grid, and where MLflow shows them",
    )
