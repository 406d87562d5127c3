"""How old the newest rows are, and whether they are too old to forecast from."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from problems.durations import format_duration, format_length
from problems.files.raw_store import INCREMENTS_FOLDER, list_increments
from problems.problem import Problem
from stages.tables.ingested import QUALITY_FILE, read_quality

CADENCES = 3
"""The newest row may be so many cadences old where `fresh.max_age` sets no limit. It is one cadence old when the next
one is due, and two where its time is the beginning of what it measures; the third is for its way here.
"""


@dataclass(frozen=True)
class RowAge:
    """How old the newest row is: of the series whose newest row is the oldest, without those that have ended.

    Attributes:
        newest: the time of the row, in UTC.
        limit: how old it may be; None: no new rows are expected, as the source does not grow.
    """

    series: str
    newest: datetime
    age: timedelta
    limit: timedelta | None

    @property
    def is_stale(self) -> bool:
        """Whether it is older than it may be."""
        return self.limit is not None and self.age > self.limit

    def describe(self) -> str:
        """Write it for people: the time, the age, and the limit if it is exceeded."""
        words = f"{self.newest:%Y-%m-%d %H:%M} UTC, {format_length(self.age)} old"
        return f"{words}, at most {format_duration(self.limit)}" if self.limit and self.is_stale else words


def find_age_limit(problem: Problem, cadence: timedelta) -> timedelta | None:
    """How old the newest row of a problem may be; None: its source does not grow, so no row is expected."""
    if problem.fresh is None:
        return None
    return problem.fresh.max_age or CADENCES * cadence


def judge_age(
    problem: Problem, newest: Mapping[str, datetime], cadence: timedelta, now: datetime | None = None
) -> RowAge:
    """Measure the age of the newest row.

    A series has ended if its last row is older than that of another series by more than `contract.gap`: the contract
    has reported it.

    Args:
        newest: the time of the last row of each series, of which there is at least one.
        now: in UTC, without a time zone; None: the present time.
    """
    now = now or datetime.now(UTC).replace(tzinfo=None)
    gap = problem.contract.gap
    last = max(newest.values())
    going_on = {series: time for series, time in newest.items() if gap is None or last - time <= gap}
    series = min(going_on, key=lambda name: going_on[name])
    return RowAge(series, newest[series], now - newest[series], find_age_limit(problem, cadence))


def measure_age(problem: Problem, store: Path, ingested: Path) -> RowAge | None:
    """Measure the age of the newest row that was ingested, or accepted since; None: nothing was ingested.

    Raises:
        RecastError: an increment or the report of the table cannot be read.
    """
    if not (ingested / QUALITY_FILE).exists():
        return None
    quality = read_quality(ingested)
    increments = {name for name in quality["files"] if name.startswith(f"{INCREMENTS_FOLDER}/")}
    if increments == {f"{INCREMENTS_FOLDER}/{file.name}" for file in list_increments(store / INCREMENTS_FOLDER)}:
        newest = {name: datetime.fromisoformat(series["last"]) for name, series in quality["series"].items()}
        return judge_age(problem, newest, timedelta(seconds=quality["cadence_seconds"]))
    from lifecycle.new_rows.known_table import open_known_table, read_known_table  # noqa: PLC0415 - it loads Polars

    with ExitStack() as stack:
        if all((store / name).exists() for name in increments):
            known = read_known_table(problem, store, ingested)
        else:
            # One of them was undone, and its rows do not count.
            known = stack.enter_context(open_known_table(problem, store, ingested))
        return judge_age(problem, known.read_last_times(problem), known.cadence)
