"""The seasons and the hours: harmonics of the time, and the target's average at a time of year and day.

The climatology is the mean by day of the year and hour of the day, smoothed: a least-squares fit of all products of the
harmonics of the two. A plain mean of the values at one hour of one day in a few years would mostly be the weather of
those years. Narapusetty, DelSole and Tippett 2009, "Optimal Estimation of the Climatological Mean", Journal of
Climate 22.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np

from forecasting.arrays import Times, Values
from problems.columns import Harmonics

YEAR_DAYS = 365.2425
MILLISECONDS_A_DAY = 86_400_000
BLOCK_ROWS = 1 << 16
"""The largest number of rows whose harmonics are in memory at once."""
NEGLIGIBLE = 1e-9
"""A singular value below this share of the largest cannot be distinguished from rounding, and is left out."""


def compute_harmonics(times_N: Times, harmonics: Harmonics) -> Values:
    """Sines and cosines (N, 2 year + 2 day) of the times, from -1 to 1: of the year, then of the day (UTC)."""
    return np.concatenate(_compute_by_period(times_N, harmonics), axis=1)


def _compute_by_period(times_N: Times, harmonics: Harmonics) -> tuple[Values, Values]:
    """Sines and cosines of the year (N, 2 year), and of the day (N, 2 day)."""
    days_N = times_N.astype("datetime64[ms]").astype(np.int64) / MILLISECONDS_A_DAY
    year, day = (
        2 * np.pi * (days_N / period % 1)[:, None] * np.arange(1, count + 1)
        for period, count in ((YEAR_DAYS, harmonics.year), (1.0, harmonics.day))
    )
    return tuple(  # type: ignore[return-value]
        np.stack([np.sin(angles), np.cos(angles)], axis=2).reshape(len(days_N), -1) for angles in (year, day)
    )


@dataclass(frozen=True)
class Climatology:
    """The target's average at a time of year and day, in its own unit.

    Attributes:
        coefficients: one for each product of a harmonic of the year, or 1, with a harmonic of the day, or 1.
    """

    harmonics: Harmonics
    coefficients: Values

    @classmethod
    def fit(cls, harmonics: Harmonics, pieces: Iterable[tuple[Times, Values]]) -> Self | None:
        """Fit by least squares to times and values (N,), piece by piece; None if all values are NaN."""
        width = (2 * harmonics.year + 1) * (2 * harmonics.day + 1)
        squares, products, count = np.zeros((width, width)), np.zeros(width), 0
        for times_N, values_N in pieces:
            is_known = ~np.isnan(values_N)
            known_N = values_N[is_known]
            count += len(known_N)
            for begin, x_NK in _compute_products(times_N[is_known], harmonics):
                squares += x_NK.T @ x_NK
                products += x_NK.T @ known_N[begin : begin + BLOCK_ROWS]
        coefficients, *_ = np.linalg.lstsq(squares, products, rcond=NEGLIGIBLE)
        return cls(harmonics, coefficients.astype(np.float64)) if count else None

    def values_at(self, times_N: Times) -> Values:
        """The climatology (N,) at these times."""
        blocks = [x_NK @ self.coefficients for _, x_NK in _compute_products(times_N, self.harmonics)]
        return np.concatenate(blocks) if blocks else np.empty(0)


def _compute_products(times_N: Times, harmonics: Harmonics) -> Iterator[tuple[int, Values]]:
    """Every product of a harmonic of the year, or 1, with a harmonic of the day, or 1.

    Yields:
        The first row of a block of at most BLOCK_ROWS rows, and the products (N, K) of its rows.
    """
    for begin in range(0, len(times_N), BLOCK_ROWS):
        block_N = times_N[begin : begin + BLOCK_ROWS]
        year, day = (
            np.concatenate([np.ones((len(block_N), 1)), waves_NK], axis=1)
            for waves_NK in _compute_by_period(block_N, harmonics)
        )
        yield begin, (year[:, :, None] * day[:, None, :]).reshape(len(block_N), -1)
