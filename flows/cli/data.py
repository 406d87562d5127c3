"""Commands that bring new rows, and show those that break the data contract."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from flows.cli.app import Problems, Wait, app
from problems.errors import RecastError
from problems.problem import Problem
from project import paths
from project.lock import only_pipeline
from project.progress import console, results
from project.settings.parsing import parse_settings
from project.settings.sections import Settings

if TYPE_CHECKING:
    from lifecycle.new_rows.contract import Breach
    from lifecycle.new_rows.refresh import Arrival

BREACH = 4
"""The status of a command that has put rows into quarantine."""


@app.command()
def refresh(
    problems: Problems = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="fetch and check, but take nothing in")] = False,
    wait: Wait = False,
) -> None:
    """Fetch the rows that are new, check them against the data contract, and take them in or put them into quarantine.

    The status is 0 whether anything was new or not, 4 where rows break the contract, 1 where something else is wrong.
    """
    settings = parse_settings()
    names = _growing(settings, problems)
    table = Table("problem", "rows", "corrected", "late", "from", "to", "", title="New rows")
    found: list[tuple[str, list[Breach]]] = []
    with only_pipeline(wait):
        for name in names:
            found += [(name, breaches) for breaches in _refreshed(name, settings, dry_run, table)]
    results.print(table)
    broken = [(name, breaches) for name, breaches in found if breaches]
    for name, breaches in broken:
        for each in breaches:
            where = f", {each.column}" if each.column else ""
            results.print(f"{name}: {each.rule}{where}: {each.message}", soft_wrap=True, markup=False, highlight=False)
    if broken:
        if not dry_run:
            results.print(
                "These rows are in quarantine; nothing is trained on them. `recast quarantine` shows what to do.",
                soft_wrap=True,
            )
        raise typer.Exit(BREACH)


def _growing(settings: Settings, problems: list[str] | None) -> list[str]:
    """The problems asked for; where none is, those of `run` whose source grows.

    Raises:
        RecastError: there is none.
    """
    for name in problems or ():
        settings.problem(name)
    if problems:
        return problems
    found = [
        name for name in settings.run if isinstance(each := settings.problem(name), Problem) and each.fresh is not None
    ]
    if not found:
        raise RecastError("no problem that `run` in params.yaml lists has `fresh`; see docs/refresh.md")
    return found


def _refreshed(problem: str, settings: Settings, dry_run: bool, table: Table) -> "list[list[Breach]]":
    """Bring what is new of a problem, a row of the table an increment; what each breaks."""
    from flows import dag
    from lifecycle.new_rows import refresh as increments
    from lifecycle.new_rows.contract import check
    from problems.increments import FOLDER
    from project.progress import download_progress

    store, broken = paths.raw(problem) / FOLDER, []
    with download_progress(f"refresh {problem}") as progress:
        while arrival := increments.arrived(problem, settings, progress):
            breaches = check(problem, settings, arrival)
            broken.append(breaches)
            if dry_run:
                became = "would be put into quarantine" if breaches else "would be taken in"
            else:
                place = increments.quarantine(arrival, breaches) if breaches else increments.accept(arrival)
                became = f"{'in quarantine' if breaches else 'taken in'}: {place.name}"
            _add(table, arrival, became, bool(breaches))
            if dry_run:
                increments.discard(arrival)
                break
    if not dry_run and store.exists() and dag.track(store):
        console.print(f"DVC tracks them: git add {store}.dvc", highlight=False)
    if not broken:
        table.add_row(problem, "0", "", "", "", "", "nothing new")
    return broken


def _add(table: Table, arrival: "Arrival", became: str, is_broken: bool) -> None:
    counts = (f"{count:,}" for count in (arrival.rows, arrival.corrected, arrival.late))
    table.add_row(
        arrival.problem,
        *counts,
        arrival.first or "?",
        arrival.last or "?",
        escape(became),
        style="red" if is_broken else None,
    )


@app.command()
def quarantine(
    problems: Problems = None,
    accept: Annotated[str | None, typer.Option(help="take this increment in after all")] = None,
    drop: Annotated[
        str | None, typer.Option(help="delete this increment; what the source still has of it comes again")
    ] = None,
    wait: Wait = False,
) -> None:
    """Show the new rows that break the data contract, and why; take them in after all, or delete them."""
    settings = parse_settings()
    if accept and drop:
        raise RecastError("--accept and --drop exclude each other; give one of them")
    names = [name for name in problems or settings.problems if settings.problem(name)]
    if name := accept or drop:
        with only_pipeline(wait):
            _settle(_holder(names, name), name, settings, bool(accept))
        return
    from lifecycle.new_rows.refresh import quarantined

    table = Table("problem", "increment", "rows", "from", "to", "rule", "column", title="Quarantine", show_lines=True)
    found = [(name, each) for name in names for each in quarantined(name)]
    for name, each in found:
        came = each.arrival
        rules, columns = ([breach[key] or "" for breach in each.breaches] for key in ("rule", "column"))
        table.add_row(
            name,
            each.file.stem,
            f"{came['rows']:,}",
            came["first"] or "?",
            came["last"] or "?",
            "\n".join(rules),
            escape("\n".join(columns)),
        )
    if not found:
        results.print("Nothing is in quarantine.")
        return
    results.print(table)
    for _, each in found:
        for breach in each.breaches:
            results.print(f"{each.file.stem}: {breach['message']}", soft_wrap=True, markup=False, highlight=False)
    results.print(
        "Right after all: recast quarantine --accept INCREMENT. Wrong: mend the source, then recast quarantine --drop "
        "INCREMENT and recast refresh.",
        soft_wrap=True,
        highlight=False,
    )


def _holder(problems: list[str], increment: str) -> str:
    """The problem in whose quarantine an increment lies.

    Raises:
        RecastError: there is none.
    """
    from lifecycle.new_rows.refresh import quarantined

    for problem in problems:
        if any(increment in (each.file.stem, each.file.name) for each in quarantined(problem)):
            return problem
    raise RecastError(f"no increment {increment} is in quarantine; `recast quarantine` lists them")


def _settle(problem: str, increment: str, settings: Settings, is_right: bool) -> None:
    """Take an increment in, or delete it."""
    from flows import dag
    from lifecycle.new_rows import refresh as increments
    from problems.increments import FOLDER

    if not is_right:
        increments.drop(problem, increment)
        console.print(f"{problem}: {increment} is deleted; recast refresh {problem} brings what the source still has")
        return
    file = increments.release(problem, increment, settings)
    dag.track(paths.raw(problem) / FOLDER)
    console.print(f"{problem}: {file} is taken in; recast run {problem} trains on it", highlight=False)
