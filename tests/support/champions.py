"""What tests do with a problem's champion."""

from lifecycle.champions import history, promotion
from lifecycle.champions.history import Version


def roll_back(problem: str, by: str = history.RETRAIN) -> Version:
    """Make the former champion the champion again, in the same two steps as `recast rollback`."""
    version = history.roll_back(problem, by, reason="")
    promotion.reconcile(problem)
    return version
