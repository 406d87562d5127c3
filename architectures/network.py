"""What every architecture is: a network, its hyperparameters, and its entry in the registry."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from architectures.view import View

Optimizer = Literal["rmsprop", "adam", "adamw", "sgd"]
Schedule = Literal["constant", "cosine"]
Inputs = Literal["all", "measured"]
Residual = Literal["none", "persistence", "climatology", "anomaly_persistence"]


class Axes(BaseModel):
    """What may vary between two trials of one architecture; each field is an axis of the grid.

    An architecture adds its own fields in a nested class, `Hyperparameters`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")


class TrainedAxes(Axes):
    """The axes that every architecture with weights to train has."""

    learning_rate: float = Field(1e-3, gt=0, le=10, description="step size of the optimizer")
    optimizer: Optimizer = Field("rmsprop", description="as in the lecture: rmsprop")
    schedule: Schedule = Field("constant", description="of the step size; cosine: it falls to 0 at the last epoch")
    epochs: int | None = Field(None, ge=1, description="in the place of train.epochs; null: that")
    lookback: int | None = Field(
        None, ge=1, description="steps at the end of a window that the network sees; null: all of them"
    )
    inputs: Inputs = Field("all", description="measured: without those that Recast adds")
    residual: Residual = Field("none", description="the baseline that the network's output is added to")
    members: int = Field(1, ge=1, le=64, description="networks with weights of their own, whose forecasts are averaged")


@dataclass(frozen=True)
class WindowShape:
    """What a network is told of the windows it will see.

    Attributes:
        steps: T, input steps in a window.
        features: F, values at each step.
        target: index of the feature that is forecast.
        horizon: steps from the last input to the target; a fraction where the target falls between two steps.
        day: steps in 24 hours; a fraction where a day is no whole number of steps.
        climatology: indices of the features that are the target's climatology at a step's time and a horizon after
            it; None: the problem has none.
        derived: how many features, the last ones, Recast adds: what is known in advance, calendar and climatology.
    """

    steps: int
    features: int
    target: int
    horizon: float
    day: float
    climatology: tuple[int, int] | None = None
    derived: int = 0


class Network(nn.Module):
    """A network that maps windows to forecasts.

    A subclass declares its axes in a nested `Hyperparameters`, takes `(shape, hyperparameters)` and implements
    `forward`. Inputs and forecasts are normalised: each feature has mean 0 and deviation 1 on the training rows.

    Attributes:
        name: the name in the grid and in every table, set by `register`.
        trainable: whether there is anything to train; a baseline has one trial whatever the seeds.
        source: lecture row id and paper, shown in the report.
    """

    name: ClassVar[str]
    trainable: ClassVar[bool] = True
    source: ClassVar[str]
    Hyperparameters: ClassVar[type[Axes]] = TrainedAxes

    def forward(self, x_BTF: Tensor) -> Tensor:
        """Forecasts of shape (B,) from windows of shape (B, T, F), both normalised."""
        raise NotImplementedError

    def penalty(self) -> Tensor | None:
        """What the last forward pass adds to the loss in training, a number, weighted; None: nothing."""
        return None

    def views(self, x_BTF: Tensor) -> list[View]:
        """What the report shows of this network at work on a few windows (B, T, F); most have nothing to show.

        It is called in eval mode and without gradients.
        """
        return []


class Output(nn.Linear):
    """The last layer of every trained network: from its final state (B, H) to what the problem asks for, a number.

    It is the one place to change when a problem asks for something else.
    """

    def __init__(self, width: int, shape: WindowShape) -> None:
        """
        Args:
            width: H, values in the state.
        """
        super().__init__(width, 1)

    def forward(self, h_BH: Tensor) -> Tensor:
        """Forecasts (B,), normalised."""
        y_B1: Tensor = super().forward(h_BH)
        return y_B1.squeeze(1)


def regressor(width: int, hidden: Sequence[int], shape: WindowShape, dropout: float = 0.0) -> nn.Sequential:
    """Dense layers with relu and the output: from (B, H) to forecasts (B,).

    Args:
        width: H, values in what it reads.
        hidden: width of each layer before the output.
        dropout: share of the values of each hidden layer dropped in training.
    """
    layers = [
        nn.Sequential(nn.Linear(n_in, n_out), nn.ReLU(), nn.Dropout(dropout))
        for n_in, n_out in itertools.pairwise([width, *hidden])
    ]
    return nn.Sequential(*layers, Output([width, *hidden][-1], shape))


REGISTRY: dict[str, type[Network]] = {}


def register(name: str) -> Callable[[type[Network]], type[Network]]:
    """Class decorator that makes an architecture known to the grid under `name`.

    Raises:
        ValueError: the name is taken.
    """

    def add(architecture: type[Network]) -> type[Network]:
        if name in REGISTRY:
            raise ValueError(f"two architectures are called {name!r}: {REGISTRY[name]} and {architecture}")
        architecture.name = name
        REGISTRY[name] = architecture
        return architecture

    return add


class ShapeError(ValueError):
    """An architecture cannot work on these windows; the message says which setting to change."""
