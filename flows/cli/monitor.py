"""The command that compares forecasts with observations."""

from typing import Annotated

import typer

from flows.cli.app import app
from project import paths
from project.progress import output


@app.command()
def monitor(problem: Annotated[str, typer.Argument(help="a problem of params.yaml that has a champion")]) -> None:
    """Compare forecasts with later observations, and report every broken rule of `monitor` in params.yaml."""
    from flows.connection import connect
    from flows.monitor import monitor as flow
    from lifecycle.monitoring.history import monitor_folder
    from project.settings.loading import load_settings

    paths.require_root()
    load_settings().problem(problem)
    connect()
    flow(problem)
    page = monitor_folder(problem) / "monitor.html"
    if page.exists():
        output.print(f"Page: {page}", soft_wrap=True)
