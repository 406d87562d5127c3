"""Seconds of the stage `normalize`, and of `recast new`, for a station's CSV file of fourteen columns.

The table of the stage is the plain one, and one with everything that may be added to it: nulls filled, a column that is
known in advance, the calendar, and a climatology. `recast new` inspects the file, and runs the stages up to `window` on
it.
"""

import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.ingest import CANONICAL, TIME_COLUMN, simulate_csv
from benchmarks.measure import time_call
from problems.files.raw_store import replace_with_links
from problems.problem import Problem
from stages.ingest import ingest
from stages.normalize import normalize
from stages.table_discovery.proposal import propose_problem

ADDITIONS = {
    "fill": "30s",
    "known": ["wv (m/s)"],
    "calendar": {"year": 1, "day": 1},
    "climatology": {"year": 1, "day": 2},
}


def run(quick: bool) -> dict[str, Any]:
    """The median, the lowest and the highest of several rounds, in seconds."""
    rounds = 2 if quick else 5
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file, store = folder / "station.csv", folder / "raw"
        rows = simulate_csv(file, 10**7 if quick else 192 * 10**6)
        store.mkdir()
        replace_with_links(store, [file])
        plain, whole = _make_problem(file, {}), _make_problem(file, ADDITIONS)
        ingest(plain, store, folder / "ingest")
        contenders = {
            "normalize, plain": lambda: normalize(plain, "standard", folder / "ingest", folder / "plain"),
            "normalize, with additions": lambda: normalize(whole, "standard", folder / "ingest", folder / "whole"),
            "recast new": lambda: propose_problem(str(file)),
        }
        figures = {contender: [time_call(work) for _ in range(rounds)] for contender, work in contenders.items()}
    return {
        "rows": rows,
        "results": {
            contender: {
                "seconds": float(f"{statistics.median(seconds):.3g}"),
                "low": float(f"{min(seconds):.3g}"),
                "high": float(f"{max(seconds):.3g}"),
            }
            for contender, seconds in figures.items()
        },
    }


def _make_problem(file: Path, additions: dict[str, Any]) -> Problem:
    """The problem of a station whose rows come every ten seconds."""
    return Problem.model_validate(
        {
            "title": "A simulated station",
            "source": {"kind": "table", "path": str(file), "time": TIME_COLUMN},
            "table": {"features": CANONICAL, "target": "T (degC)", "unit": "°C", **additions},
            "split": "half",
            "window": {"lookback": "1h", "step": "1m", "delay": "10m"},
        }
    )
