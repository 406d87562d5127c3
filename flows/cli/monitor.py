"""The command that holds forecasts against what was observed."""

from typing import Annotated

import typer

from flows.cli.app import app
from project import paths
from project.progress import results


@app.command()
def monitor(problem: Annotated[str, typer.Argument(help="a problem of params.yaml that has a champion")]) -> None:
    """Hold forecasts against what was observed since, and tell of what breaks a rule of `monitor` in params.yaml."""
    from flows.connection import connect
    from flows.monitor import monitor as flow
    from lifecycle.monitoring import rules
    from project.settings.loading import load_settings

    paths.require_root()
    load_settings().problem(problem)
    connect()
    flow(problem)
    page = rules.folder(problem) / "monitor.html"
    if page.exists():
        results.print(f"Page: {page}", soft_wrap=True)
