"""Recurrent layers on top of each other, in one or in both directions."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from architectures.cells.layer import RecurrentLayer, State
from architectures.cells.loops import Activation


class Stack(nn.Module):
    """Recurrent layers on top of each other: each passes its whole sequence on to the next (lecture row C8).

    Attributes:
        width: H, the values that the top layer outputs at a step, of both directions together.
    """

    def __init__(
        self,
        layer: type[RecurrentLayer],
        inputs: int,
        units: Sequence[int],
        activation: Activation | Sequence[Activation] = "tanh",
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        bidirectional: bool = False,
    ) -> None:
        """
        Args:
            units: the width of each layer, and of each of its directions.
            activation: one for all layers, or one for each.
            bidirectional: beside each layer, another reads the same sequence from the end.
        """
        super().__init__()
        directions = 2 if bidirectional else 1
        self.width = units[-1] * directions
        input_widths = [inputs, *(width * directions for width in units)]
        activations = [activation] * len(units) if isinstance(activation, str) else activation

        def build_layers() -> nn.ModuleList:
            return nn.ModuleList(
                layer(n_in, n, s, dropout, recurrent_dropout)
                for n_in, n, s in zip(input_widths[:-1], units, activations, strict=True)
            )

        self.onwards = build_layers()
        self.from_the_end = build_layers() if bidirectional else nn.ModuleList()

    def forward(self, x_BTF: Tensor) -> tuple[Tensor, Tensor]:
        """
        Returns:
            The outputs of the top layer at each step (B, T, H), and the outputs of each of its directions after it has
            read the whole sequence (B, H).
        """
        last_BH = x_BTF[:, -1]
        for i, layer in enumerate(self.onwards):
            h_BTH, (last_BH, *_) = layer(x_BTF)
            if self.from_the_end:
                other_BTH, (other_BH, *_) = self.from_the_end[i](x_BTF.flip(1))
                h_BTH = torch.cat((h_BTH, other_BTH.flip(1)), 2)
                last_BH = torch.cat((last_BH, other_BH), 1)
            x_BTF = h_BTH
        return x_BTF, last_BH

    def resume(self, x_BTF: Tensor, states: Sequence[State] | None) -> tuple[Tensor, list[State]]:
        """Continue sequences, in one direction.

        Args:
            states: the state of each layer before the first step; None: zeros. They may be of more sequences than the
                B of this call, which are then the first B of them.

        Returns:
            The outputs of the top layer at each step (B, T, H), and the state of each layer after the last.
        """
        after: list[State] = []
        for i, layer in enumerate(self.onwards):
            state = tuple(tensor[: len(x_BTF)] for tensor in states[i]) if states else None
            x_BTF, last = layer(x_BTF, state)
            after.append(last)
        return x_BTF, after
