"""Commands that start and stop the project's servers and its worker."""

from typing import Annotated, Literal

import typer

from flows.cli.app import app
from problems.errors import RecastError
from project import paths
from project.lock import is_pipeline_running
from project.progress import console


@app.command()
def up(
    profile: Annotated[
        Literal["laptop", "servers"] | None,
        typer.Option(
            help="laptop: on SQLite; servers: on PostgreSQL and S3, with Ray; left out: the one that was used last"
        ),
    ] = None,
) -> None:
    """Start the project's servers in the background, on loopback, and a worker for deployments."""
    from infra.processes import describe_listener
    from infra.server_process import running_port, start
    from infra.servers import WORKER, servers_of_profile, switch_profile
    from project.settings.parsing import parse_settings

    paths.require_root()
    pool = parse_settings().deploy.pool
    switch_profile(profile)
    for server in servers_of_profile():
        with console.status(f"starting {server.title}"):
            address = start(server)
        description = (
            f"runs what is due in the work pool {pool}; its log: {server.log}" if server is WORKER else address
        )
        console.print(f"{server.title}: {description}", soft_wrap=True)
        if running_port(server) != server.port and (listener := describe_listener(server.port)):
            console.print(
                f"  {listener} has port {server.port}; this checkout keeps port {running_port(server)}",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )


@app.command()
def down(force: Annotated[bool, typer.Option("--force", help="even while a pipeline runs")] = False) -> None:
    """Stop the project's worker and its servers."""
    from infra.server_process import stop
    from infra.servers import SERVERS

    paths.require_root()
    if is_pipeline_running() and not force:
        raise RecastError(
            "a pipeline runs in this checkout and needs the servers; stop it first (Ctrl-C), or `recast down --force`"
        )
    for server in reversed(SERVERS):
        console.print(f"{server.title}: {'stopped' if stop(server) else 'was not running'}")
