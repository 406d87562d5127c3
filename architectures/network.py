"""What every architecture is: a network, its hyperparameters, and its entry in the registry."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

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
    gradient_noise: float = Field(
        0.0, ge=0, description="deviation of the noise on the gradient's first step; it falls with steps^0.275"
    )
    lookback: int | None = Field(
        None, ge=1, description="steps at the end of a window that the network sees; null: all of them"
    )
    inputs: Inputs = Field("all", description="measured: without those that are derived from the time")
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
        derived: how many features, the last ones, are derived from the time: the calendar's and the climatology's.
    """

    steps: int
    features: int
    target: int
    horizon: float
    day: float
    climatology: tuple[int, int] | None = None
    derived: int = 0


@dataclass(frozen=True)
class Scale:
    """An axis of a view.

    Attributes:
        name: what is counted or measured along it.
        unit: of what; empty for a pure number. `STEPS` is a window's inputs, whose length in time the drawing knows.
        first: the number of the first row or column.
    """

    name: str
    unit: str = ""
    first: int = 0


STEPS = "steps"


def input_steps(steps: int) -> Scale:
    """The axis of a window's T steps: the last, of which the forecast is made, is 0, the one before it -1."""
    return Scale("input, counted back from the last", STEPS, 1 - steps)


@dataclass(frozen=True)
class View:
    """What there is to be looked at of a network at work, for a picture.

    Attributes:
        title: what is shown, in a few words.
        caption: how it is read, for a student.
        kind: map: a panel is a matrix as an image, its first row at the top, one shade a value, from 0 up; lines: each
            row of a panel is a line over its columns; bars: a panel has one row, each column a bar.
        values: (P, Y, X), finite: panels, rows, columns.
        x, y: of the columns; and of the rows of a map, or of the values of lines and bars.
        panels: P names, one a panel; nothing: there is one, which needs no name.
        lines: Y names, of lines.
        columns: panels side by side; the others follow below.
        log: lines are drawn over a logarithmic axis, on which zeros are left out.
        mark: a column, as x counts it, at which a line is drawn across, and what it says.
    """

    title: str
    caption: str
    kind: Literal["map", "lines", "bars"]
    values: Tensor
    x: Scale
    y: Scale
    panels: tuple[str, ...] = ("",)
    lines: tuple[str, ...] = ()
    columns: int = 1
    log: bool = False
    mark: tuple[float, str] | None = None

    def __post_init__(self) -> None:
        """
        Raises:
            ValueError: the values are not what is said of them.
        """
        shape = tuple(self.values.shape)
        rows = {"map": None, "lines": len(self.lines), "bars": 1}[self.kind]
        if len(shape) != 3 or shape[0] != len(self.panels) or rows not in (None, shape[1]) or 0 in shape:
            raise ValueError(f"{self.title}: values of shape {shape} for {len(self.panels)} panels of {self.kind}")
        if not self.values.isfinite().all():
            raise ValueError(f"{self.title}: a value is not finite")


def window_names(windows: int) -> tuple[str, ...]:
    """Names of the windows (B) that a network is looked at with, in their order."""
    return tuple(f"window {b + 1}" for b in range(windows))


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
