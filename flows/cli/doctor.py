"""The command that looks for what is wrong, and says how to fix it."""

import typer
from rich.markup import escape
from rich.table import Table

from flows.cli.app import app
from project import paths
from project.progress import console, output

MARKS = {"well": "[green]well[/]", "advice": "[yellow]advice[/]", "broken": "[red]broken[/]"}


@app.command()
def doctor() -> None:
    """Check settings, versions, folders, space, GPU and every connection; status 1 when something is broken."""
    from flows.doctor import run_checks

    paths.require_root()
    with console.status("checking"):
        findings = list(run_checks())
    table = Table("", "what", "found", "how to fix it", title="Doctor")
    for finding in findings:
        table.add_row(MARKS[finding.state], escape(finding.subject), escape(finding.result), escape(finding.fix))
    output.print(table)
    if any(finding.state == "broken" for finding in findings):
        raise typer.Exit(1)
