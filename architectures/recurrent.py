"""Recurrent networks: one network for each of the layers in `architectures.cells`.

Each is a stack of layers, which pass their whole sequences on, and a linear output on the state of the top layer after
the last step.
"""

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError, model_validator
from pydantic_core import PydanticKnownError
from torch import Tensor

from architectures.cells import elman, gru, initial_weights, jordan, lstm
from architectures.cells.layer import RecurrentLayer, State
from architectures.cells.loops import Activation
from architectures.cells.stack import Stack
from architectures.network import Network, ShapeError, TrainedAxes, WindowShape, build_regressor, register


def _check_each(rule: Any) -> Callable[[Any], Any]:
    """Make a check of one value for all layers, or a list with one for each; its error is that of the invalid value."""
    adapter: TypeAdapter[Any] = TypeAdapter(rule)

    def check(value: Any) -> Any:
        values = value if isinstance(value, list | tuple) else [value]
        if not values:
            raise PydanticKnownError("too_short", {"field_type": "List", "min_length": 1, "actual_length": 0})
        for item in values:
            try:
                adapter.validate_python(item, strict=True)
            except ValidationError as error:
                first = error.errors()[0]
                raise PydanticKnownError(first["type"], first.get("ctx")) from None  # type: ignore[arg-type]
        return tuple(value) if isinstance(value, list) else value

    return check


Width = Annotated[int, Field(ge=1)]


class Recurrent(Network):
    """A stack of recurrent layers and a linear output on the last state (lecture rows C7, C8, D6 to D9)."""

    layer: ClassVar[type[RecurrentLayer]]
    at_each_step = True
    carries = True

    class Hyperparameters(TrainedAxes):
        units: Annotated[Width | tuple[Width, ...], BeforeValidator(_check_each(Width))] = Field(
            32, description="size of the state of each layer and direction; a list: one size a layer"
        )
        layers: int = Field(1, ge=1, description="recurrent layers; leave it out where units is a list")
        activation: Annotated[Activation | tuple[Activation, ...], BeforeValidator(_check_each(Activation))] = Field(
            "tanh", description="of the state (the gates are sigmoid); a list: one a layer"
        )
        dropout: float = Field(
            0.0, ge=0, lt=1, description="share of each layer's inputs dropped, the same at every step of a window"
        )
        recurrent_dropout: float = Field(
            0.0, ge=0, lt=1, description="share of each layer's state dropped, the same at every step of a window"
        )
        bidirectional: bool = Field(False, description="beside each layer, another reads its inputs from the end")
        reversed: bool = Field(False, description="the window is read from its end to its beginning")
        initial: Literal["pytorch", "keras"] = Field(
            "pytorch", description="which initial weights: PyTorch's are uniform, Keras's orthogonal for the state"
        )
        regressor: int = Field(
            0, ge=0, description="width of a dense relu layer between the last state and the output; 0: none"
        )

        @model_validator(mode="after")
        def _check_lists(self) -> "Recurrent.Hyperparameters":
            if isinstance(self.units, tuple) and self.layers != 1:
                raise ValueError("layers must be left out where units lists one size a layer")
            if isinstance(self.activation, tuple) and len(self.activation) != len(self.widths):
                raise ValueError(f"activation must be one, or one for each of the {len(self.widths)} layers")
            return self

        @property
        def widths(self) -> tuple[int, ...]:
            """The size of the state of each layer."""
            return self.units if isinstance(self.units, tuple) else (self.units,) * self.layers

    def __init__(self, shape: WindowShape, hyperparameters: "Recurrent.Hyperparameters") -> None:
        """
        Raises:
            ShapeError: each step has to be answered, but steps are read from the end.
        """
        super().__init__()
        for name in ("reversed", "bidirectional"):
            if shape.each and getattr(hyperparameters, name):
                raise ShapeError(f"{self.name}.{name}: must be false where an answer is asked for at each step")
        self.shape = shape
        self.carried: list[State] | None = None
        self.reversed = hyperparameters.reversed
        self.recurrent = Stack(
            self.layer,
            shape.features,
            hyperparameters.widths,
            hyperparameters.activation,
            hyperparameters.dropout,
            hyperparameters.recurrent_dropout,
            hyperparameters.bidirectional,
        )
        self.output = build_regressor(
            self.recurrent.width, [hyperparameters.regressor] if hyperparameters.regressor else [], shape
        )
        if hyperparameters.initial == "keras":
            initial_weights.use_keras_weights(self)

    def forward(self, x_BTF: Tensor) -> Tensor:
        if self.shape.carried:
            h_BTH, after = self.recurrent.resume(x_BTF, self.carried)
            # Truncated backpropagation (Williams and Peng 1990): gradients do not flow into earlier batches.
            self.carried = [tuple(tensor.detach() for tensor in state) for state in after]
        else:
            h_BTH, h_BH = self.recurrent(x_BTF.flip(1) if self.reversed else x_BTF)
        y_BSO: Tensor = self.output(h_BTH if self.shape.each else h_BH)
        return y_BSO

    def forget(self) -> None:
        self.carried = None


@register("simple_rnn")
class SimpleRNN(Recurrent):
    """Elman network: the layer is `cells.elman.Elman` (lecture row C1)."""

    source = "C1, Elman 1990"
    layer = elman.Elman


@register("jordan")
class Jordan(Recurrent):
    """Jordan network, whose output is fed back: the layer is `cells.jordan.Jordan` (lecture row C2)."""

    source = "C2, Jordan 1986"
    layer = jordan.Jordan


@register("lstm")
class LSTM(Recurrent):
    """Long short-term memory: the layer is `cells.lstm.LSTM` (lecture row C4)."""

    source = "C4, Hochreiter & Schmidhuber 1997"
    layer = lstm.LSTM


@register("lstm_peephole")
class PeepholeLSTM(Recurrent):
    """LSTM whose gates see the cell: the layer is `cells.lstm.PeepholeLSTM` (lecture row C5)."""

    source = "C5, Gers & Schmidhuber 2000"
    layer = lstm.PeepholeLSTM


@register("gru")
class GRU(Recurrent):
    """Gated recurrent unit as cuDNN and Keras compute it: the layer is `cells.gru.GRU` (lecture rows C6, D6)."""

    source = "D6, Cho et al. 2014"
    layer = gru.GRU


@register("gru_reset_before")
class GRUResetBefore(Recurrent):
    """Gated recurrent unit as in the lecture, the reset gate inside the product.

    The layer is `cells.gru.GRUResetBefore` (lecture row C6).
    """

    source = "C6, Cho et al. 2014"
    layer = gru.GRUResetBefore
