"""The rule of the contract about changes: do new rows go on where the rows just before them have stopped?

A column that arrives in another unit, or from another sensor, may stay within the range of the known rows and of their
season. But it changes within a moment as it never did before. So neighbours are compared: each row with the row before
it, and the last day, week and four weeks with the same time before them. Of each such block there are three figures.
The level is the median of the values; by ratio it is their mean, where the column is positive. The scale is the mean
step from row to row. Days stand for themselves in weeks: a week's level is the mean of its days' medians, so that a
few wrong values do not count. The largest change of each figure in the known rows is what is usual.

A change by ratio is a difference of logarithms: divided by ten and multiplied by ten are equally far.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from lifecycle.new_rows.known_table import DAY, NEW_COLUMN, KnownTable
from lifecycle.new_rows.quarantine import Breach

Floats = NDArray[np.float64]

BLOCKS = (1, 7, 28)
"""The lengths of what is compared, in days; in rows where rows come less often than daily."""

LEAST_LENGTHS = 20
"""A change is usual or not only if the known rows hold this many of its lengths."""

SHARE_OF_BLOCK = 0.5
"""A day counts if it has this share of the values that the middle one of the known days has."""

LONGEST_GAP = 5
"""Days that may be missing between two blocks that are compared."""

YEAR = timedelta(days=365)
ALLOWANCE, RATIO_ALLOWANCE = 2, 4
"""How many times more is allowed while the known rows of a series cover less than a year, so that they lack seasons; of
ratios, which run away where values come near to zero, the second.
"""

MOST_USUAL_FACTOR = 10
"""A figure that changes by a larger factor of itself is not judged by ratio: it comes too near to zero."""

BLOCK_COLUMN, LAST_COLUMN, TOUCHES_COLUMN = "__block__", "__last__", "__touches__"
STEP, RATIO = "__step__ ", "__ratio__ "
"""Prefixes of the columns with the steps of a column."""

FIGURES = (("level", "median", False), ("level", "mean", True), ("scale", "scale", True))
"""The figures of blocks: what they are called, the prefix of their column, and whether they are compared by ratio."""


@dataclass(frozen=True)
class Change:
    """The largest change that new rows bring, and the largest one among the known rows.

    Attributes:
        figure: what has changed: step, level or scale.
        blocks: the length of what was compared, in days; 0: from row to row.
        is_ratio: the changes are differences of logarithms.
        largest: the change that new rows bring, with its sign.
        usual: the largest change in the known rows, without sign.
        time: the last time of what was compared.
        allowance: how many times more is allowed than `contract.change` says, as there are few known rows.
    """

    figure: str
    blocks: int
    is_ratio: bool
    largest: float
    usual: float
    time: datetime
    allowance: int = 1

    @property
    def times_usual(self) -> float:
        """How many times the usual change it is."""
        return abs(self.largest) / self.usual

    @property
    def strength(self) -> float:
        """By how much it is unusual: what `contract.change` limits."""
        return self.times_usual / self.allowance


def check_changes(
    margin: float, features: list[str], rows: pl.LazyFrame, known: KnownTable, accepted: Sequence[datetime]
) -> Iterator[Breach]:
    """Find columns that change more than they ever did in the known rows, by more than a margin.

    Args:
        margin: how many times the usual change is allowed.
        rows: the known rows and the new ones, which are marked, sorted by series and time.
        accepted: times at which a person has accepted a change; those across them do not count.
    """
    for series, column, changes in find_changes(features, rows, known.cadence, accepted):
        largest = max(changes, key=lambda change: change.strength, default=None)
        if largest is not None and largest.strength > margin:
            yield Breach("change", column, _describe(largest, margin), _write_evidence(series, largest))


def find_changes(
    features: list[str], rows: pl.LazyFrame, cadence: timedelta, accepted: Sequence[datetime]
) -> Iterator[tuple[str, str, list[Change]]]:
    """Find the largest changes that new rows bring, of each series with new rows and each column.

    A figure of which the known rows have too few changes, or none, is left out. For the arguments see `check_changes`.
    """
    unit = max(DAY, cadence)
    marked = _mark_steps(features, rows, cadence, unit, accepted)
    steps = _summarize_steps(features, marked)
    blocks = _summarize_blocks(features, marked)
    least_steps = LEAST_LENGTHS * (unit // cadence)
    for (series,), own_blocks in blocks.group_by("series", maintain_order=True):
        own_steps = steps.filter(pl.col("series") == series)
        usual, new = (own_steps.filter(pl.col(TOUCHES_COLUMN) == touches) for touches in (False, True))
        known = own_blocks.filter(~pl.col(NEW_COLUMN))
        is_short = known.is_empty() or known["end"][-1] - known["begin"][0] < YEAR
        for name in features:
            changes = [*_compare_steps(name, usual, new, least_steps), *_compare_blocks(name, own_blocks, accepted)]
            yield str(series), name, [_allow_more(change) if is_short else change for change in changes]


def _allow_more(change: Change) -> Change:
    """A change of a series of which there are few known rows."""
    return replace(change, allowance=RATIO_ALLOWANCE if change.is_ratio else ALLOWANCE)


def _mark_steps(
    features: list[str], rows: pl.LazyFrame, cadence: timedelta, unit: timedelta, accepted: Sequence[datetime]
) -> pl.LazyFrame:
    """Add to rows the steps from the row before, by difference and by ratio, and the block that each belongs to.

    Blocks are counted back from the last new row of the series. Series without new rows are left out.
    """
    last = rows.filter(pl.col(NEW_COLUMN)).group_by("series").agg(pl.col("time").max().alias(LAST_COLUMN))
    before, own = pl.col("time").shift(), pl.col("series") == pl.col("series").shift()
    crosses = pl.any_horizontal(pl.lit(False), *(((before < time) & (pl.col("time") >= time)) for time in accepted))
    is_step = (own & (pl.col("time") - before <= 2 * cadence) & ~crosses).fill_null(False)
    columns = [pl.col(name) for name in features]
    positive = [pl.when(column > 0).then(column).log() for column in columns]
    since_last = (pl.col(LAST_COLUMN) - pl.col("time")).dt.total_milliseconds()
    return (
        rows.with_columns(
            (pl.col(NEW_COLUMN) | (own & pl.col(NEW_COLUMN).shift()).fill_null(False)).alias(TOUCHES_COLUMN),
            *(
                pl.when(is_step).then(column.diff()).alias(f"{STEP}{name}")
                for name, column in zip(features, columns, strict=True)
            ),
            *(
                pl.when(is_step).then(log.diff()).alias(f"{RATIO}{name}")
                for name, log in zip(features, positive, strict=True)
            ),
        )
        .join(last, on="series", how="inner", maintain_order="left")
        .with_columns((since_last // round(unit.total_seconds() * 1000)).alias(BLOCK_COLUMN))
    )


def _summarize_steps(features: list[str], marked: pl.LazyFrame) -> pl.DataFrame:
    """The largest steps of each series, of those that touch new rows and of the others."""
    figures = []
    for name in features:
        for prefix in (STEP, RATIO):
            step = pl.col(f"{prefix}{name}")
            at = step.abs().arg_max()
            figures += [step.get(at).alias(f"{prefix}{name}"), pl.col("time").get(at).alias(f"time {prefix}{name}")]
        figures += [pl.col(f"{STEP}{name}").count().alias(f"count {name}"), pl.col(name).min().alias(f"min {name}")]
    return marked.group_by("series", TOUCHES_COLUMN).agg(*figures).collect()


def _summarize_blocks(features: list[str], marked: pl.LazyFrame) -> pl.DataFrame:
    """The figures of each block of each series, in the order of time."""
    columns = pl.col(features)
    return (
        marked.group_by("series", BLOCK_COLUMN)
        .agg(
            pl.col(NEW_COLUMN).any(),
            pl.col("time").min().alias("begin"),
            pl.col("time").max().alias("end"),
            columns.median().name.prefix("median "),
            columns.mean().name.prefix("mean "),
            columns.count().name.prefix("count "),
            *(pl.col(f"{STEP}{name}").abs().mean().alias(f"scale {name}") for name in features),
        )
        .sort(["series", BLOCK_COLUMN], descending=[False, True])
        .collect()
    )


def _compare_steps(name: str, usual: pl.DataFrame, new: pl.DataFrame, least: int) -> Iterator[Change]:
    """Compare the largest step of a column from or to a new row with the largest one in the known rows."""
    if usual.is_empty() or new.is_empty() or usual[f"count {name}"][0] < least:
        return
    for prefix, is_ratio in ((STEP, False), (RATIO, True)):
        largest, most = new[f"{prefix}{name}"][0], usual[f"{prefix}{name}"][0]
        if largest is None or not most or (is_ratio and usual[f"min {name}"][0] <= 0):
            continue
        if not is_ratio or abs(most) <= np.log(MOST_USUAL_FACTOR):
            yield Change("step", 0, is_ratio, largest, abs(most), new[f"time {prefix}{name}"][0])


def _compare_blocks(name: str, blocks: pl.DataFrame, accepted: Sequence[datetime]) -> Iterator[Change]:
    """Compare the largest changes of a column from block to block with those in the known rows."""
    count_B, new_B = blocks[f"count {name}"].to_numpy(), blocks[NEW_COLUMN].to_numpy()
    known_counts = count_B[~new_B & (count_B > 0)]
    if not len(known_counts):
        return
    counts_B = count_B >= max(1.0, SHARE_OF_BLOCK * float(np.median(known_counts)))
    valid = blocks.filter(pl.Series(counts_B))
    day_B, new_B = -valid[BLOCK_COLUMN].to_numpy(), valid[NEW_COLUMN].to_numpy()
    if not new_B.any():
        return
    first_new, last_new = day_B[new_B].min(), day_B[new_B].max()
    begin_B, end_B = valid["begin"].to_numpy(), valid["end"].to_numpy()
    for length in BLOCKS:
        pairs = len(day_B) - 2 * length + 1
        if pairs < 1:
            break
        first_P, last_P = np.arange(pairs), np.arange(2 * length - 1, len(day_B))
        is_close_P = day_B[last_P] - day_B[first_P] < 2 * length + LONGEST_GAP
        for time in accepted:
            moment = np.datetime64(time)
            is_close_P &= ~((begin_B[first_P] < moment) & (end_B[last_P] >= moment))
        news_B = np.concatenate([[0], np.cumsum(new_B)])
        is_new_P = (news_B[last_P + 1] > news_B[first_P]) & is_close_P
        # Rows that have come one by one must not have become usual before they are a block.
        is_apart_P = (day_B[last_P] <= first_new - length) | (day_B[first_P] > last_new)
        is_usual_P = ~is_new_P & is_close_P & is_apart_P
        if not is_new_P.any() or is_usual_P.sum() < LEAST_LENGTHS * length:
            continue
        for figure, column, is_ratio in FIGURES:
            mean_W = _moving_mean(valid[f"{column} {name}"].to_numpy().astype(np.float64), length)
            before_P, after_P = mean_W[:pairs], mean_W[length : length + pairs]
            if is_ratio:
                if (np.minimum(before_P, after_P)[is_usual_P] <= 0).any():
                    continue
                with np.errstate(divide="ignore", invalid="ignore"):
                    change_P = np.log(after_P) - np.log(before_P)
            else:
                change_P = after_P - before_P
            size_P = np.where(np.isfinite(change_P), np.abs(change_P), 0.0)
            usual = float(size_P[is_usual_P].max())
            at = int(np.where(is_new_P, size_P, -1.0).argmax())
            if usual > 0 and not (is_ratio and usual > np.log(MOST_USUAL_FACTOR)):
                end = valid["end"][int(last_P[at])]
                yield Change(figure, length, is_ratio, float(change_P[at]) if size_P[at] else 0.0, usual, end)


def _moving_mean(values_B: Floats, length: int) -> Floats:
    """The means of so many neighbours."""
    means: Floats = np.lib.stride_tricks.sliding_window_view(values_B, length).mean(axis=1)
    return means


def _describe(change: Change, margin: float) -> str:
    """Write a change for people."""
    what = {"step": "it", "level": "its level", "scale": "its mean step from row to row"}[change.figure]
    when = f"in the {change.blocks} days up to {change.time}" if change.blocks else f"at {change.time}"
    before = f"in the {change.blocks} days before them" if change.blocks else "in the row before"
    if change.is_ratio:
        size, usual = f"{np.exp(change.largest):.3g} times as large as", f"by a factor of {np.exp(change.usual):.3g}"
    else:
        direction = "above" if change.largest > 0 else "below"
        size, usual = f"{abs(change.largest):.4g} {direction}", f"by {change.usual:.4g}"
    why = f", {change.allowance} times as much as with a year of known rows" if change.allowance > 1 else ""
    return (
        f"{when} {what} is {size} what it was {before}. The known rows never changed more than {usual}; this is "
        f"{change.times_usual:.1f} times as far, and at most {margin * change.allowance:g} times is allowed{why} "
        "(contract.change). Has its unit changed, or its sensor?"
    )


def _write_evidence(series: str, change: Change) -> dict[str, Any]:
    """A change as JSON."""
    return {
        "series": series,
        "figure": change.figure,
        "days": change.blocks,
        "ratio": change.is_ratio,
        "change": change.largest,
        "known_change": change.usual,
        "times": round(change.times_usual, 2),
        "time": str(change.time),
    }
