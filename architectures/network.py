"""What every architecture is: a network, its hyperparameters, and its entry in the registry."""

import itertools
from collections.abc import Callable, Sequence
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from architectures.shape import WindowShape as WindowShape  # written whole: it is to be had from here too
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
    embedding: int = Field(
        32, ge=0, description="width of the vector that stands for a code, such as a word's; 0: the code as a number"
    )
    residual: Residual = Field("none", description="the baseline that the network's output is added to")
    members: int = Field(1, ge=1, le=64, description="networks with weights of their own, whose forecasts are averaged")


class Network(nn.Module):
    """A network that maps windows to answers: forecasts, or the scores of classes and labels.

    A subclass declares its axes in a nested `Hyperparameters`, takes `(shape, hyperparameters)` and implements
    `forward`. Inputs and forecasts of a table are normalised: each feature has mean 0 and deviation 1 on the training
    rows.

    Attributes:
        name: the name in the grid and in every table, set by `register`.
        trainable: whether there is anything to train; a baseline has one trial whatever the seeds.
        at_each_step: whether it can give an answer at each step that no later step reaches.
        carries: whether its state at the end of a batch can be that at the beginning of the next.
        source: lecture row id and paper, shown in the report.
    """

    name: ClassVar[str]
    trainable: ClassVar[bool] = True
    at_each_step: ClassVar[bool] = False
    carries: ClassVar[bool] = False
    source: ClassVar[str]
    Hyperparameters: ClassVar[type[Axes]] = TrainedAxes

    def forward(self, x_BTF: Tensor) -> Tensor:
        """Answers (B, S, O) from windows (B, T, F): at S leads, or where `shape.each` is set at each step, S = T.

        A forecast is normalised as its target is; classes and labels have scores of any size (logits).
        """
        raise NotImplementedError

    def forget(self) -> None:
        """Carry nothing over to the next forward pass: it begins new sequences."""
        for part in self.modules():
            if part is not self and isinstance(part, Network):
                part.forget()

    def penalty(self) -> Tensor | None:
        """What the last forward pass adds to the loss in training, a number, weighted; None: nothing."""
        return None

    def views(self, x_BTF: Tensor) -> list[View]:
        """What the report shows of this network at work on a few windows (B, T, F); most have nothing to show.

        It is called in eval mode and without gradients.
        """
        return []


class Output(nn.Linear):
    """The last layer of every trained network: from its states to what the problem asks for (lecture row P1)."""

    def __init__(self, width: int, shape: WindowShape) -> None:
        """
        Args:
            width: H, values in the state.
        """
        super().__init__(width, shape.outputs if shape.each else shape.leads * shape.outputs)
        self.shape = shape

    def forward(self, h_BTH: Tensor) -> Tensor:
        """Answers (B, S, O).

        Args:
            h_BTH: the state after each step; of a network that can answer after the last alone, that state (B, H).
        """
        if self.shape.each:
            return super().forward(h_BTH)
        y_BK: Tensor = super().forward(h_BTH if h_BTH.dim() == 2 else h_BTH[:, -1])
        return y_BK.view(len(y_BK), self.shape.leads, self.shape.outputs)


def regressor(width: int, hidden: Sequence[int], shape: WindowShape, dropout: float = 0.0) -> nn.Sequential:
    """Dense layers with relu and the output: from states to answers (B, S, O).

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
