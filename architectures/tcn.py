"""The temporal convolutional network: dilated causal convolutions in residual blocks."""

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from architectures.network import Network, Output, TrainedAxes, WindowShape, register
from architectures.view import View, ViewAxis, input_axis, name_windows


class CausalConvolution(nn.Module):
    """y_t = b + sum_i W_i x_{t - i d}, with x = 0 before the window; W = g v / |v| for each output channel.

    Weight norm: Salimans and Kingma 2016.
    """

    def __init__(self, channels_in: int, channels_out: int, kernel: int, dilation: int) -> None:
        super().__init__()
        self.pad = nn.ConstantPad1d(((kernel - 1) * dilation, 0), 0.0)
        self.convolution = weight_norm(nn.Conv1d(channels_in, channels_out, kernel, dilation=dilation))

    def forward(self, x_BCT: Tensor) -> Tensor:
        y_BCT: Tensor = self.convolution(self.pad(x_BCT))
        return y_BCT


class ResidualBlock(nn.Module):
    """y = relu(x + F(x)), where F is two times causal convolution, relu, dropout.

    If the widths differ, x goes through a 1x1 convolution. Dropout drops whole channels, as in section 3.3 of the
    paper.
    """

    def __init__(self, channels_in: int, channels_out: int, kernel: int, dilation: int, dropout: float) -> None:
        super().__init__()
        self.transform = nn.Sequential(
            CausalConvolution(channels_in, channels_out, kernel, dilation),
            nn.ReLU(),
            nn.Dropout1d(dropout),
            CausalConvolution(channels_out, channels_out, kernel, dilation),
            nn.ReLU(),
            nn.Dropout1d(dropout),
        )
        self.skip = nn.Identity() if channels_in == channels_out else nn.Conv1d(channels_in, channels_out, 1)

    def forward(self, x_BCT: Tensor) -> Tensor:
        y_BCT: Tensor = (self.skip(x_BCT) + self.transform(x_BCT)).relu()
        return y_BCT


@register("tcn")
class TCN(Network):
    """Residual blocks whose convolutions have dilations 1, 2, 4, ...; the last step's channels are the state.

    Bai, Kolter and Koltun, "An Empirical Evaluation of Generic Convolutional and Recurrent Networks for Sequence
    Modeling", 2018 (lecture row A7).

    Attributes:
        receptive_field: the number of steps that the last state depends on; earlier ones have no effect.
    """

    source = "A7, Bai, Kolter & Koltun 2018"
    at_each_step = True

    class Hyperparameters(TrainedAxes):
        kernel: int = Field(3, ge=2, description="steps that a convolution covers, as far apart as its dilation")
        levels: int = Field(5, ge=1, le=16, description="residual blocks")
        channels: int = Field(12, ge=1, description="channels of each block")
        dropout: float = Field(0.0, ge=0, lt=1, description="share of channels dropped in training")

    def __init__(self, shape: WindowShape, hyperparameters: "TCN.Hyperparameters") -> None:
        super().__init__()
        axes = hyperparameters
        self.receptive_field = 1 + 2 * (axes.kernel - 1) * (2**axes.levels - 1)
        sizes = [shape.features, *[axes.channels] * (axes.levels - 1)]
        self.blocks = nn.Sequential(
            *[
                ResidualBlock(channels_in, axes.channels, axes.kernel, dilation=2**level, dropout=axes.dropout)
                for level, channels_in in enumerate(sizes)
            ]
        )
        self.output = Output(axes.channels, shape)

    def states(self, x_BTF: Tensor) -> Tensor:
        """The state (B, T, C) at each step, which does not depend on later steps."""
        h_BCT: Tensor = self.blocks(x_BTF.transpose(1, 2))
        return h_BCT.transpose(1, 2)

    def forward(self, x_BTF: Tensor) -> Tensor:
        y_BSO: Tensor = self.output(self.states(x_BTF))
        return y_BSO

    def views(self, x_BTF: Tensor) -> list[View]:
        """The gradient of the forecast with respect to each input step, with a line for each window."""
        with torch.enable_grad():
            x_BTF = x_BTF.detach().requires_grad_()
            (d_BTF,) = torch.autograd.grad(self(x_BTF).sum(), x_BTF)
        steps, field = x_BTF.shape[1], self.receptive_field
        reach = (
            f"which is all {steps} of the window"
            if field >= steps
            else f"so the first {steps - field} of the window's {steps} have no effect, left of the broken line"
        )
        return [
            View(
                title="Receptive field",
                caption=f"How strongly each input changes the forecast: the norm, over the features, of the gradient "
                "of the forecast with respect to the input, both normalised. With its kernel and levels the network "
                f"can see {field} steps, {reach}; the lines show how much it uses them. A gap is a gradient of 0.",
                kind="lines",
                values=d_BTF.norm(dim=2).unsqueeze(0),
                x=input_axis(steps),
                y=ViewAxis("norm of the gradient"),
                names=name_windows(len(x_BTF)),
                log=True,
                mark=(0.5 - field, f"sees {field} steps") if field < steps else None,
            )
        ]
