"""recast: the command line."""

import sys

from rich.markup import escape

# Each puts its commands on the command line.
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
    servers,
    status,
)
from flows.cli.app import app
from problems.errors import RecastError
from project.command import plain_errors
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
    "servers",
    "status",
]


def main() -> None:
    """Run the command line; mendable errors end with a message and status 1."""
    try:
        with plain_errors():
            app()
    except RecastError as error:
        console.print(f"[red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(1)
