"""Commands that fetch new rows, take them back, and show those that break the data contract."""

import getpass
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from flows.cli.app import WaitOption, app
from problems.errors import RecastError
from project import paths
from project.lock import hold_pipeline_lock, hold_retraining_lock
from project.progress import console, output

if TYPE_CHECKING:
    from lifecycle.new_rows.quarantine import Arrival, Breach
    from project.settings.sections import Settings

BREACH_STATUS = 4
"""The status of a command that has put rows into quarantine."""


@app.command()
def refresh(
    problems: Annotated[
        list[str] | None,
        typer.Argument(help="problems of params.yaml; left out: those of its `run` that have `fresh`"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="fetch and check, but accept nothing")] = False,
    undo: Annotated[
        str | None,
        typer.Option(
            metavar="INCREMENT",
            help="take back rows that were accepted: they go into quarantine, and a champion that was trained on them "
            "is rolled back",
        ),
    ] = None,
    wait: WaitOption = False,
) -> None:
    """Fetch new rows, check them against the data contract, and accept them or put them into quarantine.

    The status is 0 whether anything was new or not, 4 if rows break the contract, 1 if anything else is wrong.
    """
    from project.settings.parsing import parse_settings

    settings = parse_settings()
    if undo and dry_run:
        raise RecastError("--undo and --dry-run exclude each other; give one of them")
    if undo:
        owner = _find_owner(_select_growing(settings, problems), undo)
        # A retraining that waits for a person may be about to promote a challenger that was trained on these rows.
        with hold_retraining_lock(owner), hold_pipeline_lock(wait):
            _undo(owner, undo, settings)
        return
    names = _select_growing(settings, problems)
    table = Table("problem", "rows", "corrected", "late", "from", "to", "", title="New rows")
    increments: list[tuple[str, list[Breach]]] = []
    unchecked: list[str] = []
    with hold_pipeline_lock(wait):
        for name in names:
            increments += [(name, breaches) for breaches in _refresh_problem(name, settings, dry_run, table)]
            unchecked += _describe_unchecked_rows(name, settings)
    output.print(table)
    for line in unchecked:
        output.print(line, style="yellow", soft_wrap=True, markup=False, highlight=False)
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
    from flows.new_rows import check_next_increment, hold_arrival_lock, take_in_rows
    from lifecycle.new_rows.quarantine import discard_increment
    from problems.files.raw_store import INCREMENTS_FOLDER
    from project.progress import download_progress

    with download_progress(f"refresh {problem}") as progress, hold_arrival_lock(problem):
        if dry_run:
            increment = check_next_increment(problem, settings, progress)
            increments = [] if increment is None else [increment]
        else:
            increments = take_in_rows(problem, settings, progress)
        for increment in increments:
            words = (
                ("in quarantine", "would be put into quarantine")
                if increment.breaches
                else ("accepted", "would be accepted")
            )
            outcome = words[1] if dry_run else f"{words[0]}: {increment.place.name}"
            _add_row(table, increment.arrival, outcome, bool(increment.breaches))
            if dry_run:
                discard_increment(increment.arrival)
    if not dry_run and any(not increment.breaches for increment in increments):
        console.print(
            f"DVC tracks them: `git add {paths.raw_folder(problem) / INCREMENTS_FOLDER}.dvc`", highlight=False
        )
    if not increments:
        table.add_row(problem, "0", "", "", "", "", "nothing new")
    return [increment.breaches for increment in increments]


def _describe_unchecked_rows(problem: str, settings: "Settings") -> list[str]:
    """A line about rows that were added to the source's own files, if there are any."""
    from lifecycle.new_rows.increment_table import find_growing_problem
    from lifecycle.new_rows.unchecked_rows import find_unchecked_rows

    declared, _ = find_growing_problem(problem, settings)
    unchecked = find_unchecked_rows(declared, paths.raw_folder(problem), paths.stage_folder("ingest", problem))
    return [unchecked.describe(problem)] if unchecked else []


def _find_owner(problems: list[str], name: str) -> str:
    """The problem whose raw store has an increment, or whose quarantine has it since it was undone.

    Args:
        name: of the increment.

    Raises:
        RecastError: none has it, or several do.
    """
    from lifecycle.new_rows.quarantine import list_quarantine
    from problems.files.raw_store import INCREMENTS_FOLDER, list_increments

    by_problem = {
        problem: [
            *list_increments(paths.raw_folder(problem) / INCREMENTS_FOLDER),
            *(increment.file for increment in list_quarantine(problem)),
        ]
        for problem in problems
    }
    owners = [problem for problem, files in by_problem.items() if any(name in (file.stem, file.name) for file in files)]
    if len(owners) == 1:
        return owners[0]
    if owners:
        raise RecastError(f"{' and '.join(owners)} have an increment {name}: name the problem too")
    names = [f"{problem}: {', '.join(file.stem for file in files) or 'none'}" for problem, files in by_problem.items()]
    raise RecastError(f"there is no increment {name}; there are: {'; '.join(names)}")


def _undo(problem: str, increment: str, settings: "Settings") -> None:
    """Take back an increment, and have no champion serve that was trained on it if there is another."""
    from flows import dag
    from flows.new_rows import hold_arrival_lock
    from lifecycle.champions import pages, promotion, registry
    from lifecycle.champions.withdrawal import withdraw_versions
    from lifecycle.new_rows.quarantine import undo_increment
    from problems.files.file_hash import file_sha256
    from problems.files.raw_store import INCREMENTS_FOLDER

    by = getpass.getuser()
    with hold_arrival_lock(problem):
        file = undo_increment(problem, increment, by, settings)
        dag.track_folder(paths.raw_folder(problem) / INCREMENTS_FOLDER)
    store = paths.raw_folder(problem) / INCREMENTS_FOLDER
    console.print(
        f"{problem}: {file} is taken back. Its rows do not come again while they are there. `recast quarantine` with "
        f"`--accept {file.stem}` accepts them again, with --drop has them checked anew. For DVC: `git add {store}.dvc`",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    # The history comes first, so that a service switches at once. The rest takes the seconds in which MLflow is loaded.
    withdrawal = withdraw_versions(problem, file_sha256(file), by, f"increment {file.stem} was taken back")
    for line in withdrawal.describe(problem):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if withdrawal.trained:
        promotion.reconcile(problem)
        versions = registry.list_versions(problem)
        for number in withdrawal.trained:
            if number in versions:
                registry.set_tags(versions[number], {registry.UNDONE_TAG: file.stem})
        pages.write_history_page(problem)


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
    problems: Annotated[
        list[str] | None, typer.Argument(help="problems of params.yaml; left out: all that it declares")
    ] = None,
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
    from flows.new_rows import hold_arrival_lock
    from lifecycle.new_rows import quarantine as quarantines
    from problems.files.raw_store import INCREMENTS_FOLDER

    if not accept:
        with hold_arrival_lock(problem):
            quarantines.drop_increment(problem, increment)
        console.print(
            f"{problem}: {increment} is deleted; `recast refresh {problem}` fetches what the source still has of it"
        )
        return
    with hold_arrival_lock(problem):
        file = quarantines.release_increment(problem, increment, settings)
        dag.track_folder(paths.raw_folder(problem) / INCREMENTS_FOLDER)
    console.print(f"{problem}: {file} is accepted; `recast run {problem}` trains on it", highlight=False)
