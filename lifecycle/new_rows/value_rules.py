"""Rules of the contract about values: their range, how long they stay the same, how many are missing, their mean."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import polars as pl

from lifecycle.new_rows.known_table import DAY, NEW_COLUMN, KnownTable, select_season
from lifecycle.new_rows.quarantine import Breach
from problems.contract import DEFAULT_CONSTANT_LIMIT, Contract
from problems.durations import format_length

LEAST_SPAN = timedelta(days=3)
"""Missing rows and values are counted over at least this time: an outage of an hour is not a third of the data."""

LEAST_SEASON_DAYS = 10
"""With fewer known days of the season, means are not compared."""

WEEK, FEW_DAYS_FACTOR = timedelta(days=7), 4 / 3
"""The mean of less than a week may be further from that of the season, by this factor."""

LEAST_ROWS_STUCK = 6
"""A value may stay the same for so many rows in any case, unless a length of time is set."""


def check_ranges(contract: Contract, features: list[str], new: pl.DataFrame, known: KnownTable) -> Iterator[Breach]:
    """Find values outside the bounds that are set, or far outside the range of the known rows."""
    columns = pl.col(features)
    known_range = known.table.select(columns.min().name.prefix("min "), columns.max().name.prefix("max ")).collect()
    for name in features:
        least, most = contract.ranges.get(name, (None, None))
        why = "allowed by contract.ranges"
        low, high = known_range[f"min {name}"][0], known_range[f"max {name}"][0]
        if name not in contract.ranges and contract.margin is not None and low is not None and low < high:
            margin = contract.margin * (high - low)
            least, most = low - margin, high + margin
            why = f"{low:g} to {high:g} in the known rows, with a margin of {contract.margin:g} times that width"
        bounds = [None if bound is None else float(bound) for bound in (least, most)]
        value = pl.col(name)
        outside = new.filter(
            (value < bounds[0] if bounds[0] is not None else pl.lit(False))
            | (value > bounds[1] if bounds[1] is not None else pl.lit(False))
        )
        if outside.height:
            row = outside.row(0, named=True)
            yield Breach(
                "range",
                name,
                f"{outside.height:,} values are outside {_format_bounds(bounds)} ({why}); the first is {row[name]:g} "
                f"at {row['time']}",
                {"rows": outside.height, "least": bounds[0], "most": bounds[1], "value": row[name], **_name_row(row)},
            )


def _format_bounds(bounds: list[float | None]) -> str:
    least, most = bounds
    if least is None:
        return f"at most {most:g}"
    return f"at least {least:g}" if most is None else f"{least:g} to {most:g}"


def _name_row(row: dict[str, Any]) -> dict[str, str]:
    return {"series": row["series"], "time": str(row["time"])}


def _find_runs(rows: pl.LazyFrame, name: str, cadence: timedelta) -> pl.LazyFrame:
    """Find the runs in which a column keeps one value, without a gap.

    Returns:
        for each run: series, begin, length, value, and in a joined table whether one of its rows is new
    """
    has_gap = pl.col("time").diff() > 2 * cadence
    has_changed = [pl.col(column) != pl.col(column).shift() for column in (name, "series")]
    run = pl.any_horizontal(*has_changed, has_gap).fill_null(True).cum_sum().alias("run")
    marks = [NEW_COLUMN] if NEW_COLUMN in rows.collect_schema() else []
    return (
        rows.select("series", "time", name, *marks)
        .drop_nulls(name)
        .with_columns(run)
        .group_by("run", maintain_order=True)
        .agg(
            pl.col("series").first(),
            pl.col("time").first().alias("begin"),
            (pl.col("time").last() - pl.col("time").first()).alias("length"),
            pl.col(name).first().alias("value"),
            *(pl.col(mark).any() for mark in marks),
        )
    )


def check_stuck(contract: Contract, features: list[str], near: pl.DataFrame, known: KnownTable) -> Iterator[Breach]:
    """Find columns that keep one value for too long, like a sensor that is stuck."""
    for name in features:
        allowed = (
            contract.stuck.get(name, DEFAULT_CONSTANT_LIMIT) if isinstance(contract.stuck, dict) else contract.stuck
        )
        if allowed is None:
            continue
        why = "allowed by contract.stuck"
        runs = _find_runs(near.lazy(), name, known.cadence).filter(NEW_COLUMN).sort("length").collect()
        if runs.is_empty():
            continue
        longest = runs.row(-1, named=True)
        if not isinstance(allowed, timedelta):
            if longest["length"] < LEAST_ROWS_STUCK * known.cadence:
                continue
            usual: Any = _find_runs(known.table, name, known.cadence).select(pl.col("length").max()).collect().item()
            why = f"{allowed:g} times the longest time in the known rows, or {LEAST_ROWS_STUCK} rows; contract.stuck"
            allowed = max(allowed * (usual or timedelta(0)), LEAST_ROWS_STUCK * known.cadence)
        if longest["length"] > allowed:
            yield Breach(
                "stuck",
                name,
                f"{longest['value']:g} for {format_length(longest['length'])} from {longest['begin']} on; at most "
                f"{format_length(allowed)} is allowed ({why})",
                {
                    "value": longest["value"],
                    "seconds": longest["length"].total_seconds(),
                    "allowed_seconds": allowed.total_seconds(),
                    "series": longest["series"],
                    "time": str(longest["begin"]),
                },
            )


def check_missing(contract: Contract, features: list[str], near: pl.DataFrame, known: KnownTable) -> Iterator[Breach]:
    """Check that not too many rows, or values of a column, are missing."""
    if contract.missing is None:
        return
    for (series,), rows in near.group_by("series", maintain_order=True):
        new = rows.filter(NEW_COLUMN)
        if new.is_empty():
            continue
        first, last = new["time"][0], new["time"][-1]
        before = rows.filter(pl.col("time") < first)["time"].max()
        begin: Any = first - known.cadence if before is None or known.first else before
        begin = min(begin, last - LEAST_SPAN)
        if known.first or rows["time"][0] > begin:
            begin = max(begin, (first if known.first else rows["time"][0]) - known.cadence)
        span = rows.filter(pl.col("time").is_between(begin, last, closed="right"))
        expected = round((last - begin) / known.cadence)
        share = max(0.0, 1 - span.height / max(expected, 1))
        if share > contract.missing:
            yield Breach(
                "missing",
                None,
                f"{share:.0%} of the rows from {begin} to {last} are missing; at most {contract.missing:.0%} is "
                "allowed (contract.missing)",
                {"series": series, "share": round(share, 4), "rows": span.height, "expected": expected},
            )
        usual = known.table.select(pl.col(features).null_count() / pl.len()).collect()
        for name in features:
            share = span[name].null_count() / max(span.height, 1)
            if share > contract.missing + usual[name][0]:
                yield Breach(
                    "missing",
                    name,
                    f"{share:.0%} of its values from {begin} to {last} are missing; in the known rows it is "
                    f"{usual[name][0]:.0%}, and at most {contract.missing:.0%} more is allowed (contract.missing)",
                    {"series": series, "share": round(share, 4), "known_share": round(usual[name][0], 4)},
                )


def check_drift(limit: float, features: list[str], near: pl.DataFrame, known: KnownTable) -> Iterator[Breach]:
    """Find columns whose mean is not that of the season."""
    for (series,), rows in near.group_by("series", maintain_order=True):
        new = rows.filter(NEW_COLUMN)
        if new.is_empty():
            continue
        first, last = new["time"][0], new["time"][-1]
        span = rows.filter(pl.col("time").is_between(min(first, last - DAY), last))
        most = limit if last - first > WEEK - DAY else limit * FEW_DAYS_FACTOR
        column = pl.col(features)
        reference = select_season(known.table, series, span["time"])
        season = reference.select(
            pl.col("time").dt.date().n_unique().alias("days"),
            column.mean().name.prefix("mean "),
            column.std().name.prefix("deviation "),
        ).collect()
        if season["days"][0] < LEAST_SEASON_DAYS:
            continue
        for name in features:
            usual, deviation = season[f"mean {name}"][0], season[f"deviation {name}"][0]
            new_mean: Any = span[name].mean()
            if new_mean is None or not deviation:
                continue
            mean = float(new_mean)
            apart = abs(mean - usual) / deviation
            if apart > most:
                yield Breach(
                    "drift",
                    name,
                    f"its mean is {mean:g}; that of the known rows of the season is {usual:g}, with a standard "
                    f"deviation of {deviation:g}: the means are {apart:.1f} deviations apart, and at most {most:g} are "
                    "allowed (contract.drift)",
                    {
                        "series": series,
                        "mean": mean,
                        "known_mean": usual,
                        "known_deviation": deviation,
                        "deviations": round(apart, 2),
                    },
                )
