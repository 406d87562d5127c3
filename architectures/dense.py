"""The constant, the linear and the densely connected network: they read the window at once, as if without order."""

import torch
from pydantic import Field
from torch import Tensor, nn

from architectures.network import Network, Output, TrainedAxes, WindowShape, build_regressor, register


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
        self.network = build_regressor(shape.steps * shape.features, [axes.units] * axes.layers, shape, axes.dropout)

    def forward(self, x_BTF: Tensor) -> Tensor:
        y_BSO: Tensor = self.network(x_BTF.flatten(1))
        return y_BSO


@register("linear")
class Linear(Network):
    """Linear regression: the sum of all values of the window, each times a weight of its own."""

    source = "linear regression"

    def __init__(self, shape: WindowShape, hyperparameters: TrainedAxes) -> None:
        super().__init__()
        self.output = Output(shape.steps * shape.features, shape)

    def forward(self, x_BTF: Tensor) -> Tensor:
        y_BSO: Tensor = self.output(x_BTF.flatten(1))
        return y_BSO


@register("constant")
class Constant(Network):
    """The same answer to every window: the median, the mean or the shares of the classes, depending on the loss.

    It is what a network has to beat where there is nothing that a baseline could repeat.
    """

    source = "base rates"
    at_each_step = True
    carries = True

    def __init__(self, shape: WindowShape, hyperparameters: TrainedAxes) -> None:
        super().__init__()
        self.each = shape.each
        self.answer_SO = nn.Parameter(torch.zeros(1 if shape.each else shape.leads, shape.outputs))

    def forward(self, x_BTF: Tensor) -> Tensor:
        return self.answer_SO.expand(len(x_BTF), x_BTF.shape[1] if self.each else -1, -1)
