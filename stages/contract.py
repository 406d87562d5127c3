"""The data contract: what new rows must be like before anything is trained on them."""

from dataclasses import dataclass
from typing import Any

from stages.refresh import Arrival
from stages.settings import Settings


@dataclass(frozen=True)
class Breach:
    """A rule that the new rows break.

    Attributes:
        rule: which one: types, range, stuck, cadence, gap, missing, clock or drift
        column: where it is about one
        message: for people, with figures
        evidence: the figures, as JSON
    """

    rule: str
    column: str | None
    message: str
    evidence: dict[str, Any]


def check(problem: str, settings: Settings, arrival: Arrival) -> list[Breach]:
    """What new rows break of the problem's contract, against the rows that are known; nothing if they are right.

    Raises:
        RecastError: the rows that are known cannot be read.
    """
    raise NotImplementedError
