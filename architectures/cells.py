"""Recurrent layers: from a sequence to the state after each of its steps, in one direction.

What the inputs of all steps add to the gates is one matrix product, in a GRU two: one for its gates, one for its
candidate. What is left to do step by step is in one `autograd.Function` a cell: `forward` is the cell's equations,
`backward` their derivatives, a plain loop each, in place where it can be. The products that give the derivatives by the
weights are, again, over all steps at once. Where PyTorch has a fused kernel that computes the same, and faster, the
layer calls that: `LSTM` always, `GRU` and `Elman` on a GPU.

Measured by `python -m benchmarks cells`, forward and backward, 120 steps, 14 inputs, one CPU thread: a loop over
modules, two `nn.Linear` a gate, takes 3.6 to 5.7 times as long as the loops here in batches of 8 with 16 units, 3.2
(`Jordan`) to 4.8 times in batches of 32 with 32 units, and 2.3 to 2.8 times in batches of 128: the larger the products,
the more of the time is theirs, in both. There, `Elman` takes 1 / 2.2 of the time of `torch.nn.RNN`, `GRU` and
`GRUResetBefore` 1 / 1.7 of that of `torch.nn.GRU`; the loop of an LSTM takes twice that of `torch.nn.LSTM` and is for
what that cannot do.

By `python -m benchmarks gpu` on an H100: the loops here, replayed from CUDA graphs (see `graphs`), take 2 ms (`Jordan`)
to 7 ms (`PeepholeLSTM`), 15 to 49 ms as plain loops, and a loop over modules 19 to 29 times as long as the graphs.
PyTorch's kernels take 1 ms.

In the comments k is the state h_{t-1} as the recurrent products see it, times the mask of recurrent dropout if there is
one. A name with d before it is the derivative of the loss by what is named. S counts the states before, between and
after the T steps: S = T + 1.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from architectures.graphs import Looped

aten = torch.ops.aten

Activation = Literal["tanh", "relu", "sigmoid"]


ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh_,
    "relu": torch.relu_,
    "sigmoid": torch.sigmoid_,
}
"""In place: the sums that they are applied to are needed no more."""

_MINUS_ONE = torch.tensor(-1.0)


def _tanh_of_half(a: Tensor) -> Tensor:
    return torch.add(_MINUS_ONE, a.sigmoid_(), alpha=2, out=a)


def _activation(activation: Activation, x: Tensor) -> tuple[int, Callable[[Tensor], Tensor]]:
    """What to multiply an argument by, which is done to the weights once, and what then to apply to it, in place.

    tanh(a) = 2 sigmoid(2 a) - 1, and on a CPU torch.sigmoid takes a fifth to a third of the time of torch.tanh.
    """
    if activation == "tanh" and not x.is_cuda:
        return 2, _tanh_of_half
    return 1, ACTIVATIONS[activation]


def _through_relu(d: Tensor, s: Tensor, *, grad_input: Tensor) -> None:
    aten.threshold_backward.grad_input(d, s, 0, grad_input=grad_input)


_through_tanh, _through_sigmoid = aten.tanh_backward.grad_input, aten.sigmoid_backward.grad_input

THROUGH: dict[Activation, Callable[..., object]] = {
    "tanh": _through_tanh,
    "relu": _through_relu,
    "sigmoid": _through_sigmoid,
}
"""From the derivative by an activation's value, and that value, to the one by its argument, into `grad_input`."""

State = tuple[Tensor, ...]


class Layer(nn.Module):
    """One recurrent layer in one direction.

    Both kinds of dropout draw one mask a sequence and use it at every step (Gal and Ghahramani 2016, "A Theoretically
    Grounded Application of Dropout in Recurrent Neural Networks"; lecture row C7), as Keras's layers do. What is kept
    is divided by the share that is kept.

    Args:
        activation: s in the equations.
        dropout: share of the inputs dropped in training.
        recurrent_dropout: share of the state dropped in training where it enters a matrix product; what a gate carries
            over from step to step is whole.
    """

    states: ClassVar[int] = 1
    """Tensors (B, H) in the state that a step hands to the next; what the layer gives comes first."""

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
        raise NotImplementedError

    def forward(self, x_BTF: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """
        Args:
            state: before the first step; None: zeros.

        Returns:
            What the layer gives at each step (B, T, H), and the state after the last: handed to another call, it lets
            the sequence go on there, with masks of its own.
        """
        if self.training and self.dropout:
            x_BTF = x_BTF * functional.dropout(torch.ones_like(x_BTF[:, :1]), self.dropout)
        if state is None:
            state = (x_BTF.new_zeros(len(x_BTF), self.units),) * self.states
        mask_BH = None
        if self.training and self.recurrent_dropout:
            mask_BH = functional.dropout(torch.ones_like(state[0]), self.recurrent_dropout)
        h_TBH, state = self.run(x_BTF.transpose(0, 1), state, mask_BH)
        return h_TBH.transpose(0, 1), state

    def run(self, x_TBF: Tensor, state: State, mask_BH: Tensor | None) -> tuple[Tensor, State]:
        """All steps, from inputs that dropout has gone over."""
        raise NotImplementedError

    def by_hand(
        self,
        cell: type[torch.autograd.Function],
        x_TBF: Tensor,
        weights: Sequence[Tensor | None],
        state: State,
        *rest: Any,
    ) -> tuple[Tensor, State]:
        """All steps by one of the functions below, in the precision of its weights also where autocast is on."""
        dtype = next(self.parameters()).dtype
        with torch.autocast(x_TBF.device.type, enabled=False):
            x_TBF, state = x_TBF.to(dtype).contiguous(), tuple(each.to(dtype) for each in state)
            h_TBH, *last = Looped.apply(cell, self.activation, x_TBF, *weights, *state, *rest)  # type: ignore[no-untyped-call]
        return h_TBH, tuple(last)


def _weight(*shape: int, units: int) -> nn.Parameter:
    """As the weights of PyTorch's recurrent layers begin: uniform within 1 / sqrt(units) of zero."""
    bound = 1 / math.sqrt(units)
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))


def as_keras(network: nn.Module) -> None:
    """Give the recurrent and the dense layers of a network the initial weights of Keras's.

    Inputs' weights are uniform as by Glorot and Bengio 2010, the state's are orthogonal (all gates' as one matrix, Saxe
    et al. 2014), biases are 0, but 1 for the forget gate of an LSTM (Jozefowicz et al. 2015).
    """
    for layer in network.modules():
        own = dict(layer.named_parameters()) if isinstance(layer, Layer | nn.Linear) else {}
        for name, weight in own.items():
            last = name.rpartition(".")[2]
            if last in ("U", "weight_hh_l0"):
                nn.init.orthogonal_(weight)
            elif last in ("W", "V", "weight_ih_l0", "weight"):
                nn.init.xavier_uniform_(weight)
            else:
                nn.init.zeros_(weight)
            if last in ("b", "bias_ih_l0") and isinstance(layer, LSTM | PeepholeLSTM):
                nn.init.ones_(weight[layer.units : 2 * layer.units])


class Fused(Layer):
    """A layer whose weights are those of PyTorch's own, `fused`, so that its kernels can be called."""

    kernel: ClassVar[type[nn.RNN | nn.LSTM | nn.GRU]]
    one_bias: ClassVar[bool]
    """PyTorch adds two biases, for cuDNN wants them. Where they add to the same sum, the second stays zero here, so
    that the layer has the parameters of its equations, and of Keras's layer."""

    def add_weights(self, inputs: int, units: int) -> None:
        self.fused = self.kernel(inputs, units)
        if self.one_bias:
            zeros = torch.zeros_like(self.weights[2])
            del self.fused.bias_hh_l0
            self.fused.bias_hh_l0 = nn.Buffer(zeros, persistent=False)

    @property
    def weights(self) -> list[Tensor]:
        """W (G, F), U (G, H), b (G) and, where there are two biases, the second."""
        return [*self.fused.all_weights[0][: 3 if self.one_bias else 4]]

    def by_kernel(self, x_TBF: Tensor, state: State) -> tuple[Tensor, State]:
        """All steps by PyTorch, whose states have a dimension more, for its layers and directions."""
        before = tuple(each.unsqueeze(0) for each in state)
        h_TBH, after = self.fused(x_TBF, before if len(before) > 1 else before[0])
        return h_TBH, tuple(each.squeeze(0) for each in (after if isinstance(after, tuple) else (after,)))


class Elman(Fused):
    """h_t = s(W x_t + U h_{t-1} + b) (Elman 1990, "Finding Structure in Time"; lecture rows C1, C3)."""

    kernel = nn.RNN
    one_bias = True

    def run(self, x_TBF: Tensor, state: State, mask_BH: Tensor | None) -> tuple[Tensor, State]:
        if x_TBF.is_cuda and mask_BH is None and self.activation == "tanh":
            return self.by_kernel(x_TBF, state)
        return self.by_hand(_Elman, x_TBF, self.weights, state, mask_BH)


class _Elman(torch.autograd.Function):
    """h = s(W x + U k + b)."""

    @staticmethod
    def forward(
        ctx: Any,
        activation: Activation,
        x_TBF: Tensor,
        W_HF: Tensor,
        U_HH: Tensor,
        b_H: Tensor,
        h_BH: Tensor,
        mask_BH: Tensor | None,
    ) -> tuple[Tensor, ...]:
        times, s = _activation(activation, x_TBF)
        h_SBH = _from(h_BH, steps=len(x_TBF))
        torch.addmm(times * b_H, x_TBF.flatten(0, 1), times * W_HF.t(), out=h_SBH[1:].flatten(0, 1))
        U_T = times * U_HH.t().contiguous()
        for before, h in _forwards(h_SBH[:-1], h_SBH[1:]):
            s(h.addmm_(_kept(before, mask_BH), U_T))
        ctx.set_materialize_grads(False)
        ctx.activation = activation
        ctx.save_for_backward(x_TBF, W_HF, U_HH, h_SBH, mask_BH)
        return h_SBH[1:], h_SBH[-1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_TBH: Tensor | None, d_BH: Tensor | None) -> tuple[Tensor | None, ...]:
        x_TBF, W_HF, U_HH, h_SBH, mask_BH = ctx.saved_tensors
        through = THROUGH[ctx.activation]
        da_TBH = torch.empty_like(h_SBH[1:])
        dh = _or_zeros(d_BH, h_SBH[0])
        for d, h, da in _backwards(d_TBH, h_SBH[1:], da_TBH):
            through(_plus(dh, d), h, grad_input=da)
            dh = _kept(da.mm(U_HH), mask_BH)
        dU_HH = _by_matrix(da_TBH, _kept(h_SBH[:-1], mask_BH))
        return None, *_by_inputs(ctx, da_TBH, x_TBF, W_HF), dU_HH, da_TBH.sum((0, 1)), dh, None


class Jordan(Layer):
    """h_t = s(W x_t + U y_{t-1} + b), y_t = s(V h_t + c) (Jordan 1986, "Serial Order"; lecture row C2).

    The layer gives y, as wide as h; what is fed back, and what recurrent dropout acts on, is y too.
    """

    def add_weights(self, inputs: int, units: int) -> None:
        self.W = _weight(units, inputs, units=units)
        self.U = _weight(units, units, units=units)
        self.b = _weight(units, units=units)
        self.V = _weight(units, units, units=units)
        self.c = _weight(units, units=units)

    def run(self, x_TBF: Tensor, state: State, mask_BH: Tensor | None) -> tuple[Tensor, State]:
        return self.by_hand(_Jordan, x_TBF, (self.W, self.U, self.b, self.V, self.c), state, mask_BH)


class _Jordan(torch.autograd.Function):
    """h = s(W x + U k + b), y = s(V h + c), where k is of y."""

    @staticmethod
    def forward(
        ctx: Any,
        activation: Activation,
        x_TBF: Tensor,
        W_HF: Tensor,
        U_HH: Tensor,
        b_H: Tensor,
        V_HH: Tensor,
        c_H: Tensor,
        y_BH: Tensor,
        mask_BH: Tensor | None,
    ) -> tuple[Tensor, ...]:
        times, s = _activation(activation, x_TBF)
        h_TBH = functional.linear(x_TBF, times * W_HF, times * b_H)
        y_SBH = _from(y_BH, steps=len(x_TBF))
        U_T, V_T, c_H = times * U_HH.t().contiguous(), times * V_HH.t().contiguous(), times * c_H
        for h, before, y in _forwards(h_TBH, y_SBH[:-1], y_SBH[1:]):
            s(h.addmm_(_kept(before, mask_BH), U_T))
            s(torch.addmm(c_H, h, V_T, out=y))
        ctx.set_materialize_grads(False)
        ctx.activation = activation
        ctx.save_for_backward(x_TBF, W_HF, U_HH, V_HH, h_TBH, y_SBH, mask_BH)
        return y_SBH[1:], y_SBH[-1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_TBH: Tensor | None, d_BH: Tensor | None) -> tuple[Tensor | None, ...]:
        x_TBF, W_HF, U_HH, V_HH, h_TBH, y_SBH, mask_BH = ctx.saved_tensors
        through = THROUGH[ctx.activation]
        da_TBH, de_TBH = torch.empty_like(h_TBH), torch.empty_like(h_TBH)  # by the arguments of h's s and of y's
        dy = _or_zeros(d_BH, y_SBH[0])
        for d, h, y, da, de in _backwards(d_TBH, h_TBH, y_SBH[1:], da_TBH, de_TBH):
            through(_plus(dy, d), y, grad_input=de)
            through(de.mm(V_HH), h, grad_input=da)
            dy = _kept(da.mm(U_HH), mask_BH)
        dU_HH = _by_matrix(da_TBH, _kept(y_SBH[:-1], mask_BH))
        inner = (*_by_inputs(ctx, da_TBH, x_TBF, W_HF), dU_HH, da_TBH.sum((0, 1)))
        return None, *inner, _by_matrix(de_TBH, h_TBH), de_TBH.sum((0, 1)), dy, None


class LSTM(Fused):
    """Long short-term memory (Hochreiter and Schmidhuber 1997; lecture row C4).

    i_t, f_t, o_t = sigmoid(W x_t + U h_{t-1} + b), g_t = s(W x_t + U h_{t-1} + b), each with weights of its own;
    c_t = f_t c_{t-1} + i_t g_t; h_t = o_t s(c_t). The forget gate is of Gers, Schmidhuber and Cummins (2000).
    """

    states = 2
    kernel = nn.LSTM
    one_bias = True

    def run(self, x_TBF: Tensor, state: State, mask_BH: Tensor | None) -> tuple[Tensor, State]:
        if mask_BH is None and self.activation == "tanh":
            return self.by_kernel(x_TBF, state)
        return self.by_hand(_LSTM, x_TBF, (*self.weights, None), state, mask_BH)


class PeepholeLSTM(Layer):
    """An LSTM whose gates see the cell (Gers and Schmidhuber 2000, "Recurrent Nets that Time and Count"; row C5).

    As `LSTM`, but with p_i c_{t-1} added in i_t, p_f c_{t-1} in f_t and p_o c_t in o_t, elementwise: as in the paper,
    a cell is seen by its own gates alone.
    """

    states = 2

    def add_weights(self, inputs: int, units: int) -> None:
        self.W = _weight(4 * units, inputs, units=units)
        self.U = _weight(4 * units, units, units=units)
        self.b = _weight(4 * units, units=units)
        self.p = _weight(3, units, units=units)

    def run(self, x_TBF: Tensor, state: State, mask_BH: Tensor | None) -> tuple[Tensor, State]:
        return self.by_hand(_LSTM, x_TBF, (self.W, self.U, self.b, self.p), state, mask_BH)


class _LSTM(torch.autograd.Function):
    """i = sigma(. + p_i c'), f = sigma(. + p_f c'), g = s(.), c = f c' + i g, o = sigma(. + p_o c), h = o s(c).

    A point is W x + U k + b, c' is c of the step before.
    """

    @staticmethod
    def forward(
        ctx: Any,
        activation: Activation,
        x_TBF: Tensor,
        W_GF: Tensor,
        U_GH: Tensor,
        b_G: Tensor,
        p_3H: Tensor | None,
        h_BH: Tensor,
        c_BH: Tensor,
        mask_BH: Tensor | None,
    ) -> tuple[Tensor, ...]:
        times, s = _activation(activation, x_TBF)
        times_G = b_G.new_tensor([1, 1, times, 1]).repeat_interleave(h_BH.shape[1])
        gates_TBG = functional.linear(x_TBF, times_G[:, None] * W_GF, times_G * b_G)
        h_SBH, c_SBH = _from(h_BH, steps=len(x_TBF)), _from(c_BH, steps=len(x_TBF))
        sc_TBH = torch.empty_like(h_SBH[1:])
        U_T = times_G * U_GH.t().contiguous()
        for gates, i_f, i, f, g, o, before, h, c_before, c, sc in _forwards(
            gates_TBG, *_four(gates_TBG), h_SBH[:-1], h_SBH[1:], c_SBH[:-1], c_SBH[1:], sc_TBH
        ):
            gates.addmm_(_kept(before, mask_BH), U_T)
            if p_3H is not None:
                i.addcmul_(p_3H[0], c_before)
                f.addcmul_(p_3H[1], c_before)
            i_f.sigmoid_()
            torch.mul(f, c_before, out=c).addcmul_(i, s(g))
            if p_3H is not None:
                o.addcmul_(p_3H[2], c)
            torch.mul(o.sigmoid_(), s(torch.mul(c, times, out=sc)), out=h)
        ctx.set_materialize_grads(False)
        ctx.activation = activation
        ctx.save_for_backward(x_TBF, W_GF, U_GH, p_3H, gates_TBG, h_SBH, c_SBH, sc_TBH, mask_BH)
        return h_SBH[1:], h_SBH[-1], c_SBH[-1]

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, d_TBH: Tensor | None, d_BH: Tensor | None, dc_BH: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        x_TBF, W_GF, U_GH, p_3H, gates_TBG, h_SBH, c_SBH, sc_TBH, mask_BH = ctx.saved_tensors
        through = THROUGH[ctx.activation]
        da_TBG = torch.empty_like(gates_TBG)
        dh, dc = _or_zeros(d_BH, h_SBH[0]), _or_zeros(dc_BH, h_SBH[0])
        dsc = torch.empty_like(dh)
        for d, i_f, i, f, g, o, c_before, sc, da, di_f, di, df, dg, do in _backwards(
            d_TBH, *_four(gates_TBG), c_SBH[:-1], sc_TBH, da_TBG, *_four(da_TBG)
        ):
            dh = _plus(dh, d)
            _through_sigmoid(dh * sc, o, grad_input=do)
            through(dh * o, sc, grad_input=dsc)
            dc = dc + dsc
            if p_3H is not None:
                dc.addcmul_(p_3H[2], do)
            torch.mul(dc, g, out=di)
            torch.mul(dc, c_before, out=df)
            _through_sigmoid(di_f, i_f, grad_input=di_f)
            through(dc * i, g, grad_input=dg)
            dc.mul_(f)
            if p_3H is not None:
                dc.addcmul_(p_3H[0], di).addcmul_(p_3H[1], df)
            dh = _kept(da.mm(U_GH), mask_BH)
        dp_3H = None
        if p_3H is not None:
            di_TBH, df_TBH, _, do_TBH = da_TBG.chunk(4, 2)
            seen = ((di_TBH, c_SBH[:-1]), (df_TBH, c_SBH[:-1]), (do_TBH, c_SBH[1:]))
            dp_3H = torch.stack([(da_TBH * c_TBH).sum((0, 1)) for da_TBH, c_TBH in seen])
        dU_GH = _by_matrix(da_TBG, _kept(h_SBH[:-1], mask_BH))
        return None, *_by_inputs(ctx, da_TBG, x_TBF, W_GF), dU_GH, da_TBG.sum((0, 1)), dp_3H, dh, dc, None


class GRU(Fused):
    """Gated recurrent unit as cuDNN and Keras compute it: the reset gate comes after the product (rows C6, D6).

    r_t, z_t = sigmoid(W x_t + b + U h_{t-1} + d), n_t = s(W x_t + b + r_t (U h_{t-1} + d)), each with weights of its
    own; h_t = (1 - z_t) n_t + z_t h_{t-1}: z_t weighs the old state. After Cho et al. 2014.
    """

    kernel = nn.GRU
    one_bias = False

    def run(self, x_TBF: Tensor, state: State, mask_BH: Tensor | None) -> tuple[Tensor, State]:
        if x_TBF.is_cuda and mask_BH is None and self.activation == "tanh":
            return self.by_kernel(x_TBF, state)
        return self.by_hand(_GRU, x_TBF, self.weights, state, mask_BH)


class _GRU(torch.autograd.Function):
    """r, z = sigma(W x + b + U k + d), m = U k + d, n = s(W x + b + r m), h = n + z (h' - n)."""

    @staticmethod
    def forward(
        ctx: Any,
        activation: Activation,
        x_TBF: Tensor,
        W_GF: Tensor,
        U_GH: Tensor,
        b_G: Tensor,
        d_G: Tensor,
        h_BH: Tensor,
        mask_BH: Tensor | None,
    ) -> tuple[Tensor, ...]:
        times, s = _activation(activation, x_TBF)
        H = h_BH.shape[1]
        W_rz, W_n, U_rz, U_n = *_two(W_GF, H), *_two(U_GH, H)
        b_rz, b_n, d_rz, d_n = *_two(b_G, H), *_two(d_G, H)
        rz_TBG, n_TBH = functional.linear(x_TBF, W_rz, b_rz + d_rz), functional.linear(x_TBF, times * W_n, times * b_n)
        r_TBH, z_TBH = rz_TBG.chunk(2, 2)
        m_TBH = torch.empty_like(n_TBH)
        h_SBH = _from(h_BH, steps=len(x_TBF))
        U_rz_T, U_n_T = U_rz.t().contiguous(), U_n.t().contiguous()
        for rz, r, z, n, m, before, h in _forwards(rz_TBG, r_TBH, z_TBH, n_TBH, m_TBH, h_SBH[:-1], h_SBH[1:]):
            k = _kept(before, mask_BH)
            rz.addmm_(k, U_rz_T).sigmoid_()
            torch.addmm(d_n, k, U_n_T, out=m)
            s(n.addcmul_(r, m, value=times))
            torch.lerp(n, before, z, out=h)
        ctx.set_materialize_grads(False)
        ctx.activation = activation
        ctx.save_for_backward(x_TBF, W_GF, U_GH, rz_TBG, n_TBH, m_TBH, h_SBH, mask_BH)
        return h_SBH[1:], h_SBH[-1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_TBH: Tensor | None, d_BH: Tensor | None) -> tuple[Tensor | None, ...]:
        x_TBF, W_GF, U_GH, rz_TBG, n_TBH, m_TBH, h_SBH, mask_BH = ctx.saved_tensors
        through = THROUGH[ctx.activation]
        H = n_TBH.shape[2]
        U_rz, U_n = _two(U_GH, H)
        r_TBH, z_TBH = rz_TBG.chunk(2, 2)
        da_TBG = rz_TBG.new_empty(*n_TBH.shape[:2], 3 * H)
        drz_TBG, dn_TBH = da_TBG[..., : 2 * H], da_TBG[..., 2 * H :]
        dr_TBH, dz_TBH = drz_TBG.chunk(2, 2)
        dm_TBH = torch.empty_like(m_TBH)
        dh = _or_zeros(d_BH, h_SBH[0])
        for d, rz, r, z, n, m, before, drz, dr, dz, dn, dm in _backwards(
            d_TBH, rz_TBG, r_TBH, z_TBH, n_TBH, m_TBH, h_SBH[:-1], drz_TBG, dr_TBH, dz_TBH, dn_TBH, dm_TBH
        ):
            dh = _plus(dh, d)
            carried = dh * z
            through(dh - carried, n, grad_input=dn)
            torch.mul(dn, r, out=dm)
            torch.mul(dn, m, out=dr)
            torch.mul(dh, before - n, out=dz)
            _through_sigmoid(drz, rz, grad_input=drz)
            if mask_BH is None:
                dh = carried.addmm_(drz, U_rz).addmm_(dm, U_n)
            else:
                dh = carried.addcmul_(drz.mm(U_rz).addmm_(dm, U_n), mask_BH)
        k_TBH = _kept(h_SBH[:-1], mask_BH)
        dU_GH = torch.cat((_by_matrix(drz_TBG, k_TBH), _by_matrix(dm_TBH, k_TBH)))
        db_G = da_TBG.sum((0, 1))
        dd_G = torch.cat((db_G[: 2 * H], dm_TBH.sum((0, 1))))
        return None, *_by_inputs(ctx, da_TBG, x_TBF, W_GF), dU_GH, db_G, dd_G, dh, None


class GRUResetBefore(Layer):
    """Gated recurrent unit as in the lecture (row C6): the reset gate is inside the product.

    z_t, r_t = sigmoid(W x_t + U h_{t-1} + b), n_t = s(W x_t + U (r_t h_{t-1}) + b), each with weights of its own;
    h_t = (1 - z_t) h_{t-1} + z_t n_t: z_t weighs the new state. Cho et al. 2014, in the form of Chung et al. 2014,
    "Empirical Evaluation of Gated Recurrent Neural Networks on Sequence Modeling"; the lecture leaves out b.
    """

    def add_weights(self, inputs: int, units: int) -> None:
        self.W = _weight(3 * units, inputs, units=units)
        self.U = _weight(3 * units, units, units=units)
        self.b = _weight(3 * units, units=units)

    def run(self, x_TBF: Tensor, state: State, mask_BH: Tensor | None) -> tuple[Tensor, State]:
        return self.by_hand(_GRUResetBefore, x_TBF, (self.W, self.U, self.b), state, mask_BH)


class _GRUResetBefore(torch.autograd.Function):
    """z, r = sigma(W x + U k + b), q = r k, n = s(W x + U q + b), h = h' + z (n - h')."""

    @staticmethod
    def forward(
        ctx: Any,
        activation: Activation,
        x_TBF: Tensor,
        W_GF: Tensor,
        U_GH: Tensor,
        b_G: Tensor,
        h_BH: Tensor,
        mask_BH: Tensor | None,
    ) -> tuple[Tensor, ...]:
        times, s = _activation(activation, x_TBF)
        H = h_BH.shape[1]
        W_zr, W_n, U_zr, U_n, b_zr, b_n = *_two(W_GF, H), *_two(U_GH, H), *_two(b_G, H)
        zr_TBG, n_TBH = functional.linear(x_TBF, W_zr, b_zr), functional.linear(x_TBF, times * W_n, times * b_n)
        z_TBH, r_TBH = zr_TBG.chunk(2, 2)
        q_TBH = torch.empty_like(n_TBH)
        h_SBH = _from(h_BH, steps=len(x_TBF))
        U_zr_T, U_n_T = U_zr.t().contiguous(), times * U_n.t().contiguous()
        for zr, z, r, n, q, before, h in _forwards(zr_TBG, z_TBH, r_TBH, n_TBH, q_TBH, h_SBH[:-1], h_SBH[1:]):
            k = _kept(before, mask_BH)
            zr.addmm_(k, U_zr_T).sigmoid_()
            torch.mul(r, k, out=q)
            s(n.addmm_(q, U_n_T))
            torch.lerp(before, n, z, out=h)
        ctx.set_materialize_grads(False)
        ctx.activation = activation
        ctx.save_for_backward(x_TBF, W_GF, U_GH, zr_TBG, n_TBH, q_TBH, h_SBH, mask_BH)
        return h_SBH[1:], h_SBH[-1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_TBH: Tensor | None, d_BH: Tensor | None) -> tuple[Tensor | None, ...]:
        x_TBF, W_GF, U_GH, zr_TBG, n_TBH, q_TBH, h_SBH, mask_BH = ctx.saved_tensors
        through = THROUGH[ctx.activation]
        H = n_TBH.shape[2]
        U_zr, U_n = _two(U_GH, H)
        z_TBH, r_TBH = zr_TBG.chunk(2, 2)
        da_TBG = zr_TBG.new_empty(*n_TBH.shape[:2], 3 * H)
        dzr_TBG, dn_TBH = da_TBG[..., : 2 * H], da_TBG[..., 2 * H :]
        dz_TBH, dr_TBH = dzr_TBG.chunk(2, 2)
        dh = _or_zeros(d_BH, h_SBH[0])
        for d, zr, z, r, n, before, dzr, dz, dr, dn in _backwards(
            d_TBH, zr_TBG, z_TBH, r_TBH, n_TBH, h_SBH[:-1], dzr_TBG, dz_TBH, dr_TBH, dn_TBH
        ):
            dh = _plus(dh, d)
            into_n = dh * z
            through(into_n, n, grad_input=dn)
            dq = dn.mm(U_n)
            torch.mul(dh, n - before, out=dz)
            torch.mul(dq, _kept(before, mask_BH), out=dr)
            _through_sigmoid(dzr, zr, grad_input=dzr)
            carried = dh - into_n
            if mask_BH is None:
                dh = carried.addcmul_(dq, r).addmm_(dzr, U_zr)
            else:
                dh = carried.addcmul_(dq.mul_(r).addmm_(dzr, U_zr), mask_BH)
        dU_GH = torch.cat((_by_matrix(dzr_TBG, _kept(h_SBH[:-1], mask_BH)), _by_matrix(dn_TBH, q_TBH)))
        return None, *_by_inputs(ctx, da_TBG, x_TBF, W_GF), dU_GH, da_TBG.sum((0, 1)), dh, None


# What the functions share.


def _from(h_BH: Tensor, steps: int) -> Tensor:
    """Room for a state before, between and after so many steps (S, B, H), the first filled in."""
    h_SBH = h_BH.new_empty(steps + 1, *h_BH.shape)
    h_SBH[0] = h_BH
    return h_SBH


def _two(weights: Tensor, units: int) -> tuple[Tensor, Tensor]:
    """The rows of a GRU's two gates, and those of its candidate."""
    return weights[: 2 * units], weights[2 * units :]


def _four(gates_TBG: Tensor) -> tuple[Tensor, ...]:
    """The gates of an LSTM in its weights' order: i and f together, i, f, g, o."""
    i, f, g, o = gates_TBG.chunk(4, 2)
    return gates_TBG[..., : 2 * i.shape[2]], i, f, g, o


def _kept(h: Tensor, mask_BH: Tensor | None) -> Tensor:
    """What recurrent dropout leaves of a state, or of the derivative by it."""
    return h if mask_BH is None else h * mask_BH


def _or_zeros(d_BH: Tensor | None, like_BH: Tensor) -> Tensor:
    return torch.zeros_like(like_BH) if d_BH is None else d_BH


def _plus(dh_BH: Tensor, d_BH: Tensor | None) -> Tensor:
    """The derivative by a state, of which d comes from outside the recurrence; None: the loss does not read it."""
    return dh_BH if d_BH is None else dh_BH + d_BH


def _forwards(*sequences: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The steps of all sequences side by side."""
    return zip(*(each.unbind() for each in sequences), strict=True)


def _backwards(d_TBH: Tensor | None, *sequences: Tensor) -> Iterator[tuple[Any, ...]]:
    """The steps of all sequences side by side, from the last to the first."""
    first = itertools.repeat(None, len(sequences[0])) if d_TBH is None else reversed(d_TBH.unbind())
    return zip(first, *(reversed(each.unbind()) for each in sequences), strict=True)


def _by_matrix(d_TBG: Tensor, x_TBF: Tensor) -> Tensor:
    """The derivative by a matrix (G, F) that every step multiplied its x with: one product over all of them."""
    # In this order it takes half as long where F is small.
    return x_TBF.flatten(0, 1).t().mm(d_TBG.flatten(0, 1)).t()


def _by_inputs(ctx: Any, da_TBG: Tensor, x_TBF: Tensor, W_GF: Tensor) -> tuple[Tensor | None, Tensor]:
    """The derivatives by x, where it is asked for, and by W."""
    return da_TBG @ W_GF if ctx.needs_input_grad[1] else None, _by_matrix(da_TBG, x_TBF)


class Stack(nn.Module):
    """Recurrent layers one on the other: each returns its whole sequence to the next (lecture row C8).

    Attributes:
        width: H, values that the top layer gives at a step, both directions together.
    """

    def __init__(
        self,
        layer: type[Layer],
        inputs: int,
        units: Sequence[int],
        activation: Activation | Sequence[Activation] = "tanh",
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        bidirectional: bool = False,
    ) -> None:
        """
        Args:
            units: width of each layer, and of each of its directions.
            activation: of all layers, or of each.
            bidirectional: beside each layer, another reads the same from the end.
        """
        super().__init__()
        directions = 2 if bidirectional else 1
        self.width = units[-1] * directions
        reads = [inputs, *(each * directions for each in units)]
        of_each = [activation] * len(units) if isinstance(activation, str) else activation

        def layers() -> nn.ModuleList:
            return nn.ModuleList(
                layer(n_in, n, s, dropout, recurrent_dropout)
                for n_in, n, s in zip(reads[:-1], units, of_each, strict=True)
            )

        self.onwards = layers()
        self.from_the_end = layers() if bidirectional else nn.ModuleList()

    def forward(self, x_BTF: Tensor) -> tuple[Tensor, Tensor]:
        """
        Returns:
            What the top layer gives at each step (B, T, H), and what each of its directions gives after it has read
            the whole sequence (B, H).
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

    def resumed(self, x_BTF: Tensor, states: Sequence[State] | None) -> tuple[Tensor, list[State]]:
        """Sequences that go on, in one direction.

        Args:
            states: of each layer, before the first step; of more sequences (B) than there are now, the first ones
                go on. None: zeros.

        Returns:
            What the top layer gives at each step (B, T, H), and the state of each layer after the last.
        """
        after: list[State] = []
        for i, layer in enumerate(self.onwards):
            state = tuple(each[: len(x_BTF)] for each in states[i]) if states else None
            x_BTF, last = layer(x_BTF, state)
            after.append(last)
        return x_BTF, after
