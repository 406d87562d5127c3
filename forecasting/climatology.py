"""The seasons and the hours: harmonics of the time, and what the target is on average at a time of year and day.

The climatology is the mean by day of the year and hour of the day, smoothed: least squares on all products of the
harmonics of the two. A mean of the few years' values at one hour of one day would be mostly the weather of those years.
Narapusetty, DelSole and Tippett 2009, "Optimal Estimation of the Climatological Mean", Journal of Climate 22.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from problems.columns import Harmonics

Values = NDArray[np.float64]

YEAR_DAYS = 365.2425
MILLISECONDS = 86_400_000
"""In a day."""
BLOCK = 1 << 16
"""Rows whose harmonics are in memory at once."""
NEGLIGIBLE = 1e-9
"""What is smaller than this share of the largest singular value cannot be told from rounding, and is left out."""


def waves(moments_N: NDArray[np.datetime64], harmonics: Harmonics) -> Values:
    """Sines and cosines (N, 2 year + 2 day) of the times, from -1 to 1: of the year, then of the day (UTC)."""
    return np.concatenate(_by_period(moments_N, harmonics), axis=1)


def _by_period(moments_N: NDArray[np.datetime64], harmonics: Harmonics) -> tuple[Values, Values]:
    """Sines and cosines of the year (N, 2 year), and of the day (N, 2 day)."""
    days_N = moments_N.astype("datetime64[ms]").astype(np.int64) / MILLISECONDS
    year, day = (
        2 * np.pi * (days_N / period % 1)[:, None] * np.arange(1, count + 1)
        for period, count in ((YEAR_DAYS, harmonics.year), (1.0, harmonics.day))
    )
    return tuple(  # type: ignore[return-value]
        np.stack([np.sin(angles), np.cos(angles)], axis=2).reshape(len(days_N), -1) for angles in (year, day)
    )


@dataclass(frozen=True)
class Climatology:
    """What the target is on average, in its own unit.

    Attributes:
        coefficients: of every product of a wave of the year, or 1, with a wave of the day, or 1.
    """

    harmonics: Harmonics
    coefficients: Values

    @classmethod
    def fit(cls, harmonics: Harmonics, pieces: Iterable[tuple[NDArray[np.datetime64], Values]]) -> Self | None:
        """Least squares over times and values (N,), piece by piece; None when all values are null (NaN)."""
        width = (2 * harmonics.year + 1) * (2 * harmonics.day + 1)
        squares, products, count = np.zeros((width, width)), np.zeros(width), 0
        for moments_N, values_N in pieces:
            is_known = ~np.isnan(values_N)
            known_N = values_N[is_known]
            count += len(known_N)
            for begin, x_NK in _products(moments_N[is_known], harmonics):
                squares += x_NK.T @ x_NK
                products += x_NK.T @ known_N[begin : begin + BLOCK]
        coefficients, *_ = np.linalg.lstsq(squares, products, rcond=NEGLIGIBLE)
        return cls(harmonics, coefficients.astype(np.float64)) if count else None

    def at(self, moments_N: NDArray[np.datetime64]) -> Values:
        """The climatology (N,) at these times."""
        blocks = [x_NK @ self.coefficients for _, x_NK in _products(moments_N, self.harmonics)]
        return np.concatenate(blocks) if blocks else np.empty(0)


def _products(moments_N: NDArray[np.datetime64], harmonics: Harmonics) -> Iterator[tuple[int, Values]]:
    """Every product of a wave of the year, or 1, with a wave of the day, or 1: (N, K), BLOCK rows at a time."""
    for begin in range(0, len(moments_N), BLOCK):
        block_N = moments_N[begin : begin + BLOCK]
        year, day = (
            np.concatenate([np.ones((len(block_N), 1)), each], axis=1) for each in _by_period(block_N, harmonics)
        )
        yield begin, (year[:, :, None] * day[:, None, :]).reshape(len(block_N), -1)
