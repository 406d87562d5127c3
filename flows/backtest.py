"""The backtest flow: the grid at several origins in the past, all trials of all of them side by side."""

from functools import partial
from typing import Any

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.runtime import flow_run
from pydantic import TypeAdapter, ValidationError

from flows.dag import PATIENCE_SECONDS, entries, repository
from flows.dispatch import dispatch, start
from flows.pipeline import stage_task
from flows.train import TrialsFailed
from lifecycle.backtests import backtest as rolling
from lifecycle.backtests.backtest import Backtest, Measurement, Origin, Plan
from lifecycle.backtests.page import render
from problems.errors import RecastError
from problems.problem import Problem
from problems.source import Duration
from problems.split import Moment
from project import paths
from project.progress import progress, show_stage
from project.settings.loading import load_settings
from project.settings.sections import Settings
from stages.evaluation.phrasing import fixed, signed
from stages.tables.windows import read_windows
from stages.tracking import store
from stages.training.outcomes import is_done
from stages.training.trials import Trial, bundles, check_shapes, expand


@task(name="cut", task_run_name="cut {origin.name}", persist_result=False)
def cut_task(problem: str, declared: Problem, settings: Settings, origin: Origin) -> list[Trial]:
    """Write the table and the windows of an origin; the trials of the grid on them."""
    rolling.prepare(problem, declared, settings, origin)
    windowed = paths.stage("window", problem, origin.name)
    trials = expand(settings, problem, windowed, origin.name)
    check_shapes(trials, read_windows(windowed))
    return trials


@task(name="test", task_run_name="test {origin.name}", persist_result=False)
def test_task(declared: Problem, origin: Origin, trials: list[Trial]) -> Measurement:
    """Test an origin's configurations."""
    return rolling.measured(declared, origin, trials)


@flow(name="backtest", flow_run_name="backtest {problem}", persist_result=False)
def backtest(
    problem: str,
    origins: int = 6,
    every: str = "30d",
    test: str | None = None,
    validation: str | None = None,
    train: str | None = None,
    until: str | None = None,
) -> Backtest:
    """Train the grid at every origin, as far as it is not trained, and test it on what came after.

    Args:
        origins, every, test, validation, train, until: see `lifecycle.backtests.backtest.Plan`; lengths of time
            such as 30d.

    Raises:
        TrialsFailed: the result is complete and written, but trials have failed.
        TrackingError: MLflow cannot be reached; what was trained is on disk, and the next run logs it.
        RecastError: a length does not fit the data.
    """
    settings = load_settings()
    declared = rolling.table_problem(settings, problem)
    lengths = {"every": every, "test": test, "validation": validation, "train": train}
    plan = Plan.of(
        declared,
        _number(origins),
        **{name: _parsed(Duration, name, text) for name, text in lengths.items()},
        until=_parsed(Moment, "until", until),
    )
    with repository(PATIENCE_SECONDS) as repo:
        sequence = entries(repo, [f"ingest@{problem}"])
    stage_task(f"ingest@{problem}", sequence, False)

    moments = rolling.origins(plan, rolling.data_end(paths.stage("ingest", problem)))
    rolling.remove_others(problem, moments)
    start()
    with show_stage("cut"):
        trials = {origin.name: cut_task(problem, declared, settings, origin) for origin in moments}
    of = {origin.name: (rolling.at(declared, origin), trials[origin.name]) for origin in moments}
    whole, contexts = store.open_backtest(problem, settings, of, flow_run.id)

    missing = [[trial for trial in each if not is_done(trial)] for each in trials.values()]
    groups = [group for each in missing for group in bundles(each, settings.runner.bundle)]
    with show_stage("train"):
        dispatch(f"backtest {problem}", groups, settings, contexts)
    for name, each in trials.items():
        store.awaited(partial(store.log_unlogged, contexts[name], each))

    found = []
    with progress() as display:
        bar = display.add_task(f"test {problem}", total=len(moments))
        for origin in moments:
            found.append(test_task(declared, origin, trials[origin.name]))
            display.advance(bar)
        display.remove_task(bar)
    measure = rolling.measure_of(declared, trials[moments[-1].name][0])
    result = rolling.summary(problem, declared, plan, measure, found)
    out = rolling.result(problem)
    rolling.write(result, render(result), out)
    rolling.log(result, trials, whole, contexts, out)
    _artifact(result)
    if result.failures:
        raise TrialsFailed("complete, but trials have failed:\n" + "\n".join(result.failures))
    return result


def _number(origins: int) -> int:
    """
    Raises:
        RecastError: there would be no origin.
    """
    if origins < 1:
        raise RecastError(f"origins: must be at least 1; it is {origins}")
    return origins


def _parsed(kind: Any, name: str, text: str | None) -> Any:
    """A length of time, or a moment, as in params.yaml.

    Raises:
        RecastError: it is none.
    """
    if text is None:
        return None
    try:
        return TypeAdapter(kind).validate_python(text)
    except ValidationError as error:
        raise RecastError(f"{name}: {text!r}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None


def _artifact(found: Backtest) -> None:
    """Show the result on the flow run's page."""
    lines = [found.chosen, *found.lines]
    rows = "\n".join(
        f"| {line.configuration} | {fixed(line.test.mean, 3)} | {signed(line.skill.mean, 3) if line.skill else ''} |"
        for line in lines
        if line.test
    )
    title = f"{found.measure.title} {found.measure.unit}".rstrip()
    create_markdown_artifact(
        f"**{found.problem}**: {len(found.origins)} origins, `{rolling.result(found.problem) / 'backtest.html'}`\n\n"
        f"| configuration | test {title}, mean over origins | skill |\n|---|---|---|\n{rows}\n",
        key=f"backtest-{found.problem.replace('_', '-')}",
        description="What a backtest found",
    )
