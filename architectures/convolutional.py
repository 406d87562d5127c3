"""Networks that begin with convolutions over time: a plain ConvNet, and a GRU over the shorter sequence."""

from pydantic import Field
from torch import Tensor, nn

from architectures.cells.gru import GRU
from architectures.network import Network, Output, TrainedAxes, WindowShape, register


class Convolutions(nn.Module):
    """relu(Conv1D), max pool, relu(Conv1D): from (B, T, F) to (B, S, C), S = (T - width + 1) // pool - width + 1 steps.

    As in Keras, a filter does not reach outside the window. A window from which fewer than two steps would come out is
    lengthened with zeros at its front.
    """

    def __init__(self, shape: WindowShape, channels: int, width: int, pool: int) -> None:
        super().__init__()
        missing = max(0, (width + 1) * pool + width - 1 - shape.steps)
        self.pad = nn.ConstantPad1d((missing, 0), 0.0)
        self.first = nn.Conv1d(shape.features, channels, width)
        self.pool = nn.MaxPool1d(pool)
        self.second = nn.Conv1d(channels, channels, width)

    def forward(self, x_BTF: Tensor) -> Tensor:
        x_BFT = self.pad(x_BTF.transpose(1, 2))
        h_BCS: Tensor = self.second(self.pool(self.first(x_BFT).relu())).relu()
        return h_BCS.transpose(1, 2)


@register("convnet")
class ConvNet(Network):
    """Convolution, max pool, convolution, the maximum over time (lecture row P4: filters 32x7, pool 5).

    Chollet, "Deep Learning with Python", 6.4.
    """

    source = "P4"

    class Hyperparameters(TrainedAxes):
        channels: int = Field(24, ge=1, description="filters of each convolution")
        width: int = Field(5, ge=1, description="steps that a filter covers")
        pool: int = Field(3, ge=1, description="steps that the max pool combines into one")

    def __init__(self, shape: WindowShape, hyperparameters: "ConvNet.Hyperparameters") -> None:
        super().__init__()
        axes = hyperparameters
        self.convolutions = Convolutions(shape, axes.channels, axes.width, axes.pool)
        self.output = Output(axes.channels, shape)

    def forward(self, x_BTF: Tensor) -> Tensor:
        y_BSO: Tensor = self.output(self.convolutions(x_BTF).amax(dim=1))
        return y_BSO


@register("conv_gru")
class ConvGRU(Network):
    """Convolutions that shorten the window, and a GRU over the shorter sequence.

    Lecture row D10 has the default sizes, with dropout 0.1 and recurrent dropout 0.5. Chollet, "Deep Learning with
    Python", 6.4.
    """

    source = "D10"

    class Hyperparameters(TrainedAxes):
        channels: int = Field(32, ge=1, description="filters of each convolution")
        width: int = Field(5, ge=1, description="steps that a filter covers")
        pool: int = Field(3, ge=1, description="steps that the max pool combines into one")
        units: int = Field(32, ge=1, description="size of the GRU's state")
        dropout: float = Field(
            0.0, ge=0, lt=1, description="share of the GRU's inputs dropped, the same at every step of a window"
        )
        recurrent_dropout: float = Field(
            0.0, ge=0, lt=1, description="share of the GRU's state dropped, the same at every step of a window"
        )

    def __init__(self, shape: WindowShape, hyperparameters: "ConvGRU.Hyperparameters") -> None:
        super().__init__()
        axes = hyperparameters
        self.convolutions = Convolutions(shape, axes.channels, axes.width, axes.pool)
        self.gru = GRU(axes.channels, axes.units, dropout=axes.dropout, recurrent_dropout=axes.recurrent_dropout)
        self.output = Output(axes.units, shape)

    def forward(self, x_BTF: Tensor) -> Tensor:
        _, (h_BH,) = self.gru(self.convolutions(x_BTF))
        y_BSO: Tensor = self.output(h_BH)
        return y_BSO
