"""Taking in new rows: they are fetched and checked, and accepted into the raw store or put into quarantine.

`recast refresh` and the flows `retrain` and `predict` all do it here. For a problem, one process does it at a time.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from flows import dag
from flows.alerts import alert
from lifecycle.new_rows import contract, quarantine, refresh
from lifecycle.new_rows.quarantine import Arrival, Breach
from problems.files.raw_store import INCREMENTS_FOLDER
from problems.source import DownloadProgress
from project import paths
from project.lock import PipelineRuns
from project.settings.sections import Settings


@dataclass(frozen=True)
class CheckedIncrement:
    """An increment that has come.

    Attributes:
        breaches: the rules of the contract that it breaks.
        place: where it is now: in the raw store, in quarantine, or where it has arrived.
    """

    arrival: Arrival
    breaches: list[Breach]
    place: Path

    @property
    def is_waiting(self) -> bool:
        """Whether it keeps the contract, but is not in the raw store yet."""
        return not self.breaches and self.place == self.arrival.pending

    @property
    def description(self) -> str:
        """How many rows there are, and from when to when."""
        return f"{self.arrival.rows:,} rows from {self.arrival.first} to {self.arrival.last}"


BeforePlacing = Callable[[CheckedIncrement], None]
"""Called with an increment before it is accepted or put into quarantine: neither comes again, even if the process is
killed.
"""


@contextmanager
def hold_arrival_lock(problem: str) -> Iterator[None]:
    """Wait until no other process takes in new rows of this problem, and keep others from it until the block ends.

    It protects the folder where they arrive. Whoever waits for the pipeline's lock as well takes that one first.
    """
    paths.STATE.mkdir(exist_ok=True)
    with FileLock(paths.STATE / f"arrivals-{problem}.lock"):
        yield


def take_in_rows(
    problem: str,
    settings: Settings,
    progress: DownloadProgress,
    before_placing: BeforePlacing = lambda increment: None,
    pipeline_lock: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> list[CheckedIncrement]:
    """Fetch and check what is new, and accept each increment, which DVC then tracks, or put it into quarantine.

    The caller holds the arrival lock.

    Args:
        pipeline_lock: holds the pipeline's lock, without which nothing may be accepted; left out: the caller holds it.
            If another process holds it, the increment stays where it has arrived, as the last one; the next call finds
            its rows again.

    Raises:
        Unreachable: the place of new rows cannot be reached now.
        RecastError: what came cannot be read in the way that its source says.
    """
    store = paths.raw_folder(problem) / INCREMENTS_FOLDER
    if _is_untracked(store):
        with suppress(PipelineRuns), pipeline_lock():
            dag.track_folder(store)
    increments: list[CheckedIncrement] = []
    while increment := check_next_increment(problem, settings, progress):
        arrival, breaches = increment.arrival, increment.breaches
        if breaches:
            before_placing(increment)
            place = quarantine.quarantine_increment(arrival, breaches)
        else:
            try:
                with pipeline_lock():
                    before_placing(increment)
                    place = quarantine.accept_increment(arrival)
                    dag.track_folder(store)
            except PipelineRuns:
                increments.append(increment)
                break
        increments.append(CheckedIncrement(arrival, breaches, place))
    return increments


def _is_untracked(store: Path) -> bool:
    """Whether an increment was accepted by a process that was killed before DVC tracked it."""
    note = Path(f"{store}.dvc")
    return store.exists() and (not note.exists() or note.stat().st_mtime_ns < store.stat().st_mtime_ns)


def check_next_increment(problem: str, settings: Settings, progress: DownloadProgress) -> CheckedIncrement | None:
    """Fetch and check what is new, as one increment, which stays where it has arrived; None: nothing is new.

    Raises:
        Unreachable: the place of new rows cannot be reached now.
        RecastError: what came cannot be read in the way that its source says.
    """
    arrival = refresh.fetch_increment(problem, settings, progress)
    if arrival is None:
        return None
    return CheckedIncrement(arrival, contract.check_contract(problem, settings, arrival), arrival.pending)


def describe_breaches(problem: str, increment: CheckedIncrement) -> list[str]:
    """Lines that say which increment goes into quarantine, and which rules it breaks."""
    place = paths.quarantine_folder(problem) / increment.arrival.pending.name
    rules = [f"- {breach.rule}: {breach.message}" for breach in increment.breaches]
    return [f"{increment.description}, in {place}:", *rules]


def alert_of_breach(problem: str, breaches: list[str], outcome: str) -> None:
    """Send the alert about rows that break the contract; for the arguments see `breach_text`."""
    alert("breach", f"{problem}: new rows break the data contract", breach_text(problem, breaches, outcome))


def breach_text(problem: str, breaches: list[str], outcome: str) -> str:
    """The text of the alert about rows that break the contract.

    Args:
        breaches: as `describe_breaches` gives them.
        outcome: a sentence: what this means for the flow that has found them.
    """
    return "\n".join([*breaches, f"{outcome} `recast quarantine {problem}` shows what to do."])
