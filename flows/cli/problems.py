"""Commands that write params.yaml: another grid, or a new problem."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from flows.cli.app import app
from project import paths
from project.lock import hold_pipeline_lock
from project.progress import console, output

if TYPE_CHECKING:
    from stages.table_discovery.proposal import Proposal


@app.command()
def use(
    file: Annotated[Path, typer.Argument(help="a file with some of the keys of params.yaml, such as grids/all.yaml")],
) -> None:
    """Overwrite values of params.yaml with those of FILE. Its comments and all other values stay."""
    from project.paths import PARAMS
    from project.settings.loading import overlay_settings

    paths.require_root()
    with hold_pipeline_lock(wait=False):
        changed = overlay_settings(file, PARAMS)
    console.print(
        f"{PARAMS}: {', '.join(changed) or 'nothing'} changed. `git diff {PARAMS}` shows it, `recast run` runs it.",
        soft_wrap=True,
    )


@app.command()
def new(
    file: Annotated[str, typer.Argument(help="a CSV or Parquet file, a folder of them or a pattern in quotes")],
    name: Annotated[str | None, typer.Option(help="of the problem; left out: made of the file's name")] = None,
    target: Annotated[str | None, typer.Option(help="the column to forecast")] = None,
    unit: Annotated[str | None, typer.Option(help="of the target; left out: read from the column's name")] = None,
    time: Annotated[
        list[str] | None, typer.Option(help="the column with the time; or two, with date and clock time")
    ] = None,
    series: Annotated[str | None, typer.Option(help="the column that tells several series apart")] = None,
    time_zone: Annotated[
        str | None, typer.Option(help="of times without one, such as Europe/Berlin; left out: UTC")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show what would be written, and write nothing")] = False,
) -> None:
    """Make a problem from a file: find out what it holds, try it, show it, and write its section of params.yaml."""
    from project.paths import PARAMS
    from stages.table_discovery.proposal import propose_problem, write_proposal

    paths.require_root()
    with console.status(f"looking at {file}"):
        proposal = propose_problem(file, name, target, unit, time or (), series, time_zone)
    _preview(proposal)
    if dry_run:
        return
    with hold_pipeline_lock(wait=False):
        write_proposal(proposal, PARAMS)
    console.print(
        f"{PARAMS}: problems.{proposal.name} is written, and `run` lists it. `git diff {PARAMS}` shows it. Correct "
        f"what is wrong, then: `recast run {proposal.name}`",
        soft_wrap=True,
    )


def _preview(proposal: "Proposal") -> None:
    """Print what a file holds, how it is understood, and what could not be found out."""
    source, quality = proposal.section["source"], proposal.quality
    rows = Table(title=escape(f"The first rows of {source['path']}"))
    sample = proposal.inspection.sample.head(5)
    for name in sample.columns[:8]:
        rows.add_column(escape(name))
    for row in sample.iter_rows():
        rows.add_row(*("" if value is None else escape(str(value)) for value in row[:8]))
    output.print(rows)
    columns = Table("column", "used as", title=f"The columns, and what becomes of them in problem {proposal.name}")
    for heading in ("nulls", "minimum", "mean", "maximum"):
        columns.add_column(heading, justify="right")
    for column in proposal.inspection.columns:
        numbers = quality.columns.get(column.name)
        figures = (f"{numbers.nulls:,}", f"{numbers.min:g}", f"{numbers.mean:g}", f"{numbers.max:g}") if numbers else ()
        role = "target" if column.name == proposal.section["table"]["target"] else column.role
        columns.add_row(escape(column.name), escape({"number": "feature"}.get(role, role)), *figures)
    output.print(columns)
    gaps = sum(series.gaps for series in quality.series.values())
    windows = ", ".join(f"{count:,} for {split}" for split, count in proposal.windows.items())
    output.print(
        f"{quality.rows_kept:,} rows every {quality.cadence}, {len(quality.series)} series, {gaps:,} gaps. "
        f"Windows: {windows}.",
        soft_wrap=True,
    )
    if proposal.questions:
        output.print("For you to decide:")
        for question in proposal.questions:
            output.print(f"- {escape(question)}", soft_wrap=True, highlight=False)
