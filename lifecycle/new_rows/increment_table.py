"""The table of one increment alone, and the problem that it belongs to."""

import tempfile
from pathlib import Path

import polars as pl

from problems.errors import RecastError
from problems.growing_source import GrowingSource
from problems.problem import Growth, Problem
from project.settings.sections import Settings
from stages.tables.polars_errors import explain_polars_errors
from stages.tables.tabulation import tabulate


def find_growing_problem(problem: str, settings: Settings) -> tuple[Problem, Growth]:
    """Find a problem by its name, and how its source grows.

    Raises:
        RecastError: the source does not grow.
    """
    declared = settings.problem(problem)
    if not isinstance(declared, Problem) or (growth := declared.growth) is None:
        raise RecastError(
            f"problems.{problem} has no `fresh`, which says where new rows come from; see docs/refresh.md, or name "
            "another problem"
        )
    return declared, growth


def read_increment_table(source: GrowingSource, file: Path, problem: Problem) -> pl.DataFrame:
    """Read the table of an increment alone, with all its rows, as `ingest` would make it.

    Raises:
        RecastError: a column or a cell is not what the problem declares.
    """
    all_rows = problem.model_copy(update={"table": problem.table.model_copy(update={"thin": False})})
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        with explain_polars_errors(file, scratch, source.find_file_fault):
            tabulate(source.read_increment(file, scratch), all_rows, scratch / "table.parquet", scratch)
        return pl.read_parquet(scratch / "table.parquet")
