"""The Transformer's encoder."""

import math
from dataclasses import replace

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from architectures.network import Network, Output, ShapeError, TrainedAxes, WindowShape, register
from architectures.view import View, input_axis, name_windows


def encode_positions(steps: int, width: int) -> Tensor:
    """The sinusoidal encoding (T, D), float64: p[t, 2i] = sin(t / 10000^(2i / D)), p[t, 2i + 1] = cos of the same."""
    rate_I = 10000 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angle_TI = torch.arange(steps)[:, None] * rate_I
    return torch.stack([angle_TI.sin(), angle_TI.cos()], dim=-1).flatten(1)[:, :width]


class MultiHeadAttention(nn.Module):
    """softmax(Q K' / sqrt(W)) V in each of N heads of width W, and a linear layer W_o on their concatenation.

    T are the steps of the queries, S those of the keys and values.
    """

    def __init__(self, heads: int, head_width: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.head_width, self.causal = heads, head_width, causal
        self.queries_keys_values = nn.Linear(heads * head_width, 3 * heads * head_width)
        self.output = nn.Linear(heads * head_width, heads * head_width)

    def split(self, h_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (B, N, T, W)."""
        qkv_BTD = self.queries_keys_values(h_BTD)
        q_BNTW, k_BNTW, v_BNTW = qkv_BTD.unflatten(2, (3, self.heads, self.head_width)).permute(2, 0, 3, 1, 4)
        return q_BNTW, k_BNTW, v_BNTW

    def forward(self, h_BTD: Tensor) -> Tensor:
        a_BNTW = scaled_dot_product_attention(*self.split(h_BTD), is_causal=self.causal)
        y_BTD: Tensor = self.output(a_BNTW.transpose(1, 2).flatten(2))
        return y_BTD

    def weights(self, h_BTD: Tensor) -> Tensor:
        """The weights of the values in `forward`: (B, N, T, S), the sum over S is one."""
        q_BNTW, k_BNSW, _ = self.split(h_BTD)
        e_BNTS = q_BNTW @ k_BNSW.transpose(2, 3) / math.sqrt(self.head_width)
        if self.causal:
            later_TS = torch.ones_like(e_BNTS[0, 0], dtype=torch.bool).triu(1)
            e_BNTS = e_BNTS.masked_fill(later_TS, -math.inf)
        return e_BNTS.softmax(dim=3)


class EncoderLayer(nn.Module):
    """h = norm(h + attention(h)), then h = norm(h + W_2 relu(W_1 h + b_1) + b_2)."""

    def __init__(self, heads: int, head_width: int, feedforward: int, dropout: float, causal: bool) -> None:
        super().__init__()
        width = heads * head_width
        self.attention = MultiHeadAttention(heads, head_width, causal)
        self.feedforward = nn.Sequential(nn.Linear(width, feedforward), nn.ReLU(), nn.Linear(feedforward, width))
        self.norm_attention, self.norm_feedforward = nn.LayerNorm(width), nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, h_BTD: Tensor) -> Tensor:
        h_BTD = self.norm_attention(h_BTD + self.dropout(self.attention(h_BTD)))
        y_BTD: Tensor = self.norm_feedforward(h_BTD + self.dropout(self.feedforward(h_BTD)))
        return y_BTD


@register("transformer")
class Transformer(Network):
    """Layers of multi-head self-attention and a dense network at each step; the state is that of the last step.

    Vaswani et al., "Attention is All You Need", 2017, with a linear layer where the paper embeds words (lecture
    row A6). The model's width D is `heads` times `head_width`, so that any two values of them fit together.
    """

    source = "A6, Vaswani et al. 2017"
    at_each_step = True
    positions_TD: Tensor

    class Hyperparameters(TrainedAxes):
        heads: int = Field(2, ge=1, description="attention heads of each layer")
        head_width: int = Field(8, ge=1, description="width of each head; the model is heads times as wide")
        layers: int = Field(2, ge=1, description="encoder layers")
        feedforward: int = Field(32, ge=1, description="width of the dense network in each layer")
        dropout: float = Field(0.0, ge=0, lt=1, description="share of inputs and of each sublayer's output dropped")
        causal: bool = Field(False, description="a step attends to no later step")

    def __init__(self, shape: WindowShape, hyperparameters: "Transformer.Hyperparameters") -> None:
        """
        Raises:
            ShapeError: each step has to be answered, but steps attend to later ones.
        """
        super().__init__()
        axes = hyperparameters
        if shape.each and not axes.causal:
            raise ShapeError("transformer.causal: must be true where an answer is asked for at each step")
        width = axes.heads * axes.head_width
        self.embedding = nn.Linear(shape.features, width)
        self.register_buffer("positions_TD", encode_positions(shape.steps, width).float(), persistent=False)
        self.dropout = nn.Dropout(axes.dropout)
        self.layers = nn.ModuleList(
            EncoderLayer(axes.heads, axes.head_width, axes.feedforward, axes.dropout, axes.causal)
            for _ in range(axes.layers)
        )
        self.output = Output(width, shape)

    def states(self, x_BTF: Tensor) -> list[Tensor]:
        """The inputs of each layer, and at the end the outputs of the last: (B, T, D) each."""
        h_BTD = self.dropout(self.embedding(x_BTF) + self.positions_TD[: x_BTF.shape[1]])
        states = [h_BTD]
        for layer in self.layers:
            states.append(layer(states[-1]))
        return states

    def forward(self, x_BTF: Tensor) -> Tensor:
        y_BSO: Tensor = self.output(self.states(x_BTF)[-1])
        return y_BSO

    def maps(self, x_BTF: Tensor) -> Tensor:
        """The attention maps (B, L, N, T, S) of each layer L and head N: the weight that step T gives to step S."""
        attentions = [module for module in self.layers.modules() if isinstance(module, MultiHeadAttention)]
        layer_inputs = self.states(x_BTF)[:-1]
        maps = [attention.weights(h_BTD) for attention, h_BTD in zip(attentions, layer_inputs, strict=True)]
        return torch.stack(maps, dim=1)

    def views(self, x_BTF: Tensor) -> list[View]:
        """The attention maps: a view for each window, with a row of panels for each layer and a panel for each head."""
        maps_BLNTS = self.maps(x_BTF)
        _, layers, heads, steps, _ = maps_BLNTS.shape
        return [
            View(
                title=f"Attention maps, {name}",
                caption="Each row is a step that attends, each column a step that is attended to; a row sums to 1. "
                "The forecast is made of the bottom row of the last layer; that row reads all rows of the layers "
                "before.",
                kind="map",
                values=maps_LNTS.flatten(0, 1),
                x=replace(input_axis(steps), name="input attended to"),
                y=replace(input_axis(steps), name="input that attends"),
                panels=tuple(f"layer {i + 1}, head {k + 1}" for i in range(layers) for k in range(heads)),
                columns=heads,
            )
            for name, maps_LNTS in zip(name_windows(len(x_BTF)), maps_BLNTS, strict=True)
        ]
