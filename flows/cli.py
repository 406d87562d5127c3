"""recast: the command line."""

import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from flows.progress import console, results
from problems.errors import RecastError
from stages import leaderboard as boards
from stages import places
from stages.command import plain_errors
from stages.leaderboard import Evaluation, Spread
from stages.lock import is_running, only_pipeline
from stages.settings import Settings, load, parse
from stages.words import verdict, without_passwords

if TYPE_CHECKING:
    from stages.proposal import Proposal

# Imports that take seconds (Prefect, DVC, MLflow, PyTorch) stand in the commands that need them.

app = typer.Typer(
    help="Retrain and compare sequence models: DVC stages, run as Prefect flows, recorded in MLflow.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
Problems = Annotated[list[str] | None, typer.Argument(help="problems of params.yaml; none: all that its `run` lists")]
Wait = Annotated[bool, typer.Option("--wait", help="wait for another pipeline in this checkout to end")]


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

    settings = parse()
    chosen = _chosen(settings, problems)
    if not all(_is_fetched(name) for name in chosen):
        # What is wrong with the grid should be told before a download of minutes.
        load()
    with only_pipeline(wait):
        names = _fetched(settings, chosen, fallback)
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
    return any(not file.name.startswith(".") for file in places.raw(problem).glob("*"))


def _run(names: list[str], retry: bool) -> None:
    """Run the pipeline flow; failed trials are for the leaderboard to tell."""
    from flows.connection import connect
    from flows.pipeline import pipeline
    from flows.train import TrialsFailed

    load()
    connect()
    with contextlib.suppress(TrialsFailed):
        pipeline(names, retry)


@app.command()
def use(
    file: Annotated[Path, typer.Argument(help="a file with some of the keys of params.yaml, such as grids/all.yaml")],
) -> None:
    """Put the values of FILE in the place of those in params.yaml; its comments and all other values stay."""
    from stages.settings import FILE, overlay

    places.require_root()
    with only_pipeline(wait=False):
        changed = overlay(file, FILE)
    console.print(
        f"{FILE}: {', '.join(changed) or 'nothing'} changed. `git diff {FILE}` shows it, recast run runs it.",
        soft_wrap=True,
    )


@app.command()
def new(
    file: Annotated[str, typer.Argument(help="a CSV or Parquet file, a folder of them or a pattern in quotes")],
    name: Annotated[str | None, typer.Option(help="of the problem; none: from the file's name")] = None,
    target: Annotated[str | None, typer.Option(help="the column to forecast")] = None,
    unit: Annotated[str | None, typer.Option(help="of the target; none: from the column's name")] = None,
    time: Annotated[list[str] | None, typer.Option(help="the column of the time; or two, date and clock")] = None,
    series: Annotated[str | None, typer.Option(help="the column that tells several series apart")] = None,
    time_zone: Annotated[
        str | None, typer.Option(help="of times without one, such as Europe/Berlin; none: UTC")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show what would be written, and write nothing")] = False,
) -> None:
    """Make a problem of a file: find out what it holds, try it, show it, and write its section of params.yaml."""
    from stages.proposal import propose, write
    from stages.settings import FILE

    places.require_root()
    with console.status(f"looking at {file}"):
        found = propose(file, name, target, unit, time or (), series, time_zone)
    _preview(found)
    if dry_run:
        return
    with only_pipeline(wait=False):
        write(found, FILE)
    console.print(
        f"{FILE}: problems.{found.name} is written, and `run` has it. `git diff {FILE}` shows it; correct what is "
        f"wrong, then: recast run {found.name}",
        soft_wrap=True,
    )


def _preview(found: "Proposal") -> None:
    """What a file holds, what it is taken for, and what could not be told."""
    source, quality = found.section["source"], found.quality
    rows = Table(title=escape(f"The first rows of {source['path']}"))
    sample = found.inspection.sample.head(5)
    for column in sample.columns[:8]:
        rows.add_column(escape(column))
    for row in sample.iter_rows():
        rows.add_row(*("" if value is None else escape(str(value)) for value in row[:8]))
    results.print(rows)
    columns = Table("column", "taken for", title=f"The columns, and what becomes of them in problem {found.name}")
    for heading in ("nulls", "least", "mean", "most"):
        columns.add_column(heading, justify="right")
    for each in found.inspection.columns:
        of = quality.columns.get(each.name)
        figures = (f"{of.nulls:,}", f"{of.min:g}", f"{of.mean:g}", f"{of.max:g}") if of else ()
        role = "target" if each.name == found.section["table"]["target"] else each.role
        columns.add_row(escape(each.name), escape({"number": "feature"}.get(role, role)), *figures)
    results.print(columns)
    gaps = sum(each.gaps for each in quality.series.values())
    windows = ", ".join(f"{count:,} for {split}" for split, count in found.windows.items())
    results.print(
        f"{quality.rows_kept:,} rows every {quality.cadence}, {len(quality.series)} series, {gaps:,} gaps. "
        f"Windows: {windows}.",
        soft_wrap=True,
    )
    if found.questions:
        results.print("To be settled by you:")
        for question in found.questions:
            results.print(f"- {escape(question)}", soft_wrap=True, highlight=False)


@app.command()
def fetch(problems: Problems = None, wait: Wait = False) -> None:
    """Fill the raw stores: link local files, download what is public. JENA_ARCHIVE names a local Jena archive."""
    settings = parse()
    with only_pipeline(wait):
        _fetched(settings, _chosen(settings, problems), None)


@app.command()
def status(problems: Problems = None) -> None:
    """Show what is stale, which trials are done, what runs and where the servers are."""
    from flows.dag import stale

    settings = load()
    names = _chosen(settings, problems)
    running = is_running()
    table = Table("problem", "stale stages", "trials", title="Status")
    old = stale(names) if not running else []
    for name in names:
        stages = [stage.partition("@")[0] for stage in old if stage.endswith(f"@{name}")]
        table.add_row(name, "?" if running else ", ".join(stages) or "none", escape(_trials(settings, name, running)))
    results.print(table)
    results.print("A pipeline runs in this checkout." if running else "No pipeline runs in this checkout.")
    for title, place in _addresses().items():
        results.print(f"{title}: {place or 'not running (recast up starts it)'}", soft_wrap=True)


def _trials(settings: Settings, problem: str, running: bool) -> str:
    """How many trials of the grid are done, failed and under way."""
    from stages.train import outcome
    from stages.trials import expand, read_run, trial_folder

    windowed = places.stage("window", problem)
    if not (windowed / "windows.json").exists():
        return "not known before `window` has run"
    trials = expand(settings, problem, windowed)
    ended = [outcome(trial) for trial in trials]
    failed = sum(each is not None and each.status == "failed" for each in ended)
    open_ = [trial for trial, each in zip(trials, ended, strict=True) if each is None]
    begun = [trial for trial in open_ if trial_folder(trial).exists()]
    epochs = {trial.label: read_run(trial_folder(trial)).get("epoch", 0) for trial in begun}
    now = [f"{label}: epoch {epoch}" if running else f"{label}: {epoch} epochs kept" for label, epoch in epochs.items()]
    text = f"{len(trials) - len(open_) - failed} of {len(trials)} done"
    return "\n".join([text + (f", {failed} failed" if failed else ""), *now])


@app.command()
def leaderboard(problems: Problems = None) -> None:
    """Show the leaderboards: configurations by their validation error, and what the selected do on the test rows."""
    for name in _chosen(parse(), problems):
        _show(name)
    _links(_chosen(parse(), problems))


@app.command()
def up() -> None:
    """Start the project's Prefect and MLflow servers in the background, on loopback."""
    from infra.servers import SERVERS, start
    from stages.tracking import client

    places.require_root()
    # The server and a run that starts beside it must not both create the database.
    client()
    for server in SERVERS:
        with console.status(f"starting {server.title}"):
            address = start(server)
        console.print(f"{server.title}: {address}")


@app.command()
def down(force: Annotated[bool, typer.Option("--force", help="also while a pipeline runs")] = False) -> None:
    """Stop the project's servers."""
    from infra.servers import SERVERS, stop

    places.require_root()
    if is_running() and not force:
        raise RecastError(
            "a pipeline runs in this checkout and reports to them; stop it first (Ctrl-C), or `recast down --force`"
        )
    for server in SERVERS:
        console.print(f"{server.title}: {'stopped' if stop(server) else 'was not running'}")


@app.command()
def rebuild_mlflow(problems: Problems = None) -> None:
    """Make MLflow's runs again, in an empty store, from the trials that DVC tracks."""
    from stages.rebuild import rebuild

    settings = load()
    for name in _chosen(settings, problems):
        console.print(f"{name}: {rebuild(settings, name)} trials written to MLflow")


def _chosen(settings: Settings, problems: list[str] | None) -> list[str]:
    """The problems asked for; each must be one that the pipeline runs.

    Raises:
        RecastError: it is not.
    """
    for name in problems or ():
        settings.problem(name)
        if name not in settings.run:
            raise RecastError(f"{name} is declared, but the pipeline does not run it; add it to `run` in params.yaml")
    return list(problems or settings.run)


def _fetched(settings: Settings, names: list[str], fallback: str | None) -> list[str]:
    """Fill the raw stores; the problems that can be run, with `fallback` for those whose source is out of reach.

    Raises:
        Unreachable: a source is, and there is no fallback.
    """
    from problems.errors import Unreachable
    from stages.ingest import fetch as fetch_source

    if fallback is not None:
        _chosen(settings, [fallback])
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
    found = boards.read(places.stage("evaluate", problem))
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
        report = places.stage("evaluate", name) / "report.html"
        if report.exists():
            results.print(f"Report: {report}", soft_wrap=True)
    for title, place in _addresses().items():
        results.print(f"{title}: {place or 'recast up'}", soft_wrap=True)


def _addresses() -> dict[str, str | None]:
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


def main() -> None:
    """Run the command line; mendable errors end with a message and status 1."""
    try:
        with plain_errors():
            app()
    except RecastError as error:
        console.print(f"[red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(1)
