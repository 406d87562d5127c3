"""What all recurrent layers have in common: their parameters, dropout, and the two ways to run over the steps."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from architectures.cells.loops import (
    Activation,
)
from architectures.graphs import GraphedLoop

State = tuple[Tensor, ...]
"""The tensors (B, H) that a step passes on to the next. What the layer outputs comes first."""


MIN_COMPILED_UNITS, MAX_COMPILED_UNITS = 4, 256
"""The widths of layers that the compiled loops are for. Beyond, matrix products are large enough for PyTorch's own."""


MIN_COMPILED_WINDOWS = 8
"""The windows of a batch from which compiled loops train: half of the lanes of the narrowest tile."""


class SumWeights(NamedTuple):
    """A layer's weights as its compiled loop takes them; see `architectures.kernels.pointwise.Pointwise`.

    Attributes:
        W_PF, U_QH: of the inputs, and of the output of the step before: H rows for each sum that has such a product.
        b_P, d_Q: what is added to these products; None: there is only b.
        p_3H: what multiplies a state elementwise.
    """

    W_PF: Tensor
    U_QH: Tensor
    b_P: Tensor
    d_Q: Tensor | None = None
    p_3H: Tensor | None = None


class RecurrentLayer(nn.Module):
    """One recurrent layer in one direction.

    Both kinds of dropout draw one mask for each sequence and use it at every step (Gal and Ghahramani 2016, "A
    Theoretically Grounded Application of Dropout in Recurrent Neural Networks"; lecture row C7), as Keras's layers do.
    The values that are not dropped are divided by their share.

    Args:
        activation: s in the equations.
        dropout: share of the inputs dropped in training.
        recurrent_dropout: share of the state dropped in training where it enters a matrix product; what a gate carries
            over from step to step is complete.
    """

    state_tensors: ClassVar[int] = 1
    """How many tensors the state has."""

    cell: ClassVar[str]
    """The name of its equations in `architectures.kernels.pointwise`."""

    def __init__(
        self,
        inputs: int,
        units: int,
        activation: Activation = "tanh",
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.units = units
        self.activation: Activation = activation
        self.dropout = dropout
        self.recurrent_dropout = recurrent_dropout
        self.add_weights(inputs, units)

    def add_weights(self, inputs: int, units: int) -> None:
        """Create the parameters; the order decides which random numbers each gets."""
        raise NotImplementedError

    def forward(self, x_BTF: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """
        Args:
            state: the state before the first step; None: zeros.

        Returns:
            The outputs at each step (B, T, H), and the state after the last. A call with that state continues the
            sequence, with new masks of dropout.
        """
        if self.training and self.dropout:
            x_BTF = x_BTF * functional.dropout(torch.ones_like(x_BTF[:, :1]), self.dropout)
        mask_BH = None
        if self.training and self.recurrent_dropout:
            mask_BH = functional.dropout(x_BTF.new_ones(len(x_BTF), self.units), self.recurrent_dropout)
        if self.is_compiled(x_BTF):
            from architectures.kernels.layer_loop import KernelLoop  # noqa: PLC0415 - as below

            h_BTH, *last = KernelLoop.apply(  # type: ignore[no-untyped-call]
                torch.is_grad_enabled(), self.cell, self.activation, x_BTF, *self.sum_weights(), mask_BH, *(state or ())
            )
            return h_BTH, tuple(last)
        if state is None:
            state = (x_BTF.new_zeros(len(x_BTF), self.units),) * self.state_tensors
        h_TBH, state = self.run(x_BTF.transpose(0, 1), state, mask_BH)
        return h_TBH.transpose(0, 1), state

    def is_compiled(self, x_BTF: Tensor) -> bool:
        """Whether a compiled loop computes the steps; otherwise `run` does."""
        if not MIN_COMPILED_UNITS <= self.units <= MAX_COMPILED_UNITS:
            return False
        # Few windows would leave most lanes empty, whose states are kept all the same if derivatives are needed.
        if len(x_BTF) < MIN_COMPILED_WINDOWS and torch.is_grad_enabled():
            return False
        if any(t.device.type != "cpu" or t.dtype != torch.float32 for t in (x_BTF, next(self.parameters()))):
            return False
        # Here, because Numba is loaded only where a layer runs on a CPU.
        from architectures.kernels.loading import can_load  # noqa: PLC0415

        return can_load(self.cell, self.activation, torch.is_grad_enabled())

    def sum_weights(self) -> SumWeights:
        """The weights as the compiled loop takes them."""
        raise NotImplementedError

    def run(self, x_TBF: Tensor, state: State, mask_BH: Tensor | None) -> tuple[Tensor, State]:
        """Compute all steps, from inputs to which dropout has been applied."""
        raise NotImplementedError

    def run_loop(
        self,
        loop: type[torch.autograd.Function],
        x_TBF: Tensor,
        weights: Sequence[Tensor | None],
        state: State,
        *rest: Any,
    ) -> tuple[Tensor, State]:
        """Compute all steps by the loop of a cell, in the precision of its weights also where autocast is on."""
        dtype = next(self.parameters()).dtype
        with torch.autocast(x_TBF.device.type, enabled=False):
            x_TBF, state = x_TBF.to(dtype).contiguous(), tuple(tensor.to(dtype) for tensor in state)
            h_TBH, *last = GraphedLoop.apply(loop, self.activation, x_TBF, *weights, *state, *rest)  # type: ignore[no-untyped-call]
        return h_TBH, tuple(last)


def describe_recurrent_loops(network: nn.Module, device: torch.device) -> str | None:
    """Which loops the recurrent layers of a network use on a device: `compiled` or `pytorch`; None: it has none.

    Layers and batches that are too small or too large for compiled loops use PyTorch's wherever they run.
    """
    if not any(isinstance(layer, RecurrentLayer) for layer in network.modules()):
        return None
    if device.type != "cpu":
        return "pytorch"
    from architectures.kernels.loading import find_obstacle  # noqa: PLC0415 - as in `is_compiled`

    return "compiled" if find_obstacle() is None else "pytorch"


def new_weight(*shape: int, units: int) -> nn.Parameter:
    """A weight with the initial values of PyTorch's recurrent layers: uniform within 1 / sqrt(units) of zero."""
    bound = 1 / math.sqrt(units)
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))


class FusedLayer(RecurrentLayer):
    """A layer that has its weights in a layer of PyTorch's, `fused`, so that PyTorch's kernels can be called."""

    kernel: ClassVar[type[nn.RNN | nn.LSTM | nn.GRU]]
    one_bias: ClassVar[bool]
    """PyTorch adds two biases, because cuDNN requires them. Where both are added to the same sum, the second stays zero
    here, so that the layer has the parameters of its equations, and of Keras's layer."""

    def add_weights(self, inputs: int, units: int) -> None:
        self.fused = self.kernel(inputs, units)
        if self.one_bias:
            zeros = torch.zeros_like(self.weights[2])
            del self.fused.bias_hh_l0
            self.fused.bias_hh_l0 = nn.Buffer(zeros, persistent=False)

    @property
    def weights(self) -> list[Tensor]:
        """W (G, F), U (G, H), b (G) and, unless the layer has only one bias, the second bias."""
        return [*self.fused.all_weights[0][: 3 if self.one_bias else 4]]

    def run_kernel(self, x_TBF: Tensor, state: State) -> tuple[Tensor, State]:
        """Compute all steps by PyTorch's kernel, whose states have one more dimension, of layers and directions."""
        before = tuple(tensor.unsqueeze(0) for tensor in state)
        h_TBH, after = self.fused(x_TBF, before if len(before) > 1 else before[0])
        return h_TBH, tuple(tensor.squeeze(0) for tensor in (after if isinstance(after, tuple) else (after,)))
