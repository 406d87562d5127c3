"""The data contract's defaults on the real hourly Jena rows: what it refuses of right months, and of poisoned ones.

Each month of 2010 to 2016 is held against the rows before it, as it is and poisoned: T stuck for a day, T in degrees
Fahrenheit, with the clock an hour ahead or behind, and without half of its rows. So does every fourth week, as it is,
and with a clock that was set wrong at its beginning.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

import polars as pl

from lifecycle.new_rows.contract import find_breaches
from lifecycle.new_rows.known_table import KnownTable
from problems.errors import RecastError
from problems.problem import Problem
from project import paths
from project.settings.loading import load_settings

PROBLEM = "jena"
FROM, TO = datetime(2010, 1, 1), datetime(2017, 1, 1)
HOUR = timedelta(hours=1)

Poison = Callable[[pl.DataFrame], pl.DataFrame]


def run(quick: bool) -> dict[str, Any]:
    """Replay what the pipeline has ingested.

    Raises:
        RecastError: it has ingested nothing.
    """
    table, problem = paths.stage_folder("ingest", PROBLEM) / "table.parquet", load_settings().problem(PROBLEM)
    if not table.exists() or not isinstance(problem, Problem):
        raise RecastError(f"{table} is not there: recast fetch {PROBLEM} && python -m stages.ingest {PROBLEM}")
    quality = json.loads((table.parent / "quality.json").read_text(encoding="utf-8"))
    rows = pl.read_parquet(table).filter(pl.col("time") < TO)
    cadence, target = timedelta(seconds=quality["cadence_seconds"]), problem.target
    poisons: dict[str, Poison] = {
        "right": lambda month: month,
        "T stuck for a day": lambda month: _stuck(month, target),
        "T in Fahrenheit": lambda month: month.with_columns(pl.col(target) * 1.8 + 32),
        "clock an hour ahead": lambda month: month.with_columns(pl.col("time") + HOUR),
        "clock an hour behind": lambda month: month.with_columns(pl.col("time") - HOUR),
        "every second row gone": lambda month: month.gather_every(2),
        "half of the rows gone, at random": lambda month: month.sample(fraction=0.5, seed=0).sort("time"),
        "first half gone": lambda month: month.tail(month.height // 2),
    }
    weekly = {name: poisons[name] for name in ("right", "clock an hour ahead", "clock an hour behind")}
    every = 12 if quick else 1
    return {
        "rows": f"{rows.height:,} every {quality['cadence']}, {problem.title}",
        "months": _replayed(problem, rows, cadence, poisons, list(_pieces(rows, "1mo"))[::every]),
        "weeks": _replayed(problem, rows, cadence, weekly, list(_pieces(rows, "1w"))[:: 4 * every]),
    }


def _pieces(rows: pl.DataFrame, every: str) -> Iterator[tuple[datetime, pl.DataFrame]]:
    """The rows from `FROM` on by month or week."""
    found = rows.filter(pl.col("time") >= FROM).group_by_dynamic("time", every=every, start_by="datapoint")
    yield from ((begin, piece) for (begin,), piece in found)  # type: ignore[misc]


def _stuck(month: pl.DataFrame, column: str) -> pl.DataFrame:
    """The month with a column that stays for its tenth day."""
    is_stuck = pl.int_range(pl.len()).is_between(9 * 24, 10 * 24 - 1)
    return month.with_columns(
        pl.when(is_stuck).then(pl.col(column).get(9 * 24)).otherwise(pl.col(column)).alias(column)
    )


def _replayed(
    problem: Problem,
    rows: pl.DataFrame,
    cadence: timedelta,
    poisons: dict[str, Poison],
    pieces: list[tuple[datetime, pl.DataFrame]],
) -> dict[str, dict[str, str]]:
    """How many pieces are refused, by poison, and by which rules."""
    refused: dict[str, int] = dict.fromkeys(poisons, 0)
    rules: dict[str, Counter[str]] = {name: Counter() for name in poisons}
    others: dict[str, list[str]] = {name: [] for name in poisons}
    for begin, piece in pieces:
        known = KnownTable(rows.filter(pl.col("time") < begin).lazy(), cadence, first=False)
        for name, poison in poisons.items():
            found = {each.rule for each in find_breaches(problem, poison(piece), known)}
            refused[name] += bool(found)
            rules[name].update(found)
            if bool(found) == (name == "right"):
                others[name].append(f"{begin:%Y-%m-%d}")
    return {
        name: {
            "refused": f"{refused[name]} of {len(pieces)}",
            "by": ", ".join(f"{rule} {count}" for rule, count in rules[name].most_common()),
            "wrong": ", ".join(others[name][:5]) + (" ..." if len(others[name]) > 5 else ""),
        }
        for name in poisons
    }
