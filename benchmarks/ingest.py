"""Ingestion compared with pandas and the lecture's line loop and, on files of up to 5 GB, with pandas and DuckDB.

Recast also checks every cell, hashes the raw file, looks for repeated times and gaps, sorts, and writes a quality
report. On the files of several sizes pandas and DuckDB do none of that: they convert CSV to Parquet. Each contender
runs in a process of its own, and its peak memory counts only what no file backs. `pandas` loads the whole file; it is
not run on 5 GB, which does not fit beside the other work of the machine. `pandas in chunks` reads a million rows at a
time.

Recast's memory does not grow with the file: it reads one MiB at a time and holds a few of them. It takes 1.7 to 2.9
times as long as DuckDB and 1.2 to 3.3 times as long as pandas in chunks, because of its additional work. Others used
the machine at the same time, so the ratios say more than the seconds. For 1 and 5 GB there was one round.
"""

import json
import os
import statistics
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd  # noqa: TID251 - a peer that is measured
import polars as pl

from benchmarks.measure import install_peers, measure_in_turn, round_results, run_and_watch_memory, time_call
from problems.problem import Problem
from problems.sources.station import StationSource, simulate_rows
from stages.ingest import ingest

CANONICAL = (
    "p (mbar)", "T (degC)", "Tpot (K)", "Tdew (degC)", "rh (%)", "VPmax (mbar)", "VPact (mbar)", "VPdef (mbar)",
    "sh (g/kg)", "H2OC (mmol/mol)", "rho (g/m**3)", "wv (m/s)", "max. wv (m/s)", "wd (deg)",
)  # fmt: skip

TIME_COLUMN, TIME_FORMAT = "time", "%Y-%m-%d %H:%M:%S"
SIZES = {"0.1 GB": 10**8, "1 GB": 10**9, "5 GB": 5 * 10**9}
QUICK_SIZES = {"0.01 GB": 10**7, "0.05 GB": 5 * 10**7}
CHUNK_ROWS = 1 << 17
MAX_WHOLE_FILE_BYTES = 2 * 10**9
"""The largest file that pandas has to load as a whole."""


def run(quick: bool) -> dict[str, Any]:
    """Seconds for one file, and throughput and peak memory for files of several sizes."""
    return _compare_on_one_file(quick) | _compare_sizes(QUICK_SIZES if quick else SIZES)


def _compare_on_one_file(quick: bool) -> dict[str, Any]:
    """Seconds to make sorted Parquet without duplicates of the same file. The line loop only fills an array."""
    rows = 42_000 if quick else 420_000
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = _write_archive(folder, rows)
        problem = Problem.model_validate(
            {
                "title": "Jena",
                "source": {"kind": "jena", "path": str(file)},
                "table": {"features": CANONICAL, "target": "T (degC)", "unit": "°C"},
                "split": "half",
                "window": {"lookback": "5d", "step": "1h", "delay": "24h"},
            }
        )
        store = folder / "store"
        store.mkdir()
        problem.source.fetch(store, lambda received, total: None, 1)

        def ingest_with_recast() -> None:
            ingest(problem, store, folder / "out")

        def ingest_with_pandas() -> None:
            frame = pd.read_csv(file)
            frame["Date Time"] = pd.to_datetime(frame["Date Time"], format="%d.%m.%Y %H:%M:%S")
            frame.sort_values("Date Time").drop_duplicates("Date Time").to_parquet(folder / "pandas.parquet")

        def ingest_with_line_loop() -> None:
            header, *lines = file.read_text().split("\n")[:-1]
            data = np.zeros((len(lines), len(header.split(",")) - 1))
            for i, line in enumerate(lines):
                data[i, :] = [float(x) for x in line.split(",")[1:]]

        contenders = {
            "Recast": ingest_with_recast,
            "pandas": ingest_with_pandas,
            "the lecture's line loop": ingest_with_line_loop,
        }
        results = measure_in_turn(
            {contender: (lambda work=work: time_call(work)) for contender, work in contenders.items()},
            unit="s",
            rounds=2 if quick else 5,
            more_is_better=False,
        )
    return {"rows": rows, "columns": len(CANONICAL), "results": round_results(results)}


def _compare_sizes(sizes: dict[str, int]) -> dict[str, Any]:
    """Seconds, throughput, Recast's throughput relative to it, and peak memory, by file size and contender."""
    python = install_peers("ingest")
    tables: dict[str, Any] = {} if python else {"note": "the peers could not be installed, so they were left out"}
    ours = [sys.executable, "-m", "benchmarks.ingest"]
    theirs = [str(python), str(Path(__file__).parent.absolute() / "ingest_peers.py")]
    for size, min_bytes in sizes.items():
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            file = folder / "station.csv"
            rows = simulate_csv(file, min_bytes)
            contenders = {"Recast": ours}
            if python:
                contenders["DuckDB"] = [*theirs, "duckdb"]
                if min_bytes <= MAX_WHOLE_FILE_BYTES:
                    contenders["pandas"] = [*theirs, "pandas"]
                contenders["pandas in chunks"] = [*theirs, "pandas in chunks"]
            figures: dict[str, list[tuple[float, float]]] = {contender: [] for contender in contenders}
            for _ in range(3 if min_bytes < 10**9 else 1):
                for contender, command in contenders.items():
                    out = folder / "out"
                    arguments = [str(file), str(out), TIME_COLUMN]
                    printed, peak = run_and_watch_memory([*command, *arguments], Path.cwd(), dict(os.environ))
                    figures[contender].append((float(printed.split()[-1]), peak.anonymous))
                    if out.is_file():
                        out.unlink()
            medians = {
                contender: statistics.median(seconds for seconds, _ in rounds) for contender, rounds in figures.items()
            }
            table = {
                contender: {
                    "seconds": float(f"{medians[contender]:.3g}"),
                    "MB/s": float(f"{file.stat().st_size / 1e6 / medians[contender]:.3g}"),
                    "Recast's throughput / this one's": round(medians[contender] / medians["Recast"], 2),
                    "peak MiB": round(max(memory for _, memory in rounds)),
                }
                for contender, rounds in figures.items()
            }
            print(json.dumps({size: table}), file=sys.stderr, flush=True)
            tables[f"{size}, {rows:,} rows"] = table
    return tables


def simulate_csv(file: Path, min_bytes: int) -> int:
    """Write a CSV file of at least `min_bytes` with rows ten seconds apart whose values repeat.

    Returns:
        the number of its rows
    """
    cadence = timedelta(seconds=10)
    chunk = next(simulate_rows(CHUNK_ROWS, cadence, seed=0, chunk_rows=CHUNK_ROWS))
    values = chunk.select(pl.concat_str([pl.col(name).cast(pl.String) for name in CANONICAL], separator=","))
    rows = 0
    with file.open("wb") as out:
        out.write(f"{','.join([TIME_COLUMN, *CANONICAL])}\n".encode())
        while out.tell() < min_bytes:
            times = (chunk[TIME_COLUMN] + rows * cadence).dt.strftime(TIME_FORMAT)
            lines = values.select(pl.concat_str([pl.lit(times), pl.first()], separator=","))
            lines.write_csv(out, include_header=False, quote_style="never")
            rows += chunk.height
    return rows


def _time_ingest(file: Path, out: Path) -> float:
    """Seconds that the stage takes for a user's CSV file, in this process."""
    problem = Problem.model_validate(
        {
            "title": "A simulated station",
            "source": {"kind": "table", "path": str(file), "time": TIME_COLUMN},
            "table": {"features": CANONICAL, "target": "T (degC)", "unit": "°C"},
            "split": "half",
            "window": {"lookback": "1h", "step": "1m", "delay": "10m"},
        }
    )
    with tempfile.TemporaryDirectory(dir=out.parent) as name:
        store = Path(name) / "store"
        store.mkdir()
        problem.source.fetch(store, lambda received, total: None, 1)
        begun = time.perf_counter()
        ingest(problem, store, Path(name) / "out")
        return time.perf_counter() - begun


def _write_archive(folder: Path, rows: int) -> Path:
    """Write rows of the simulated station in the format of Jena's archive."""
    source = StationSource.model_validate({"kind": "station", "rows": rows, "cadence": "10m", "seed": 0})
    scratch = folder / "scratch"
    scratch.mkdir()
    frame = source.read(folder, scratch).frame.collect()
    time = pl.col("time").cast(pl.Datetime("ms")).dt.strftime("%d.%m.%Y %H:%M:%S").alias("Date Time")
    file = folder / "jena.csv"
    frame.select(time, *(pl.col(column).round(2) for column in CANONICAL)).write_csv(file)
    return file


if __name__ == "__main__":
    print(_time_ingest(Path(sys.argv[1]), Path(sys.argv[2])))
