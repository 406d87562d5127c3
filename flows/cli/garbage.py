"""The command that removes what nothing needs any more."""

from typing import Annotated

import typer
from rich.table import Table

from flows.cli.app import WaitOption, app
from project import paths
from project.lock import hold_pipeline_lock
from project.progress import console, output


@app.command()
def gc(
    trials: Annotated[
        bool, typer.Option("--trials", help="also trials of other grids, data and code than the present ones")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="remove it without asking")] = False,
    wait: WaitOption = False,
) -> None:
    """Show what can be removed without losing anything that a commit, an experiment or a champion needs, and ask."""
    from flows.garbage import find_garbage, remove_garbage

    paths.require_root()
    with hold_pipeline_lock(wait):
        with console.status("looking"):
            kinds = find_garbage(trials)
        if not kinds:
            output.print("Nothing can be removed.")
            return
        table = Table("what", "why it can go", title="What can be removed")
        for heading in ("files or folders", "MB"):
            table.add_column(heading, justify="right")
        for kind in kinds:
            table.add_row(kind.title, kind.consequence, f"{len(kind.paths):,}", f"{kind.size / 1e6:,.1f}")
        output.print(table)
        if not yes and not typer.confirm("Remove all of this?"):
            output.print("Nothing was removed.")
            return
        remove_garbage(kinds)
    output.print("Removed." if not trials else "Removed; `recast run` records the smaller folder of trials.")
