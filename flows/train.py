"""The train flow: the trials that are missing, in bundles, one Prefect task each, on every slot there is.

    python -m flows.train <problem>

is the command of the DVC stage `train`, so a plain `dvc repro` trains in parallel too.
"""

from collections.abc import Sequence

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.runtime import flow_run

from flows.connection import connect
from flows.dispatch import dispatch
from infra.servers import MLFLOW, url
from problems.errors import RecastError
from project import paths
from project.command import command
from project.progress import console
from project.settings.loading import load_settings
from stages.tables.windows import read_windows
from stages.tracking import store
from stages.train import write_list
from stages.training.outcomes import Outcome, is_done
from stages.training.trials import bundles, check_shapes, expand


class TrialsFailed(RecastError):
    """The grid is complete, but trials of it have failed; the message says which and why."""


@flow(name="train", flow_run_name="train {problem}", persist_result=False)
def train(problem: str) -> list[Outcome]:
    """Train the trials of the grid that are missing, write the list of all, and say how each ended.

    Raises:
        TrialsFailed: the grid is complete and written, but trials have failed.
        TrackingError: MLflow cannot be reached; what was trained is on disk, and the next run logs it.
        RecastError: a setting does not fit the data.
    """
    settings = load_settings()
    windowed = paths.stage("window", problem)
    trials = expand(settings, problem, windowed)
    check_shapes(trials, read_windows(windowed))
    missing = [trial for trial in trials if not is_done(trial)]
    context = store.open_pipeline(problem, settings, trials, flow_run.id)

    trained = dispatch(f"train {problem}", bundles(missing, settings.runner.bundle), settings, {None: context})
    ended = write_list(trials, paths.stage("train", problem))
    # What MLflow lacks: trials that came by `dvc pull`, those of a run whose MLflow went away, and what it refused now.
    if late := store.awaited(lambda: store.log_unlogged(context, trials)):
        _say(f"{problem}: MLflow lacked {late} of {len(trials)} trials; it has them now")
    failed = [each for each in ended if each.status == "failed"]
    store.awaited(lambda: store.close_pipeline(context, len(failed)))
    _artifact(problem, context, ended, len(trained))
    if failed:
        raise TrialsFailed(
            f"{problem}: {len(failed)} of {len(trials)} trials failed:\n"
            + "\n".join(f"  {each.label}: {each.reason}" for each in failed)
        )
    return ended


def _say(text: str) -> None:
    # Not in the flow: it travels to other processes by value, and the console cannot.
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _artifact(problem: str, context: store.Context, ended: Sequence[Outcome], trained: int) -> None:
    """Show the trials on the flow run's page, with the way to MLflow."""
    page = url(MLFLOW)
    where = f"/#/experiments/{context.experiment}/runs/{context.parent}"
    link = f"[the run in MLflow]({page}{where})" if page else f"`recast up`, then MLflow's page {where}"
    rows = "\n".join(f"| {o.label} | {o.status} | {'' if o.error is None else f'{o.error:.4f}'} |" for o in ended)
    measure = next((o.measure for o in ended if o.measure), "error")
    create_markdown_artifact(
        f"**{problem}**: {len(ended)} trials, {trained} trained now. Compare them: {link}\n\n"
        f"| trial | status | validation {measure} |\n|---|---|---|\n{rows}\n",
        key=f"trials-{problem.replace('_', '-')}",
        description="The trials of the grid, and where MLflow shows them",
    )


def main(problem: str) -> None:
    """Train the trials of a problem's grid that are missing."""
    connect()
    try:
        train(problem)
    except TrialsFailed as failures:
        # The grid is complete: the leaderboard says what failed, and the next stage can go on.
        console.print(f"warning: {failures}", style="yellow", markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    # By its own name, under which a worker process can import the task; `__main__` is another module there.
    from flows.train import main as command_main

    command(command_main)
