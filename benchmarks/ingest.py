"""Ingest of 420,000 rows of 14 columns against pandas and the lecture's line loop.

Recast also checks every cell, hashes the raw file, sorts and writes Parquet and a report on quality.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl

from benchmarks.measure import alternate, seconds, table
from problems.problem import Problem
from problems.station import StationSource
from stages.ingest import ingest

CANONICAL = (
    "p (mbar)", "T (degC)", "Tpot (K)", "Tdew (degC)", "rh (%)", "VPmax (mbar)", "VPact (mbar)", "VPdef (mbar)",
    "sh (g/kg)", "H2OC (mmol/mol)", "rho (g/m**3)", "wv (m/s)", "max. wv (m/s)", "wd (deg)",
)  # fmt: skip


def run(quick: bool) -> dict[str, Any]:
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
