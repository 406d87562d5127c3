"""Forecasts that nothing was trained for: what every network has to beat."""

import math

import torch
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
        """
        Raises:
            ShapeError: what is asked for is none of the features.
        """
        super().__init__()
        self.target = target_of(shape, "persistence")
        self.shape = shape

    def forward(self, x_BTF: Tensor) -> Tensor:
        return x_BTF[:, -1:, self.target, None].expand(-1, self.shape.leads, self.shape.outputs)


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
        self.target = target_of(shape, "seasonal_naive")
        self.shape = shape
        if (shape.day > 1 and shape.day != int(shape.day)) or shape.horizon != int(shape.horizon):
            raise ShapeError(
                f"seasonal_naive needs a day and the horizon to be whole steps; here a day is {shape.day:g} steps and "
                f"the horizon {shape.horizon:g}: change window.step or window.delay"
            )
        day = max(int(shape.day), 1)
        self.steps = []
        for horizon in range(int(shape.horizon) - shape.leads + 1, int(shape.horizon) + 1):
            newest = shape.steps - 1 + horizon - day * math.ceil(horizon / day)
            if newest < 0:
                raise ShapeError(
                    f"seasonal_naive looks {shape.steps - newest} steps back, but the window has {shape.steps}: "
                    "lengthen window.lookback"
                )
            self.steps.append(list(range(newest, -1, -day))[: hyperparameters.days])

    def forward(self, x_BTF: Tensor) -> Tensor:
        y_BS = torch.stack([x_BTF[:, steps, self.target].mean(dim=1) for steps in self.steps], dim=1)
        return y_BS.unsqueeze(2).expand(-1, -1, self.shape.outputs)


@register("climatology")
class Climatology(Network):
    """The training rows' mean of the target at its time of year and day (`forecasting/climatology.py`)."""

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
        self.shape = shape

    def forward(self, x_BTF: Tensor) -> Tensor:
        # What stands s steps before the last input is that of s steps before the last lead.
        return x_BTF[:, -self.shape.leads :, self.ahead, None].expand(-1, -1, self.shape.outputs)


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
        self.now, _ = climatology_of(shape, "anomaly_persistence")
        self.target = target_of(shape, "anomaly_persistence")
        self.climatology = Climatology(shape, hyperparameters)

    def forward(self, x_BTF: Tensor) -> Tensor:
        anomaly_B1 = x_BTF[:, -1:, self.target] - x_BTF[:, -1:, self.now]
        y_BSO: Tensor = anomaly_B1.unsqueeze(2) + self.climatology(x_BTF)
        return y_BSO


def climatology_of(shape: WindowShape, who: str) -> tuple[int, int]:
    """The features that hold the climatology, now and a horizon on.

    Raises:
        ShapeError: the problem has none, or the window is too short to hold that of all leads.
    """
    if shape.climatology is None:
        raise ShapeError(f"{who} needs a climatology: give the problem one, table.climatology: {{year: 2, day: 2}}")
    if shape.leads > shape.steps:
        raise ShapeError(
            f"{who} forecasts at most as many leads as the window has steps, {shape.steps}, and there are "
            f"{shape.leads}: lengthen window.lookback"
        )
    return shape.climatology


def target_of(shape: WindowShape, who: str) -> int:
    """The feature that is forecast.

    Raises:
        ShapeError: what is asked for is none of the features.
    """
    if shape.target is None:
        raise ShapeError(f"{who} repeats what it has seen of the target, and here no feature is it: leave it out")
    return shape.target
