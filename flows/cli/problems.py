"""Commands that change which problems and which grid there are."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from flows.cli.app import app
from project import paths
from project.lock import only_pipeline
from project.progress import console, results

if TYPE_CHECKING:
    from stages.table_discovery.proposal import Proposal


@app.command()
def use(
    file: Annotated[Path, typer.Argument(help="a file with some of the keys of params.yaml, such as grids/all.yaml")],
) -> None:
    """Put the values of FILE in the place of those in params.yaml; its comments and all other values stay."""
    from project.paths import PARAMS
    from project.settings.loading import overlay_settings

    paths.require_root()
    with only_pipeline(wait=False):
        changed = overlay_settings(file, PARAMS)
    console.print(
        f"{PARAMS}: {', '.join(changed) or 'nothing'} changed. `git diff {PARAMS}` shows it, recast run runs it.",
        soft_wrap=True,
    )


@app.command()
def new(
    file: Annotated[str, typer.Argument(help="a CSV or Parquet file, a folder of them or a pattern in quotes")],
    name: Annotated[str | None, typer.Option(help="of the problem; none: from the file's name")] = None,
    target: Annotated[str | None, typer.Option(help="the column to forecast")] = None,
    unit: Annotated[str | None, typer.Option(help="of the target; none: from the column's name")] = None,
    time: Annotated[list[str] | None, typer.Option(help="the column of the time; or two, date and clock")] = None,
    series: Annotated[str | None, typer.Option(help="the column that tells several series apart")] = None,
    time_zone: Annotated[
        str | None, typer.Option(help="of times without one, such as Europe/Berlin; none: UTC")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show what would be written, and write nothing")] = False,
) -> None:
    """Make a problem of a file: find out what it holds, try it, show it, and write its section of params.yaml."""
    from project.paths import PARAMS
    from stages.table_discovery.proposal import propose, write

    paths.require_root()
    with console.status(f"looking at {file}"):
        found = propose(file, name, target, unit, time or (), series, time_zone)
    _preview(found)
    if dry_run:
        return
    with only_pipeline(wait=False):
        write(found, PARAMS)
    console.print(
        f"{PARAMS}: problems.{found.name} is written, and `run` has it. `git diff {PARAMS}` shows it; correct what is "
        f"wrong, then: recast run {found.name}",
        soft_wrap=True,
    )


def _preview(found: "Proposal") -> None:
    """What a file holds, what it is taken for, and what could not be told."""
    source, quality = found.section["source"], found.quality
    rows = Table(title=escape(f"The first rows of {source['path']}"))
    sample = found.inspection.sample.head(5)
    for column in sample.columns[:8]:
        rows.add_column(escape(column))
    for row in sample.iter_rows():
        rows.add_row(*("" if value is None else escape(str(value)) for value in row[:8]))
    results.print(rows)
    columns = Table("column", "taken for", title=f"The columns, and what becomes of them in problem {found.name}")
    for heading in ("nulls", "least", "mean", "most"):
        columns.add_column(heading, justify="right")
    for each in found.inspection.columns:
        of = quality.columns.get(each.name)
        figures = (f"{of.nulls:,}", f"{of.min:g}", f"{of.mean:g}", f"{of.max:g}") if of else ()
        role = "target" if each.name == found.section["table"]["target"] else each.role
        columns.add_row(escape(each.name), escape({"number": "feature"}.get(role, role)), *figures)
    results.print(columns)
    gaps = sum(each.gaps for each in quality.series.values())
    windows = ", ".join(f"{count:,} for {split}" for split, count in found.windows.items())
    results.print(
        f"{quality.rows_kept:,} rows every {quality.cadence}, {len(quality.series)} series, {gaps:,} gaps. "
        f"Windows: {windows}.",
        soft_wrap=True,
    )
    if found.questions:
        results.print("To be settled by you:")
        for question in found.questions:
            results.print(f"- {escape(question)}", soft_wrap=True, highlight=False)
