"""The schedules of the learning rate that a trial may choose. A new one is an entry in `SCHEDULES`."""

import math
from collections.abc import Callable
from typing import Annotated

from learning.choices import Choice

SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
}
"""The factor of the learning rate, as a function of the share of the training that is done (Loshchilov & Hutter 2017).
"""

ScheduleName = Annotated[str, Choice(SCHEDULES)]
