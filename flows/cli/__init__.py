"""`recast`: the command line."""

import sys

from rich.markup import escape

# Each of these modules adds its commands to the command line.
from flows.cli import (
    backtest,
    backup,
    champion,
    data,
    deployments,
    doctor,
    forecasts,
    migrate,
    monitor,
    pipeline,
    problems,
    report,
    servers,
    status,
)
from flows.cli.app import app
from problems.errors import RecastError
from project.disk import explain_disk_errors
from project.progress import console

__all__ = [
    "backtest",
    "backup",
    "champion",
    "data",
    "deployments",
    "doctor",
    "forecasts",
    "main",
    "migrate",
    "monitor",
    "pipeline",
    "problems",
    "report",
    "servers",
    "status",
]


def main() -> None:
    """Run the command line. An error that the user can fix ends it with a message and status 1."""
    try:
        with explain_disk_errors():
            app()
    except RecastError as error:
        console.print(f"[red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(1)
