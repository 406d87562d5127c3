"""recast: the command line."""

import contextlib
import sys
from typing import Annotated

import typer
from rich.table import Table

from flows.progress import console, results
from problems.errors import RecastError
from stages import leaderboard as boards
from stages import places
from stages.command import plain_errors
from stages.leaderboard import Evaluation, Spread
from stages.settings import Settings, load, parse

# Imports that take seconds (Prefect, DVC, MLflow, PyTorch) stand in the commands that need them.

app = typer.Typer(
    help="Retrain and compare sequence models: DVC stages, run as Prefect flows, recorded in MLflow.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
Problems = Annotated[list[str] | None, typer.Argument(help="problems of params.yaml; none: all that its `run` lists")]


@app.command()
def run(
    problems: Problems = None,
    fallback: Annotated[
        str | None, typer.Option(help="run this problem in place of one whose source cannot be reached")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="wait for another pipeline in this checkout to end")] = False,
) -> None:
    """Bring the leaderboards up to date: run the stages that DVC calls stale, and no others."""
    from flows.dag import stale
    from stages.lock import only_pipeline

    settings = parse()
    with only_pipeline(wait):
        names = _fetched(settings, _chosen(settings, problems), fallback)
        if stale(names):
            try:
                _run(names)
            except KeyboardInterrupt:
                console.print("Stopped. What is trained is kept; the next run goes on from there.")
                raise typer.Exit(130) from None
        else:
            console.print("[green]Everything is up to date.[/]")
    failed = [line for name in names if (found := _show(name)) for line in boards.failures(found)]
    _links(names)
    if failed:
        console.print("[red]Complete, but trials have failed:[/]")
        console.print("\n".join(failed), markup=False, highlight=False)
        raise typer.Exit(3)


def _run(names: list[str]) -> None:
    """Run the pipeline flow; failed trials are for the leaderboard to tell."""
    from flows.connection import connect
    from flows.pipeline import pipeline
    from flows.train import TrialsFailed

    load()
    connect()
    with contextlib.suppress(TrialsFailed):
        pipeline(names)


@app.command()
def fetch(problems: Problems = None) -> None:
    """Fill the raw stores: link local files, download what is public. JENA_ARCHIVE names a local Jena archive."""
    settings = parse()
    _fetched(settings, _chosen(settings, problems), None)


@app.command()
def status(problems: Problems = None) -> None:
    """Show what is stale, which trials are done, what runs and where the servers are."""
    from flows.dag import stale
    from infra.servers import SERVERS, url
    from stages.lock import is_running

    settings = load()
    names = _chosen(settings, problems)
    running = is_running()
    table = Table("problem", "stale stages", "trials", title="Status")
    old = stale(names) if not running else []
    for name in names:
        stages = [stage.partition("@")[0] for stage in old if stage.endswith(f"@{name}")]
        table.add_row(name, "?" if running else ", ".join(stages) or "none", _trials(settings, name))
    results.print(table)
    results.print("A pipeline runs in this checkout." if running else "No pipeline runs in this checkout.")
    for server in SERVERS:
        results.print(f"{server.title}: {url(server) or 'not running (recast up starts it)'}")


def _trials(settings: Settings, problem: str) -> str:
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
    now = [f"{trial.label}: epoch {read_run(trial_folder(trial)).get('epoch', 0)}" for trial in begun]
    text = f"{len(trials) - len(open_) - failed} of {len(trials)} done"
    return "\n".join([text + (f", {failed} failed" if failed else ""), *now])


@app.command()
def leaderboard(problems: Problems = None) -> None:
    """Show the leaderboards: configurations by validation MAE, and what the selected do on the test rows."""
    for name in _chosen(parse(), problems):
        _show(name)
    _links(_chosen(parse(), problems))


@app.command()
def up() -> None:
    """Start the project's Prefect and MLflow servers in the background, on loopback."""
    from infra.servers import SERVERS, start
    from stages.tracking import client

    # The server and a run that starts beside it must not both create the database.
    client()
    for server in SERVERS:
        with console.status(f"starting {server.title}"):
            address = start(server)
        console.print(f"{server.title}: {address}")


@app.command()
def down() -> None:
    """Stop the project's servers."""
    from infra.servers import SERVERS, stop

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
            console.print(f"[yellow]{name} cannot be run:[/] {error}\n[yellow]Running {fallback} instead.[/]")
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
    table = Table(title=f"{found.title} ({found.problem}){simulated}", caption=_verdict(found))
    for heading in ("", "configuration"):
        table.add_column(heading)
    for heading in ("parameters", "seeds", f"validation MAE {found.unit}", f"test MAE {found.unit}", "skill"):
        table.add_column(heading, justify="right")
    for place, row in enumerate(found.rows, 1):
        failed = f" ({len(row.failed)} failed)" if row.failed else ""
        table.add_row(
            str(place) if row.validation_mae else "-",
            row.configuration,
            "" if row.parameters is None else f"{row.parameters:,}",
            f"{len(row.finished_seeds)}{failed}",
            _spread(row.validation_mae),
            _spread(row.test_mae),
            "" if row.skill is None else f"{row.skill:+.3f}",
            style="bold" if row.configuration == found.best else "red" if row.failed else None,
        )
    return table


def _spread(spread: Spread | None) -> str:
    if spread is None:
        return ""
    return f"{spread.mean:.3f}" + ("" if spread.deviation is None else f" ± {spread.deviation:.3f}")


def _verdict(found: Evaluation) -> str:
    """Whether the best is better than the runner-up beyond noise."""
    compared = found.comparison
    if compared is None:
        return "Selected by validation; tested once."
    sure = compared.low > 0 or compared.high < 0
    return (
        f"Selected by validation; tested once. Test MAE of {found.best} minus {found.runner_up}: "
        f"{compared.difference:+.3f} {found.unit}, {compared.level:.0%} interval {compared.low:+.3f} to "
        f"{compared.high:+.3f}: {'beyond' if sure else 'within'} noise."
    )


def _links(problems: list[str]) -> None:
    """Where to look next."""
    from infra.servers import MLFLOW, PREFECT, url

    for name in problems:
        report = places.stage("evaluate", name) / "report.html"
        if report.exists():
            results.print(f"Report: {report}")
    for server in (MLFLOW, PREFECT):
        results.print(f"{server.title}: {url(server) or 'recast up'}")


def main() -> None:
    """Run the command line; mendable errors end with a message and status 1."""
    try:
        with plain_errors():
            app()
    except RecastError as error:
        console.print(f"[red]error:[/] {error}", highlight=False, markup=True)
        sys.exit(1)
