"""The runs of a grid in MLflow: an experiment for each problem, a parent run for each pipeline run.

Each run is written by one process. Everything that the store holds can be written again from the trials that DVC tracks
(`rebuild`).
"""

import hashlib
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from mlflow.entities import Metric, Param, Run, RunTag

from problems.passwords import hide_passwords
from problems.problem import AnyProblem
from project.git import describe_commit
from project.paths import PARAMS
from project.settings.sections import Settings
from stages.tables.windows import read_windows
from stages.tracking.params import SharedParams, describe_shared
from stages.tracking.store import get_client, get_or_create_experiment, translate_artifact_errors, translate_errors
from stages.training.trials import Trial

RUNS_AT_ONCE = 200
"""How many runs one call reads."""


@dataclass(frozen=True)
class RunContext:
    """What all runs of one pipeline run, or of one origin of a backtest, share. It is sent to the worker processes.

    Attributes:
        experiment: the id of the problem's experiment.
        parent: the id of the parent run.
        grid: the name of the tag that every run of the grid has, whichever pipeline run trained it: a run can have only
            one parent.
        tags: the tags of every child run.
        params: the parameters that all child runs have in common.
        prefect_run: the id of the flow run that trains, if there is one.
    """

    problem: str
    experiment: str
    parent: str
    grid: str
    tags: dict[str, str]
    params: SharedParams
    prefect_run: str | None


@translate_errors()
def open_pipeline_run(
    problem: str, settings: Settings, trials: Sequence[Trial], prefect_run: str | None = None, newest: bool = False
) -> RunContext:
    """The parent run of a grid: a new one, or the one that an interrupted run of the same grid left open.

    Args:
        newest: take the newest run of the same grid, open or not, if there is one.

    Raises:
        TrackingError: the store cannot be reached.
    """
    name = time.strftime("pipeline %Y-%m-%d %H:%M:%S")
    context, run = _open("pipeline", problem, settings, settings.problem(problem), trials, name, newest, prefect_run)
    # The newest run belongs to another time, and perhaps to another commit.
    if not newest:
        _end_abandoned_runs(context, "pipeline")
        add_params_and_tags(run, {}, {"mlflow.source.git.commit": describe_commit(), "recast.prefect_run": prefect_run})
    return context


@translate_errors()
def open_backtest_runs(
    problem: str,
    settings: Settings,
    origins: Mapping[str, tuple[AnyProblem, Sequence[Trial]]],
    prefect_run: str | None,
) -> tuple[RunContext, dict[str | None, RunContext]]:
    """The run of a backtest and, below it, one run for each origin, the parent of the runs of its trials.

    A backtest that is run again has the same runs.

    Args:
        origins: for each origin the problem with its split, and its trials.

    Returns:
        The context of the whole backtest, and those of its origins.

    Raises:
        TrackingError: the store cannot be reached.
    """
    started_by = {"mlflow.source.git.commit": describe_commit(), "recast.prefect_run": prefect_run}
    all_trials = [trial for _, trials in origins.values() for trial in trials]
    name = time.strftime("backtest %Y-%m-%d %H:%M:%S")
    declared = settings.problem(problem)
    whole, run = _open("backtest", problem, settings, declared, all_trials, name, True, prefect_run)
    _end_abandoned_runs(whole, "backtest")
    add_params_and_tags(run, {}, started_by)
    contexts: dict[str | None, RunContext] = {}
    for origin, (problem_at_origin, trials) in origins.items():
        name = f"origin {origin}"
        contexts[origin], run = _open("origin", problem, settings, problem_at_origin, trials, name, True, prefect_run)
        add_params_and_tags(run, {}, {**started_by, "mlflow.parentRunId": whole.parent, "recast.origin": origin})
    return whole, contexts


def _open(
    kind: str,
    problem: str,
    settings: Settings,
    declared: AnyProblem,
    trials: Sequence[Trial],
    name: str,
    newest: bool,
    prefect_run: str | None,
) -> tuple[RunContext, Run]:
    """A run of a kind for these trials: a new one, one that was left open, or with `newest` the newest one."""
    experiment = get_or_create_experiment(problem)
    grid = hashlib.sha256(" ".join(sorted(trial.key for trial in trials)).encode()).hexdigest()[:16]
    tags = {
        "recast.problem": problem,
        "recast.data": trials[0].data,
        "recast.synthetic": str(declared.source.synthetic).lower(),
        "recast.unit": declared.unit,
        f"recast.grid.{grid}": "1",
    }
    params = describe_shared(declared, settings.train, read_windows(trials[0].windowed))
    checkout = identify_checkout()
    same = f"tags.`recast.grid` = '{grid}' and tags.`recast.checkout` = '{checkout}' and tags.`recast.kind` = '{kind}'"
    still_open = "" if newest else " and attributes.status = 'RUNNING'"
    runs = get_client().search_runs([experiment], same + still_open, max_results=1)
    if runs:
        run = runs[0]
    else:
        # MLflow shows the note on the run's page.
        note = f"All trials of this grid, even if trained earlier: filter runs by ``tags.`recast.grid.{grid}` = '1'``"
        identity = {"recast.kind": kind, "recast.grid": grid, "recast.checkout": checkout}
        run = get_client().create_run(experiment, run_name=name, tags={**tags, **identity, "mlflow.note.content": note})
    add_params_and_tags(run, {**params.of_grid, "trials": str(len(trials))}, tags)
    log_settings(run.info.run_id)
    return RunContext(problem, experiment, run.info.run_id, f"recast.grid.{grid}", tags, params, prefect_run), run


def log_settings(run_id: str) -> None:
    """Write a copy of params.yaml to a run, without the passwords that an address in it, or in a comment, may have."""
    with translate_artifact_errors():
        get_client().log_text(run_id, hide_passwords(PARAMS.read_text(encoding="utf-8")), PARAMS.name)


def _end_abandoned_runs(context: RunContext, kind: str) -> None:
    """End what was killed in this checkout and will not be continued, because another grid is trained now.

    Args:
        context: of the grid that is trained now.
        kind: of the run of a grid: pipeline or backtest, of which a checkout runs one at a time.
    """
    checkout = f"tags.`recast.checkout` = '{identify_checkout()}' and tags.`recast.kind` = '{kind}'"
    for run in _list_running(context.experiment, checkout):
        if run.info.run_id != context.parent:
            _end_with_children(context.experiment, run)


def _end_with_children(experiment: str, run: Run) -> None:
    for child in _list_running(experiment, f"tags.`mlflow.parentRunId` = '{run.info.run_id}'"):
        _end_with_children(experiment, child)
    get_client().set_terminated(run.info.run_id, "KILLED")


def _list_running(experiment: str, condition: str) -> list[Run]:
    found = get_client().search_runs([experiment], f"{condition} and attributes.status = 'RUNNING'", max_results=1000)
    return list(found)


def add_params_and_tags(run: Run, params: Mapping[str, str], tags: Mapping[str, str | None]) -> None:
    """Write the parameters that a run does not have yet (MLflow does not allow changes), and the tags with a value."""
    get_client().log_batch(
        run.info.run_id,
        params=[Param(name, value) for name, value in sorted(params.items()) if name not in run.data.params],
        tags=[RunTag(name, value) for name, value in tags.items() if value],
    )


def identify_checkout() -> str:
    """A name that distinguishes this checkout from others that write to the same store. It contains no quotes."""
    return f"{socket.gethostname()}:{quote(str(Path.cwd()))}"


@translate_errors()
def end_pipeline_run(context: RunContext, failed: int) -> None:
    """End the parent run; it counts as failed if a trial has failed.

    Args:
        failed: how many trials have failed.
    """
    log_new_metrics(get_client().get_run(context.parent), {"failed_trials": failed})
    get_client().set_terminated(context.parent, "FAILED" if failed else "FINISHED")


def read_runs(experiment: str, ids: Sequence[str]) -> dict[str, Run]:
    """The runs with these ids that an experiment has and nobody has deleted, by id.

    One call reads many runs: MLflow takes about as long to read one as to read dozens.

    Args:
        experiment: its id.
    """
    runs: dict[str, Run] = {}
    for begin in range(0, len(ids), RUNS_AT_ONCE):
        names = ", ".join(f"'{run}'" for run in ids[begin : begin + RUNS_AT_ONCE])
        found = get_client().search_runs([experiment], f"attributes.run_id IN ({names})", max_results=RUNS_AT_ONCE)
        runs |= {run.info.run_id: run for run in found}
    return runs


def log_new_metrics(run: Run, values: Mapping[str, float]) -> None:
    """Write the metrics that the run does not have, in one call: each call costs a transaction of the store."""
    now, logged = int(time.time() * 1000), run.data.metrics
    new = [Metric(name, value, now, 0) for name, value in values.items() if logged.get(name) != value]
    if new:
        get_client().log_batch(run.info.run_id, metrics=new)
