"""Ingest against pandas and the lecture's line loop, and of files of up to 5 GB against pandas and DuckDB.

Recast also checks every cell, hashes the raw file, looks for repeated times and gaps, sorts, and writes a report on
quality. Of the files of several sizes pandas and DuckDB do none of that: they turn CSV into Parquet, each in a process
of its own, whose peak memory is that of what no file backs. `pandas` holds the whole file and is not asked for 5 GB,
which do not fit beside what else the machine does; `pandas in chunks` takes a million rows at a time.

Recast's memory does not grow with the file: it reads a MiB at a time and holds a few of them. It takes 1.7 to 2.9
times as long as DuckDB and 1.2 to 3.3 times as long as pandas in chunks, for what it does besides. On a machine that
others use, as that of these figures was, seconds say less than ratios, and of 1 and 5 GB there is one round.
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
import pandas as pd
import polars as pl

from benchmarks.measure import alternate, peers, seconds, table, watched
from problems.problem import Problem
from problems.sources.station import StationSource, simulate_rows
from stages.ingest import ingest

CANONICAL = (
    "p (mbar)", "T (degC)", "Tpot (K)", "Tdew (degC)", "rh (%)", "VPmax (mbar)", "VPact (mbar)", "VPdef (mbar)",
    "sh (g/kg)", "H2OC (mmol/mol)", "rho (g/m**3)", "wv (m/s)", "max. wv (m/s)", "wd (deg)",
)  # fmt: skip


TIME, TIME_WRITTEN = "time", "%Y-%m-%d %H:%M:%S"
SIZES = {"0.1 GB": 10**8, "1 GB": 10**9, "5 GB": 5 * 10**9}
QUICK_SIZES = {"0.01 GB": 10**7, "0.05 GB": 5 * 10**7}
CHUNK_ROWS = 1 << 17
WHOLE_BYTES = 2 * 10**9
"""The largest file that pandas is asked to hold at once."""


def run(quick: bool) -> dict[str, Any]:
    """Seconds for one file, and throughput and peak memory for files of several sizes."""
    return _one_file(quick) | _sizes(QUICK_SIZES if quick else SIZES)


def _one_file(quick: bool) -> dict[str, Any]:
    """Seconds for the same file, sorted, without duplicates, as Parquet (the line loop only fills an array)."""
    rows = 42_000 if quick else 420_000
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = _archive(folder, rows)
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
        problem.source.fetch(store, lambda come, total: None, 1)

        def by_recast() -> None:
            ingest(problem, store, folder / "out")

        def by_pandas() -> None:
            frame = pd.read_csv(file)
            frame["Date Time"] = pd.to_datetime(frame["Date Time"], format="%d.%m.%Y %H:%M:%S")
            frame.sort_values("Date Time").drop_duplicates("Date Time").to_parquet(folder / "pandas.parquet")

        def by_lines() -> None:
            header, *lines = file.read_text().split("\n")[:-1]
            data = np.zeros((len(lines), len(header.split(",")) - 1))
            for i, line in enumerate(lines):
                data[i, :] = [float(x) for x in line.split(",")[1:]]

        contenders = {"Recast": by_recast, "pandas": by_pandas, "the lecture's line loop": by_lines}
        found = alternate(
            {who: (lambda work=work: seconds(work)) for who, work in contenders.items()},
            unit="s",
            rounds=2 if quick else 5,
            more_is_better=False,
        )
    return {"rows": rows, "columns": len(CANONICAL), "results": table(found)}


def _sizes(sizes: dict[str, int]) -> dict[str, Any]:
    """By size of the file: seconds, throughput, its ratio to Recast's and peak memory of each contender in turn."""
    python = peers("ingest")
    found: dict[str, Any] = {} if python else {"note": "the peers could not be installed; they were left out"}
    ours = [sys.executable, "-m", "benchmarks.ingest"]
    theirs = [str(python), str(Path(__file__).parent.absolute() / "ingest_peers.py")]
    for size, least in sizes.items():
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            file = folder / "station.csv"
            rows = _simulated(file, least)
            contenders = {"Recast": ours}
            if python:
                contenders["DuckDB"] = [*theirs, "duckdb"]
                if least <= WHOLE_BYTES:
                    contenders["pandas"] = [*theirs, "pandas"]
                contenders["pandas in chunks"] = [*theirs, "pandas in chunks"]
            figures: dict[str, list[tuple[float, float]]] = {who: [] for who in contenders}
            for _ in range(3 if least < 10**9 else 1):
                for who, command in contenders.items():
                    out = folder / "out"
                    printed, peak = watched([*command, str(file), str(out), TIME], Path.cwd(), dict(os.environ))
                    figures[who].append((float(printed.split()[-1]), peak.anonymous))
                    if out.is_file():
                        out.unlink()
            taken = {who: statistics.median(second for second, _ in each) for who, each in figures.items()}
            found[f"{size}, {rows:,} rows"] = {
                who: {
                    "seconds": float(f"{taken[who]:.3g}"),
                    "MB/s": float(f"{file.stat().st_size / 1e6 / taken[who]:.3g}"),
                    "Recast's throughput to it": round(taken[who] / taken["Recast"], 2),
                    "peak MiB": round(max(memory for _, memory in each)),
                }
                for who, each in figures.items()
            }
            print(json.dumps({size: found[f"{size}, {rows:,} rows"]}), file=sys.stderr, flush=True)
    return found


def _simulated(file: Path, least: int) -> int:
    """A CSV file of at least so many bytes, rows ten seconds apart, whose values repeat; how many rows it has."""
    cadence = timedelta(seconds=10)
    chunk = next(simulate_rows(CHUNK_ROWS, cadence, seed=0, chunk_rows=CHUNK_ROWS))
    values = chunk.select(pl.concat_str([pl.col(name).cast(pl.String) for name in CANONICAL], separator=","))
    rows = 0
    with file.open("wb") as out:
        out.write(f"{','.join([TIME, *CANONICAL])}\n".encode())
        while out.tell() < least:
            times = (chunk[TIME] + rows * cadence).dt.strftime(TIME_WRITTEN)
            lines = values.select(pl.concat_str([pl.lit(times), pl.first()], separator=","))
            lines.write_csv(out, include_header=False, quote_style="never")
            rows += chunk.height
    return rows


def _ingest(file: Path, out: Path) -> float:
    """Seconds of the stage on a CSV file of the user's, in this process."""
    problem = Problem.model_validate(
        {
            "title": "A simulated station",
            "source": {"kind": "table", "path": str(file), "time": TIME},
            "table": {"features": CANONICAL, "target": "T (degC)", "unit": "°C"},
            "split": "half",
            "window": {"lookback": "1h", "step": "1m", "delay": "10m"},
        }
    )
    with tempfile.TemporaryDirectory(dir=out.parent) as name:
        store = Path(name) / "store"
        store.mkdir()
        problem.source.fetch(store, lambda come, total: None, 1)
        begun = time.perf_counter()
        ingest(problem, store, Path(name) / "out")
        return time.perf_counter() - begun


def _archive(folder: Path, rows: int) -> Path:
    """A file in the archive's format, from the simulated station."""
    source = StationSource.model_validate({"kind": "station", "rows": rows, "cadence": "10m", "seed": 0})
    scratch = folder / "scratch"
    scratch.mkdir()
    frame = source.read(folder, scratch).frame.collect()
    time = pl.col("time").cast(pl.Datetime("ms")).dt.strftime("%d.%m.%Y %H:%M:%S").alias("Date Time")
    file = folder / "jena.csv"
    frame.select(time, *(pl.col(column).round(2) for column in CANONICAL)).write_csv(file)
    return file


if __name__ == "__main__":
    print(_ingest(Path(sys.argv[1]), Path(sys.argv[2])))
