"""The command that moves a laptop's project to servers."""

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.app import app
from project import paths
from project.lock import hold_pipeline_lock
from project.progress import console


@app.command()
def migrate(
    laptop: Annotated[Path, typer.Argument(help="root of the project to migrate; left out: this one")] = Path(),
    replace: Annotated[
        bool,
        typer.Option("--replace", help="also if the servers have runs that the laptop does not have; these are lost"),
    ] = False,
) -> None:
    """Copy a laptop's runs, models, artifacts and Prefect's state to this project's servers, which must be down."""
    from flows.migrate import migrate as copy_stores

    paths.require_root()
    with hold_pipeline_lock(), console.status("migrating"):
        result = copy_stores(laptop, replace)
    for name, tables in result.rows.items():
        counts = ", ".join(f"{count:,} {table}" for table, count in tables.items())
        console.print(f"{name}: {counts}: each table counted and compared", soft_wrap=True)
    console.print(f"artifacts: {result.artifacts[0]:,} files, {result.artifacts[1]:,} sent, each compared")
    for location in result.left:
        console.print(f"[yellow]not moved:[/] {location}", soft_wrap=True)
    console.print("`recast up` starts the servers.")
