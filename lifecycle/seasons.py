"""The four seasons, by months."""

import numpy as np
from numpy.typing import NDArray

SEASONS = ("Dec to Feb", "Mar to May", "Jun to Aug", "Sep to Nov")


def number_seasons(times: NDArray[np.datetime64]) -> NDArray[np.int64]:
    """The season of each time, as its position in `SEASONS`."""
    months: NDArray[np.int64] = times.astype("datetime64[M]").astype(np.int64)
    return (months + 1) % 12 // 3
