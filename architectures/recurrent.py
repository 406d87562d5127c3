"""Recurrent networks whose cell PyTorch has a fused layer for: simple RNN, LSTM and GRU.

All three are one network around another layer: `layers` recurrent layers, each returning its whole sequence to the
next, the state after the last step into one linear output.
"""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from architectures.network import Network, Output, TrainedAxes, WindowShape, register


class Recurrent(Network):
    """A stack of recurrent layers and a linear output on the last state (lecture rows C8, D6, D9)."""

    layer: ClassVar[type[nn.RNN | nn.LSTM | nn.GRU]]

    class Hyperparameters(TrainedAxes):
        units: int = Field(32, ge=1, description="size of the state of each layer and direction")
        layers: int = Field(1, ge=1, description="recurrent layers")
        dropout: float = Field(
            0.0, ge=0, lt=1, description="share of each layer's inputs and of the last state dropped"
        )
        bidirectional: bool = Field(False, description="a second network reads the window from its end")

    def __init__(self, shape: WindowShape, hyperparameters: "Recurrent.Hyperparameters") -> None:
        super().__init__()
        self.dropout = nn.Dropout(hyperparameters.dropout)
        self.recurrent = self.layer(
            shape.features,
            hyperparameters.units,
            num_layers=hyperparameters.layers,
            dropout=hyperparameters.dropout if hyperparameters.layers > 1 else 0.0,
            bidirectional=hyperparameters.bidirectional,
            batch_first=True,
        )
        self.directions = 2 if hyperparameters.bidirectional else 1
        self.output = Output(hyperparameters.units * self.directions, shape)

    def forward(self, x_BTF: Tensor) -> Tensor:
        _, state = self.recurrent(self.dropout(x_BTF))
        h_LBH = state[0] if isinstance(state, tuple) else state
        # The last layer's states come last, one per direction, each after it has read the whole window.
        h_BH = torch.cat(tuple(h_LBH[-self.directions :]), dim=1)
        y_B: Tensor = self.output(self.dropout(h_BH))
        return y_B


@register("simple_rnn")
class SimpleRNN(Recurrent):
    """h_t = tanh(W x_t + U h_{t-1} + b) (Elman 1990; lecture row C1), by `torch.nn.RNN`."""

    source = "C1, Elman 1990"
    layer = nn.RNN


@register("lstm")
class LSTM(Recurrent):
    """Long short-term memory (Hochreiter and Schmidhuber 1997; lecture row C4), by `torch.nn.LSTM`."""

    source = "C4, Hochreiter & Schmidhuber 1997"
    layer = nn.LSTM


@register("gru")
class GRU(Recurrent):
    """Gated recurrent unit as cuDNN computes it (Cho et al. 2014; lecture row D6), by `torch.nn.GRU`."""

    source = "D6, Cho et al. 2014"
    layer = nn.GRU
