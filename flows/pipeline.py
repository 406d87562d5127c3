"""The pipeline flow: the DAG of dvc.yaml, run by Prefect.

It does what `dvc repro` does, stage for stage, and leaves the same `dvc.lock`; but independent stages run side by side,
in this process. DVC's users have asked for a parallel `repro` since 2018 (treeverse/dvc#755).

DVC decides what is up to date and stores the bytes. Prefect decides when and where stages run, and caches no results.
"""

import importlib
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed
from prefect.task_runners import ThreadPoolTaskRunner

from flows import STARTED
from flows.dag import (
    RECORD_PATIENCE_SECONDS,
    dependency_hashes,
    lockfile_order,
    open_repository,
    record_stage,
    restore_from_cache,
    stages_in_order,
    track_folder,
)
from flows.runners.stopping import allow_training, stop_training
from flows.train_flow import TrialsFailed
from problems.errors import RecastError
from project import paths
from project.disk import explain_disk_errors
from project.progress import console, list_running_stages, show_progress, show_stage
from project.settings.loading import load_settings
from project.settings.runners import RUNNERS
from project.settings.sections import Settings
from project.tables import keep_tables
from project.timings import time_phase
from stages.evaluation import leaderboard
from stages.training.expansion import list_trials
from stages.training.outcomes import list_retryable

UP_TO_DATE, TRACKED, RESTORED, RAN = "Up to date", "Tracked", "Restored", "Ran"
"""What was done to a stage, as the name of its task's state."""

WAIT_SECONDS = 0.5
"""How long to wait for a stage before looking for Ctrl-C and showing which stages run."""


@task(task_run_name="{name}", persist_result=False, cache_policy=NO_CACHE)
def stage_task(name: str, sequence: list[str], forced: bool, is_fresh: bool = False) -> State[None]:
    """Bring one stage up to date: leave it, restore it from DVC's run cache, or run it and record it through DVC.

    For data that DVC tracks, such as the increments of a raw store, record their present state.

    Args:
        sequence: the stages in the order of their entries in dvc.lock.
        forced: run it in any case.
        is_fresh: neither it nor any stage that it depends on is stale, so there is nothing to do.

    Raises:
        RecastError: the stage has failed, or something that it depends on changed while it ran. Nothing is recorded.
    """
    if name.endswith(".dvc"):
        return Completed(name=TRACKED if track_folder(Path(name.removesuffix(".dvc"))) else UP_TO_DATE)
    if is_fresh:
        return Completed(name=UP_TO_DATE)
    with keep_tables(name), time_phase("plan"), open_repository(RECORD_PATIENCE_SECONDS) as repo:
        (stage,) = repo.stage.collect(name)
        # Now, and not after DVC has looked into its run cache: for a dependency that dvc.lock does not have yet, that
        # changes the kind of hash that DVC takes, and the dependency would seem to change while the stage runs.
        before = dependency_hashes(stage)
        if not forced and not stage.changed():
            return Completed(name=UP_TO_DATE)
        stage.remove_outs()
        if not forced and restore_from_cache(repo, stage):
            record_stage(repo, name, sequence)
            return Completed(name=RESTORED)
        _check_code(stage)
        command = str(stage.cmd)
    with show_stage(name), keep_tables(name):
        _run_command(command)
    with time_phase("record"), open_repository(RECORD_PATIENCE_SECONDS) as repo:
        (stage,) = repo.stage.collect(name)
        after = dependency_hashes(stage)
        if changed := [dependency for dependency in before if after.get(dependency) != before[dependency]]:
            raise RecastError(
                f"{name}: {', '.join(changed)} changed while the stage ran; nothing is recorded: run again"
            )
        record_stage(repo, name, sequence)
    return Completed(name=RAN)


def _check_code(stage: Any) -> None:
    """Check that this process has loaded the present source code of a stage.

    Raises:
        RecastError: a file that the stage depends on was edited after this process began.
    """
    for dependency in stage.deps:
        path = Path(str(dependency))
        for file in [path] if path.suffix == ".py" else path.glob("**/*.py"):
            if file.exists() and file.stat().st_mtime > STARTED:
                raise RecastError(f"{stage.addressing}: {file} was edited after this process began; run again")


def _run_command(command: str) -> None:
    """Run a stage's command: `python -m module problem` in this process, anything else in a shell, as DVC does.

    Raises:
        RecastError: the command has failed.
    """
    match shlex.split(command):
        case ["python", "-m", module, problem]:
            with explain_disk_errors():
                importlib.import_module(module).main(problem)
        case _:
            status = subprocess.run(command, shell=True, check=False).returncode
            if status:
                raise RecastError(f"`{command}` ended with status {status}")


def _run_name() -> str:
    return f"pipeline {', '.join(flow_run.parameters['problems'])}"


@flow(name="pipeline", flow_run_name=_run_name)
def pipeline(problems: list[str], retry: bool = False) -> None:
    """Bring the problems' evaluations up to date, and print what was done to each stage.

    Args:
        retry: train again the trials that failed because memory was short or their process died.

    Raises:
        TrialsFailed: all stages have run, but trials of a grid have failed.
        RecastError: a stage has failed. Those that do not depend on it have run.
    """
    settings = load_settings()
    with time_phase("plan"), open_repository() as repo:
        stages = stages_in_order(repo, problems)
        order = [stage.addressing for stage in stages]
        sequence = lockfile_order(repo, order)
        upstream = {
            stage.addressing: [dependency.addressing for dependency in repo.index.graph.successors(stage)]
            for stage in repo.index.graph
        }
        stale = {stage.addressing for stage in stages if stage.changed()}
    forced = {f"train@{problem}" for problem in problems if retry and _has_retryable(settings, problem)}
    for name in order:
        # In the order of their dependencies: whatever follows on a stage that runs may have to run.
        if name in forced or stale.intersection(upstream[name]):
            stale.add(name)
    allow_training()
    # Stages that train in this process run one at a time, as they share PyTorch's seed and number of threads. Otherwise
    # each stage has a thread: most of the time it waits, for other stages or for a free slot.
    side_by_side = 1 if RUNNERS[settings.runner.kind].in_flow_process else len(order)
    futures: dict[str, Any] = {}
    threads: Any = ThreadPoolTaskRunner(max_workers=side_by_side)
    with threads as runner:
        for name in order:
            parameters = {
                "name": name,
                "sequence": sequence,
                "forced": name in forced,
                "is_fresh": name not in stale,
            }
            futures[name] = runner.submit(stage_task, parameters, wait_for=[futures[other] for other in upstream[name]])
        try:
            _wait_for_stages(list(futures.values()))
        except BaseException:
            # Ctrl-C, or the exception that Prefect raises at SIGTERM.
            stop_training()
            raise
    for action in (RAN, RESTORED, TRACKED, UP_TO_DATE):
        if names := [name for name, future in futures.items() if future.state.name == action]:
            console.print(f"{action}: {', '.join(names)}", soft_wrap=True, markup=False, highlight=False)
    _raise_failures(futures)
    leaderboards = [leaderboard.read_leaderboard(paths.stage_folder("evaluate", problem)) for problem in problems]
    failed = [line for board in leaderboards if board for line in leaderboard.list_failures(board)]
    if failed:
        raise TrialsFailed("complete, but trials have failed:\n" + "\n".join(failed))


def _has_retryable(settings: Settings, problem: str) -> bool:
    windowed = paths.stage_folder("window", problem)
    return (windowed / "windows.json").exists() and bool(list_retryable(list_trials(settings, problem, windowed)))


def _wait_for_stages(futures: Sequence[Any]) -> None:
    """Wait for all stages, and show which run."""
    with show_progress() as display:
        bar = display.add_task("stages", total=len(futures))
        while waiting := [future for future in futures if not future.wrapped_future.done()]:
            # A short wait: Python acts on Ctrl-C between two waits, as the signal may go to another thread.
            waiting[0].wait(timeout=WAIT_SECONDS)
            display.update(
                bar, completed=len(futures) - len(waiting), description=", ".join(list_running_stages()) or "stages"
            )
        display.remove_task(bar)


def _raise_failures(futures: dict[str, Any]) -> None:
    """Raise what has failed in the stages.

    Raises:
        RecastError: the errors that a person can fix, of all stages. Any other error is raised as it is.
    """
    fixable: list[RecastError] = []
    for future in futures.values():
        # A stage whose upstream stage has failed stays pending; only the one that failed has an error.
        if future.state.is_failed() or future.state.is_crashed():
            try:
                future.result()
            except RecastError as error:
                fixable.append(error)
    if len(fixable) == 1:
        raise fixable[0]
    if fixable:
        raise RecastError("\n".join(str(error) for error in fixable))
