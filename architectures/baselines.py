"""Baselines: forecasts without training, which every network has to beat."""

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
            ShapeError: what is to be forecast is not one of the features.
        """
        super().__init__()
        self.target = require_target(shape, "persistence")
        self.shape = shape

    def forward(self, x_BTF: Tensor) -> Tensor:
        return x_BTF[:, -1:, self.target, None].expand(-1, self.shape.leads, self.shape.outputs)


@register("seasonal_naive")
class SeasonalNaive(Network):
    """The mean of the values at the target's hour of day on the last `days` days, or on as many as the window has.

    The newest of them is the latest step that is a whole number of days before the target. So with the target exactly
    24 hours after the last input and `days` 1 this is persistence. A step that is longer than a day counts as a day.
    Hyndman and Athanasopoulos, "Forecasting: Principles and Practice", 3rd ed., section 5.2.
    """

    trainable = False
    source = "Hyndman & Athanasopoulos 2021, 5.2"

    class Hyperparameters(Axes):
        days: int = Field(1, ge=1, le=366, description="how many days to average, at most")

    def __init__(self, shape: WindowShape, hyperparameters: "SeasonalNaive.Hyperparameters") -> None:
        """
        Raises:
            ShapeError: a day or the horizon is not a whole number of steps, or the window is too short.
        """
        super().__init__()
        self.target = require_target(shape, "seasonal_naive")
        self.shape = shape
        if (shape.day > 1 and shape.day != int(shape.day)) or shape.horizon != int(shape.horizon):
            raise ShapeError(
                f"seasonal_naive needs a day and the horizon to be whole numbers of steps, but a day is {shape.day:g} "
                f"steps and the horizon {shape.horizon:g}: change window.step or window.delay"
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
    """The target's mean over the training rows at its time of year and day (`forecasting/climatology.py`)."""

    trainable = False
    source = "Narapusetty et al. 2009"
    Hyperparameters = Axes

    def __init__(self, shape: WindowShape, hyperparameters: Axes) -> None:
        """
        Raises:
            ShapeError: the problem has no climatology.
        """
        super().__init__()
        _, self.ahead = require_climatology(shape, "climatology")
        self.shape = shape

    def forward(self, x_BTF: Tensor) -> Tensor:
        # The feature at s steps before the last input is the climatology at s steps before the last lead.
        return x_BTF[:, -self.shape.leads :, self.ahead, None].expand(-1, -1, self.shape.outputs)


@register("anomaly_persistence")
class AnomalyPersistence(Network):
    """The climatology at the target plus the anomaly of the last value, its deviation from the climatology.

    Unlike persistence, it knows how the target changes with the hour, so the horizon need not be whole days.
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
        self.now, _ = require_climatology(shape, "anomaly_persistence")
        self.target = require_target(shape, "anomaly_persistence")
        self.climatology = Climatology(shape, hyperparameters)

    def forward(self, x_BTF: Tensor) -> Tensor:
        anomaly_B1 = x_BTF[:, -1:, self.target] - x_BTF[:, -1:, self.now]
        y_BSO: Tensor = anomaly_B1.unsqueeze(2) + self.climatology(x_BTF)
        return y_BSO


def require_climatology(shape: WindowShape, architecture: str) -> tuple[int, int]:
    """The indices of the climatology at a step's time and a horizon later.

    Raises:
        ShapeError: the problem has no climatology, or the window is too short to contain the climatology of every lead.
    """
    if shape.climatology is None:
        raise ShapeError(
            f"{architecture} needs a climatology: give the problem one, table.climatology: {{year: 2, day: 2}}"
        )
    if shape.leads > shape.steps:
        raise ShapeError(
            f"{architecture} forecasts at most as many leads as the window has steps, {shape.steps}, and there are "
            f"{shape.leads}: lengthen window.lookback"
        )
    return shape.climatology


def require_target(shape: WindowShape, architecture: str) -> int:
    """The index of the feature that is forecast.

    Raises:
        ShapeError: what is to be forecast is not one of the features.
    """
    if shape.target is None:
        raise ShapeError(
            f"{architecture} repeats values of the target, and here the target is not one of the features: leave it out"
        )
    return shape.target
