"""The backtest flow: the grid at several origins in the past, with the trials of all origins side by side."""

from functools import partial
from typing import Any

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.runtime import flow_run
from pydantic import TypeAdapter, ValidationError

from flows.dag import RECORD_PATIENCE_SECONDS, lockfile_order, open_repository
from flows.dispatch import dispatch
from flows.pipeline import stage_task
from flows.runners.stopping import allow_training
from flows.train_flow import TrialsFailed
from lifecycle.backtests.mlflow_log import log_backtest
from lifecycle.backtests.origin_data import prepare_origin, remove_other_origins
from lifecycle.backtests.page import render_backtest
from lifecycle.backtests.plan import Origin, Plan, find_data_end, place_origins, set_origin
from lifecycle.backtests.result import Backtest, OriginResult, result_folder, summarize_backtest, write_backtest
from lifecycle.backtests.scoring import describe_selection_measure, measure_origin
from lifecycle.table_problem import require_table_problem
from problems.durations import Duration
from problems.errors import RecastError
from problems.problem import Problem
from problems.split import Moment
from project import paths
from project.progress import show_progress, show_stage
from project.retry import retry_while_unreachable
from project.settings.loading import load_settings
from project.settings.sections import Settings
from stages.evaluation.number_format import format_number, format_signed
from stages.tables.windows import read_windows
from stages.tracking import runs, store, trial_run
from stages.training.expansion import bundle_trials, check_grid_shapes, list_trials
from stages.training.outcomes import list_missing
from stages.training.trials import Trial


@task(name="cut", task_run_name="cut {origin.name}", persist_result=False)
def cut_task(problem: str, declared: Problem, settings: Settings, origin: Origin) -> list[Trial]:
    """Write the table and the windows of an origin; the trials of the grid on them."""
    prepare_origin(problem, declared, settings, origin)
    windowed = paths.stage_folder("window", problem, origin.name)
    trials = list_trials(settings, problem, windowed, origin.name)
    check_grid_shapes(trials, read_windows(windowed))
    return trials


@task(name="test", task_run_name="test {origin.name}", persist_result=False)
def test_task(declared: Problem, origin: Origin, trials: list[Trial]) -> OriginResult:
    """Measure an origin's configurations on its test rows."""
    return measure_origin(declared, origin, trials)


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
    """Train the missing trials of the grid at every origin, and test them on the rows after the origin.

    Args:
        origins, every, test, validation, train, until: see `lifecycle.backtests.plan.Plan`. Lengths of time are such as
            30d.

    Raises:
        TrialsFailed: the result is complete and written, but trials have failed.
        TrackingError: MLflow cannot be reached. What was trained is on disk, and the next run logs it.
        RecastError: a length does not fit the data.
    """
    settings = load_settings()
    declared = require_table_problem(problem, settings)
    lengths = {"every": every, "test": test, "validation": validation, "train": train}
    plan = Plan.of(
        declared,
        _check_count(origins),
        **{name: _parse(Duration, name, text) for name, text in lengths.items()},
        until=_parse(Moment, "until", until),
    )
    with open_repository(RECORD_PATIENCE_SECONDS) as repo:
        sequence = lockfile_order(repo, [f"ingest@{problem}"])
    stage_task(f"ingest@{problem}", sequence, forced=False)

    placed_origins = place_origins(plan, find_data_end(paths.stage_folder("ingest", problem)))
    remove_other_origins(problem, placed_origins)
    allow_training()
    with show_stage("cut"):
        trials = {origin.name: cut_task(problem, declared, settings, origin) for origin in placed_origins}
    by_origin = {origin.name: (set_origin(declared, origin), trials[origin.name]) for origin in placed_origins}
    backtest_run, contexts = runs.open_backtest_runs(problem, settings, by_origin, flow_run.id)

    bundles = [
        bundle
        for origin_trials in trials.values()
        for bundle in bundle_trials(list_missing(origin_trials), settings.runner.bundle)
    ]
    with show_stage("train"):
        dispatch(f"backtest {problem}", bundles, settings, contexts)
    for name, origin_trials in trials.items():
        retry_while_unreachable(
            partial(trial_run.log_missing_runs, contexts[name], origin_trials), store.PATIENCE_SECONDS, "MLflow"
        )

    origin_results = []
    with show_progress() as display:
        bar = display.add_task(f"test {problem}", total=len(placed_origins))
        for origin in placed_origins:
            origin_results.append(test_task(declared, origin, trials[origin.name]))
            display.advance(bar)
        display.remove_task(bar)
    measure = describe_selection_measure(declared, trials[placed_origins[-1].name][0])
    result = summarize_backtest(problem, declared, plan, measure, origin_results)
    out = result_folder(problem)
    write_backtest(result, render_backtest(result), out)
    log_backtest(result, trials, backtest_run, contexts, out)
    _show_result(result)
    if result.failures:
        raise TrialsFailed("complete, but trials have failed:\n" + "\n".join(result.failures))
    return result


def _check_count(origins: int) -> int:
    """The number of origins.

    Raises:
        RecastError: it is less than one.
    """
    if origins < 1:
        raise RecastError(f"origins: must be at least 1; it is {origins}")
    return origins


def _parse(kind: Any, name: str, text: str | None) -> Any:
    """A length of time or a moment, written as in params.yaml.

    Args:
        kind: `Duration` or `Moment`.
        name: of the argument, for the message.

    Raises:
        RecastError: the text is not of this kind.
    """
    if text is None:
        return None
    try:
        return TypeAdapter(kind).validate_python(text)
    except ValidationError as error:
        raise RecastError(f"{name}: {text!r}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None


def _show_result(result: Backtest) -> None:
    """Show the result on the flow run's page."""
    rows = "\n".join(
        f"| {row.configuration} | {format_number(row.test.mean, 3)} "
        f"| {format_signed(row.skill.mean, 3) if row.skill else ''} "
        f"| {format_signed(row.mae_skill.mean, 3) if row.mae_skill else ''} |"
        for row in (result.chosen, *result.configurations)
        if row.test
    )
    title = f"{result.measure.title} {result.measure.unit}".rstrip()
    create_markdown_artifact(
        f"**{result.problem}**: {len(result.origins)} origins, `{result_folder(result.problem) / 'backtest.html'}`\n\n"
        f"| configuration | test {title}, mean over origins | skill | skill by MAE |\n|---|---|---|---|\n{rows}\n",
        key=f"backtest-{result.problem.replace('_', '-')}",
        description="What a backtest found",
    )
