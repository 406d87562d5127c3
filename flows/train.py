"""The train flow: the trials that are missing, in bundles, one Prefect task each, on every slot there is.

    python -m flows.train <problem>

is the command of the DVC stage `train`, so a plain `dvc repro` trains in parallel too.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.task_runners import ProcessPoolTaskRunner

from flows.connection import connect
from flows.progress import console, progress
from infra.servers import MLFLOW, url
from infra.slots import Slot, claimed, slots
from problems.errors import RecastError
from stages import places, tracking
from stages.command import command
from stages.normalize import Table
from stages.settings import load
from stages.train import Outcome, is_done, record_lost, train_bundle, write_list
from stages.trials import Trial, bundles, check_shapes, expand, read_run, trial_folder
from stages.window import Windowing

POLL_SECONDS = 0.3


_stopping = threading.Event()


class Stopped(RecastError):
    """A person has stopped the training."""


class TrialsFailed(RecastError):
    """The grid is complete, but trials of it have failed; the message says which and why."""


@task(name="train bundle", task_run_name="{name}", persist_result=False)
def bundle_task(name: str, bundle: list[Trial], choice: list[Slot], context: tracking.Context) -> list[Outcome]:
    """Train one bundle on the first slot that is free."""
    with claimed(choice) as device:
        outcomes = train_bundle(bundle, device, context)
    logger = get_run_logger()
    for each in outcomes:
        logger.info("%s: %s", each.label, each.reason or f"validation MAE {each.mae:.4f}")
    return outcomes


@flow(name="train", flow_run_name="train {problem}", persist_result=False)
def train(problem: str) -> list[Outcome]:
    """Train the trials of the grid that are missing, write the list of all, and say how each ended.

    Raises:
        TrialsFailed: the grid is complete and written, but trials have failed.
        TrackingError: MLflow cannot be reached; what was trained is on disk, and the next run logs it.
        RecastError: a setting does not fit the data.
    """
    settings = load()
    windowed = places.stage("window", problem)
    trials = expand(settings, problem, windowed)
    check_shapes(trials, Windowing.read(windowed).shape(Table.read(places.stage("normalize", problem))))
    missing = [trial for trial in trials if not is_done(trial)]
    context = tracking.open_pipeline(problem, settings, trials, flow_run.id)
    tracking.log_unlogged(context, [trial for trial in trials if trial not in missing])

    groups = bundles(missing, settings.runner.bundle)
    choice = slots(settings.runner)
    if settings.runner.kind == "inline":
        trained = [each for group in groups for each in bundle_task(_name(group), group, choice, context)]
    else:
        trained = _dispatch(groups, choice, context)
    ended = write_list(trials, places.stage("train", problem))
    failed = [each for each in ended if each.status == "failed"]
    tracking.close_pipeline(context, len(failed))
    _artifact(problem, context, ended, len(trained))
    if failed:
        raise TrialsFailed(
            f"{problem}: {len(failed)} of {len(trials)} trials failed:\n"
            + "\n".join(f"  {each.label}: {each.reason}" for each in failed)
        )
    return ended


def _name(bundle: Sequence[Trial]) -> str:
    rest = f" and {len(bundle) - 1} more" if len(bundle) > 1 else ""
    return bundle[0].label + rest


def _dispatch(groups: list[list[Trial]], choice: list[Slot], context: tracking.Context) -> list[Outcome]:
    """Train bundles in processes. A bundle whose process dies is tried once more, alone, then recorded as failed."""
    with progress() as display:
        bar = display.add_task(f"train {context.problem}", total=sum(_epochs(group) for group in groups))

        def show(epochs: int) -> None:
            display.update(bar, completed=epochs)

        outcomes, lost = _round(groups, choice, context, show)
        for group in lost:
            again, dead = _round([group], choice, context, show)
            outcomes += again
            for trial in (trial for bundle in dead for trial in bundle):
                outcomes.append(record_lost(trial, "its process died twice; most likely the system was out of memory"))
        display.remove_task(bar)
    return outcomes


def _round(
    groups: list[list[Trial]], choice: list[Slot], context: tracking.Context, show: Callable[[int], None]
) -> tuple[list[Outcome], list[list[Trial]]]:
    """Train bundles in one pool of processes; outcomes, and the bundles that a dying process took with it.

    An error in one bundle does not keep the others from ending; the first is raised when all have.
    """
    if not groups:
        return [], []
    outcomes: list[Outcome] = []
    lost: list[list[Trial]] = []
    errors: list[Exception] = []
    ended = 0
    workers = min(len(choice), len(groups))
    with ProcessPoolTaskRunner(max_workers=workers, initializer=_end_with, initargs=(os.getpid(),)) as runner:
        waiting = {}
        for group in groups:
            parameters = {"name": _name(group), "bundle": group, "choice": choice, "context": context}
            waiting[runner.submit(bundle_task, parameters)] = group
        try:
            while waiting:
                if _stopping.wait(POLL_SECONDS):
                    raise Stopped("stopped; what is trained is kept, and the next run goes on from there")
                for future in [future for future in waiting if future.wrapped_future.done()]:
                    group = waiting.pop(future)
                    ended += _epochs(group)
                    try:
                        outcomes += future.result()
                    except BrokenProcessPool:
                        lost.append(group)
                    except Exception as error:
                        errors.append(error)
                show(
                    ended + sum(read_run(trial_folder(t)).get("epoch", 0) for group in waiting.values() for t in group)
                )
        except BaseException:
            # Workers do not hear Ctrl-C, and the pool would wait for their trials to end.
            stop()
            raise
    if errors:
        raise errors[0]
    return outcomes, lost


def stop() -> None:
    """End the worker processes now, and every train flow of this process with `Stopped`.

    An epoch that is under way is lost; the checkpoint of the one before is whole.
    """
    _stopping.set()
    for process in multiprocessing.active_children():
        process.terminate()


def _epochs(bundle: Sequence[Trial]) -> int:
    """The epochs that a bundle trains at most; a baseline counts as one."""
    return sum(trial.train.epochs if trial.trainable else 1 for trial in bundle)


def _end_with(parent: int) -> None:
    """In a worker process: end when the process that started it has ended, however it ended."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    # Ctrl-C reaches the whole group; the parent decides what becomes of its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=watch, daemon=True).start()


def _artifact(problem: str, context: tracking.Context, ended: Sequence[Outcome], trained: int) -> None:
    """Show the trials on the flow run's page, with the way to MLflow."""
    page = url(MLFLOW)
    where = f"/#/experiments/{context.experiment}/runs/{context.parent}"
    link = f"[the run in MLflow]({page}{where})" if page else f"`recast up`, then MLflow's page {where}"
    rows = "\n".join(f"| {o.label} | {o.status} | {'' if o.mae is None else f'{o.mae:.4f}'} |" for o in ended)
    create_markdown_artifact(
        f"**{problem}**: {len(ended)} trials, {trained} trained now. Compare them: {link}\n\n"
        f"| trial | status | validation MAE |\n|---|---|---|\n{rows}\n",
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
        console.print(f"[yellow]warning:[/] {failures}")


if __name__ == "__main__":
    # By its own name, under which a worker process can import the task; `__main__` is another module there.
    from flows.train import main as command_main

    command(command_main)
