"""The pipeline flow: the DAG of dvc.yaml, run by Prefect.

It does what `dvc repro` does, stage for stage, and leaves the same `dvc.lock`; but independent stages run side by side,
in this process. DVC's users have asked for a parallel `repro` since 2018 (treeverse/dvc#755).

DVC decides what is up to date and keeps the bytes; Prefect decides when and where; so no Prefect result is cached.
"""

import importlib
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dvc.repo import Repo
from dvc.stage.cache import RunCacheNotFoundError
from prefect import flow, task
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed
from prefect.task_runners import ThreadPoolTaskRunner

from flows import STARTED, dispatch, train
from flows.dag import PATIENCE_SECONDS, entries, hashes, ordered, record, repository, track
from problems.errors import RecastError
from project import paths
from project.command import plain_errors
from project.progress import console, progress, running, show_stage
from project.settings.loading import load_settings
from project.settings.sections import Settings
from stages.evaluation import leaderboard
from stages.training.outcomes import retryable
from stages.training.trials import expand

UP_TO_DATE, TRACKED, RESTORED, RAN = "Up to date", "Tracked", "Restored", "Ran"

POLL_SECONDS = 0.5


@task(task_run_name="{name}", persist_result=False)
def stage_task(name: str, sequence: list[str], forced: bool) -> State[None]:
    """Bring one stage up to date: leave it, restore it from DVC's run cache, or run it and record it through DVC.

    Of data that DVC tracks, such as the increments of a raw store, it is recorded what they are now.

    Args:
        sequence: the stages in the order of their entries in dvc.lock.
        forced: run it in any case.

    Raises:
        RecastError: it has failed, or what it depends on was changed while it ran; it is not recorded then.
    """
    if name.endswith(".dvc"):
        return Completed(name=TRACKED if track(Path(name.removesuffix(".dvc"))) else UP_TO_DATE)
    with repository(PATIENCE_SECONDS) as repo:
        (stage,) = repo.stage.collect(name)
        if not forced and not stage.changed():
            return Completed(name=UP_TO_DATE)
        stage.remove_outs()
        if not forced and _restored(repo, stage):
            record(repo, name, sequence)
            return Completed(name=RESTORED)
        _check_code(stage)
        before = hashes(stage)
        command = str(stage.cmd)
    with show_stage(name):
        _run(command)
    with repository(PATIENCE_SECONDS) as repo:
        (stage,) = repo.stage.collect(name)
        after = hashes(stage)
        if changed := [dependency for dependency in before if after.get(dependency) != before[dependency]]:
            raise RecastError(
                f"{name}: {', '.join(changed)} changed while the stage ran; nothing is recorded: run again"
            )
        record(repo, name, sequence)
    return Completed(name=RAN)


def _restored(repo: Repo, stage: Any) -> bool:
    """Whether DVC has kept what the stage leaves for what it depends on now; if so, it is there again."""
    try:
        repo.stage_cache.restore(stage)
    except RunCacheNotFoundError:
        return False
    return True


def _check_code(stage: Any) -> None:
    """
    Raises:
        RecastError: source that the stage depends on is newer than this process, which would run what it has loaded.
    """
    for dependency in stage.deps:
        path = Path(str(dependency))
        for file in [path] if path.suffix == ".py" else path.glob("**/*.py"):
            if file.exists() and file.stat().st_mtime > STARTED:
                raise RecastError(f"{stage.addressing}: {file} was edited after this process began; run again")


def _run(command: str) -> None:
    """Run a stage's command: `python -m module problem` in this process, anything else in a shell, as DVC does.

    Raises:
        RecastError: the command has failed.
    """
    match shlex.split(command):
        case ["python", "-m", module, problem]:
            with plain_errors():
                importlib.import_module(module).main(problem)
        case _:
            ended = subprocess.run(command, shell=True, check=False)
            if ended.returncode:
                raise RecastError(f"`{command}` ended with status {ended.returncode}")


def _run_name() -> str:
    return f"pipeline {', '.join(flow_run.parameters['problems'])}"


@flow(name="pipeline", flow_run_name=_run_name)
def pipeline(problems: list[str], retry: bool = False) -> None:
    """Bring the problems' evaluations up to date, and say what was done to each stage.

    Args:
        retry: train again what has failed for want of memory or of a living process.

    Raises:
        TrialsFailed: all stages have run, but trials of a grid have failed.
        RecastError: a stage has failed; those that do not depend on it have run.
    """
    settings = load_settings()
    with repository() as repo:
        order = [stage.addressing for stage in ordered(repo, problems)]
        sequence = entries(repo, order)
        upstream = {
            stage.addressing: [before.addressing for before in repo.index.graph.successors(stage)]
            for stage in repo.index.graph
        }
    forced = {f"train@{problem}" for problem in problems if retry and _has_retryable(settings, problem)}
    dispatch.start()
    # One at a time where they train in this process: what PyTorch's seed and threads are, they are for all of it. Else
    # a thread for each: most of the time they wait, for one another or for the machine's slots.
    side_by_side = 1 if settings.runner.kind == "inline" else len(order)
    futures: dict[str, Any] = {}
    threads: Any = ThreadPoolTaskRunner(max_workers=side_by_side)
    with threads as runner:
        for name in order:
            parameters = {"name": name, "sequence": sequence, "forced": name in forced}
            futures[name] = runner.submit(stage_task, parameters, wait_for=[futures[other] for other in upstream[name]])
        try:
            _wait(list(futures.values()))
        except BaseException:
            # Ctrl-C, or what Prefect makes of SIGTERM.
            dispatch.stop()
            raise
    for what in (RAN, RESTORED, TRACKED, UP_TO_DATE):
        if names := [name for name, future in futures.items() if future.state.name == what]:
            console.print(f"{what}: {', '.join(names)}", soft_wrap=True, markup=False, highlight=False)
    _raise_failures(futures)
    found = [leaderboard.read(paths.stage("evaluate", problem)) for problem in problems]
    failed = [line for each in found if each for line in leaderboard.failures(each)]
    if failed:
        raise train.TrialsFailed("complete, but trials have failed:\n" + "\n".join(failed))


def _has_retryable(settings: Settings, problem: str) -> bool:
    windowed = paths.stage("window", problem)
    return (windowed / "windows.json").exists() and bool(retryable(expand(settings, problem, windowed)))


def _wait(futures: Sequence[Any]) -> None:
    """Wait for all stages, and show which run."""
    with progress() as display:
        bar = display.add_task("stages", total=len(futures))
        while waiting := [future for future in futures if not future.wrapped_future.done()]:
            # Ever and again, as Ctrl-C is heard between two waits: the system may hand the signal to another thread.
            waiting[0].wait(timeout=POLL_SECONDS)
            display.update(bar, completed=len(futures) - len(waiting), description=", ".join(running()) or "stages")
        display.remove_task(bar)


def _raise_failures(futures: dict[str, Any]) -> None:
    """
    Raises:
        RecastError: what a person can mend in one stage or several; anything else as it was raised.
    """
    mendable: list[RecastError] = []
    for future in futures.values():
        # A stage whose upstream failed is pending for ever; only what failed itself has something to say.
        if future.state.is_failed() or future.state.is_crashed():
            try:
                future.result()
            except RecastError as error:
                mendable.append(error)
    if len(mendable) == 1:
        raise mendable[0]
    if mendable:
        raise RecastError("\n".join(str(error) for error in mendable))
