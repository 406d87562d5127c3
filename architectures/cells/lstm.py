"""Long short-term memory, without and with peepholes."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from architectures.cells.layer import FusedLayer, RecurrentLayer, State, SumWeights, new_weight
from architectures.cells.loops import (
    ACTIVATION_BACKWARD,
    Activation,
    add_gradient,
    allocate_states,
    apply_mask,
    choose_activation,
    input_gradients,
    iterate_steps,
    iterate_steps_reversed,
    matrix_gradient,
    sigmoid_backward,
    zeros_if_none,
)


class LSTM(FusedLayer):
    """Long short-term memory (Hochreiter and Schmidhuber 1997; lecture row C4).

    i_t, f_t, o_t = sigmoid(W x_t + U h_{t-1} + b), g_t = s(W x_t + U h_{t-1} + b), each with weights of its own;
    c_t = f_t c_{t-1} + i_t g_t; h_t = o_t s(c_t). The forget gate was added by Gers, Schmidhuber and Cummins (2000).
    """

    state_tensors = 2
    kernel = nn.LSTM
    one_bias = True
    cell = "lstm"

    def sum_weights(self) -> SumWeights:
        return SumWeights(*self.weights)

    def run(self, x_TBF: Tensor, state: State, mask_BH: Tensor | None) -> tuple[Tensor, State]:
        if mask_BH is None and self.activation == "tanh":
            return self.run_kernel(x_TBF, state)
        return self.run_loop(LSTMLoop, x_TBF, (*self.weights, None), state, mask_BH)


class PeepholeLSTM(RecurrentLayer):
    """An LSTM whose gates see the cell (Gers and Schmidhuber 2000, "Recurrent Nets that Time and Count"; row C5).

    As `LSTM`, but with p_i c_{t-1} added in i_t, p_f c_{t-1} in f_t and p_o c_t in o_t, elementwise: as in the paper,
    only a cell's own gates see it.
    """

    state_tensors = 2
    cell = "peephole_lstm"

    def add_weights(self, inputs: int, units: int) -> None:
        self.W = new_weight(4 * units, inputs, units=units)
        self.U = new_weight(4 * units, units, units=units)
        self.b = new_weight(4 * units, units=units)
        self.p = new_weight(3, units, units=units)

    def sum_weights(self) -> SumWeights:
        return SumWeights(self.W, self.U, self.b, p_3H=self.p)

    def run(self, x_TBF: Tensor, state: State, mask_BH: Tensor | None) -> tuple[Tensor, State]:
        return self.run_loop(LSTMLoop, x_TBF, (self.W, self.U, self.b, self.p), state, mask_BH)


class LSTMLoop(torch.autograd.Function):
    """i = sigma(. + p_i c'), f = sigma(. + p_f c'), g = s(.), c = f c' + i g, o = sigma(. + p_o c), h = o s(c).

    A dot stands for W x + U k + b; c' is the c of the step before.
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
        factor, s = choose_activation(activation, x_TBF)
        factor_G = b_G.new_tensor([1, 1, factor, 1]).repeat_interleave(h_BH.shape[1])
        gates_TBG = functional.linear(x_TBF, factor_G[:, None] * W_GF, factor_G * b_G)
        h_SBH, c_SBH = allocate_states(h_BH, steps=len(x_TBF)), allocate_states(c_BH, steps=len(x_TBF))
        sc_TBH = torch.empty_like(h_SBH[1:])
        U_T = factor_G * U_GH.t().contiguous()
        for gates, i_f, i, f, g, o, before, h, c_before, c, sc in iterate_steps(
            gates_TBG, *split_lstm_gates(gates_TBG), h_SBH[:-1], h_SBH[1:], c_SBH[:-1], c_SBH[1:], sc_TBH
        ):
            gates.addmm_(apply_mask(before, mask_BH), U_T)
            if p_3H is not None:
                i.addcmul_(p_3H[0], c_before)
                f.addcmul_(p_3H[1], c_before)
            i_f.sigmoid_()
            torch.mul(f, c_before, out=c).addcmul_(i, s(g))
            if p_3H is not None:
                o.addcmul_(p_3H[2], c)
            torch.mul(o.sigmoid_(), s(torch.mul(c, factor, out=sc)), out=h)
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
        activation_backward = ACTIVATION_BACKWARD[ctx.activation]
        da_TBG = torch.empty_like(gates_TBG)
        dh, dc = zeros_if_none(d_BH, h_SBH[0]), zeros_if_none(dc_BH, h_SBH[0])
        dsc = torch.empty_like(dh)
        for d, i_f, i, f, g, o, c_before, sc, da, di_f, di, df, dg, do in iterate_steps_reversed(
            d_TBH, *split_lstm_gates(gates_TBG), c_SBH[:-1], sc_TBH, da_TBG, *split_lstm_gates(da_TBG)
        ):
            dh = add_gradient(dh, d)
            sigmoid_backward(dh * sc, o, grad_input=do)
            activation_backward(dh * o, sc, grad_input=dsc)
            dc = dc + dsc
            if p_3H is not None:
                dc.addcmul_(p_3H[2], do)
            torch.mul(dc, g, out=di)
            torch.mul(dc, c_before, out=df)
            sigmoid_backward(di_f, i_f, grad_input=di_f)
            activation_backward(dc * i, g, grad_input=dg)
            dc.mul_(f)
            if p_3H is not None:
                dc.addcmul_(p_3H[0], di).addcmul_(p_3H[1], df)
            dh = apply_mask(da.mm(U_GH), mask_BH)
        dp_3H = None
        if p_3H is not None:
            di_TBH, df_TBH, _, do_TBH = da_TBG.chunk(4, 2)
            peepholes = ((di_TBH, c_SBH[:-1]), (df_TBH, c_SBH[:-1]), (do_TBH, c_SBH[1:]))
            dp_3H = torch.stack([(da_TBH * c_TBH).sum((0, 1)) for da_TBH, c_TBH in peepholes])
        dU_GH = matrix_gradient(da_TBG, apply_mask(h_SBH[:-1], mask_BH))
        return None, *input_gradients(ctx, da_TBG, x_TBF, W_GF), dU_GH, da_TBG.sum((0, 1)), dp_3H, dh, dc, None


def split_lstm_gates(gates_TBG: Tensor) -> tuple[Tensor, ...]:
    """The gates of an LSTM in the order of its weights: i and f together, then i, f, g, o."""
    i, f, g, o = gates_TBG.chunk(4, 2)
    return gates_TBG[..., : 2 * i.shape[2]], i, f, g, o
