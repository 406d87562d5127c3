"""Commands about what runs by itself."""

from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from flows.cli.app import Problems, app, chosen
from project import paths
from project.progress import console, results
from project.settings.loading import load_settings
from project.settings.parsing import parse_settings


@app.command()
def deploy(
    problems: Problems = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show what would be scheduled, and tell no one")] = False,
) -> None:
    """Schedule retrain, predict and monitor of each problem, as `deploy` in params.yaml says; a worker runs them."""
    from flows import deployments

    settings = load_settings()
    paths.require_root()
    wanted = deployments.planned(settings, chosen(settings, problems))
    ids, page = {}, ""
    if not dry_run:
        from prefect.settings import get_current_settings

        from flows.connection import connect

        connect()
        with console.status("telling Prefect"):
            ids = deployments.deploy(settings, wanted)
        page = (get_current_settings().ui_url or "").rstrip("/")
        old = deployments.gone(settings)
        deployments.remove(old)
        for name in sorted({each.name for each in old}):
            console.print(f"{name} is removed: `run` does not list it", highlight=False, soft_wrap=True)
    table = Table(title=f"Deployments in the work pool {settings.deploy.pool}")
    for heading in ("deployment", "runs", "and when there is"):
        table.add_column(heading)
    for each in wanted:
        when = f"{each.cron} {settings.deploy.time_zone}" if each.cron else "when it is asked for"
        table.add_row(escape(each.name), escape(when), escape(", ".join(each.events)))
    results.print(table)
    for name, identity in ids.items():
        results.print(f"{name}: {page}/deployments/deployment/{identity}", soft_wrap=True, highlight=False)
    results.print("Nothing was deployed." if dry_run else _worker(), soft_wrap=True)


def _worker() -> str:
    from infra.servers import WORKER, url

    return "A worker of this checkout runs them." if url(WORKER) else "No worker runs here: `recast up` starts one."


@app.command()
def arrived(problem: Annotated[str, typer.Argument(help="a problem of params.yaml")]) -> None:
    """Tell Prefect that new rows of a problem are there, so that it retrains now: for scripts that put them there."""
    from flows.connection import connect
    from flows.deployments import announce, arrival_event

    (name,) = chosen(parse_settings(), [problem])
    connect()
    announce(name)
    console.print(f"Prefect has the event {arrival_event(name)}.", highlight=False)
