"""Problems whose rows have times: only these have backtests, champions, forecasts and monitoring."""

from problems.errors import RecastError
from problems.problem import Problem
from project.settings.sections import Settings


def require_table_problem(problem: str, settings: Settings) -> Problem:
    """The declaration of a problem whose rows have times.

    Raises:
        RecastError: it is a problem of whole sequences: these have no times, so none of them is the newest.
    """
    declared = settings.problem(problem)
    if not isinstance(declared, Problem):
        raise RecastError(f"{problem} is a problem of sequences; this command is for problems whose rows have times")
    return declared
