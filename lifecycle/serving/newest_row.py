"""How old the newest row of the served problem is, for the path `/model`.

Requests bring their own rows. This is about the rows that the project has taken in, as `recast predict` forecasts from
them.
"""

from typing import Any

from lifecycle.new_rows.row_age import measure_age
from problems.errors import RecastError
from problems.problem import Problem
from project import paths
from project.settings.parsing import parse_settings


def describe_newest_row(problem: str) -> dict[str, Any]:
    """The content of a `schemas.NewestRow`. The service answers even if it is not known."""
    try:
        declared = parse_settings().problem(problem)
        age = (
            measure_age(declared, paths.raw_folder(problem), paths.stage_folder("ingest", problem))
            if isinstance(declared, Problem)
            else None
        )
    # DVC removes the table before it runs `ingest`, perhaps between two looks at it.
    except (RecastError, OSError) as error:
        return _unknown(str(error))
    if age is None:
        return _unknown(f"nothing is ingested: recast run {problem}")
    return {
        "time": age.newest,
        "age_seconds": age.age.total_seconds(),
        "max_age_seconds": None if age.limit is None else age.limit.total_seconds(),
        "stale": age.is_stale,
        "reason": None,
    }


def _unknown(reason: str) -> dict[str, Any]:
    return {"time": None, "age_seconds": None, "max_age_seconds": None, "stale": None, "reason": reason}
