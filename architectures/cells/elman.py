"""The Elman cell: the state is fed back."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from architectures.cells.layer import FusedLayer, State, SumWeights
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


class Elman(FusedLayer):
    """h_t = s(W x_t + U h_{t-1} + b) (Elman 1990, "Finding Structure in Time"; lecture rows C1, C3)."""

    kernel = nn.RNN
    one_bias = True
    cell = "elman"

    def sum_weights(self) -> SumWeights:
        return SumWeights(*self.weights)

    def run(self, x_TBF: Tensor, state: State, mask_BH: Tensor | None) -> tuple[Tensor, State]:
        if x_TBF.is_cuda and mask_BH is None and self.activation == "tanh":
            return self.run_kernel(x_TBF, state)
        return self.run_loop(ElmanLoop, x_TBF, self.weights, state, mask_BH)


class ElmanLoop(torch.autograd.Function):
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
        factor, s = choose_activation(activation, x_TBF)
        h_SBH = allocate_states(h_BH, steps=len(x_TBF))
        torch.addmm(factor * b_H, x_TBF.flatten(0, 1), factor * W_HF.t(), out=h_SBH[1:].flatten(0, 1))
        U_T = factor * U_HH.t().contiguous()
        for before, h in iterate_steps(h_SBH[:-1], h_SBH[1:]):
            s(h.addmm_(apply_mask(before, mask_BH), U_T))
        ctx.set_materialize_grads(False)
        ctx.activation = activation
        ctx.save_for_backward(x_TBF, W_HF, U_HH, h_SBH, mask_BH)
        return h_SBH[1:], h_SBH[-1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_TBH: Tensor | None, d_BH: Tensor | None) -> tuple[Tensor | None, ...]:
        x_TBF, W_HF, U_HH, h_SBH, mask_BH = ctx.saved_tensors
        activation_backward = ACTIVATION_BACKWARD[ctx.activation]
        da_TBH = torch.empty_like(h_SBH[1:])
        dh = zeros_if_none(d_BH, h_SBH[0])
        for d, h, da in iterate_steps_reversed(d_TBH, h_SBH[1:], da_TBH):
            activation_backward(add_gradient(dh, d), h, grad_input=da)
            dh = apply_mask(da.mm(U_HH), mask_BH)
        dU_HH = matrix_gradient(da_TBH, apply_mask(h_SBH[:-1], mask_BH))
        return None, *input_gradients(ctx, da_TBH, x_TBF, W_HF), dU_HH, da_TBH.sum((0, 1)), dh, None
