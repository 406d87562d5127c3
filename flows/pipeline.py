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
from prefect.futures import PrefectFuture
from prefect.states import Completed
from prefect.task_runners import ThreadPoolTaskRunner

from flows.dag import ordered, repository
from problems.errors import RecastError
from stages.command import plain_errors

UP_TO_DATE, RESTORED, RAN = "Up to date", "Restored", "Ran"


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


@flow(name="pipeline", flow_run_name="pipeline {problems}", task_runner=ThreadPoolTaskRunner(max_workers=8))  # type: ignore[arg-type]
def pipeline(problems: list[str]) -> dict[str, str]:
    """Bring the problems' evaluations up to date; what was done to each stage, by name.

    Raises:
        RecastError: a stage has failed; those that do not depend on it have run.
    """
    with repository() as repo:
        order = [stage.addressing for stage in ordered(repo, problems)]
        upstream = {
            stage.addressing: [before.addressing for before in repo.index.graph.successors(stage)]
            for stage in repo.index.graph
        }
    futures: dict[str, PrefectFuture[Any]] = {}
    for name in order:
        futures[name] = stage_task.submit(
            name, return_state=False, wait_for=[futures[before] for before in upstream[name]]
        )
    done: dict[str, str] = {}
    errors: list[Exception] = []
    for name, future in futures.items():
        future.wait()
        if future.state.is_completed():
            done[name] = future.state.name or RAN
        elif future.state.is_failed():
            try:
                future.result()
            except Exception as error:
                error.add_note(f"in stage {name}")
                errors.append(error)
    if errors:
        raise errors[0]
    return done
