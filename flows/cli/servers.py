"""Commands that start and stop the project's servers and its worker."""

from typing import Annotated, Literal

import typer

from flows.cli.app import app
from problems.errors import RecastError
from project import paths
from project.lock import is_running
from project.profile import read
from project.progress import console
from project.settings.parsing import parse_settings


@app.command()
def up(
    profile: Annotated[
        Literal["laptop", "servers"] | None,
        typer.Option(help="laptop: on SQLite; servers: on PostgreSQL and S3, with Ray; left out: as the last time"),
    ] = None,
) -> None:
    """Start the project's servers in the background, on loopback, and a worker for deployments."""
    from infra.servers import WORKER, start, use, used
    from stages.tracking.store import client

    paths.require_root()
    pool = parse_settings().deploy.pool
    use(profile)
    if read().name == "laptop":
        # The server and a run that starts beside it must not both create the database.
        client()
    for server in used():
        with console.status(f"starting {server.title}"):
            address = start(server)
        what = f"runs what is due in the work pool {pool}; its log: {server.log}" if server is WORKER else address
        console.print(f"{server.title}: {what}", soft_wrap=True)


@app.command()
def down(force: Annotated[bool, typer.Option("--force", help="also while a pipeline runs")] = False) -> None:
    """Stop the project's worker and its servers."""
    from infra.servers import SERVERS, stop

    paths.require_root()
    if is_running() and not force:
        raise RecastError(
            "a pipeline runs in this checkout and reports to them; stop it first (Ctrl-C), or `recast down --force`"
        )
    for server in reversed(SERVERS):
        console.print(f"{server.title}: {'stopped' if stop(server) else 'was not running'}")
