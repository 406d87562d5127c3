"""The train flow: the trials that are missing, in bundles, one Prefect task each, on every slot there is.

    python -m flows.train <problem>

is the command of the DVC stage `train`, so a plain `dvc repro` trains in parallel too.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.synchronize import Event

import torch
from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.task_runners import ProcessPoolTaskRunner

from flows.connection import connect
from flows.progress import console, progress
from infra.servers import MLFLOW, url
from infra.slots import Slot, claim, claimed, slots
from problems.errors import RecastError
from stages import places, tracking
from stages.command import command
from stages.fit import epochs_of
from stages.settings import Settings, load
from stages.train import Outcome, is_done, outcome, record_lost, train_bundle, write_list
from stages.trials import Trial, bundles, check_shapes, expand, read_run, trial_folder
from stages.window import read_windows

POLL_SECONDS = 0.3

_stopping = threading.Event()
"""A person wants every train flow of this process to end."""


class Stopped(RecastError):
    """A person has stopped the training."""


class TrialsFailed(RecastError):
    """The grid is complete, but trials of it have failed; the message says which and why."""


@task(name="train bundle", task_run_name="{name}", persist_result=False)
def bundle_task(name: str, bundle: list[Trial], choice: list[Slot], context: tracking.Context) -> list[Outcome]:
    """Train one bundle on the first slot that is free."""
    try:
        if choice[0].device == "cpu":
            with claimed(choice) as device:
                outcomes = train_bundle(bundle, device, context, _go_on)
        else:
            # For as long as the process lives: what it has on a GPU, it would leave there.
            outcomes = train_bundle(bundle, claim(tuple(choice)), context, _go_on)
    except torch.AcceleratorError as error:
        if multiprocessing.parent_process() is not None:
            # The device is of no more use to this process; a new one tries these trials again.
            os._exit(1)
        raise RecastError(f"{name}: the device has failed: {error}; run again") from error
    logger = get_run_logger()
    for each in outcomes:
        logger.info("%s: %s", each.label, each.reason or f"validation {each.measure} {each.error:.4f}")
    return outcomes


def _go_on() -> None:
    """
    Raises:
        Stopped: a person has stopped the training that runs in this process.
    """
    if _stopping.is_set():
        raise Stopped("stopped; what is trained is kept, and the next run goes on from there")


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
    check_shapes(trials, read_windows(windowed))
    missing = [trial for trial in trials if not is_done(trial)]
    context = tracking.open_pipeline(problem, settings, trials, flow_run.id)

    trained = dispatch(f"train {problem}", bundles(missing, settings.runner.bundle), settings, {None: context})
    ended = write_list(trials, places.stage("train", problem))
    # What MLflow lacks: trials that came by `dvc pull`, those of a run whose MLflow went away, and what it refused now.
    tracking.log_unlogged(context, trials)
    failed = [each for each in ended if each.status == "failed"]
    tracking.close_pipeline(context, len(failed))
    _artifact(problem, context, ended, len(trained))
    if failed:
        raise TrialsFailed(
            f"{problem}: {len(failed)} of {len(trials)} trials failed:\n"
            + "\n".join(f"  {each.label}: {each.reason}" for each in failed)
        )
    return ended


Contexts = Mapping[str | None, tracking.Context]
"""Of trials, by the origin of a backtest that their data are of; None: the problem's own."""


def dispatch(title: str, groups: list[list[Trial]], settings: Settings, contexts: Contexts) -> list[Outcome]:
    """Train bundles, of one origin each, on every slot there is, a Prefect task each; how their trials ended.

    Args:
        title: of the progress bar.
    """
    choice = slots(settings.runner, settings.train.threads)
    return {"inline": _in_turn, "local": _in_processes}[settings.runner.kind](title, groups, choice, contexts)


def _name(bundle: Sequence[Trial]) -> str:
    origin = f"{bundle[0].origin} " if bundle[0].origin else ""
    rest = f" and {len(bundle) - 1} more" if len(bundle) > 1 else ""
    return origin + bundle[0].label + rest


def _in_turn(title: str, groups: list[list[Trial]], choice: list[Slot], contexts: Contexts) -> list[Outcome]:
    """Train bundles one after the other in this process, where a debugger can follow."""
    outcomes: list[Outcome] = []
    with progress() as display:
        bar = display.add_task(title, total=sum(_epochs(group) for group in groups))
        for group in groups:
            outcomes += bundle_task(_name(group), group, choice, contexts[group[0].origin])
            display.advance(bar, _epochs(group))
        display.remove_task(bar)
    return outcomes


def _in_processes(title: str, groups: list[list[Trial]], choice: list[Slot], contexts: Contexts) -> list[Outcome]:
    """Train bundles in processes.

    A process that dies takes its pool with it. The trials that were under way are tried again, each alone, and
    recorded as failed when their process dies again; those that had not begun go on in a new pool.
    """
    outcomes: list[Outcome] = []
    total = sum(_epochs(group) for group in groups)
    with progress() as display:
        bar = display.add_task(title, total=total)

        def show(epochs: int) -> None:
            # Counted from what the rounds before have left.
            display.update(bar, completed=total - sum(_epochs(group) for group in groups) + epochs)

        while groups:
            since = time.time()
            ended, lost = _round(groups, choice, contexts, show)
            outcomes += ended
            groups = []
            suspects = []
            for group in lost:
                outcomes += [found for trial in group if is_done(trial) and (found := outcome(trial))]
                open_ = [trial for trial in group if not is_done(trial)]
                suspects += [trial for trial in open_ if _begun(trial, since)]
                if not_begun := [trial for trial in open_ if not _begun(trial, since)]:
                    groups.append(not_begun)
            for trial in suspects:
                again, dead = _round([[trial]], choice, contexts, lambda epochs: None)
                outcomes += again
                if dead:
                    reason = "its process died, and died again when it was tried alone; most likely for want of memory"
                    outcomes.append(record_lost(trial, reason))
            if lost and not suspects and groups == lost:
                raise RecastError(
                    "the worker processes die before they begin to train; the log of this run in Prefect may say why, "
                    "or `runner: {kind: inline}`"
                )
        display.remove_task(bar)
    return outcomes


def _begun(trial: Trial, since: float) -> bool:
    return float(read_run(trial_folder(trial)).get("begun", 0)) >= since


def _round(
    groups: list[list[Trial]], choice: list[Slot], contexts: Contexts, show: Callable[[int], None]
) -> tuple[list[Outcome], list[list[Trial]]]:
    """Train bundles in one pool of processes; outcomes, and the bundles that a dying process took with it.

    An error in one bundle does not keep the others from ending; the first is raised when all have.
    """
    outcomes: list[Outcome] = []
    lost: list[list[Trial]] = []
    errors: list[Exception] = []
    ended = 0
    workers = min(len(choice), len(groups))
    over = multiprocessing.get_context("spawn").Event()
    with ProcessPoolTaskRunner(max_workers=workers, initializer=_end_with, initargs=(os.getpid(), over)) as runner:
        waiting = {}
        for group in groups:
            context = contexts[group[0].origin]
            parameters = {"name": _name(group), "bundle": group, "choice": choice, "context": context}
            waiting[runner.submit(bundle_task, parameters)] = group
        try:
            while waiting:
                _stopping.wait(POLL_SECONDS)
                _go_on()
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
            # Workers do not hear Ctrl-C, and the pool would wait for their trials to end. An epoch that is under way is
            # lost; the checkpoint of the one before is whole.
            over.set()
            raise
    if errors:
        raise errors[0]
    return outcomes, lost


def stop() -> None:
    """End every train flow of this process with `Stopped`, and the processes that train for it."""
    _stopping.set()


def start() -> None:
    """Let train flows run again after a `stop`."""
    _stopping.clear()


def _epochs(bundle: Sequence[Trial]) -> int:
    """The epochs that a bundle trains at most; a baseline counts as one."""
    return sum(max(1, epochs_of(trial.configuration.hyperparameters, trial.train)) for trial in bundle)


def _end_with(parent: int, over: Event) -> None:
    """In a worker process: end when `over` is set, or when the process that started it has ended, however it ended."""

    def watch() -> None:
        while not over.wait(1) and os.getppid() == parent:
            pass
        os._exit(1)

    # Ctrl-C reaches the whole group; the parent decides what becomes of its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=watch, daemon=True).start()


def _artifact(problem: str, context: tracking.Context, ended: Sequence[Outcome], trained: int) -> None:
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
