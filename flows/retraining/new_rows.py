"""The first step of a retraining: fetch new rows, check them, and accept them or put them into quarantine."""

from dataclasses import dataclass

from prefect import task

from flows import dag
from flows.alerts import alert
from flows.retraining.marks import breach_mark, mark_open
from lifecycle.new_rows import contract, quarantine, refresh
from problems.problem import Problem
from project import paths
from project.atomic import write_json
from project.progress import console
from project.records import read_record
from project.settings.sections import Settings
from stages.fetching import fetch


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
    while isinstance(declared, Problem) and declared.fresh is not None:
        arrival = refresh.fetch_increment(problem, settings, lambda done, total: None)
        if arrival is None:
            break
        description = f"{arrival.rows:,} rows from {arrival.first} to {arrival.last}"
        broken_rules = contract.check_contract(problem, settings, arrival)
        if broken_rules:
            lines = [f"{description}, in {paths.quarantine_folder(problem) / arrival.pending.name}:"]
            lines += [f"- {breach.rule}: {breach.message}" for breach in broken_rules]
            # The alert goes first: what is in quarantine does not come again, even if this process is killed.
            alert("breach", f"{problem}: new rows break the data contract", breach_text(problem, lines))
            breaches += lines
            write_json(breach_mark(problem), breaches)
            quarantine.quarantine_increment(arrival, broken_rules)
        else:
            # From here on there is something to train on, even if this process is killed.
            mark_open(problem)
            quarantine.accept_increment(arrival)
            accepted.append(f"{description}, {arrival.corrected:,} of them corrections")
            console.print(f"{problem}: {accepted[-1]}", highlight=False, soft_wrap=True)
    increments = paths.raw_folder(problem) / "fresh"
    if increments.exists():
        dag.track_folder(increments)
    return RefreshResult(accepted, breaches)


def breach_text(problem: str, breaches: list[str]) -> str:
    """The text of the alert about rows that break the contract."""
    next_step = f"Nothing was trained, and the champion stays. `recast quarantine {problem}` shows what to do."
    return "\n".join([*breaches, next_step])
