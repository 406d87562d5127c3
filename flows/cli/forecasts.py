"""Commands that forecast with a problem's champion."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from flows.cli.app import app
from problems.errors import RecastError
from project import paths
from project.progress import console

LOOPBACK_HOSTS = ("127.0.0.1", "::1", "localhost")

STALE_STATUS = 5
"""The status of a command that has made forecasts from rows that are too old."""


@app.command()
def serve(
    problem: Annotated[str, typer.Argument(help="a problem of params.yaml that has a champion")],
    host: Annotated[
        str, typer.Option(help="the address to listen on; any other than loopback is open to everybody who reaches it")
    ] = ("127.0.0.1"),
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8000,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(
            help="another name by which clients may call it, such as that of a proxy before it; beside addresses in "
            "digits, localhost and the name of this machine; * for any"
        ),
    ] = None,
) -> None:
    """Answer requests for forecasts over HTTP with the champion, and switch when another version is promoted."""
    from project.settings.loading import load_settings

    paths.require_root()
    load_settings().problem(problem)

    import uvicorn

    from lifecycle.champions import registry
    from lifecycle.serving.api import make_app
    from lifecycle.serving.service import Service

    service = Service(problem, registry)
    champion = service.champion.current
    state = (
        f"version {champion.version.version} answers" if champion else "there is no champion yet; the first will answer"
    )
    console.print(f"{problem}: {state}. http://{host}:{port}/docs", markup=False, highlight=False, soft_wrap=True)
    if host not in LOOPBACK_HOSTS:
        console.print(
            f"[yellow]{escape(host)} is not loopback: everybody who reaches it can ask for forecasts. Put a proxy with "
            "a password in front of it.[/]",
            soft_wrap=True,
        )
    config = uvicorn.Config(
        make_app(service, [host, *(allowed_host or [])]),
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=30,
    )
    try:
        uvicorn.Server(config).run()
    except KeyboardInterrupt:
        console.print("Stopped. Every forecast is in the log.")
    except SystemExit as error:
        # Uvicorn has printed the reason: the port is taken, or the address is not one of this machine.
        raise RecastError(f"cannot listen on {host}:{port}; choose another with --port or --host") from error


@app.command()
def predict(
    problem: Annotated[str, typer.Argument(help="a problem of params.yaml that has a champion")],
    rows: Annotated[
        Path | None,
        typer.Option(
            help="Parquet or CSV: time (UTC), series, the problem's columns; left out: new rows are taken in, and the "
            "newest rows are forecast from"
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="a Parquet file; left out: data/forecasts/<problem>.parquet")] = None,
    all_windows: Annotated[
        bool, typer.Option("--all", help="forecast at every row at which a window is complete, not only at the last")
    ] = False,
) -> None:
    """Forecast with the champion from a file of rows, or from the newest rows, into a Parquet file.

    The status is 5 if the forecasts are stale: their newest row is older than `fresh.max_age` allows.
    """
    from flows.connection import connect
    from flows.predict import STALE
    from flows.predict import predict as flow
    from project.settings.loading import load_settings

    paths.require_root()
    load_settings().problem(problem)
    connect()
    state = flow(problem, rows, out, all_windows, return_state=True)
    if state.name == STALE:
        raise typer.Exit(STALE_STATUS)
    if not state.is_completed():
        state.result()
