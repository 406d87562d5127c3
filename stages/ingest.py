"""Stage ingest: a problem's source as one typed, sorted table without duplicates, with a report on its quality."""

from stages.tables import polars_limits  # noqa: F401 - before anything imports Polars

# isort: split
import shutil
from dataclasses import asdict
from pathlib import Path

import polars as pl

from problems.errors import RecastError
from problems.files.raw_store import list_stored_files
from problems.problem import Problem, SequenceProblem
from project import paths
from project.atomic import replace_folder, write_json
from project.command import run_stage
from project.progress import download_progress
from project.settings.parsing import parse_settings
from project.settings.sections import Settings
from stages.sequences.ingest import ingest_sequences
from stages.tables.ingested import QUALITY_FILE, TABLE_FILE
from stages.tables.polars_errors import explain_polars_errors
from stages.tables.quality import Quality, hash_raw_files, measure_quality
from stages.tables.tabulation import tabulate


def ingest(problem: Problem, store: Path, out: Path) -> Quality:
    """Read the raw files in `store` into `out`: `table.parquet` and `quality.json`, both or neither.

    The table has `time` (Datetime, ms), `series` (`all` where there is only one) and the features as Float64 in their
    declared order, sorted by series and time. Of rows with the same series and time, the one of the newest increment is
    kept, else the first. Sentinels and NaN are null. Memory does not grow with the number of rows as long as the rows
    come in order.

    Raises:
        RecastError: a file, a column or a cell is not what the problem declares; the message names it.
        OSError: the disk refuses.
    """
    with replace_folder(out) as folder, explain_polars_errors(store, out, problem.source.find_fault):
        scratch = folder / "scratch"
        scratch.mkdir()
        counts, disorder = tabulate(problem.source.read(store, scratch), problem, folder / TABLE_FILE, scratch)
        quality = measure_quality(problem, counts, disorder, pl.scan_parquet(folder / TABLE_FILE), store)
        shutil.rmtree(scratch)
        write_json(folder / QUALITY_FILE, asdict(quality))
    return quality


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


def main(problem: str) -> None:
    """Fetch a problem's rows and write them as one typed, sorted table with a quality report."""
    settings = parse_settings()
    fetch(problem, settings)
    declared, store, out = settings.problem(problem), paths.raw_folder(problem), paths.stage_folder("ingest", problem)
    if isinstance(declared, SequenceProblem):
        with explain_polars_errors(store, out):
            sequences = ingest_sequences(declared, store, out, hash_raw_files(store))
        print(f"{problem}: {sequences.described}")
        return
    quality = ingest(declared, store, out)
    gaps = sum(series.gaps for series in quality.series.values())
    rows = "simulated rows" if quality.synthetic else "rows"
    print(
        f"{problem}: {quality.rows_kept:,} of {quality.rows_read:,} {rows} kept, "
        f"every {quality.cadence}, {len(quality.series)} series, {gaps} gaps"
    )


if __name__ == "__main__":
    run_stage(main)
