"""The first step of a retraining: take in new rows."""

from dataclasses import dataclass

from prefect import task

from flows import dag
from flows.alerts import alert
from flows.new_rows import CheckedIncrement, alert_of_breach, describe_breaches, hold_arrival_lock, take_in_rows
from flows.retraining.marks import breach_mark, mark_open
from lifecycle.new_rows.unchecked_rows import find_unchecked_rows
from problems.files.raw_store import INCREMENTS_FOLDER
from problems.problem import Problem
from project import paths
from project.atomic import write_json
from project.progress import console
from project.records import read_record
from project.settings.sections import Settings
from stages.fetching import fetch

BREACH_OUTCOME = "Nothing was trained, and the champion stays."
"""What rows that break the contract mean for a retraining."""


@dataclass(frozen=True)
class RefreshResult:
    """What a refresh has brought.

    Attributes:
        accepted: a description of each increment that was added to the raw store.
        breaches: lines that say which increments are in quarantine, and why; also those of an earlier run that was
            killed before it ended.
    """

    accepted: list[str]
    breaches: list[str]


@task(name="refresh", persist_result=False)
def refresh_task(problem: str, settings: Settings) -> RefreshResult:
    """Fetch and check new rows, increment by increment. Those that break the contract go into quarantine."""
    declared = settings.problem(problem)
    fetch(problem, settings)
    accepted: list[str] = []
    breaches: list[str] = (
        read_record(breach_mark(problem), list[str], fix="delete it") if breach_mark(problem).exists() else []
    )

    def note(increment: CheckedIncrement) -> None:
        if increment.breaches:
            lines = describe_breaches(problem, increment)
            # The alert goes first: what is in quarantine does not come again, even if this process is killed.
            alert_of_breach(problem, lines, BREACH_OUTCOME)
            breaches.extend(lines)
            write_json(breach_mark(problem), breaches)
        else:
            # From here on there is something to train on, even if this process is killed.
            mark_open(problem)
            accepted.append(f"{increment.description}, {increment.arrival.corrected:,} of them corrections")
            console.print(f"{problem}: {accepted[-1]}", highlight=False, soft_wrap=True)

    if isinstance(declared, Problem):
        report_unchecked_rows(problem, declared)
        if declared.fresh is not None:
            with hold_arrival_lock(problem):
                take_in_rows(problem, settings, lambda done, total: None, before_placing=note)
    increments = paths.raw_folder(problem) / INCREMENTS_FOLDER
    if increments.exists():
        # What a killed process has accepted may not be tracked yet.
        dag.track_folder(increments)
    return RefreshResult(accepted, breaches)


def report_unchecked_rows(problem: str, declared: Problem) -> None:
    """Tell people about rows that were added to the source's own files, on which the retraining trains unchecked."""
    unchecked = find_unchecked_rows(declared, paths.raw_folder(problem), paths.stage_folder("ingest", problem))
    if unchecked is not None:
        text = unchecked.describe(problem)
        console.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)
        alert("breach", f"{problem}: {unchecked.rows:,} rows are unchecked", text)
