"""Rules of the contract about times: which series have rows, how often and without gaps; whether the clock is right."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import polars as pl

from lifecycle.new_rows import clock
from lifecycle.new_rows.known_table import DAY, NEW_COLUMN, KnownTable, select_season, time_range
from lifecycle.new_rows.quarantine import Breach
from problems.contract import Contract
from problems.durations import format_duration, format_length
from problems.problem import Problem

CLOCK_DAYS = 14
"""With so many new days, the days before them are not needed to judge the clock."""

CLOCK_EVIDENCE, CLOCK_EVIDENCE_OF_FEW_DAYS = 6.0, 12.0
"""The evidence for a shift of the clock that is taken to be certain: with `CLOCK_DAYS` or more, and with fewer."""

LAGS = (-2, -1, 1, 2)
"""By how many hours new rows may be shifted that repeat known ones."""

SAME_SHARE = 0.5
"""The share of overlapping rows that must be the same at a lag, beyond what is usual, for the clock to be wrong."""


def check_series(contract: Contract, new: pl.DataFrame, known: KnownTable) -> Iterator[Breach]:
    """Find unknown series, and known series that stop while others continue."""
    last = pl.col("time").max().alias("last")
    before = known.table.group_by("series").agg(last).sort("series").collect()
    arrived = new.group_by("series").agg(last, pl.len().alias("rows")).sort("series")
    names = before["series"].to_list()
    for row in arrived.filter(~pl.col("series").is_in(names)).iter_rows(named=True):
        yield Breach(
            "series",
            None,
            f"series {row['series']!r} is not known; the known series are {', '.join(names)}. If its name is wrong, "
            "correct it at the source and drop the increment. If it is a new series, accept it with recast quarantine "
            "--accept as soon as it has enough rows for the split and the windows",
            {"series": row["series"], "rows": row["rows"], "known": names},
        )
    if contract.gap is None or len(names) < 2:
        return
    then, begin = before["last"].max(), new["time"].min()
    now: Any = new["time"].max()
    both = pl.concat([before, arrived.select("series", "last")]).group_by("series").agg(pl.col("last").max())
    # Before the first new rows there may be any gap: a series is silent only since they began.
    since = pl.max_horizontal("last", pl.lit(begin)) if known.first else pl.col("last")
    # A series that was silent before has been reported, or was silent from the beginning.
    was_active = before.filter(pl.lit(then) - pl.col("last") <= contract.gap)
    stopped = both.filter(pl.lit(now) - since > contract.gap).join(was_active, on="series", how="semi").sort("series")
    for series, until in stopped.iter_rows():
        yield Breach(
            "series",
            None,
            f"series {series!r} has no row after {until}, while others continue to {now}; at most "
            f"{format_length(contract.gap)} is allowed (contract.gap). If it has ended, accept the others with recast "
            "quarantine --accept; it is reported once",
            {"series": series, "after": str(until), "until": str(now)},
        )


def check_cadence(problem: Problem, near: pl.DataFrame, known: KnownTable) -> Iterator[Breach]:
    """Check that new rows come as often as the known ones."""
    step = pl.when(pl.col("series") == pl.col("series").shift()).then(pl.col("time").diff())
    steps = near.select(step.alias("step"), NEW_COLUMN).filter(NEW_COLUMN).drop_nulls().group_by("step").len()
    if steps["len"].sum() < 3:
        return
    most: Any = steps.sort("len", "step", descending=[True, False])["step"][0]
    if most != known.cadence:
        fix = ""
        if most < known.cadence and not problem.table.thin:
            fix = f"; with table.cadence: {format_duration(known.cadence)} and table.thin: true, only those are kept"
        yield Breach(
            "cadence",
            None,
            f"most new rows come every {format_duration(most)}, the known ones every "
            f"{format_duration(known.cadence)}{fix}",
            {
                "seconds": most.total_seconds(),
                "known_seconds": known.cadence.total_seconds(),
                "rows": near.filter(NEW_COLUMN).height,
            },
        )


def check_gaps(contract: Contract, near: pl.DataFrame, known: KnownTable) -> Iterator[Breach]:
    """Find gaps before new rows that are too long."""
    if contract.gap is None:
        return
    # Before the first new rows there may be any gap.
    counts = pl.col(NEW_COLUMN).shift() if known.first else pl.lit(True)
    same_series = pl.col("series") == pl.col("series").shift()
    gaps = near.select(
        "series",
        "time",
        (pl.col(NEW_COLUMN) & counts & same_series).alias("counts"),
        pl.col("time").shift().alias("after"),
    )
    too_long = gaps.filter(pl.col("counts") & (pl.col("time") - pl.col("after") > contract.gap))
    for row in too_long.iter_rows(named=True):
        yield Breach(
            "gap",
            None,
            f"no row between {row['after']} and {row['time']}, {format_length(row['time'] - row['after'])}; at most "
            f"{format_length(contract.gap)} is allowed (contract.gap)",
            {"series": row["series"], "after": str(row["after"]), "before": str(row["time"])},
        )


def check_overlap(features: list[str], new: pl.DataFrame, known: KnownTable) -> Iterator[Breach]:
    """Find new rows that repeat known rows of an hour or two before or after."""
    first, last = time_range(new["time"])
    reach = timedelta(hours=max(LAGS))
    near = known.table.filter(pl.col("time").is_between(first - reach, last + reach)).collect()
    if near.is_empty():
        return
    keys = ["series", "time", *features]
    for lag in LAGS:
        moved = near.select(pl.col("time") + timedelta(hours=lag), *(name for name in keys if name != "time"))
        shared = new.join(moved, on=["series", "time"], how="semi")
        same = shared.join(moved, on=keys, how="semi", nulls_equal=True).height
        usual = near.join(moved, on=keys, how="semi", nulls_equal=True).height / near.height
        if same >= 3 and same > (SAME_SHARE + usual) * shared.height:
            yield Breach(
                "clock",
                None,
                f"{same:,} of {shared.height:,} new rows repeat the known rows of {abs(lag)} h "
                f"{'before' if lag > 0 else 'after'}: the clock is {_describe_shift(lag)}",
                {"hours": lag, "same": same, "rows": shared.height},
            )


def _describe_shift(hours: int) -> str:
    return f"{abs(hours)} h {'ahead' if hours > 0 else 'behind'}"


def check_daily_cycle(features: list[str], near: pl.DataFrame, known: KnownTable) -> Iterator[Breach]:
    """Find a daily cycle that is hours earlier or later than that of the season."""
    if DAY // known.cadence < 4 * clock.LEAST_WAVES:
        return
    for (series,), rows in near.group_by("series", maintain_order=True):
        new_times = rows.filter(NEW_COLUMN)["time"]
        if new_times.is_empty():
            continue
        reference = select_season(known.table, series, new_times).select("time", *features).sort("time").collect()
        columns = [
            name for name in features if reference[name].null_count() <= (1 - clock.SHARE_OF_DAY) * reference.height
        ]
        if not columns:
            continue
        _, known_DKF = clock.fit_daily_waves(reference, columns, known.cadence)
        day_N, new_NKF = clock.fit_daily_waves(rows, columns, known.cadence)
        begin = new_times.dt.truncate("1d").dt.epoch("d")
        is_new = np.isin(day_N, begin.to_numpy())
        count = int(is_new.sum())
        if len(known_DKF) < clock.LEAST_DAYS or not count:
            continue
        # The days before few new days help to decide: the shift may have begun then.
        first = max(int(np.flatnonzero(is_new)[0]) - max(0, CLOCK_DAYS - count), 0)
        last = int(np.flatnonzero(is_new)[-1]) + 1
        evidence_NH = clock.weigh_shifts(new_NKF[first:last], known_DKF)
        needed = CLOCK_EVIDENCE if count >= CLOCK_DAYS else CLOCK_EVIDENCE_OF_FEW_DAYS
        # Every day since the shift began counts. It began on one of the days before, or on the first new day.
        backwards = np.cumsum(evidence_NH[::-1], axis=0)[::-1][: last - first - count + 1]
        day, hour = np.unravel_index(int(backwards.argmax()), backwards.shape)
        evidence = float(backwards[day, hour])
        if evidence > needed:
            since = datetime(1970, 1, 1) + timedelta(days=int(day_N[first + int(day)]))
            hours = clock.HOURS[int(hour)]
            yield Breach(
                "clock",
                None,
                f"since {since:%Y-%m-%d} the daily cycle is that of a clock {_describe_shift(hours)}: the evidence is "
                f"{evidence:.1f}, and {needed:g} is taken to be certain",
                {"series": series, "hours": hours, "evidence": round(evidence, 2), "days": len(evidence_NH) - int(day)},
            )
