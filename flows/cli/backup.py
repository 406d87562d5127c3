"""Commands that back up what cannot be made again, and restore it."""

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.app import WaitOption, app
from project import paths
from project.lock import hold_pipeline_lock
from project.progress import console


@app.command()
def backup(
    target: Annotated[Path, typer.Argument(help="a file that ends with .tar, or a folder; it must not exist yet")],
    wait: WaitOption = False,
) -> None:
    """Write MLflow's and Prefect's databases, artifacts, histories, forecasts and DVC's data to one file or folder."""
    from infra.backup import back_up

    paths.require_root()
    with hold_pipeline_lock(wait), console.status("writing"):
        manifest = back_up(target)
    console.print(
        f"{target}: {len(manifest.files)} files, {manifest.size / 1e6:.1f} MB, each with its hash", soft_wrap=True
    )


@app.command()
def restore(
    source: Annotated[Path, typer.Argument(help="a backup that `recast backup` has written")],
    replace: Annotated[bool, typer.Option("--replace", help="replace what this project has")] = False,
) -> None:
    """Restore a backup, after checking that every file of it is as it was written; the servers must be down."""
    from infra.restore import restore as restore_backup

    paths.require_root()
    with hold_pipeline_lock(), console.status("restoring"):
        manifest = restore_backup(source, replace)
    console.print(
        f"Restored {len(manifest.files)} files of {manifest.made}. `recast up` starts the servers, "
        "`dvc checkout` restores the data."
    )
