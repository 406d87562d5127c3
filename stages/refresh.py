"""New rows of a source that grows: fetched as one increment, taken into the raw store or put into quarantine."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from problems.source import Progress
from stages.settings import Settings

if TYPE_CHECKING:
    from stages.contract import Breach


@dataclass(frozen=True)
class Arrival:
    """Rows that have come and are not in the raw store yet.

    Attributes:
        rows: how many
        corrected: how many of them have a time that is known, with other values
        late: how many of them are earlier than the last one known of their series, and not corrected
        known: rows that came too and are in the raw store or in quarantine already
        first, last: their earliest and latest time, in UTC; None where none of them can be read
        pending: the increment, which `accept` or `quarantine` moves to where it belongs
        sha256: of its bytes
    """

    problem: str
    rows: int
    corrected: int
    late: int
    known: int
    first: str | None
    last: str | None
    pending: Path
    sha256: str


def arrived(problem: str, settings: Settings, progress: Progress) -> Arrival | None:
    """Fetch what is new, as one increment; None: there is nothing.

    Files with other columns are other increments: after one was accepted or put into quarantine, ask again until there
    is nothing. What a killed run has left is found again.

    Raises:
        Unreachable: the source cannot be reached now.
        RecastError: the problem has no `fresh`, or what came cannot be read as its source says.
    """
    raise NotImplementedError


def accept(arrival: Arrival) -> Path:
    """Move the increment into the raw store, which the caller then has DVC track (`flows.dag.track`); again: nothing.

    Raises:
        RecastError: it is no longer there.
    """
    raise NotImplementedError


def quarantine(arrival: Arrival, breaches: "Sequence[Breach]") -> Path:
    """Move the increment into quarantine, with the reasons beside it; again: nothing.

    Raises:
        RecastError: it is no longer there.
    """
    raise NotImplementedError
