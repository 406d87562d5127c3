"""Stage ingest: a problem's source as one typed, sorted table without duplicates, with a report on its quality."""

from stages.tables import polars_limits  # noqa: F401 - before anything imports Polars

# isort: split
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import polars as pl

from problems.problem import Problem, SequenceProblem
from project import paths
from project.atomic import replace_folder, write_json
from project.command import run_stage
from project.settings.parsing import parse_settings
from stages.fetching import fetch
from stages.sequences.ingest import ingest_sequences
from stages.tables.ingested import QUALITY_FILE, TABLE_FILE
from stages.tables.polars_errors import explain_polars_errors
from stages.tables.quality import Quality, hash_raw_files, measure_quality
from stages.tables.tabulation import Tabulated, tabulate, tabulate_parsed


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
        scratch, table = folder / "scratch", folder / TABLE_FILE
        scratch.mkdir()
        with ThreadPoolExecutor(max_workers=1) as background:
            files = background.submit(hash_raw_files, store)
            tabulated = _tabulate(problem, store, table, scratch)
            quality = measure_quality(problem, tabulated, pl.scan_parquet(table), store, files.result())
        shutil.rmtree(scratch)
        write_json(folder / QUALITY_FILE, asdict(quality))
    return quality


def _tabulate(problem: Problem, store: Path, table: Path, scratch: Path) -> Tabulated:
    """Write the rows of the raw files as a table, the fastest way that understands all of their cells."""
    parsed = problem.source.read_parsed(store, scratch, problem.table.features)
    tabulated = tabulate_parsed(parsed, problem, table, scratch) if parsed else None
    return tabulated or tabulate(problem.source.read(store, scratch), problem, table, scratch)


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
