"""Commands about deployed flows, which run on a schedule or at an event."""

from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from flows.cli.app import ProblemArguments, app
from flows.problem_selection import select_problems
from project import paths
from project.progress import console, output


@app.command()
def deploy(
    problems: ProblemArguments = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="show what would be scheduled, and change nothing")
    ] = False,
) -> None:
    """Schedule retrain, predict and monitor of each problem, as `deploy` in params.yaml says; a worker runs them."""
    from flows import deployments
    from project.settings.loading import load_settings

    settings = load_settings()
    paths.require_root()
    planned = deployments.plan_deployments(settings, select_problems(settings, problems))
    ids, page = {}, ""
    if not dry_run:
        from prefect.settings import get_current_settings

        from flows.connection import connect

        connect()
        with console.status("deploying"):
            ids = deployments.apply_deployments(settings, planned)
        page = (get_current_settings().ui_url or "").rstrip("/")
        obsolete = deployments.find_obsolete_deployments(settings)
        deployments.remove_deployments(obsolete)
        for name in sorted({deployment.name for deployment in obsolete}):
            console.print(
                f"{name} is removed: `run` and `deploy.pool` do not name it any more", highlight=False, soft_wrap=True
            )
    table = Table(title=f"Deployments in the work pool {settings.deploy.pool}")
    for heading in ("deployment", "runs", "and at the event"):
        table.add_column(heading)
    for deployment in planned:
        when = f"{deployment.cron} {settings.deploy.time_zone}" if deployment.cron else "when it is asked for"
        table.add_row(escape(deployment.name), escape(when), escape(", ".join(deployment.events)))
    output.print(table)
    for name, identity in ids.items():
        output.print(f"{name}: {page}/deployments/deployment/{identity}", soft_wrap=True, highlight=False)
    output.print("Nothing was deployed." if dry_run else _worker_status(), soft_wrap=True)


def _worker_status() -> str:
    from infra.server_process import running_address
    from infra.servers import WORKER

    return (
        "A worker of this checkout runs them."
        if running_address(WORKER)
        else "No worker runs here: `recast up` starts one."
    )


@app.command()
def arrived(problem: Annotated[str, typer.Argument(help="a problem of params.yaml")]) -> None:
    """Tell Prefect that a problem has new rows, so that it retrains now. For scripts that deliver the rows."""
    from flows.connection import connect
    from flows.deployments import announce_new_rows, new_rows_event
    from project.settings.parsing import parse_settings

    (name,) = select_problems(parse_settings(), [problem])
    connect()
    announce_new_rows(name)
    console.print(f"Prefect has the event {new_rows_event(name)}.", highlight=False)
