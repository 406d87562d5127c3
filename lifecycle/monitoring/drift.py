"""How far the distribution of a column is from that of the rows that a network knows, in the same season.

The distance is the population stability index (Lewis 1994, "An Introduction to Credit Scoring"; Yurdakul and Naranjo
2020, "Statistical properties of the population stability index"). Two weeks of weather are never distributed as the
whole season is, so the index by itself says little. It is compared with the largest index of any window of as many days
among the known rows.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from lifecycle.seasons import number_seasons

DayNumbers = NDArray[np.int64]
"""Days since 1970-01-01."""

BIN_EDGES = 11
"""Edges of the bins: the deciles of the known rows of a season, with both ends."""
MIN_SCALE = 0.25
"""The smallest index with which others are compared: a smaller one is not usually called a change at all."""
MIN_ROWS_SHARE = 0.5
"""A window has no index if it has fewer rows than this share of those of the fullest known window."""


@dataclass(frozen=True)
class Drift:
    """The drift of one column over the days that end with one day.

    Attributes:
        index: the population stability index.
        ratio: the index in multiples of the largest one of the known rows; None where too little of the
            season is known.
    """

    column: str
    index: float
    ratio: float | None


def measure_drift(
    rows: pl.DataFrame, columns: list[str], known_until: np.datetime64, days: int, last_days: DayNumbers
) -> list[list[Drift]]:
    """The drift of each column at each of the days `last_days`, by day; a day with too few rows has none.

    Args:
        rows: `time` and the columns, of all series.
        known_until: rows up to this time are known; later rows are compared with them.
        days: the length of a window. The window that ends with a day is compared with the known rows of the season of
            that day.
    """
    if rows.is_empty() or not len(last_days):
        return [[] for _ in last_days]
    day_N = rows["time"].to_numpy().astype("datetime64[D]").astype(np.int64)
    is_known_N = rows["time"].to_numpy() <= known_until
    first = int(day_N.min())
    drifts: list[list[Drift]] = [[] for _ in last_days]
    for column in columns:
        values_N = rows[column].cast(pl.Float64).to_numpy()
        has_value_N = np.isfinite(values_N)
        for season in np.unique(_season(last_days)):
            places = np.flatnonzero(_season(last_days) == season)
            is_reference_N = has_value_N & is_known_N & (_season(day_N) == season)
            if not is_reference_N.any():
                continue
            edges = np.unique(np.quantile(values_N[is_reference_N], np.linspace(0, 1, BIN_EDGES)))
            # Values at an edge have bins of their own: a column may have one value only, or nearly always the same one.
            bins = 2 * len(edges) + 1
            bin_N = np.searchsorted(edges, values_N, "left") + np.searchsorted(edges, values_N, "right")
            span = int(day_N.max()) - first + 1
            flat = np.bincount((day_N[has_value_N] - first) * bins + bin_N[has_value_N], minlength=span * bins)
            counts_DB = _sum_windows(flat.reshape(span, bins), days)
            count_D = counts_DB.sum(axis=1)
            known_end = int(day_N[is_known_N].max()) - first
            fullest = count_D[: known_end + 1].max()
            if is_reference_N.sum() < fullest:
                # Less than one window of the season is known.
                continue
            index_D = _stability_index(counts_DB, np.bincount(bin_N[is_reference_N], minlength=bins))
            index_D[count_D < MIN_ROWS_SHARE * fullest] = np.nan
            # Days whose whole window is known. The first days of the table have less than a window before them.
            known_days = np.arange(days - 1, known_end)
            known_indices = index_D[known_days[_season(known_days + first) == season]]
            known_indices = known_indices[np.isfinite(known_indices)]
            scale = max(float(known_indices.max()), MIN_SCALE) if len(known_indices) else None
            for place in places:
                day = int(last_days[place]) - first
                if 0 <= day < span and np.isfinite(index_D[day]):
                    index = float(index_D[day])
                    drifts[place].append(Drift(column, index, index / scale if scale else None))
    return drifts


def _season(day_N: DayNumbers) -> NDArray[np.int64]:
    """The season of each day."""
    return number_seasons(day_N.astype("datetime64[D]"))


def _sum_windows(counts_DB: NDArray[np.int64], days: int) -> NDArray[np.int64]:
    """The sums over so many days that end with each day."""
    sums = np.cumsum(counts_DB, axis=0)
    sums[days:] -= sums[:-days].copy()
    return sums


def _stability_index(counts_DB: NDArray[np.int64], reference_B: NDArray[np.int64]) -> NDArray[np.float64]:
    """The index of each row of counts; half a count is added to each bin, so that no bin is empty."""
    bins = len(reference_B)
    q_DB = (counts_DB + 0.5) / (counts_DB.sum(axis=1, keepdims=True) + 0.5 * bins)
    p_B = (reference_B + 0.5) / (reference_B.sum() + 0.5 * bins)
    index_D: NDArray[np.float64] = ((q_DB - p_B) * np.log(q_DB / p_B)).sum(axis=1)
    return index_D
