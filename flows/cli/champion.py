"""Commands about the model that serves: retrain, promote, roll back, and where a forecast comes from."""

import getpass
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from flows.cli.app import app
from problems.errors import RecastError
from project import paths
from project.progress import console, results
from project.settings.loading import load_settings
from project.settings.parsing import parse_settings

if TYPE_CHECKING:
    from lifecycle.champions.history import Entry
    from lifecycle.champions.lineage import Trace

Problem = Annotated[str, typer.Argument(help="a problem that `run` in params.yaml lists")]


@app.command()
def retrain(
    problem: Problem,
    force: Annotated[bool, typer.Option("--force", help="go on although nothing new has come")] = False,
) -> None:
    """Fetch and check what is new, train the grid, and promote the best challenger if it beats the champion."""
    from flows.connection import connect
    from flows.retrain import BREACH
    from flows.retrain import retrain as flow

    load_settings()
    connect()
    try:
        state = flow(problem, force, return_state=True)
    except KeyboardInterrupt:
        console.print("Stopped. What is done is kept; the next run goes on from there.")
        raise typer.Exit(130) from None
    if state.name == BREACH:
        raise typer.Exit(1)
    if not state.is_completed():
        state.result()
    _where(problem)


@app.command()
def promote(
    problem: Problem,
    version: Annotated[int | None, typer.Argument(help="of the registered model; none: the challenger")] = None,
) -> None:
    """Make a version the champion, whatever a comparison says; without VERSION, the challenger."""
    from lifecycle.champions import pages, registry

    _check(problem)
    registry.reconcile(problem)
    chosen = registry.challenger(problem) if version is None else registry.known(problem).get(version)
    if chosen is None and version is None:
        raise RecastError(f"{problem}: there is no challenger that is not champion; name a version")
    if chosen is None:
        there = ", ".join(map(str, registry.known(problem))) or "none"
        raise RecastError(f"{problem}: MLflow has no version {version} that Recast has registered; it has: {there}")
    if registry.champion(problem) == chosen:
        console.print(f"{problem}: version {chosen.version} is the champion already")
        return
    registry.promote(problem, chosen, None, "by hand", by=getpass.getuser())
    pages.write_history(problem)
    console.print(f"{problem}: version {chosen.version}, {chosen.label}, is champion now", highlight=False)


@app.command()
def rollback(problem: Problem) -> None:
    """Make the former champion the champion again; each further call goes one further back."""
    from lifecycle.champions.history import champion as present
    from lifecycle.champions.history import history, roll_back

    _check(problem)
    if not history(problem):
        # There may be a champion that another checkout has made.
        _reconcile(problem)
    left = present(problem)
    # With this it is done for whoever follows the history. The rest takes the seconds that MLflow needs to be loaded.
    found = roll_back(problem, by=getpass.getuser(), reason="by hand")
    was = f"; version {left.version} was" if left else ""
    console.print(f"{problem}: version {found.version}, {found.label}, is champion again{was}", highlight=False)
    _reconcile(problem)
    _write_history(problem)


def _reconcile(problem: str) -> None:
    from lifecycle.champions import registry

    registry.reconcile(problem)


def _write_history(problem: str) -> None:
    from lifecycle.champions import pages

    pages.write_history(problem)


@app.command()
def champion(
    problem: Problem,
    history: Annotated[bool, typer.Option("--history", help="show all that happened")] = False,
) -> None:
    """Show which version serves, and which would by a rollback; with --history, all promotions and refusals."""
    from lifecycle.champions import history as champions

    _check(problem)
    entries = champions.history(problem)
    reigned = champions.reign(entries)
    if not entries:
        console.print(f"{problem}: there is no champion yet; `recast retrain {problem}` finds the first")
        return
    if history:
        results.print(_table(problem, [entry for entry in entries if entry.kind != "challenge"], reigned[-1:]))
    else:
        table = Table("", "version", "trial", "since", "by", title=f"Champion of {problem}")
        for role, entry in zip(("champion", "previous"), reversed(reigned), strict=False):
            table.add_row(role, str(entry.version), escape(entry.label), _moment(entry), escape(entry.by))
        if waiting := champions.challenger(problem):
            table.add_row("challenger", str(waiting.version), escape(waiting.label), "", "")
        results.print(table)
    _where(problem)


@app.command()
def trace(
    forecast_id: Annotated[
        str | None, typer.Argument(help="of a forecast that was served or written to a file")
    ] = None,
    version: Annotated[
        int | None, typer.Option(help="list the forecasts of this version, and what it was made of")
    ] = None,
    raw: Annotated[str | None, typer.Option(help="the SHA-256 of a raw file: list the versions that used it")] = None,
    problem: Annotated[str | None, typer.Option(help="of the version; none: the only one that `run` lists")] = None,
) -> None:
    """Show where a forecast comes from: version, run, trial, dvc.lock, raw files, commit; or the way back."""
    from lifecycle.champions import lineage

    paths.require_root()
    if sum(each is not None for each in (forecast_id, version, raw)) != 1:
        raise RecastError("name one of: a forecast's id, --version, --raw")
    if raw is not None:
        _show_users(raw)
        return
    if forecast_id is not None:
        _show(lineage.trace(forecast_id))
        return
    assert version is not None
    settings = parse_settings()
    if problem is None and len(settings.run) > 1:
        raise RecastError(f"whose version? Name it with --problem: {', '.join(settings.run)}")
    name = problem or settings.run[0]
    settings.problem(name)
    _show(lineage.trace_version(name, version))
    _show_forecasts(name, version)


def _check(problem: str) -> None:
    """
    Raises:
        RecastError: params.yaml declares no such problem.
    """
    parse_settings().problem(problem)


def _moment(entry: "Entry") -> str:
    return entry.time[:16].replace("T", " ")


def _table(problem: str, entries: "list[Entry]", now: "list[Entry]") -> Table:
    """All that happened, the newest last."""
    from lifecycle.champions import comparison

    table = Table("when (UTC)", "what", "version", "trial", title=f"Champions of {problem}")
    table.add_column("MAE", justify="right")
    table.add_column("of the champion", justify="right")
    table.add_column("why")
    for entry in entries:
        made = comparison.read(problem, entry.decision) if entry.decision else None
        figures = (made.challenger.mae, made.champion.mae) if made else (None, None)
        table.add_row(
            _moment(entry),
            entry.kind,
            str(entry.version),
            escape(entry.label),
            *("" if value is None else f"{value:.4f}" for value in figures),
            escape(entry.reason if entry.by == "retrain" else f"{entry.reason} ({entry.by})"),
            style="bold" if entry in now else None,
        )
    return table


def _where(problem: str) -> None:
    """Where to look next."""
    from lifecycle.champions.history import folder

    page = folder(problem) / "history.html"
    if page.exists():
        results.print(f"History: {page}", soft_wrap=True)


def _show(found: "Trace") -> None:
    """What a version, and where there is one, a forecast, was made of."""
    lineage = found.lineage
    table = Table("what", "is", title=f"Lineage of version {lineage.version} of {lineage.problem}", show_lines=True)
    if found.forecast:
        forecast = found.forecast
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
    kept = {None: "none was saved", True: "its dvc.lock agrees", False: "its dvc.lock says something else"}[
        found.locked
    ]
    table.add_row("DVC experiment", f"{found.experiment} ({kept})" if found.experiment else kept)
    locked = [
        f"{name}: {out['path']} {out.get('md5', '')}" for name, stage in lineage.lock.items() for out in stage["outs"]
    ]
    table.add_row("dvc.lock", escape("\n".join(locked)))
    table.add_row("raw files", escape("\n".join(f"{name}: {sha256}" for name, sha256 in lineage.raw.items())))
    table.add_row("git commit", lineage.commit or "none")
    results.print(table)


def _show_forecasts(problem: str, version: int) -> None:
    """The forecasts of a version."""
    from lifecycle.serving import forecast_log

    found = forecast_log.of_version(problem, version)
    table = Table(
        "forecast", "series", "from", "for", "value", title=f"{found.height:,} forecasts of version {version}"
    )
    for row in found.tail(50).iter_rows(named=True):
        table.add_row(
            row["forecast_id"], row["series"], str(row["origin"]), str(row["target_time"]), f"{row['forecast']:.4f}"
        )
    results.print(table)
    if found.height > 50:
        results.print(f"The newest 50 are shown; all are in {forecast_log.file_of(problem)}")


def _show_users(raw: str) -> None:
    """The versions that used a raw file."""
    from lifecycle.champions import lineage

    found = list(lineage.using(raw.lower()))
    if not found:
        raise RecastError(f"no version that is known here used a raw file whose SHA-256 begins with {raw}")
    table = Table("problem", "version", "trial", "file", title=f"Versions that used {raw}")
    for each, name in found:
        table.add_row(each.problem, str(each.version), escape(each.label), escape(name))
    results.print(table)
