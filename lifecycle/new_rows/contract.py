"""The data contract: what new rows must be like before anything is trained on them.

Every rule has a default that the known rows themselves give, all that were ingested before: what they never did, or
what they do not do in the season of the new ones, is a breach. `python -m benchmarks contract` measures the defaults.
"""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from lifecycle.new_rows import clock
from lifecycle.new_rows.refresh import Arrival, growing, readable
from problems.contract import USUAL_STAY, Contract
from problems.errors import RecastError
from problems.increments import FOLDER, GrowingSource, increments
from problems.problem import Problem
from problems.source import written
from project import paths
from project.settings.sections import Settings
from stages.ingest import QUALITY, TABLE, hashes, ingest, read_by, thinned

NEAR = timedelta(days=40)
"""So much before the new rows belongs to what is looked at with them."""
LEAST_SPAN = timedelta(days=3)
"""Missing rows and values are counted over so much at least: an hour's outage is no third of the data."""
A_DAY = timedelta(days=1)
SEASON = timedelta(days=15)
"""Known rows so many days of the year before and after the new ones are of the same season."""
LEAST_SEASON_DAYS = 10
A_WEEK, OF_FEW_DAYS = timedelta(days=7), 4 / 3
"""The mean of less than a week may be so many times further from that of the season."""
LEAST_ROWS_STUCK = 6
"""A value may stay for so many rows in any case, unless a length of time is set."""
CLOCK_DAYS = 14
CLOCK_EVIDENCE, CLOCK_EVIDENCE_OF_FEW_DAYS = 6.0, 12.0
"""What the days must say together for a shift of the clock: of `CLOCK_DAYS` or more, and of fewer."""
LAGS = (-2, -1, 1, 2)
"""Hours; rows that overlap known ones may be those of so much before or after."""
SAME = 0.5
_NEW = "__new__"


@dataclass(frozen=True)
class Breach:
    """A rule that the new rows break.

    Attributes:
        rule: which one: types, series, range, stuck, cadence, gap, missing, clock or drift
        column: where it is about one
        message: for people, with figures
        evidence: the figures, as JSON
    """

    rule: str
    column: str | None
    message: str
    evidence: dict[str, Any]


@dataclass(frozen=True)
class Known:
    """The rows that new ones are held against.

    Attributes:
        table: as `ingest` leaves it
        first: nothing has been added to what the store began with, so that any gap may lie before the new rows
    """

    table: pl.LazyFrame
    cadence: timedelta
    first: bool


def check(problem: str, settings: Settings, arrival: Arrival) -> list[Breach]:
    """What new rows break of the problem's contract, against the rows that are known; nothing if they are right.

    Raises:
        RecastError: the rows that are known cannot be read.
    """
    declared, source = growing(problem, settings)
    try:
        with readable(source, arrival.pending, declared) as new:
            pass
    except RecastError as error:
        return [Breach("types", None, str(error), {"file": arrival.pending.name})]
    with _known(declared, source, paths.raw(problem), paths.stage("ingest", problem)) as known:
        return breaches(declared, new, known)


@contextmanager
def _known(problem: Problem, source: GrowingSource, store: Path, ingested: Path) -> Iterator[Known]:
    """What was ingested, and increments that were accepted since; all of it ingested now where that does not fit."""
    there = increments(store / FOLDER)
    with tempfile.TemporaryDirectory() as name:
        if not _fits(problem, store, ingested):
            ingested = Path(name) / "ingest"
            ingest(problem, store, ingested)
        quality = json.loads((ingested / QUALITY).read_text(encoding="utf-8"))
        table = pl.scan_parquet(ingested / TABLE)
        later = [file for file in there if f"{FOLDER}/{file.name}" not in quality["files"]]
        for file in later:
            with readable(source, file, problem) as rows:
                table = _joined(table, rows).drop(_NEW)
        yield Known(table, timedelta(seconds=quality["cadence_seconds"]), not there)


def _fits(problem: Problem, store: Path, ingested: Path) -> bool:
    """Whether what was ingested is what the store's files hold now, but for later increments, as they are read now."""
    if not (ingested / QUALITY).exists():
        return False
    quality = json.loads((ingested / QUALITY).read_text(encoding="utf-8"))
    then, now = quality["files"], hashes(store)
    later = now.keys() - then.keys()
    return (
        then.items() <= now.items()
        and all(name.startswith(f"{FOLDER}/") for name in later)
        and quality.get("settings") == read_by(problem)
    )


def _joined(known: pl.LazyFrame, new: pl.DataFrame) -> pl.LazyFrame:
    """Known and new rows, the new ones marked and in the place of those that they correct."""
    marked = new.lazy().with_columns(pl.lit(True).alias(_NEW))
    others = known.join(new.lazy().select("series", "time"), on=["series", "time"], how="anti")
    return pl.concat([others.with_columns(pl.lit(False).alias(_NEW)), marked], how="diagonal").sort("series", "time")


def breaches(problem: Problem, new: pl.DataFrame, known: Known) -> list[Breach]:
    """The rules that new rows break.

    Args:
        new: as `ingest` would make a table of them, before it is thinned.
    """
    features, contract = list(problem.table.features), problem.contract
    first, last = new["time"].min(), new["time"].max()
    assert isinstance(first, datetime) and isinstance(last, datetime)
    names = ["time", "series", *features]
    around = known.table.filter(pl.col("time").is_between(first - NEAR, last + NEAR))
    # A gap may be longer than what is looked at.
    before = known.table.filter(pl.col("time") < first - NEAR).group_by("series", maintain_order=True).tail(1)
    joined = _joined(pl.concat([before.select(names), around.select(names)]), new.select(names))
    if problem.table.thin:
        joined = thinned(joined, known.cadence)
    near = joined.collect()
    thin = near.filter(_NEW)
    found = [*_series(contract, new, known)]
    found += [*_ranges(contract, features, new, known), *_stuck(contract, features, near, known)]
    found += [
        *_cadence(problem, thin, near, known),
        *_gaps(contract, near, known),
        *_missing(contract, features, near, known),
    ]
    if contract.clock:
        found += [*_overlap(features, new, known), *_daily_cycle(features, near, known)]
    if contract.drift is not None:
        found += _drift(contract.drift, features, near, known)
    return found


def _series(contract: Contract, new: pl.DataFrame, known: Known) -> Iterator[Breach]:
    """Series that are not known, and known ones that stop while others go on."""
    last = pl.col("time").max().alias("last")
    before = known.table.group_by("series").agg(last).sort("series").collect()
    come = new.group_by("series").agg(last, pl.len().alias("rows")).sort("series")
    names = before["series"].to_list()
    for row in come.filter(~pl.col("series").is_in(names)).iter_rows(named=True):
        yield Breach(
            "series",
            None,
            f"series {row['series']!r} is not known; known are {', '.join(names)}. If its name is wrong, correct it at "
            "the source and drop the increment; if it is wanted, take it in with recast quarantine --accept, as soon "
            "as there are rows enough of it for the split and the windows",
            {"series": row["series"], "rows": row["rows"], "known": names},
        )
    if contract.gap is None or len(names) < 2:
        return
    then, begin = before["last"].max(), new["time"].min()
    now: Any = new["time"].max()
    both = pl.concat([before, come.select("series", "last")]).group_by("series").agg(pl.col("last").max())
    # Where any time may lie before the new rows, a series is silent since they began.
    since = pl.max_horizontal("last", pl.lit(begin)) if known.first else pl.col("last")
    # One that was silent before has been told, or was so from the beginning.
    was_there = before.filter(pl.lit(then) - pl.col("last") <= contract.gap)
    stopped = both.filter(pl.lit(now) - since > contract.gap).join(was_there, on="series", how="semi").sort("series")
    for series, until in stopped.iter_rows():
        yield Breach(
            "series",
            None,
            f"series {series!r} has no row after {until}, and others go on to {now}; at most {_long(contract.gap)} is "
            "right (contract.gap). If it has ended, take the others in with recast quarantine --accept; it is told "
            "once",
            {"series": series, "after": str(until), "until": str(now)},
        )


def _ranges(contract: Contract, features: list[str], new: pl.DataFrame, known: Known) -> Iterator[Breach]:
    """Values beyond the bounds that are set, or far beyond those of the known rows."""
    columns = pl.col(features)
    seen = known.table.select(columns.min().name.prefix("min "), columns.max().name.prefix("max ")).collect()
    for name in features:
        least, most = contract.ranges.get(name, (None, None))
        why = "allowed by contract.ranges"
        low, high = seen[f"min {name}"][0], seen[f"max {name}"][0]
        if name not in contract.ranges and contract.margin is not None and low is not None and low < high:
            margin = contract.margin * (high - low)
            least, most = low - margin, high + margin
            why = f"the known rows' {low:g} to {high:g}, with a margin of {contract.margin:g} times that width"
        bounds = [None if bound is None else float(bound) for bound in (least, most)]
        value = pl.col(name)
        beyond = new.filter(
            (value < bounds[0] if bounds[0] is not None else pl.lit(False))
            | (value > bounds[1] if bounds[1] is not None else pl.lit(False))
        )
        if beyond.height:
            row = beyond.row(0, named=True)
            yield Breach(
                "range",
                name,
                f"{beyond.height:,} values are beyond {_bounds(bounds)} ({why}); the first is {row[name]:g} at "
                f"{row['time']}",
                {"rows": beyond.height, "least": bounds[0], "most": bounds[1], "value": row[name], **_at(row)},
            )


def _bounds(bounds: list[float | None]) -> str:
    least, most = bounds
    if least is None:
        return f"at most {most:g}"
    return f"at least {least:g}" if most is None else f"{least:g} to {most:g}"


def _long(duration: timedelta) -> str:
    """A duration in hours or days, to a tenth."""
    return f"{duration / A_DAY:.1f} d" if duration >= 2 * A_DAY else f"{duration / timedelta(hours=1):.1f} h"


def _at(row: dict[str, Any]) -> dict[str, str]:
    return {"series": row["series"], "time": str(row["time"])}


def _runs(rows: pl.LazyFrame, name: str, cadence: timedelta) -> pl.LazyFrame:
    """How long a column stays at one value, without a gap: series, begin, length, value, and whether a row is new."""
    steps = pl.col("time").diff() > 2 * cadence
    other = pl.any_horizontal(pl.col(name) != pl.col(name).shift(), pl.col("series") != pl.col("series").shift(), steps)
    run = other.fill_null(True).cum_sum().alias("run")
    kept = [_NEW] if _NEW in rows.collect_schema() else []
    return (
        rows.select("series", "time", name, *kept)
        .drop_nulls(name)
        .with_columns(run)
        .group_by("run", maintain_order=True)
        .agg(
            pl.col("series").first(),
            pl.col("time").first().alias("begin"),
            (pl.col("time").last() - pl.col("time").first()).alias("length"),
            pl.col(name).first().alias("value"),
            *(pl.col(each).any() for each in kept),
        )
    )


def _stuck(contract: Contract, features: list[str], near: pl.DataFrame, known: Known) -> Iterator[Breach]:
    """A sensor that gives one value for too long."""
    for name in features:
        allowed = contract.stuck.get(name, USUAL_STAY) if isinstance(contract.stuck, dict) else contract.stuck
        if allowed is None:
            continue
        why = "allowed by contract.stuck"
        runs = _runs(near.lazy(), name, known.cadence).filter(_NEW).sort("length").collect()
        if runs.is_empty():
            continue
        longest = runs.row(-1, named=True)
        if not isinstance(allowed, timedelta):
            if longest["length"] < LEAST_ROWS_STUCK * known.cadence:
                continue
            seen: Any = _runs(known.table, name, known.cadence).select(pl.col("length").max()).collect().item()
            why = f"{allowed:g} times the longest in the known rows, or {LEAST_ROWS_STUCK} rows; contract.stuck"
            allowed = max(allowed * (seen or timedelta(0)), LEAST_ROWS_STUCK * known.cadence)
        if longest["length"] > allowed:
            yield Breach(
                "stuck",
                name,
                f"{longest['value']:g} for {_long(longest['length'])} from {longest['begin']} on; at most "
                f"{_long(allowed)} is right ({why})",
                {
                    "value": longest["value"],
                    "seconds": longest["length"].total_seconds(),
                    "allowed_seconds": allowed.total_seconds(),
                    "series": longest["series"],
                    "time": str(longest["begin"]),
                },
            )


def _cadence(problem: Problem, thin: pl.DataFrame, near: pl.DataFrame, known: Known) -> Iterator[Breach]:
    """Rows that come more or less often than the known ones."""
    step = pl.when(pl.col("series") == pl.col("series").shift()).then(pl.col("time").diff())
    steps = near.select(step.alias("step"), _NEW).filter(_NEW).drop_nulls().group_by("step").len()
    if steps["len"].sum() < 3:
        return
    most: Any = steps.sort("len", "step", descending=[True, False])["step"][0]
    if most != known.cadence:
        mend = ""
        if most < known.cadence and not problem.table.thin:
            mend = f"; with table.cadence: {written(known.cadence)} and table.thin: true so many of them are kept"
        yield Breach(
            "cadence",
            None,
            f"most new rows come every {written(most)}, the known ones every {written(known.cadence)}{mend}",
            {"seconds": most.total_seconds(), "known_seconds": known.cadence.total_seconds(), "rows": thin.height},
        )


def _gaps(contract: Contract, near: pl.DataFrame, known: Known) -> Iterator[Breach]:
    """A time without rows that is too long, before a new row."""
    if contract.gap is None:
        return
    begun = pl.col(_NEW).shift() if known.first else pl.lit(True)
    same = pl.col("series") == pl.col("series").shift()
    gaps = near.select(
        "series", "time", _NEW, pl.col("time").shift().alias("after"), begun.alias("begun"), same.alias("same")
    )
    long = gaps.filter(
        pl.col(_NEW) & pl.col("begun") & pl.col("same") & (pl.col("time") - pl.col("after") > contract.gap)
    )
    for row in long.iter_rows(named=True):
        yield Breach(
            "gap",
            None,
            f"no row between {row['after']} and {row['time']}, {_long(row['time'] - row['after'])}; at most "
            f"{_long(contract.gap)} is right (contract.gap)",
            {"series": row["series"], "after": str(row["after"]), "before": str(row["time"])},
        )


def _missing(contract: Contract, features: list[str], near: pl.DataFrame, known: Known) -> Iterator[Breach]:
    """Too many missing rows, or values of a column."""
    if contract.missing is None:
        return
    for (series,), rows in near.group_by("series", maintain_order=True):
        mine = rows.filter(_NEW)
        if mine.is_empty():
            continue
        first, last = mine["time"][0], mine["time"][-1]
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
                f"{share:.0%} of the rows from {begin} to {last} are missing; at most {contract.missing:.0%} is right "
                "(contract.missing)",
                {"series": series, "share": round(share, 4), "rows": span.height, "expected": expected},
            )
        usual = known.table.select(pl.col(features).null_count() / pl.len()).collect()
        for name in features:
            share = span[name].null_count() / max(span.height, 1)
            if share > contract.missing + usual[name][0]:
                yield Breach(
                    "missing",
                    name,
                    f"{share:.0%} of its values from {begin} to {last} are missing, in the known rows "
                    f"{usual[name][0]:.0%}; at most {contract.missing:.0%} more is right (contract.missing)",
                    {"series": series, "share": round(share, 4), "known_share": round(usual[name][0], 4)},
                )


def _overlap(features: list[str], new: pl.DataFrame, known: Known) -> Iterator[Breach]:
    """New rows that are known ones of an hour or two before or after."""
    first, last = new["time"].min(), new["time"].max()
    assert isinstance(first, datetime) and isinstance(last, datetime)
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
        if same >= 3 and same > (SAME + usual) * shared.height:
            yield Breach(
                "clock",
                None,
                f"{same:,} of {shared.height:,} new rows are known ones of {abs(lag)} h "
                f"{'before' if lag > 0 else 'after'}: the clock is {_off(lag)}",
                {"hours": lag, "same": same, "rows": shared.height},
            )


def _off(hours: int) -> str:
    return f"{abs(hours)} h {'ahead' if hours > 0 else 'behind'}"


def _daily_cycle(features: list[str], near: pl.DataFrame, known: Known) -> Iterator[Breach]:
    """A daily cycle that comes hours before or after that of the season."""
    if A_DAY // known.cadence < 4 * clock.LEAST_WAVES:
        return
    for (series,), rows in near.group_by("series", maintain_order=True):
        new_times = rows.filter(_NEW)["time"]
        if new_times.is_empty():
            continue
        reference = _season(known.table, series, new_times).select("time", *features).sort("time").collect()
        columns = [
            name for name in features if reference[name].null_count() <= (1 - clock.SHARE_OF_DAY) * reference.height
        ]
        if not columns:
            continue
        _, known_DKF = clock.waves(reference, columns, known.cadence)
        day_N, new_NKF = clock.waves(rows, columns, known.cadence)
        begin = new_times.dt.truncate("1d").dt.epoch("d")
        is_new = np.isin(day_N, begin.to_numpy())
        count = int(is_new.sum())
        if len(known_DKF) < clock.LEAST_DAYS or not count:
            continue
        # Of few days, those before them help to tell: the shift may have begun then.
        first = max(int(np.flatnonzero(is_new)[0]) - max(0, CLOCK_DAYS - count), 0)
        last = int(np.flatnonzero(is_new)[-1]) + 1
        evidence_NH = clock.evidence(new_NKF[first:last], known_DKF)
        needed = CLOCK_EVIDENCE if count >= CLOCK_DAYS else CLOCK_EVIDENCE_OF_FEW_DAYS
        # Every day since it began counts, so it began on one of these, or on the first new day.
        backwards = np.cumsum(evidence_NH[::-1], axis=0)[::-1][: last - first - count + 1]
        day, hour = np.unravel_index(int(backwards.argmax()), backwards.shape)
        said = float(backwards[day, hour])
        if said > needed:
            since = datetime(1970, 1, 1) + timedelta(days=int(day_N[first + int(day)]))
            hours = clock.HOURS[int(hour)]
            yield Breach(
                "clock",
                None,
                f"since {since:%Y-%m-%d} the daily cycle is that of a clock {_off(hours)}: evidence of {said:.1f}, and "
                f"{needed:g} is taken for certain",
                {"series": series, "hours": hours, "evidence": round(said, 2), "days": len(evidence_NH) - int(day)},
            )


def _season(known: pl.LazyFrame, series: Any, times: pl.Series) -> pl.LazyFrame:
    """The known rows of a series at this time of the year, but for those at these times."""
    first, last = times.min(), times.max()
    assert isinstance(first, datetime) and isinstance(last, datetime)
    middle = first + (last - first) / 2
    reach = SEASON + (last - first) / 2
    rows = known.filter((pl.col("series") == series) & ~pl.col("time").is_between(first, last))
    if reach >= timedelta(days=182):
        return rows
    apart = (pl.col("time").dt.ordinal_day().cast(pl.Int32) - middle.timetuple().tm_yday + 365 + 182) % 365 - 182
    return rows.filter(apart.abs() <= reach / A_DAY)


def _drift(limit: float, features: list[str], near: pl.DataFrame, known: Known) -> Iterator[Breach]:
    """A column whose mean is not that of the season."""
    for (series,), rows in near.group_by("series", maintain_order=True):
        mine = rows.filter(_NEW)
        if mine.is_empty():
            continue
        span = rows.filter(pl.col("time").is_between(min(mine["time"][0], mine["time"][-1] - A_DAY), mine["time"][-1]))
        most = limit if mine["time"][-1] - mine["time"][0] > A_WEEK - A_DAY else limit * OF_FEW_DAYS
        column = pl.col(features)
        reference = _season(known.table, series, span["time"])
        seen = reference.select(
            pl.col("time").dt.date().n_unique().alias("days"),
            column.mean().name.prefix("mean "),
            column.std().name.prefix("deviation "),
        ).collect()
        if seen["days"][0] < LEAST_SEASON_DAYS:
            continue
        for name in features:
            usual, deviation = seen[f"mean {name}"][0], seen[f"deviation {name}"][0]
            found: Any = span[name].mean()
            if found is None or not deviation:
                continue
            mean = float(found)
            apart = abs(mean - usual) / deviation
            if apart > most:
                yield Breach(
                    "drift",
                    name,
                    f"its mean is {mean:g}; that of the known rows of the season is {usual:g} with a deviation of "
                    f"{deviation:g}: {apart:.1f} of them apart, at most {most:g} are right (contract.drift)",
                    {
                        "series": series,
                        "mean": mean,
                        "known_mean": usual,
                        "known_deviation": deviation,
                        "deviations": round(apart, 2),
                    },
                )
