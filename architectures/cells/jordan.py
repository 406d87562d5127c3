"""The Jordan cell: the output is fed back."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from architectures.cells.layer import RecurrentLayer, State, SumWeights, new_weight
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
    zeros_if_none,
)


class Jordan(RecurrentLayer):
    """h_t = s(W x_t + U y_{t-1} + b), y_t = s(V h_t + c) (Jordan 1986, "Serial Order"; lecture row C2).

    The layer outputs y, which is as wide as h. It is also y that is fed back, and that recurrent dropout acts on.
    """

    cell = "jordan"

    def add_weights(self, inputs: int, units: int) -> None:
        self.W = new_weight(units, inputs, units=units)
        self.U = new_weight(units, units, units=units)
        self.b = new_weight(units, units=units)
        self.V = new_weight(units, units, units=units)
        self.c = new_weight(units, units=units)

    def sum_weights(self) -> SumWeights:
        return SumWeights(self.W, torch.cat((self.U, self.V)), self.b, torch.cat((torch.zeros_like(self.c), self.c)))

    def run(self, x_TBF: Tensor, state: State, mask_BH: Tensor | None) -> tuple[Tensor, State]:
        return self.run_loop(JordanLoop, x_TBF, (self.W, self.U, self.b, self.V, self.c), state, mask_BH)


class JordanLoop(torch.autograd.Function):
    """h = s(W x + U k + b), y = s(V h + c), where k is the y of the step before."""

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
        factor, s = choose_activation(activation, x_TBF)
        h_TBH = functional.linear(x_TBF, factor * W_HF, factor * b_H)
        y_SBH = allocate_states(y_BH, steps=len(x_TBF))
        U_T, V_T, c_H = factor * U_HH.t().contiguous(), factor * V_HH.t().contiguous(), factor * c_H
        for h, before, y in iterate_steps(h_TBH, y_SBH[:-1], y_SBH[1:]):
            s(h.addmm_(apply_mask(before, mask_BH), U_T))
            s(torch.addmm(c_H, h, V_T, out=y))
        ctx.set_materialize_grads(False)
        ctx.activation = activation
        ctx.save_for_backward(x_TBF, W_HF, U_HH, V_HH, h_TBH, y_SBH, mask_BH)
        return y_SBH[1:], y_SBH[-1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_TBH: Tensor | None, d_BH: Tensor | None) -> tuple[Tensor | None, ...]:
        x_TBF, W_HF, U_HH, V_HH, h_TBH, y_SBH, mask_BH = ctx.saved_tensors
        activation_backward = ACTIVATION_BACKWARD[ctx.activation]
        # With respect to the arguments of h's s and of y's s.
        da_TBH, de_TBH = torch.empty_like(h_TBH), torch.empty_like(h_TBH)
        dy = zeros_if_none(d_BH, y_SBH[0])
        for d, h, y, da, de in iterate_steps_reversed(d_TBH, h_TBH, y_SBH[1:], da_TBH, de_TBH):
            activation_backward(add_gradient(dy, d), y, grad_input=de)
            activation_backward(de.mm(V_HH), h, grad_input=da)
            dy = apply_mask(da.mm(U_HH), mask_BH)
        dU_HH = matrix_gradient(da_TBH, apply_mask(y_SBH[:-1], mask_BH))
        inner = (*input_gradients(ctx, da_TBH, x_TBF, W_HF), dU_HH, da_TBH.sum((0, 1)))
        return None, *inner, matrix_gradient(de_TBH, h_TBH), de_TBH.sum((0, 1)), dy, None
