"""The data contract's default rules on the real hourly Jena rows: how many correct and corrupted months they refuse.

Each month of 2010 to 2016 is compared with the rows before it, as it is and corrupted: T stuck for a day, T in degrees
Fahrenheit, the clock an hour ahead or behind, and half of its rows missing. The same is done with every fourth week, as
it is and with a clock that was set wrong at the beginning of the week.
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
UNCHANGED = "as they are"
FROM, TO = datetime(2010, 1, 1), datetime(2017, 1, 1)
HOUR = timedelta(hours=1)

Corruption = Callable[[pl.DataFrame], pl.DataFrame]


def run(quick: bool) -> dict[str, Any]:
    """Replay what the pipeline has ingested.

    Raises:
        RecastError: it has ingested nothing, or another kind of problem.
    """
    table, problem = paths.stage_folder("ingest", PROBLEM) / "table.parquet", load_settings().problem(PROBLEM)
    if not table.exists() or not isinstance(problem, Problem):
        raise RecastError(
            f"{table} does not exist; make it: recast fetch {PROBLEM} && python -m stages.ingest {PROBLEM}"
        )
    quality = json.loads((table.parent / "quality.json").read_text(encoding="utf-8"))
    rows = pl.read_parquet(table).filter(pl.col("time") < TO)
    cadence, target = timedelta(seconds=quality["cadence_seconds"]), problem.target
    corruptions: dict[str, Corruption] = {
        UNCHANGED: lambda month: month,
        "T stuck for a day": lambda month: _stick_for_a_day(month, target),
        "T in Fahrenheit": lambda month: month.with_columns(pl.col(target) * 1.8 + 32),
        "clock an hour ahead": lambda month: month.with_columns(pl.col("time") + HOUR),
        "clock an hour behind": lambda month: month.with_columns(pl.col("time") - HOUR),
        "every second row missing": lambda month: month.gather_every(2),
        "half of the rows missing, at random": lambda month: month.sample(fraction=0.5, seed=0).sort("time"),
        "first half missing": lambda month: month.tail(month.height // 2),
    }
    clocks = {name: corruptions[name] for name in (UNCHANGED, "clock an hour ahead", "clock an hour behind")}
    stride = 12 if quick else 1
    return {
        "rows": f"{rows.height:,} every {quality['cadence']}, {problem.title}",
        "months": _count_refusals(problem, rows, cadence, corruptions, list(_split_rows(rows, "1mo"))[::stride]),
        "weeks": _count_refusals(problem, rows, cadence, clocks, list(_split_rows(rows, "1w"))[:: 4 * stride]),
    }


def _split_rows(rows: pl.DataFrame, every: str) -> Iterator[tuple[datetime, pl.DataFrame]]:
    """The rows from `FROM` on, by month or week, each with its beginning."""
    groups = rows.filter(pl.col("time") >= FROM).group_by_dynamic("time", every=every, start_by="datapoint")
    yield from ((begin, piece) for (begin,), piece in groups)  # type: ignore[misc]


def _stick_for_a_day(month: pl.DataFrame, column: str) -> pl.DataFrame:
    """The month with a column that does not change on its tenth day."""
    is_stuck = pl.int_range(pl.len()).is_between(9 * 24, 10 * 24 - 1)
    return month.with_columns(
        pl.when(is_stuck).then(pl.col(column).get(9 * 24)).otherwise(pl.col(column)).alias(column)
    )


def _count_refusals(
    problem: Problem,
    rows: pl.DataFrame,
    cadence: timedelta,
    corruptions: dict[str, Corruption],
    pieces: list[tuple[datetime, pl.DataFrame]],
) -> dict[str, dict[str, str]]:
    """How many pieces are refused by corruption, by which rules, and which pieces are judged wrongly."""
    refused: dict[str, int] = dict.fromkeys(corruptions, 0)
    rules: dict[str, Counter[str]] = {name: Counter() for name in corruptions}
    mistakes: dict[str, list[str]] = {name: [] for name in corruptions}
    for begin, piece in pieces:
        known = KnownTable(rows.filter(pl.col("time") < begin).lazy(), cadence, first=False)
        for name, corrupt in corruptions.items():
            breached = {breach.rule for breach in find_breaches(problem, corrupt(piece), known)}
            refused[name] += bool(breached)
            rules[name].update(breached)
            if bool(breached) == (name == UNCHANGED):
                mistakes[name].append(f"{begin:%Y-%m-%d}")
    return {
        name: {
            "refused": f"{refused[name]} of {len(pieces)}",
            "by": ", ".join(f"{rule} {count}" for rule, count in rules[name].most_common()),
            "wrong": ", ".join(mistakes[name][:5]) + (" ..." if len(mistakes[name]) > 5 else ""),
        }
        for name in corruptions
    }
