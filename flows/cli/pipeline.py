"""Commands that run the pipeline and show what it has found."""

import contextlib
import os
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from flows.cli.app import Problems, Wait, app, chosen
from project import paths
from project.lock import only_pipeline
from project.progress import console, results
from project.redaction import without_passwords
from project.settings.loading import load_settings
from project.settings.parsing import parse_settings
from project.settings.sections import Settings
from stages.evaluation import leaderboard as boards
from stages.evaluation.leaderboard import Evaluation, Spread
from stages.evaluation.phrasing import verdict


@app.command()
def run(
    problems: Problems = None,
    fallback: Annotated[
        str | None, typer.Option(help="run this problem in place of one whose source cannot be reached")
    ] = None,
    retry: Annotated[
        bool, typer.Option("--retry", help="train again what has failed for want of memory or of a living process")
    ] = False,
    wait: Wait = False,
) -> None:
    """Bring the leaderboards up to date: run the stages that DVC calls stale, and no others."""
    from flows.dag import stale

    settings = parse_settings()
    wanted = chosen(settings, problems)
    if not all(_is_fetched(name) for name in wanted):
        # What is wrong with the grid should be told before a download of minutes.
        load_settings()
    with only_pipeline(wait):
        names = _fetched(settings, wanted, fallback)
        if retry or stale(names):
            try:
                _run(names, retry)
            except KeyboardInterrupt:
                console.print("Stopped. What is trained is kept; the next run goes on from there.")
                raise typer.Exit(130) from None
        else:
            console.print("[green]Everything is up to date.[/]")
    failed = [line for name in names if (found := _show(name)) for line in boards.failures(found)]
    _links(names)
    if failed:
        console.print("[red]Complete, but trials have failed:[/]")
        console.print("\n".join(failed), markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(3)


def _is_fetched(problem: str) -> bool:
    return any(not file.name.startswith(".") for file in paths.raw(problem).glob("*"))


def _run(names: list[str], retry: bool) -> None:
    """Run the pipeline flow; failed trials are for the leaderboard to tell."""
    from flows.connection import connect
    from flows.pipeline import pipeline
    from flows.train import TrialsFailed

    load_settings()
    connect()
    with contextlib.suppress(TrialsFailed):
        pipeline(names, retry)


@app.command()
def fetch(problems: Problems = None, wait: Wait = False) -> None:
    """Fill the raw stores: link local files, download what is public. JENA_ARCHIVE names a local Jena archive."""
    settings = parse_settings()
    with only_pipeline(wait):
        _fetched(settings, chosen(settings, problems), None)


@app.command()
def leaderboard(problems: Problems = None) -> None:
    """Show the leaderboards: configurations by their validation error, and what the selected do on the test rows."""
    names = chosen(parse_settings(), problems)
    for name in names:
        _show(name)
    _links(names)


@app.command()
def rebuild_mlflow(problems: Problems = None) -> None:
    """Make MLflow's runs again, in an empty store, from the trials that DVC tracks."""
    from stages.tracking.rebuild import rebuild

    settings = load_settings()
    for name in chosen(settings, problems):
        console.print(f"{name}: {rebuild(settings, name)} trials written to MLflow")


def _fetched(settings: Settings, names: list[str], fallback: str | None) -> list[str]:
    """Fill the raw stores; the problems that can be run, with `fallback` for those whose source is out of reach.

    Raises:
        Unreachable: a source is, and there is no fallback.
    """
    from problems.errors import Unreachable
    from stages.ingest import fetch as fetch_source

    if fallback is not None:
        chosen(settings, [fallback])
    ready: list[str] = []
    for name in names:
        try:
            fetch_source(name, settings)
        except Unreachable as error:
            if fallback is None or fallback == name:
                raise
            console.print(f"[yellow]{name} cannot be run:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
            console.print(f"[yellow]Running {fallback} instead.[/]")
            name = fallback
        if name not in ready:
            ready.append(name)
    return ready


def _show(problem: str) -> Evaluation | None:
    """Print a problem's leaderboard; what it shows."""
    found = boards.read(paths.stage("evaluate", problem))
    if found is None:
        console.print(f"{problem}: no leaderboard yet; `recast run {problem}` makes one")
    else:
        results.print(_table(found))
    return found


def _table(found: Evaluation) -> Table:
    """The leaderboard as a table."""
    simulated = " · SIMULATED DATA" if found.synthetic else ""
    said = verdict(found)
    table = Table(
        title=escape(f"{found.title} ({found.problem}){simulated}"),
        caption=escape(f"{said.headline}. {said.comparison} Selected by validation; tested once."),
    )
    for heading in ("", "configuration"):
        table.add_column(heading)
    shown = found.measures[:1] if found.measure.scaled else found.measures
    measures = [f"{split} {each.title} {each.unit}" for split in ("validation", "test") for each in shown]
    for heading in ("parameters", "seeds", *measures, *(["skill"] if found.persistence_test is not None else [])):
        table.add_column(escape(heading.rstrip()), justify="right")
    for place, row in enumerate(found.rows, 1):
        failed = f" ({len(row.failed)} failed)" if row.failed else ""
        table.add_row(
            str(place) if row.complete else "-",
            escape(row.configuration),
            "" if row.parameters is None else f"{row.parameters:,}",
            f"{len(row.finished_seeds)}{failed}",
            *(_spread(of.get(each.name)) for of in (row.validation, row.test) for each in shown),
            *([] if found.persistence_test is None else ["" if row.skill is None else f"{row.skill:+.3f}"]),
            style="bold" if row.configuration == found.best else "red" if row.failed else None,
        )
    return table


def _spread(spread: Spread | None) -> str:
    if spread is None:
        return ""
    return f"{spread.mean:.3f}" + ("" if spread.deviation is None else f" ± {spread.deviation:.3f}")


def _links(problems: list[str]) -> None:
    """Where to look next."""
    for name in problems:
        report = paths.stage("evaluate", name) / "report.html"
        if report.exists():
            results.print(f"Report: {report}", soft_wrap=True)
    for title, place in addresses().items():
        results.print(f"{title}: {place or 'recast up'}", soft_wrap=True)


def addresses() -> dict[str, str | None]:
    """Where MLflow's and Prefect's pages are, by title: on the servers that are named, or on the project's own."""
    from infra.servers import MLFLOW, PREFECT, url

    mlflow, prefect = os.environ.get("MLFLOW_TRACKING_URI", ""), os.environ.get("PREFECT_API_URL")
    own = url(PREFECT)
    if own and prefect in (None, f"{own}/api"):
        prefect = f"{own} (it keeps running; `recast down` stops it)"
    return {
        MLFLOW.title: without_passwords(mlflow) if mlflow.startswith("http") else url(MLFLOW),
        PREFECT.title: prefect and without_passwords(prefect.removesuffix("/api")),
    }
