"""The pipeline flow: the DAG of dvc.yaml, run by Prefect.

It does what `dvc repro` does, stage for stage, and leaves the same `dvc.lock`; but independent stages run side by side,
in this process. DVC's users have asked for a parallel `repro` since 2018 (treeverse/dvc#755).

DVC decides what is up to date and keeps the bytes; Prefect decides when and where; so no Prefect result is cached.
"""

import importlib
import shlex
import subprocess
from typing import Any

from dvc.stage.cache import RunCacheNotFoundError
from prefect import flow, task
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed
from prefect.task_runners import ThreadPoolTaskRunner

from flows import train
from flows.dag import ordered, repository
from flows.progress import console
from problems.errors import RecastError
from stages import leaderboard, places
from stages.command import plain_errors

UP_TO_DATE, RESTORED, RAN = "Up to date", "Restored", "Ran"

POLL_SECONDS = 0.5
SIDE_BY_SIDE = 8
"""Stages at once. They wait for one another or for slots of the machine most of the time."""


@task(task_run_name="{name}", persist_result=False)
def stage_task(name: str) -> State[None]:
    """Bring one stage up to date: leave it, restore it from DVC's run cache, or run it and record it through DVC."""
    with repository() as repo:
        (stage,) = repo.stage.collect(name)
        if not stage.changed():
            return Completed(name=UP_TO_DATE)
        stage.remove_outs()
        try:
            repo.stage_cache.restore(stage)
        except RunCacheNotFoundError:
            restored = False
        else:
            restored = True
            repo.commit(name, force=True)
        command = str(stage.cmd)
    if restored:
        return Completed(name=RESTORED)
    _run(command)
    with repository() as repo:
        repo.commit(name, force=True)
    return Completed(name=RAN)


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


# Prefect's own annotation of task runners does not admit its thread pool.
_threads: Any = ThreadPoolTaskRunner(max_workers=SIDE_BY_SIDE)


def _run_name() -> str:
    return f"pipeline {', '.join(flow_run.parameters['problems'])}"


@flow(name="pipeline", flow_run_name=_run_name, task_runner=_threads)
def pipeline(problems: list[str]) -> None:
    """Bring the problems' evaluations up to date, and say what was done to each stage.

    Raises:
        TrialsFailed: all stages have run, but trials of a grid have failed.
        RecastError: a stage has failed; those that do not depend on it have run.
    """
    with repository() as repo:
        order = [stage.addressing for stage in ordered(repo, problems)]
        upstream = {
            stage.addressing: [before.addressing for before in repo.index.graph.successors(stage)]
            for stage in repo.index.graph
        }
    futures: dict[str, Any] = {}
    for name in order:
        before = [futures[other] for other in upstream[name]]
        futures[name] = stage_task.submit(name, return_state=False, wait_for=before)
    try:
        for future in futures.values():
            # Ever and again, as Ctrl-C is heard between two waits: the system may hand the signal to another thread.
            while not future.wrapped_future.done():
                future.wait(timeout=POLL_SECONDS)
    except BaseException:
        # Ctrl-C, or what Prefect makes of SIGTERM.
        train.stop()
        raise
    # A stage whose upstream failed is pending for ever; only what failed itself has something to say.
    for future in futures.values():
        if future.state.is_failed() or future.state.is_crashed():
            future.result()
    for what in (RAN, RESTORED, UP_TO_DATE):
        if names := [name for name, future in futures.items() if future.state.name == what]:
            console.print(f"{what}: {', '.join(names)}", soft_wrap=True)
    found = [leaderboard.read(places.stage("evaluate", problem)) for problem in problems]
    failed = [line for each in found if each for line in leaderboard.failures(each)]
    if failed:
        raise train.TrialsFailed("complete, but trials have failed:\n" + "\n".join(failed))
