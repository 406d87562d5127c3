"""What all architectures have in common: a network, its hyperparameters, and its entry in the registry."""

import itertools
from collections.abc import Callable, Sequence
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from architectures.shape import WindowShape as WindowShape  # with "as": architectures import it from here
from architectures.view import View
from learning.optimizers import OptimizerName
from learning.schedules import ScheduleName

InputSelection = Literal["all", "measured"]
ResidualBaseline = Literal["none", "persistence", "climatology", "anomaly_persistence"]


class Axes(BaseModel):
    """The hyperparameters of an architecture, by which its trials differ; each field is an axis of the grid.

    An architecture declares its own fields in a nested class `Hyperparameters`, a subclass of this one or, if it is
    trained, of `TrainedAxes`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")


class TrainedAxes(Axes):
    """The hyperparameters that all architectures with trainable weights have in common."""

    learning_rate: float = Field(1e-3, gt=0, le=10, description="step size of the optimizer")
    optimizer: OptimizerName = Field("rmsprop", description="as in the lecture: rmsprop")
    schedule: ScheduleName = Field("constant", description="of the step size; cosine: it falls to 0 at the last epoch")
    epochs: int | None = Field(None, ge=1, description="replaces train.epochs; null: train.epochs applies")
    lookback: int | None = Field(
        None, ge=1, description="steps at the end of a window that the network sees; null: all of them"
    )
    inputs: InputSelection = Field("all", description="measured: without the features that Recast adds")
    embedding: int = Field(
        32, ge=0, description="width of the vector that stands for a code, such as a word's; 0: the code as a number"
    )
    residual: ResidualBaseline = Field("none", description="the baseline that the network's output is added to")
    members: int = Field(1, ge=1, le=64, description="networks with weights of their own, whose forecasts are averaged")


class Network(nn.Module):
    """A network that maps windows to answers: forecasts, or the scores of classes and labels.

    A subclass declares its axes in a nested class `Hyperparameters`, takes `(shape, hyperparameters)` and implements
    `forward`. Inputs and forecasts of a table are normalised: on the training rows each feature has mean 0 and
    deviation 1.

    Attributes:
        name: the name in the grid and in every table, set by `register`.
        trainable: whether it has weights to train; a baseline has none, and one trial however many seeds there are.
        at_each_step: whether it can give an answer at each step that does not depend on later steps.
        carries: whether its state at the end of a batch can be the state at the beginning of the next.
        source: the id of the lecture row and the paper, shown in the report.
    """

    name: ClassVar[str]
    trainable: ClassVar[bool] = True
    at_each_step: ClassVar[bool] = False
    carries: ClassVar[bool] = False
    source: ClassVar[str]
    Hyperparameters: ClassVar[type[Axes]] = TrainedAxes

    def forward(self, x_BTF: Tensor) -> Tensor:
        """Answers (B, S, O) to windows (B, T, F): at S leads, or, where `shape.each` is set, at each step, S = T.

        A forecast is normalised as its target is; the answers for classes and labels are scores of any size (logits).
        """
        raise NotImplementedError

    def forget(self) -> None:
        """Forget the carried state, so that the next forward pass begins new sequences."""
        for part in self.modules():
            if part is not self and isinstance(part, Network):
                part.forget()

    def penalty(self) -> Tensor | None:
        """What the last forward pass adds to the loss in training: a number, already weighted; None: nothing."""
        return None

    def views(self, x_BTF: Tensor) -> list[View]:
        """The pictures in the report of this network at work on a few windows (B, T, F); most networks have none.

        The caller has set the network to evaluation mode and turned gradients off.
        """
        return []


class Output(nn.Linear):
    """The last layer of every trained network: from its states to the answers of the problem (lecture row P1)."""

    def __init__(self, width: int, shape: WindowShape) -> None:
        """
        Args:
            width: H, the number of values in the state.
        """
        super().__init__(width, shape.outputs if shape.each else shape.leads * shape.outputs)
        self.shape = shape

    def forward(self, h_BTH: Tensor) -> Tensor:
        """Answers (B, S, O).

        Args:
            h_BTH: the state after each step; or the state (B, H) after the last step, where only that is answered.
        """
        if self.shape.each:
            return super().forward(h_BTH)
        y_BK: Tensor = super().forward(h_BTH if h_BTH.dim() == 2 else h_BTH[:, -1])
        return y_BK.view(len(y_BK), self.shape.leads, self.shape.outputs)


def build_regressor(width: int, hidden: Sequence[int], shape: WindowShape, dropout: float = 0.0) -> nn.Sequential:
    """Dense layers with relu and the output: from states to answers (B, S, O).

    Args:
        width: H, the number of values in a state.
        hidden: the width of each layer before the output.
        dropout: the share of the values of each hidden layer that is dropped in training.
    """
    layers = [
        nn.Sequential(nn.Linear(n_in, n_out), nn.ReLU(), nn.Dropout(dropout))
        for n_in, n_out in itertools.pairwise([width, *hidden])
    ]
    return nn.Sequential(*layers, Output([width, *hidden][-1], shape))


REGISTRY: dict[str, type[Network]] = {}
"""Every architecture by its name in the grid."""


def register(name: str) -> Callable[[type[Network]], type[Network]]:
    """A class decorator that enters an architecture in `REGISTRY` under this name.

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
    """An architecture cannot be used with these windows; the message says which setting to change."""
