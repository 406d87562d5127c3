"""The types of the arrays that forecasts are made from and consist of."""

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
"""Numbers, NaN where nothing is known."""

Times = NDArray[np.datetime64]
"""Times in UTC, to the millisecond."""
