"""The one rule by which missing values are filled: the last known value is carried forward, over a limited time.

The stage `normalize` fills the rows of a problem with it, and a forecaster fills a user's rows, so that a network reads
the same in service as in training.
"""

import numpy as np
from numpy.typing import NDArray

from forecasting.arrays import Values


def fill_forward(values_NC: Values, starts_N: NDArray[np.bool_], limit: int) -> Values:
    """Fill each NaN with the last known value of its column, from the past only and never across a gap.

    Args:
        values_NC: the rows of one series by column, in order of time.
        starts_N: true where a row begins a stretch without gaps; nothing is carried into it from the rows before.
        limit: the largest number of rows over which a value is carried; 0: nothing is filled.
    """
    is_known_NC = ~np.isnan(values_NC)
    if not limit or is_known_NC.all():
        return values_NC
    row_N1 = np.arange(len(values_NC))[:, None]
    last_NC = np.maximum.accumulate(np.where(is_known_NC, row_N1, -1), axis=0)
    start_N1 = np.maximum.accumulate(np.where(starts_N[:, None], row_N1, 0), axis=0)
    is_fillable_NC = (last_NC >= start_N1) & (row_N1 - last_NC <= limit)
    return np.where(is_fillable_NC, np.take_along_axis(values_NC, np.maximum(last_NC, 0), axis=0), np.nan)
