"""Forecasts that nothing was trained for: what every network has to beat."""

import math

from pydantic import Field
from torch import Tensor

from architectures.network import Axes, Network, ShapeError, WindowShape, register


@register("persistence")
class Persistence(Network):
    """The last observed value is the forecast (lecture row D4, the "common-sense" baseline)."""

    trainable = False
    source = "D4"
    Hyperparameters = Axes

    def __init__(self, shape: WindowShape, hyperparameters: Axes) -> None:
        super().__init__()
        self.target = shape.target

    def forward(self, x_BTF: Tensor) -> Tensor:
        return x_BTF[:, -1, self.target]


@register("seasonal_naive")
class SeasonalNaive(Network):
    """The value at the target's hour of day, averaged over the last `days` days, or as many as the window holds.

    The newest of them is the latest step that lies a whole number of days before the target, so with the target
    exactly 24 hours after the last input and `days` 1 this is persistence. Steps longer than a day count as days.
    Hyndman and Athanasopoulos, "Forecasting: Principles and Practice", 3rd ed., section 5.2.
    """

    trainable = False
    source = "Hyndman & Athanasopoulos 2021, 5.2"

    class Hyperparameters(Axes):
        days: int = Field(1, ge=1, le=366, description="how many days to average, at most")

    def __init__(self, shape: WindowShape, hyperparameters: "SeasonalNaive.Hyperparameters") -> None:
        """
        Raises:
            ShapeError: a day or the horizon is no whole number of steps, or the window does not hold a day.
        """
        super().__init__()
        if (shape.day > 1 and shape.day != int(shape.day)) or shape.horizon != int(shape.horizon):
            raise ShapeError(
                f"seasonal_naive needs a day and the horizon to be whole steps; here a day is {shape.day:g} steps and "
                f"the horizon {shape.horizon:g}: change window.step or window.delay"
            )
        day, horizon = max(int(shape.day), 1), int(shape.horizon)
        newest = shape.steps - 1 + horizon - day * math.ceil(horizon / day)
        if newest < 0:
            raise ShapeError(
                f"seasonal_naive looks {shape.steps - newest} steps back, but the window has {shape.steps}: lengthen "
                "window.lookback"
            )
        self.target = shape.target
        self.steps = list(range(newest, -1, -day))[: hyperparameters.days]

    def forward(self, x_BTF: Tensor) -> Tensor:
        return x_BTF[:, self.steps, self.target].mean(dim=1)


@register("climatology")
class Climatology(Network):
    """What the target is on average at its time of year and day, on the training rows (`stages/climatology.py`)."""

    trainable = False
    source = "Narapusetty et al. 2009"
    Hyperparameters = Axes

    def __init__(self, shape: WindowShape, hyperparameters: Axes) -> None:
        """
        Raises:
            ShapeError: the problem has no climatology.
        """
        super().__init__()
        _, self.ahead = climatology_of(shape, "climatology")

    def forward(self, x_BTF: Tensor) -> Tensor:
        return x_BTF[:, -1, self.ahead]


@register("anomaly_persistence")
class AnomalyPersistence(Network):
    """The climatology at the target, and what the last value departs from it now.

    It knows how the target changes with the hour, where persistence over no whole days does not.
    """

    trainable = False
    source = "van den Dool 2007, 8.1"
    Hyperparameters = Axes

    def __init__(self, shape: WindowShape, hyperparameters: Axes) -> None:
        """
        Raises:
            ShapeError: the problem has no climatology.
        """
        super().__init__()
        self.now, self.ahead = climatology_of(shape, "anomaly_persistence")
        self.target = shape.target

    def forward(self, x_BTF: Tensor) -> Tensor:
        last_BF = x_BTF[:, -1]
        return last_BF[:, self.target] - last_BF[:, self.now] + last_BF[:, self.ahead]


def climatology_of(shape: WindowShape, who: str) -> tuple[int, int]:
    """The features that hold the climatology, now and a horizon on.

    Raises:
        ShapeError: the problem has none.
    """
    if shape.climatology is None:
        raise ShapeError(f"{who} needs a climatology: give the problem one, table.climatology: {{year: 2, day: 2}}")
    return shape.climatology
