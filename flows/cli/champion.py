"""Commands about the model that serves: retrain, promote, roll back, and where a forecast comes from."""

import getpass
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from flows.cli.app import app
from problems.errors import RecastError
from project import paths
from project.progress import console, output

if TYPE_CHECKING:
    from lifecycle.champions.history import Entry
    from lifecycle.champions.lineage import Trace

ProblemArgument = Annotated[str, typer.Argument(help="a problem that `run` in params.yaml lists")]


@app.command()
def retrain(
    problem: ProblemArgument,
    force: Annotated[bool, typer.Option("--force", help="train and compare even if there is nothing new")] = False,
) -> None:
    """Fetch and check new rows, train the grid, and promote the best challenger if it beats the champion."""
    from flows.connection import connect
    from flows.retrain import BREACH
    from flows.retrain import retrain as flow
    from project.settings.loading import load_settings

    load_settings()
    connect()
    try:
        state = flow(problem, force, return_state=True)
    except KeyboardInterrupt:
        console.print("Stopped. What was done is kept; the next run continues from there.")
        raise typer.Exit(130) from None
    if state.name == BREACH:
        raise typer.Exit(1)
    if not state.is_completed():
        state.result()
    _print_link(problem)


@app.command()
def promote(
    problem: ProblemArgument,
    version: Annotated[int | None, typer.Argument(help="of the registered model; left out: the challenger")] = None,
) -> None:
    """Make a version the champion without a comparison; without VERSION, the challenger."""
    from lifecycle.champions import pages, promotion, registry
    from lifecycle.champions.history import find_challenger, find_champion

    _require_declared(problem)
    promotion.reconcile(problem)
    selected = find_challenger(problem) if version is None else registry.list_versions(problem).get(version)
    if selected is None and version is None:
        raise RecastError(f"{problem}: there is no challenger; name a version")
    if selected is None:
        versions = ", ".join(map(str, registry.list_versions(problem))) or "none"
        raise RecastError(f"{problem}: MLflow has no version {version} that Recast has registered; it has: {versions}")
    if find_champion(problem) == selected:
        # Whoever promoted it may have been killed before this.
        pages.write_history_page(problem)
        console.print(f"{problem}: version {selected.version} is the champion already")
        return
    promotion.promote(problem, selected, None, "by hand", by=getpass.getuser())
    pages.write_history_page(problem)
    console.print(f"{problem}: version {selected.version}, {selected.label}, is the champion now", highlight=False)


@app.command()
def rollback(problem: ProblemArgument) -> None:
    """Make the previous champion the champion again; each further call goes back one more."""
    from lifecycle.champions.history import find_champion, read_history, roll_back

    _require_declared(problem)
    if not read_history(problem):
        # Another checkout may have promoted a champion.
        _reconcile(problem)
    replaced = find_champion(problem)
    # A service that follows the history switches now. The rest takes the seconds in which MLflow is loaded.
    restored = roll_back(problem, by=getpass.getuser(), reason="by hand")
    end = f"; version {replaced.version} was" if replaced else ""
    console.print(
        f"{problem}: version {restored.version}, {restored.label}, is the champion again{end}", highlight=False
    )
    _reconcile(problem)
    _write_history_page(problem)


def _reconcile(problem: str) -> None:
    from lifecycle.champions import promotion

    promotion.reconcile(problem)


def _write_history_page(problem: str) -> None:
    from lifecycle.champions import pages

    pages.write_history_page(problem)


@app.command()
def champion(
    problem: ProblemArgument,
    history: Annotated[bool, typer.Option("--history", help="show all promotions and refusals")] = False,
) -> None:
    """Show which version serves, and which would after a rollback; with --history, all promotions and refusals."""
    from lifecycle.champions import history as champions

    _require_declared(problem)
    entries = champions.read_history(problem)
    stack = champions.champion_stack(entries)
    if not entries:
        console.print(f"{problem}: there is no champion yet; `recast retrain {problem}` makes the first")
        return
    if history:
        output.print(_history_table(problem, [entry for entry in entries if entry.kind != "challenge"], stack[-1:]))
    else:
        table = Table("", "version", "trial", "since", "by", title=f"Champion of {problem}")
        for role, entry in zip(("champion", "previous"), reversed(stack), strict=False):
            table.add_row(role, str(entry.version), escape(entry.label), _format_time(entry), escape(entry.by))
        if challenger := champions.find_challenger(problem):
            table.add_row("challenger", str(challenger.version), escape(challenger.label), "", "")
        output.print(table)
    _print_link(problem)


@app.command()
def trace(
    forecast_id: Annotated[
        str | None, typer.Argument(help="the id of a forecast that was served or written to a file")
    ] = None,
    version: Annotated[
        int | None, typer.Option(help="list the forecasts of this version, and what it was made from")
    ] = None,
    raw: Annotated[str | None, typer.Option(help="the SHA-256 of a raw file: list the versions that used it")] = None,
    problem: Annotated[str | None, typer.Option(help="of the version; left out: the only one that `run` lists")] = None,
) -> None:
    """Show where a forecast comes from: version, run, trial, dvc.lock, raw files, commit; or who used a raw file."""
    from lifecycle.champions import lineage

    paths.require_root()
    if sum(option is not None for option in (forecast_id, version, raw)) != 1:
        raise RecastError("name exactly one: a forecast's id, --version or --raw")
    if raw is not None:
        _show_users(raw)
    elif forecast_id is not None:
        _show_trace(lineage.trace_forecast(forecast_id))
    elif version is not None:
        _show_version(version, problem)


def _show_version(version: int, problem: str | None) -> None:
    """Print what a version was made from, and its forecasts.

    Args:
        problem: None: the only one that `run` in params.yaml lists.

    Raises:
        RecastError: `run` lists several problems, and none was named.
    """
    from lifecycle.champions import lineage
    from project.settings.parsing import parse_settings

    settings = parse_settings()
    if problem is None and len(settings.run) > 1:
        raise RecastError(f"which problem's version? Choose one with --problem: {', '.join(settings.run)}")
    name = problem or settings.run[0]
    settings.problem(name)
    _show_trace(lineage.trace_version(name, version))
    _show_forecasts(name, version)


def _require_declared(problem: str) -> None:
    """Check that params.yaml declares a problem of this name.

    Raises:
        RecastError: it does not.
    """
    from project.settings.parsing import parse_settings

    parse_settings().problem(problem)


def _format_time(entry: "Entry") -> str:
    return entry.time[:16].replace("T", " ")


def _history_table(problem: str, entries: "list[Entry]", current: "list[Entry]") -> Table:
    """Everything that happened, the newest last."""
    from lifecycle.champions.decisions import read_decision

    table = Table("when (UTC)", "what", "version", "trial", title=f"Champions of {problem}")
    table.add_column("error", justify="right")
    table.add_column("champion's error", justify="right")
    table.add_column("measure")
    table.add_column("why")
    for entry in entries:
        decision = read_decision(problem, entry.decision) if entry.decision else None
        errors = (decision.challenger.error, decision.champion.error) if decision else (None, None)
        table.add_row(
            _format_time(entry),
            entry.kind,
            str(entry.version),
            escape(entry.label),
            *("" if error is None else f"{error:.4f}" for error in errors),
            decision.measure_title if decision and decision.comparison else "",
            escape(entry.reason if entry.by == "retrain" else f"{entry.reason} ({entry.by})"),
            style="bold" if entry in current else None,
        )
    return table


def _print_link(problem: str) -> None:
    """Print where to look next."""
    from lifecycle.champions.history import champion_folder

    page = champion_folder(problem) / "history.html"
    if page.exists():
        output.print(f"History: {page}", soft_wrap=True)


def _show_trace(trace: "Trace") -> None:
    """Print what a version, and a forecast where there is one, was made from."""
    lineage = trace.lineage
    table = Table("what", "is", title=f"Lineage of version {lineage.version} of {lineage.problem}", show_lines=True)
    if trace.forecast:
        forecast = trace.forecast
        table.add_row(
            "forecast",
            escape(
                f"{forecast['forecast_id']}: {forecast['forecast']:.4f} for {forecast['target_time']}, from "
                f"{forecast['series']} up to {forecast['origin']} ({forecast['lead']} ahead)"
            ),
        )
    table.add_row("model", f"models:/{lineage.problem}/{lineage.version}")
    table.add_row("MLflow run", lineage.run)
    table.add_row("trial", escape(f"{lineage.label}\ntrials/{lineage.problem}/{lineage.key}"))
    state = {None: "none was saved", True: "its dvc.lock agrees", False: "its dvc.lock differs"}[trace.locked]
    table.add_row("DVC experiment", f"{trace.experiment} ({state})" if trace.experiment else state)
    outputs = [
        f"{name}: {out['path']} {out.get('md5', '')}" for name, stage in lineage.lock.items() for out in stage["outs"]
    ]
    table.add_row("dvc.lock", escape("\n".join(outputs)))
    table.add_row("raw files", escape("\n".join(f"{name}: {sha256}" for name, sha256 in lineage.raw.items())))
    table.add_row("git commit", lineage.commit or "none")
    output.print(table)


def _show_forecasts(problem: str, version: int) -> None:
    """Print the newest forecasts of a version."""
    from lifecycle import forecast_log

    forecasts = forecast_log.forecasts_of_version(problem, version)
    table = Table(
        "forecast", "series", "from", "for", "value", title=f"{forecasts.height:,} forecasts of version {version}"
    )
    for row in forecasts.tail(50).iter_rows(named=True):
        table.add_row(
            row["forecast_id"], row["series"], str(row["origin"]), str(row["target_time"]), f"{row['forecast']:.4f}"
        )
    output.print(table)
    if forecasts.height > 50:
        output.print(f"The newest 50 are shown; all are in {forecast_log.log_file(problem)}")


def _show_users(raw: str) -> None:
    """Print the versions that used a raw file."""
    from lifecycle.champions import lineage

    users = list(lineage.find_versions_using(raw.lower()))
    if not users:
        raise RecastError(f"no known version used a raw file whose SHA-256 begins with {raw}")
    table = Table("problem", "version", "trial", "file", title=f"Versions that used {raw}")
    for user, file_name in users:
        table.add_row(user.problem, str(user.version), escape(user.label), escape(file_name))
    output.print(table)
