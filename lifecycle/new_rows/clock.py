"""Whether a clock is right, by the daily cycle: does it match the season's cycle, or that cycle shifted by hours?

Each day is described by the waves of its columns: Fourier coefficients of up to `WAVES` waves a day, after a level and
a slope are subtracted, so that it does not matter at which minute rows come. The known days of the season give the mean
day, and how days scatter about it. A shifted clock turns the phases of the mean day. Each new day is evidence for a
shift: the logarithm of how much more likely it is under the shifted mean, as in a sequential probability ratio test
(Wald 1945, "Sequential Tests of Statistical Hypotheses", Annals of Mathematical Statistics 16). The evidence of one day
is limited to `LARGEST_EVIDENCE`: a day of storm does not mean that the clock is wrong.
"""

from datetime import timedelta
from itertools import pairwise

import numpy as np
import polars as pl
from numpy.typing import NDArray

Floats = NDArray[np.float64]

WAVES = 6
"""The largest number of waves; each needs four rows a day."""
LEAST_WAVES = 2
"""With fewer waves a shift cannot be seen."""
RIDGE = 0.3
"""The weight of the columns' own variances in their covariance, which few days do not determine well."""
LARGEST_EVIDENCE = 3.0
"""The largest evidence of one day, for or against a shift."""
LEAST_DAYS = 20
"""With fewer known days of the season the clock cannot be judged."""
SHARE_OF_DAY = 0.8
"""The share of its rows, without missing values, that a day needs."""
HOURS = tuple(hour for hour in range(-11, 13) if hour)
"""The shifts that are considered: how many hours the clock is ahead."""
_DAY_MILLISECONDS = 86_400_000


def fit_daily_waves(rows: pl.DataFrame, columns: list[str], cadence: timedelta) -> tuple[NDArray[np.int64], Floats]:
    """Describe the days of one series by their waves.

    Args:
        rows: the rows of the series, sorted by time.

    Returns:
        the D days, in order, as days since 1970; and (D, K, F): the cosines, then the sines, of all waves for F columns
    """
    rows_a_day = timedelta(days=1) / cadence
    count = min(WAVES, int(rows_a_day // 4))
    whole = rows.select("time", *columns).drop_nulls()
    time_N = whole["time"].cast(pl.Datetime("ms")).to_physical().to_numpy()
    values_NF = whole.select(columns).to_numpy()
    day_N, phase_N = time_N // _DAY_MILLISECONDS, (time_N % _DAY_MILLISECONDS) / _DAY_MILLISECONDS
    begins = np.flatnonzero(np.diff(day_N, prepend=-1, append=-1))
    days, waves = [], []
    for begin, end in pairwise(begins):
        if end - begin >= SHARE_OF_DAY * rows_a_day:
            phase = phase_N[begin:end, None]
            angle = 2 * np.pi * phase * np.arange(1, count + 1)
            basis = np.concatenate([np.ones_like(phase), phase - 0.5, np.cos(angle), np.sin(angle)], axis=1)
            days.append(day_N[begin])
            waves.append(np.linalg.lstsq(basis, values_NF[begin:end], rcond=None)[0][2:])
    shape = (0, 2 * count, len(columns))
    return np.array(days, dtype=np.int64), np.stack(waves) if waves else np.zeros(shape)


def weigh_shifts(new_NKF: Floats, known_DKF: Floats) -> Floats:
    """Weigh the evidence of each new day for each shift in `HOURS`: (N, hours), as the logarithm of a likelihood ratio.

    Args:
        new_NKF: the waves of new days.
        known_DKF: those of the known days of the same season, `LEAST_DAYS` or more.
    """
    mean_KF = known_DKF.mean(axis=0)
    known_DC = (known_DKF - mean_KF).reshape(len(known_DKF), -1)
    deviation_C = known_DC.std(axis=0)
    used = deviation_C > 1e-9 * max(1.0, float(deviation_C.max()))
    scaled_DC = known_DC[:, used] / deviation_C[used]
    covariance_CC = (1 - RIDGE) * np.atleast_2d(np.cov(scaled_DC.T)) + RIDGE * np.eye(scaled_DC.shape[1])
    precision_CC = np.linalg.inv(covariance_CC)
    new_NC = new_NKF.reshape(len(new_NKF), -1)[:, used] / deviation_C[used]

    def likelihood(hours: int) -> Floats:
        shifted_C = shift_waves(mean_KF, hours).reshape(-1)[used] / deviation_C[used]
        # A cloudy month has the same cycle with a smaller amplitude.
        norm = shifted_C @ precision_CC @ shifted_C
        amplitude = float(np.clip(shifted_C @ precision_CC @ new_NC.mean(axis=0) / norm, 0.3, 3)) if norm else 1.0
        rest_NC = new_NC - amplitude * shifted_C
        result: Floats = -0.5 * np.einsum("nc,cd,nd->n", rest_NC, precision_CC, rest_NC)
        return result

    unshifted = likelihood(0)
    return np.stack(
        [np.clip(likelihood(hours) - unshifted, -LARGEST_EVIDENCE, LARGEST_EVIDENCE) for hours in HOURS], axis=1
    )


def shift_waves(mean_KF: Floats, hours: float) -> Floats:
    """Turn the waves of a day into those that a clock shows that is so many hours ahead."""
    count = len(mean_KF) // 2
    angle_K = 2 * np.pi * np.arange(1, count + 1)[:, None] * hours / 24
    cosine_KF, sine_KF = mean_KF[:count], mean_KF[count:]
    return np.concatenate(
        [
            cosine_KF * np.cos(angle_K) - sine_KF * np.sin(angle_K),
            sine_KF * np.cos(angle_K) + cosine_KF * np.sin(angle_K),
        ]
    )
