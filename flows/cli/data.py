"""Commands that fetch new rows, and show those that break the data contract."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from flows.cli.app import ProblemArguments, WaitOption, app
from problems.errors import RecastError
from project import paths
from project.lock import hold_pipeline_lock
from project.progress import console, output

if TYPE_CHECKING:
    from lifecycle.new_rows.quarantine import Arrival, Breach
    from project.settings.sections import Settings

BREACH_STATUS = 4
"""The status of a command that has put rows into quarantine."""


@app.command()
def refresh(
    problems: ProblemArguments = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="fetch and check, but accept nothing")] = False,
    wait: WaitOption = False,
) -> None:
    """Fetch new rows, check them against the data contract, and accept them or put them into quarantine.

    The status is 0 whether anything was new or not, 4 if rows break the contract, 1 if anything else is wrong.
    """
    from project.settings.parsing import parse_settings

    settings = parse_settings()
    names = _select_growing(settings, problems)
    table = Table("problem", "rows", "corrected", "late", "from", "to", "", title="New rows")
    increments: list[tuple[str, list[Breach]]] = []
    with hold_pipeline_lock(wait):
        for name in names:
            increments += [(name, breaches) for breaches in _refresh_problem(name, settings, dry_run, table)]
    output.print(table)
    broken = [(name, breaches) for name, breaches in increments if breaches]
    for name, breaches in broken:
        for breach in breaches:
            column = f", {breach.column}" if breach.column else ""
            output.print(
                f"{name}: {breach.rule}{column}: {breach.message}", soft_wrap=True, markup=False, highlight=False
            )
    if broken:
        if not dry_run:
            output.print(
                "These rows are in quarantine; nothing is trained on them. `recast quarantine` shows what to do.",
                soft_wrap=True,
            )
        raise typer.Exit(BREACH_STATUS)


def _select_growing(settings: "Settings", problems: list[str] | None) -> list[str]:
    """The problems that the user has named, else those of `run` whose source grows.

    Raises:
        RecastError: there is none.
    """
    from problems.problem import Problem

    for name in problems or ():
        settings.problem(name)
    if problems:
        return problems
    growing = [
        name
        for name in settings.run
        if isinstance(problem := settings.problem(name), Problem) and problem.fresh is not None
    ]
    if not growing:
        raise RecastError("no problem that `run` in params.yaml lists has `fresh`; see docs/refresh.md")
    return growing


def _refresh_problem(problem: str, settings: "Settings", dry_run: bool, table: Table) -> "list[list[Breach]]":
    """Fetch, check and place new rows, and add a row to the table for each increment; the breaches of each."""
    from flows import dag
    from lifecycle.new_rows import quarantine as quarantines
    from lifecycle.new_rows import refresh as refreshes
    from lifecycle.new_rows.contract import check_contract
    from problems.files.raw_store import INCREMENTS_FOLDER
    from project.progress import download_progress

    store = paths.raw_folder(problem) / INCREMENTS_FOLDER
    breaches_by_increment: list[list[Breach]] = []
    with download_progress(f"refresh {problem}") as progress:
        while arrival := refreshes.fetch_increment(problem, settings, progress):
            breaches = check_contract(problem, settings, arrival)
            breaches_by_increment.append(breaches)
            if dry_run:
                outcome = "would be put into quarantine" if breaches else "would be accepted"
            else:
                if breaches:
                    outcome = f"in quarantine: {quarantines.quarantine_increment(arrival, breaches).name}"
                else:
                    outcome = f"accepted: {quarantines.accept_increment(arrival).name}"
            _add_row(table, arrival, outcome, bool(breaches))
            if dry_run:
                quarantines.discard_increment(arrival)
                break
    if not dry_run and store.exists() and dag.track_folder(store):
        console.print(f"DVC tracks them: `git add {store}.dvc`", highlight=False)
    if not breaches_by_increment:
        table.add_row(problem, "0", "", "", "", "", "nothing new")
    return breaches_by_increment


def _add_row(table: Table, arrival: "Arrival", outcome: str, is_broken: bool) -> None:
    counts = (f"{count:,}" for count in (arrival.rows, arrival.corrected, arrival.late))
    table.add_row(
        arrival.problem,
        *counts,
        arrival.first or "?",
        arrival.last or "?",
        escape(outcome),
        style="red" if is_broken else None,
    )


@app.command()
def quarantine(
    problems: ProblemArguments = None,
    accept: Annotated[str | None, typer.Option(help="accept this increment after all")] = None,
    drop: Annotated[
        str | None, typer.Option(help="delete this increment; rows that the source still has come again")
    ] = None,
    wait: WaitOption = False,
) -> None:
    """Show the new rows that break the data contract, and why; accept them after all, or delete them."""
    from project.settings.parsing import parse_settings

    settings = parse_settings()
    if accept and drop:
        raise RecastError("--accept and --drop exclude each other; give one of them")
    names = [name for name in problems or settings.problems if settings.problem(name)]
    if name := accept or drop:
        with hold_pipeline_lock(wait):
            _resolve(_find_problem(names, name), name, settings, bool(accept))
        return
    from lifecycle.new_rows.quarantine import list_quarantine

    table = Table("problem", "increment", "rows", "from", "to", "rule", "column", title="Quarantine", show_lines=True)
    quarantined = [(name, increment) for name in names for increment in list_quarantine(name)]
    for name, increment in quarantined:
        arrival = increment.arrival
        rules, columns = ([breach[key] or "" for breach in increment.breaches] for key in ("rule", "column"))
        table.add_row(
            name,
            increment.file.stem,
            f"{arrival['rows']:,}",
            arrival["first"] or "?",
            arrival["last"] or "?",
            "\n".join(rules),
            escape("\n".join(columns)),
        )
    if not quarantined:
        output.print("Nothing is in quarantine.")
        return
    output.print(table)
    for _, increment in quarantined:
        for breach in increment.breaches:
            output.print(f"{increment.file.stem}: {breach['message']}", soft_wrap=True, markup=False, highlight=False)
    output.print(
        "If the rows are right: `recast quarantine --accept INCREMENT`. If they are wrong: fix the source, then "
        "`recast quarantine --drop INCREMENT` and `recast refresh`.",
        soft_wrap=True,
        highlight=False,
    )


def _find_problem(problems: list[str], name: str) -> str:
    """The problem in whose quarantine an increment is.

    Args:
        name: of the increment.

    Raises:
        RecastError: it is in no quarantine.
    """
    from lifecycle.new_rows.quarantine import list_quarantine

    for problem in problems:
        if any(name in (increment.file.stem, increment.file.name) for increment in list_quarantine(problem)):
            return problem
    raise RecastError(f"no increment {name} is in quarantine; `recast quarantine` lists them")


def _resolve(problem: str, increment: str, settings: "Settings", accept: bool) -> None:
    """Accept an increment that is in quarantine, or delete it."""
    from flows import dag
    from lifecycle.new_rows import quarantine as quarantines
    from problems.files.raw_store import INCREMENTS_FOLDER

    if not accept:
        quarantines.drop_increment(problem, increment)
        console.print(
            f"{problem}: {increment} is deleted; `recast refresh {problem}` fetches what the source still has of it"
        )
        return
    file = quarantines.release_increment(problem, increment, settings)
    dag.track_folder(paths.raw_folder(problem) / INCREMENTS_FOLDER)
    console.print(f"{problem}: {file} is accepted; `recast run {problem}` trains on it", highlight=False)
