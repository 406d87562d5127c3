"""`recast`: the command line."""

import io
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
    garbage,
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
from project.paths import INTERRUPTED_RESTORE
from project.progress import console, print_warning

__all__ = [
    "backtest",
    "backup",
    "champion",
    "data",
    "deployments",
    "doctor",
    "forecasts",
    "garbage",
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
    # A message may name a file whose name is not text.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        with explain_disk_errors():
            _finish_interrupted_restore()
            app()
    except RecastError as error:
        console.print(f"[red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(1)


def _finish_interrupted_restore() -> None:
    """Complete a restore that was killed: until then the stores contradict each other."""
    # Help is shown even while one is going on.
    if INTERRUPTED_RESTORE.exists() and len(sys.argv) > 1 and "--help" not in sys.argv:
        from infra.restore import finish_interrupted_restore

        if result := finish_interrupted_restore():
            print_warning(result)
