"""Commands that run the pipeline and show its results."""

import contextlib
import os
import time
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from flows.cli.app import ProblemArguments, WaitOption, app
from flows.problem_selection import select_problems
from problems.passwords import hide_passwords
from project import paths
from project.lock import hold_pipeline_lock
from project.progress import console, output
from project.timings import list_phases, time_phase

if TYPE_CHECKING:
    from collections.abc import Sequence

    from project.settings.sections import Settings
    from project.timings import Phase
    from stages.evaluation.leaderboard import Evaluation, Spread


@app.command()
def run(
    problems: ProblemArguments = None,
    fallback: Annotated[
        str | None, typer.Option(help="run this problem instead of one whose source cannot be reached")
    ] = None,
    retry: Annotated[
        bool,
        typer.Option(
            "--retry", help="train again the trials that failed because memory was short or their process died"
        ),
    ] = False,
    wait: WaitOption = False,
    timings: Annotated[bool, typer.Option("--timings", help="show where the time went")] = False,
) -> None:
    """Bring the leaderboards up to date: run the stages that are stale according to DVC, and no others."""
    with time_phase("import"):
        from flows.dag import stale_stages
        from project.settings.loading import load_settings
        from project.settings.parsing import parse_settings
        from stages.evaluation import leaderboard as boards

    settings = parse_settings()
    selected = select_problems(settings, problems)
    if not all(_is_fetched(name) for name in selected):
        # Errors in the grid should be reported before a download of minutes.
        load_settings()
    with hold_pipeline_lock(wait):
        names = _fetch_sources(settings, selected, fallback)
        with time_phase("plan"):
            stale = stale_stages(names)
        if retry or stale:
            try:
                _run(names, retry, trains=retry or any(not stage.startswith("evaluate@") for stage in stale))
            except KeyboardInterrupt:
                console.print("Stopped. What was trained is kept; the next run continues from there.")
                raise typer.Exit(130) from None
        else:
            console.print("[green]Everything is up to date.[/]")
    failed = [line for name in names if (board := _show(name)) for line in boards.list_failures(board)]
    _print_links(names)
    if not_run := [name for name in dict.fromkeys([*selected, *settings.run]) if name not in names]:
        listed = " ".join(not_run)
        console.print(
            f"[yellow]Not run:[/] {listed}. `recast run {listed}` does it; until then, `dvc status` may show stages of "
            "these problems as changed.",
            highlight=False,
            soft_wrap=True,
        )
    if timings:
        output.print(_timings_table(list_phases()))
    if failed:
        console.print("[red]Complete, but trials have failed:[/]")
        console.print("\n".join(failed), markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(3)


def _is_fetched(problem: str) -> bool:
    return any(not file.name.startswith(".") for file in paths.raw_folder(problem).glob("*"))


def _run(names: list[str], retry: bool, trains: bool) -> None:
    """Run the pipeline flow. The leaderboard shows which trials have failed.

    Args:
        trains: a stage is stale after which trials may have to be trained.
    """
    from flows.runners.preparation import prepare_runner
    from project.settings.loading import load_settings
    from project.settings.parsing import parse_settings

    if trains:
        prepare_runner(parse_settings().runner.kind)
    with time_phase("import"):
        from flows.connection import connect
        from flows.pipeline import pipeline
        from flows.train_flow import TrialsFailed

        load_settings()
    with time_phase("start"):
        connect()
    with contextlib.suppress(TrialsFailed):
        pipeline(names, retry)


@app.command()
def fetch(problems: ProblemArguments = None, wait: WaitOption = False) -> None:
    """Fill the raw stores: link local files, download public ones. JENA_ARCHIVE may name a local Jena archive."""
    from project.settings.parsing import parse_settings

    settings = parse_settings()
    with hold_pipeline_lock(wait):
        _fetch_sources(settings, select_problems(settings, problems), None)


@app.command()
def leaderboard(problems: ProblemArguments = None) -> None:
    """Show the leaderboards: configurations by their validation error, with their errors on the test rows."""
    from project.settings.parsing import parse_settings

    names = select_problems(parse_settings(), problems)
    for name in names:
        _show(name)
    _print_links(names)


@app.command()
def rebuild_mlflow(problems: ProblemArguments = None) -> None:
    """Write MLflow's runs again, into an empty store, from the trials that DVC tracks."""
    from project.settings.loading import load_settings
    from stages.tracking.rebuild import rebuild

    settings = load_settings()
    for name in select_problems(settings, problems):
        console.print(f"{name}: {rebuild(settings, name)} trials written to MLflow")


def _fetch_sources(settings: "Settings", names: list[str], fallback: str | None) -> list[str]:
    """Fill the raw stores; the problems that can be run, with `fallback` for those whose source is out of reach.

    Raises:
        Unreachable: a source is out of reach, and there is no fallback.
    """
    from problems.errors import Unreachable
    from stages.fetching import fetch as fetch_source

    if fallback is not None:
        select_problems(settings, [fallback])
    ready: list[str] = []
    for name in names:
        try:
            fetch_source(name, settings)
        except Unreachable as error:
            if fallback is None or fallback == name:
                raise
            console.print(f"[yellow]{name} cannot be run:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
            console.print(f"[yellow]Running {fallback} instead.[/]")
            ready.append(fallback)
        else:
            ready.append(name)
    return list(dict.fromkeys(ready))


def _show(problem: str) -> "Evaluation | None":
    """Print a problem's leaderboard, and return it."""
    from stages.evaluation import leaderboard as boards

    board = boards.read_leaderboard(paths.stage_folder("evaluate", problem))
    if board is None:
        console.print(f"{problem}: there is no leaderboard yet; `recast run {problem}` makes one")
    else:
        output.print(_table(board))
        for warning in board.warnings:
            console.print(f"[yellow]Warning:[/] {escape(warning)}", highlight=False, soft_wrap=True)
    return board


def _table(board: "Evaluation") -> Table:
    """The leaderboard as a table."""
    from stages.evaluation.phrasing import phrase_verdict

    simulated = " · SIMULATED DATA" if board.synthetic else ""
    verdict = phrase_verdict(board)
    table = Table(
        title=escape(f"{board.title} ({board.problem}){simulated}"),
        caption=escape(
            f"{verdict.headline}. {verdict.comparison} Selected by validation {board.selection_measure.title}; "
            "tested once."
        ),
    )
    for heading in ("", "configuration"):
        table.add_column(heading)
    measures = board.measures[:1] if board.selection_measure.scaled else board.measures
    errors = [f"{split} {measure.title} {measure.unit}" for split in ("validation", "test") for measure in measures]
    skills = ["skill"] if board.selects_by_mae else [f"skill by {board.selection_measure.title}", "skill by MAE"]
    if board.persistence_test is None:
        skills = []
    for heading in ("parameters", "seeds", *errors, *skills):
        table.add_column(escape(heading.rstrip()), justify="right")
    for rank, row in enumerate(board.rows, 1):
        failed = f" ({len(row.failed)} failed)" if row.failed else ""
        table.add_row(
            str(rank) if row.complete else "-",
            escape(row.configuration),
            "" if row.parameters is None else f"{row.parameters:,}",
            f"{len(row.finished_seeds)}{failed}",
            *(
                _format_spread(scores.get(measure.name))
                for scores in (row.validation, row.test)
                for measure in measures
            ),
            *("" if skill is None else f"{skill:+.3f}" for skill in (row.skill, row.mae_skill)[: len(skills)]),
            style="bold" if row.configuration == board.best else "red" if row.failed else None,
        )
    return table


def _format_spread(spread: "Spread | None") -> str:
    if spread is None:
        return ""
    return f"{spread.mean:.3f}" + ("" if spread.deviation is None else f" ± {spread.deviation:.3f}")


def _timings_table(phases: "Sequence[Phase]") -> Table:
    """Where the time of this process went. Stages run side by side: the rows do not add up to the last one."""
    import psutil

    started = psutil.Process().create_time()
    table = Table(title="Timings", caption="Stages that run side by side overlap; `processor` is this process alone.")
    table.add_column("phase")
    for heading in ("begins after", "seconds", "processor"):
        table.add_column(heading, justify="right")
    for phase in phases:
        cpu = "" if phase.cpu_seconds is None else f"{phase.cpu_seconds:.2f}"
        table.add_row(escape(phase.name), f"{phase.begun - started:.2f}", f"{phase.seconds:.2f}", cpu)
    table.add_row("all", "0.00", f"{time.time() - started:.2f}", f"{time.process_time():.2f}", style="bold")
    return table


def _print_links(problems: list[str]) -> None:
    """Print where to look next."""
    for name in problems:
        report = paths.stage_folder("evaluate", name) / "report.html"
        if report.exists():
            output.print(f"Report: {report}", soft_wrap=True)
    for title, address in server_addresses().items():
        output.print(server_line(title, address), soft_wrap=True)


def server_line(title: str, address: str | None) -> str:
    """Where a server is, or how to start it."""
    return f"{title}: {address}" if address else f"{title} is not running; start it with `recast up`."


def server_addresses() -> dict[str, str | None]:
    """Where MLflow's and Prefect's pages are, by the servers' titles: on servers that the environment names, or on the
    project's own; None: the server does not run."""
    from infra.server_process import running_address
    from infra.servers import MLFLOW, PREFECT

    mlflow, prefect = os.environ.get("MLFLOW_TRACKING_URI", ""), os.environ.get("PREFECT_API_URL")
    own = running_address(PREFECT)
    if own and prefect in (None, f"{own}/api"):
        prefect = f"{own} (it keeps running; `recast down` stops it)"
    return {
        MLFLOW.title: hide_passwords(mlflow) if mlflow.startswith("http") else running_address(MLFLOW),
        PREFECT.title: prefect and hide_passwords(prefect.removesuffix("/api")),
    }
