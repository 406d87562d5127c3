"""How far the distribution of a column is from that of the rows that a network knows, of the same season.

The distance is the population stability index (Lewis 1994, "An Introduction to Credit Scoring"; Yurdakul and Naranjo
2020, "Statistical properties of the population stability index"). Two weeks of weather are never distributed as the
season is, so the index by itself says little: it is told in times the largest of any as many days among the known rows.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

Days = NDArray[np.int64]
"""Days since 1970-01-01."""

QUANTILES = 11
"""Ends of the bins: the deciles of the known rows of a season."""
USUAL = 0.25
"""An index that counts as a change at all; no usual one is taken to be smaller."""
FULLEST = 0.5
"""Windows whose rows are fewer than this share of those of the fullest that is known have no index."""
SEASONS = 4


@dataclass(frozen=True)
class Drift:
    """The drift of one column over the days up to one.

    Attributes:
        index: the population stability index.
        times: of the largest usual one; None where no season of the known rows is whole enough to tell.
    """

    column: str
    index: float
    times: float | None


def drift(
    rows: pl.DataFrame, columns: list[str], known_until: np.datetime64, days: int, last: Days
) -> list[list[Drift]]:
    """The drift of each column at each of the days `last`, by day; nothing at a day with too few rows.

    Args:
        rows: `time` and the columns, of all series.
        known_until: rows up to this time are known; what is later is compared with them.
        days: as many days, up to and with each of `last`, are compared with the season that this is of.
    """
    if rows.is_empty() or not len(last):
        return [[] for _ in last]
    day_N = rows["time"].to_numpy().astype("datetime64[D]").astype(np.int64)
    known_N = rows["time"].to_numpy() <= known_until
    first = int(day_N.min())
    found: list[list[Drift]] = [[] for _ in last]
    for column in columns:
        values_N = rows[column].cast(pl.Float64).to_numpy()
        there_N = np.isfinite(values_N)
        for season in np.unique(_season(last)):
            wanted = np.flatnonzero(_season(last) == season)
            reference_N = there_N & known_N & (_season(day_N) == season)
            if not reference_N.any():
                continue
            edges = np.unique(np.quantile(values_N[reference_N], np.linspace(0, 1, QUANTILES)))
            # Values at an end are apart from those between two: a column may have one value only, or mostly.
            bins = 2 * len(edges) + 1
            bin_N = np.searchsorted(edges, values_N, "left") + np.searchsorted(edges, values_N, "right")
            span = int(day_N.max()) - first + 1
            flat = np.bincount((day_N[there_N] - first) * bins + bin_N[there_N], minlength=span * bins)
            counts_DB = _windows(flat.reshape(span, bins), days)
            full = counts_DB.sum(axis=1)
            known_end = int(day_N[known_N].max()) - first
            fullest = full[: known_end + 1].max()
            if reference_N.sum() < fullest:
                # Less of the season is known than one window.
                continue
            index_D = _index(counts_DB, np.bincount(bin_N[reference_N], minlength=bins))
            index_D[full < FULLEST * fullest] = np.nan
            # Days whose window is known from end to end; the first of the table have less than a window before them.
            known_days = np.arange(days - 1, known_end)
            usual = index_D[known_days[_season(known_days + first) == season]]
            usual = usual[np.isfinite(usual)]
            scale = max(float(usual.max()), USUAL) if len(usual) else None
            for place in wanted:
                at = int(last[place]) - first
                if 0 <= at < span and np.isfinite(index_D[at]):
                    index = float(index_D[at])
                    found[place].append(Drift(column, index, index / scale if scale else None))
    return found


def _season(day_N: Days) -> NDArray[np.int64]:
    """0 for December to February, and so on."""
    months: NDArray[np.int64] = day_N.astype("datetime64[D]").astype("datetime64[M]").astype(np.int64)
    return (months + 1) % 12 // (12 // SEASONS)


def _windows(counts_DB: NDArray[np.int64], days: int) -> NDArray[np.int64]:
    """The sums over so many days up to and with each."""
    sums = np.cumsum(counts_DB, axis=0)
    sums[days:] -= sums[:-days].copy()
    return sums


def _index(counts_DB: NDArray[np.int64], reference_B: NDArray[np.int64]) -> NDArray[np.float64]:
    """The index of each row of counts; half a count is added to each bin, so that none is empty."""
    bins = len(reference_B)
    q_DB = (counts_DB + 0.5) / (counts_DB.sum(axis=1, keepdims=True) + 0.5 * bins)
    p_B = (reference_B + 0.5) / (reference_B.sum() + 0.5 * bins)
    index_D: NDArray[np.float64] = ((q_DB - p_B) * np.log(q_DB / p_B)).sum(axis=1)
    return index_D
