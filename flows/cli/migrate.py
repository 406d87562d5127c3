"""The command that brings a laptop's project to servers."""

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.app import app
from project import paths
from project.lock import only_pipeline
from project.progress import console


@app.command()
def migrate(
    laptop: Annotated[Path, typer.Argument(help="root of the project to bring over; this one when left out")] = Path(),
    replace: Annotated[
        bool, typer.Option("--replace", help="also where the servers have runs that the laptop has not; they are lost")
    ] = False,
) -> None:
    """Bring a laptop's runs, models, artifacts and Prefect's state to this project's servers; these must be down."""
    from flows.migrate import migrate as bring

    paths.require_root()
    with only_pipeline(), console.status("migrating"):
        done = bring(laptop, replace)
    for name, tables in done.rows.items():
        what = ", ".join(f"{count:,} {table}" for table, count in tables.items())
        console.print(f"{name}: {what}: each table counted and compared", soft_wrap=True)
    console.print(f"artifacts: {done.artifacts[0]:,} files, {done.artifacts[1]:,} sent, each compared")
    for place in done.left:
        console.print(f"[yellow]stay where they are:[/] {place}", soft_wrap=True)
    console.print("`recast up` starts the servers")
