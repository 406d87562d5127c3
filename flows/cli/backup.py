"""Commands that keep a copy of what cannot be made again, and put it back."""

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.app import Wait, app
from project import paths
from project.lock import only_pipeline
from project.progress import console


@app.command()
def backup(
    target: Annotated[Path, typer.Argument(help="a file that ends with .tar, or a folder; it must not be there yet")],
    wait: Wait = False,
) -> None:
    """Write MLflow's and Prefect's databases, artifacts, histories, forecasts and DVC's data to one place."""
    from infra.backup import back_up

    paths.require_root()
    with only_pipeline(wait), console.status("writing"):
        made = back_up(target)
    console.print(f"{target}: {len(made.files)} files, {made.size / 1e6:.1f} MB, each with its hash", soft_wrap=True)


@app.command()
def restore(
    source: Annotated[Path, typer.Argument(help="what `recast backup` has written")],
    replace: Annotated[bool, typer.Option("--replace", help="in the place of what is here")] = False,
) -> None:
    """Put a backup back, once every file of it is found to be as it was written; its servers must be down."""
    from infra.backup import restore as put_back

    paths.require_root()
    with only_pipeline(), console.status("restoring"):
        held = put_back(source, replace)
    console.print(f"restored {len(held.files)} files of {held.made}; `recast up`, and `dvc checkout` for the data")
