"""The densely connected baseline: it sees the whole window at once and no order in it."""

import itertools

from pydantic import Field
from torch import Tensor, nn

from architectures.network import Network, Output, TrainedAxes, WindowShape, register


@register("dense")
class Dense(Network):
    """Flatten, dense layers with relu, one output (lecture row D5: one layer of 32)."""

    source = "D5"

    class Hyperparameters(TrainedAxes):
        units: int = Field(32, ge=1, description="width of each hidden layer")
        layers: int = Field(1, ge=1, description="hidden layers")
        dropout: float = Field(0.0, ge=0, lt=1, description="share of hidden values dropped in training")

    def __init__(self, shape: WindowShape, hyperparameters: "Dense.Hyperparameters") -> None:
        super().__init__()
        sizes = [shape.steps * shape.features, *[hyperparameters.units] * hyperparameters.layers]
        hidden = [
            nn.Sequential(nn.Linear(n_in, n_out), nn.ReLU(), nn.Dropout(hyperparameters.dropout))
            for n_in, n_out in itertools.pairwise(sizes)
        ]
        self.network = nn.Sequential(nn.Flatten(), *hidden, Output(hyperparameters.units, shape))

    def forward(self, x_BTF: Tensor) -> Tensor:
        y_B: Tensor = self.network(x_BTF)
        return y_B
