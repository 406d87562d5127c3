"""The command that looks for what is wrong, and says how to mend it."""

import typer
from rich.markup import escape
from rich.table import Table

from flows.cli.app import app
from project import paths
from project.progress import console, results

MARKS = {"well": "[green]well[/]", "advice": "[yellow]advice[/]", "broken": "[red]broken[/]"}


@app.command()
def doctor() -> None:
    """Check settings, versions, folders, space, GPU and every connection; status 1 when something is broken."""
    from flows.doctor import examine

    paths.require_root()
    with console.status("looking"):
        findings = list(examine())
    table = Table("", "what", "found", "how to mend it", title="Doctor")
    for each in findings:
        table.add_row(MARKS[each.state], escape(each.what), escape(each.found), escape(each.mend))
    results.print(table)
    if any(each.state == "broken" for each in findings):
        raise typer.Exit(1)
