"""Whether a clock is right, by the daily cycle: do new rows look like those of the season, or like them an hour apart?

Each day becomes the waves of its columns (Fourier coefficients up to `WAVES` a day, of what is left of a level and a
slope), so that the minute at which rows stand does not matter. The known days of the season give the mean day and how
days scatter about it; a shifted clock turns the mean day. A new day is evidence for a shift by the logarithm of how
much more likely it is under the turned mean, as in a sequential probability ratio test (Wald 1945, "Sequential Tests of
Statistical Hypotheses", Annals of Mathematical Statistics 16); cut at `MOST_A_DAY`, for one day of a storm is no clock.
"""

from datetime import timedelta
from itertools import pairwise

import numpy as np
import polars as pl
from numpy.typing import NDArray

Array = NDArray[np.float64]

WAVES = 6
"""At most; a wave needs four rows a day."""
LEAST_WAVES = 2
RIDGE = 0.3
"""How much of the columns' own variance stands in for what a few days cannot say of their covariance."""
MOST_A_DAY = 3.0
LEAST_DAYS = 20
"""Known days of the season; with fewer nothing can be said."""
SHARE_OF_DAY = 0.8
"""Rows of a day without a missing value that its waves need."""
HOURS = tuple(hour for hour in range(-11, 13) if hour)
_DAY = 86_400_000


def waves(rows: pl.DataFrame, columns: list[str], cadence: timedelta) -> tuple[NDArray[np.int64], Array]:
    """The days of one series in order, and their waves.

    Args:
        rows: sorted by time.

    Returns:
        D days since 1970, and (D, K, F): cosine and sine of each wave, for F columns
    """
    a_day = timedelta(days=1) / cadence
    count = min(WAVES, int(a_day // 4))
    whole = rows.select("time", *columns).drop_nulls()
    time_N = whole["time"].cast(pl.Datetime("ms")).to_physical().to_numpy()
    values_NF = whole.select(columns).to_numpy()
    day_N, phase_N = time_N // _DAY, (time_N % _DAY) / _DAY
    begins = np.flatnonzero(np.diff(day_N, prepend=-1, append=-1))
    days, found = [], []
    for begin, end in pairwise(begins):
        if end - begin >= SHARE_OF_DAY * a_day:
            phase = phase_N[begin:end, None]
            angle = 2 * np.pi * phase * np.arange(1, count + 1)
            basis = np.concatenate([np.ones_like(phase), phase - 0.5, np.cos(angle), np.sin(angle)], axis=1)
            days.append(day_N[begin])
            found.append(np.linalg.lstsq(basis, values_NF[begin:end], rcond=None)[0][2:])
    shape = (0, 2 * count, len(columns))
    return np.array(days, dtype=np.int64), np.stack(found) if found else np.zeros(shape)


def evidence(new_NKF: Array, known_DKF: Array) -> Array:
    """How much more likely each new day is if the clock is ahead by `HOURS` than if it is right: (N, hours).

    Args:
        known_DKF: days of the same season, `LEAST_DAYS` or more.
    """
    mean_KF = known_DKF.mean(axis=0)
    known_DC = (known_DKF - mean_KF).reshape(len(known_DKF), -1)
    deviation_C = known_DC.std(axis=0)
    used = deviation_C > 1e-9 * max(1.0, float(deviation_C.max()))
    scaled_DC = known_DC[:, used] / deviation_C[used]
    covariance_CC = (1 - RIDGE) * np.atleast_2d(np.cov(scaled_DC.T)) + RIDGE * np.eye(scaled_DC.shape[1])
    precision_CC = np.linalg.inv(covariance_CC)
    new_NC = new_NKF.reshape(len(new_NKF), -1)[:, used] / deviation_C[used]

    def likelihood(hours: int) -> Array:
        turned_C = turned(mean_KF, hours).reshape(-1)[used] / deviation_C[used]
        # A cloudy month has the same cycle, only less of it.
        norm = turned_C @ precision_CC @ turned_C
        share = float(np.clip(turned_C @ precision_CC @ new_NC.mean(axis=0) / norm, 0.3, 3)) if norm else 1.0
        rest_NC = new_NC - share * turned_C
        result: Array = -0.5 * np.einsum("nc,cd,nd->n", rest_NC, precision_CC, rest_NC)
        return result

    right = likelihood(0)
    return np.stack([np.clip(likelihood(hours) - right, -MOST_A_DAY, MOST_A_DAY) for hours in HOURS], axis=1)


def turned(mean_KF: Array, hours: float) -> Array:
    """The waves of a day as a clock shows them that is so many hours ahead."""
    count = len(mean_KF) // 2
    angle_K = 2 * np.pi * np.arange(1, count + 1)[:, None] * hours / 24
    cosine_KF, sine_KF = mean_KF[:count], mean_KF[count:]
    return np.concatenate(
        [
            cosine_KF * np.cos(angle_K) - sine_KF * np.sin(angle_K),
            sine_KF * np.cos(angle_K) + cosine_KF * np.sin(angle_K),
        ]
    )
