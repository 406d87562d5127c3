"""The linear and the densely connected baseline: they see the whole window at once and no order in it."""

from pydantic import Field
from torch import Tensor

from architectures.network import Network, Output, TrainedAxes, WindowShape, register, regressor


@register("dense")
class Dense(Network):
    """Flatten, dense layers with relu, one output (lecture row D5: one layer of 32; D11: a bigger one)."""

    source = "D5"

    class Hyperparameters(TrainedAxes):
        units: int = Field(32, ge=1, description="width of each hidden layer")
        layers: int = Field(1, ge=1, description="hidden layers")
        dropout: float = Field(0.0, ge=0, lt=1, description="share of hidden values dropped in training")

    def __init__(self, shape: WindowShape, hyperparameters: "Dense.Hyperparameters") -> None:
        super().__init__()
        axes = hyperparameters
        self.network = regressor(shape.steps * shape.features, [axes.units] * axes.layers, shape, axes.dropout)

    def forward(self, x_BTF: Tensor) -> Tensor:
        y_BSO: Tensor = self.network(x_BTF.flatten(1))
        return y_BSO


@register("linear")
class Linear(Network):
    """Each value of the window times a weight of its own, added up."""

    source = "linear regression"

    def __init__(self, shape: WindowShape, hyperparameters: TrainedAxes) -> None:
        super().__init__()
        self.output = Output(shape.steps * shape.features, shape)

    def forward(self, x_BTF: Tensor) -> Tensor:
        y_BSO: Tensor = self.output(x_BTF.flatten(1))
        return y_BSO
