"""The command that holds forecasts against what was observed."""

from typing import Annotated

import typer

from flows.cli.app import app
from flows.progress import results
from stages import places


@app.command()
def monitor(problem: Annotated[str, typer.Argument(help="a problem of params.yaml that has a champion")]) -> None:
    """Hold forecasts against what was observed since, and tell of what breaks a rule of `monitor` in params.yaml."""
    from champions import monitoring
    from flows.connection import connect
    from flows.monitor import monitor as flow
    from stages.settings import load

    places.require_root()
    load().problem(problem)
    connect()
    flow(problem)
    page = monitoring.folder(problem) / "monitor.html"
    if page.exists():
        results.print(f"Page: {page}", soft_wrap=True)
