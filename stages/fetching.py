"""Filling a problem's raw store from its source, which the stage `ingest` then reads."""

from pathlib import Path

from problems.errors import RecastError
from problems.files.raw_store import list_stored_files
from problems.problem import Problem
from project import paths
from project.progress import download_progress
from project.settings.sections import Settings


def fetch(problem: str, settings: Settings) -> None:
    """Fill the problem's raw store, unless it already holds the right files.

    Raises:
        Unreachable: none of the places that have its files can be reached now.
        RecastError: a file is not what it should be, or is also one of `fresh.path`.
    """
    declared, store = settings.problem(problem), paths.raw_folder(problem)
    store.mkdir(parents=True, exist_ok=True)
    with download_progress(f"fetch {problem}") as progress:
        declared.source.fetch(store, progress, settings.ingest.attempts)
    if isinstance(declared, Problem) and (growth := declared.growth):
        _refuse_files_in_both(problem, growth.fresh.local_files(growth.source), list_stored_files(store))


def _refuse_files_in_both(problem: str, fresh: list[Path], own: list[Path]) -> None:
    """Check that no file that brings new rows is one of the source's own files, whose rows nothing checks.

    Raises:
        RecastError: a file is both.
    """
    unchecked = {file.resolve() for file in own}
    if both := [file for file in fresh if file.resolve() in unchecked]:
        raise RecastError(
            f"{both[0]}: problems.{problem}.source.path and problems.{problem}.fresh.path both name this file, so its "
            "new rows would not be checked; let source.path name only the files that existed at the beginning, and "
            "fresh.path only others, such as those of another folder"
        )
