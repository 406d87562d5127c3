"""Gated recurrent units, with the reset gate after or before the product."""

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


class GRU(FusedLayer):
    """Gated recurrent unit as cuDNN and Keras compute it: the reset gate comes after the product (rows C6, D6).

    r_t, z_t = sigmoid(W x_t + b + U h_{t-1} + d), n_t = s(W x_t + b + r_t (U h_{t-1} + d)), each with weights of its
    own; h_t = (1 - z_t) n_t + z_t h_{t-1}: z_t is the weight of the old state. After Cho et al. 2014.
    """

    kernel = nn.GRU
    one_bias = False
    cell = "gru"

    def sum_weights(self) -> SumWeights:
        return SumWeights(*self.weights)

    def run(self, x_TBF: Tensor, state: State, mask_BH: Tensor | None) -> tuple[Tensor, State]:
        if x_TBF.is_cuda and mask_BH is None and self.activation == "tanh":
            return self.run_kernel(x_TBF, state)
        return self.run_loop(GRULoop, x_TBF, self.weights, state, mask_BH)


class GRULoop(torch.autograd.Function):
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
        factor, s = choose_activation(activation, x_TBF)
        H = h_BH.shape[1]
        W_rz, W_n, U_rz, U_n = *split_gates(W_GF, H), *split_gates(U_GH, H)
        b_rz, b_n, d_rz, d_n = *split_gates(b_G, H), *split_gates(d_G, H)
        rz_TBG = functional.linear(x_TBF, W_rz, b_rz + d_rz)
        n_TBH = functional.linear(x_TBF, factor * W_n, factor * b_n)
        r_TBH, z_TBH = rz_TBG.chunk(2, 2)
        m_TBH = torch.empty_like(n_TBH)
        h_SBH = allocate_states(h_BH, steps=len(x_TBF))
        U_rz_T, U_n_T = U_rz.t().contiguous(), U_n.t().contiguous()
        for rz, r, z, n, m, before, h in iterate_steps(rz_TBG, r_TBH, z_TBH, n_TBH, m_TBH, h_SBH[:-1], h_SBH[1:]):
            k = apply_mask(before, mask_BH)
            rz.addmm_(k, U_rz_T).sigmoid_()
            torch.addmm(d_n, k, U_n_T, out=m)
            s(n.addcmul_(r, m, value=factor))
            torch.lerp(n, before, z, out=h)
        ctx.set_materialize_grads(False)
        ctx.activation = activation
        ctx.save_for_backward(x_TBF, W_GF, U_GH, rz_TBG, n_TBH, m_TBH, h_SBH, mask_BH)
        return h_SBH[1:], h_SBH[-1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_TBH: Tensor | None, d_BH: Tensor | None) -> tuple[Tensor | None, ...]:
        x_TBF, W_GF, U_GH, rz_TBG, n_TBH, m_TBH, h_SBH, mask_BH = ctx.saved_tensors
        activation_backward = ACTIVATION_BACKWARD[ctx.activation]
        H = n_TBH.shape[2]
        U_rz, U_n = split_gates(U_GH, H)
        r_TBH, z_TBH = rz_TBG.chunk(2, 2)
        da_TBG = rz_TBG.new_empty(*n_TBH.shape[:2], 3 * H)
        drz_TBG, dn_TBH = da_TBG[..., : 2 * H], da_TBG[..., 2 * H :]
        dr_TBH, dz_TBH = drz_TBG.chunk(2, 2)
        dm_TBH = torch.empty_like(m_TBH)
        dh = zeros_if_none(d_BH, h_SBH[0])
        for d, rz, r, z, n, m, before, drz, dr, dz, dn, dm in iterate_steps_reversed(
            d_TBH, rz_TBG, r_TBH, z_TBH, n_TBH, m_TBH, h_SBH[:-1], drz_TBG, dr_TBH, dz_TBH, dn_TBH, dm_TBH
        ):
            dh = add_gradient(dh, d)
            carried = dh * z
            activation_backward(dh - carried, n, grad_input=dn)
            torch.mul(dn, r, out=dm)
            torch.mul(dn, m, out=dr)
            torch.mul(dh, before - n, out=dz)
            sigmoid_backward(drz, rz, grad_input=drz)
            if mask_BH is None:
                dh = carried.addmm_(drz, U_rz).addmm_(dm, U_n)
            else:
                dh = carried.addcmul_(drz.mm(U_rz).addmm_(dm, U_n), mask_BH)
        k_TBH = apply_mask(h_SBH[:-1], mask_BH)
        dU_GH = torch.cat((matrix_gradient(drz_TBG, k_TBH), matrix_gradient(dm_TBH, k_TBH)))
        db_G = da_TBG.sum((0, 1))
        dd_G = torch.cat((db_G[: 2 * H], dm_TBH.sum((0, 1))))
        return None, *input_gradients(ctx, da_TBG, x_TBF, W_GF), dU_GH, db_G, dd_G, dh, None


class GRUResetBefore(RecurrentLayer):
    """Gated recurrent unit as in the lecture (row C6): the reset gate is inside the product.

    z_t, r_t = sigmoid(W x_t + U h_{t-1} + b), n_t = s(W x_t + U (r_t h_{t-1}) + b), each with weights of its own;
    h_t = (1 - z_t) h_{t-1} + z_t n_t: z_t is the weight of the new state. Cho et al. 2014, in the form of
    Chung et al. 2014, "Empirical Evaluation of Gated Recurrent Neural Networks on Sequence Modeling"; the lecture
    leaves out b.
    """

    cell = "gru_reset_before"

    def add_weights(self, inputs: int, units: int) -> None:
        self.W = new_weight(3 * units, inputs, units=units)
        self.U = new_weight(3 * units, units, units=units)
        self.b = new_weight(3 * units, units=units)

    def sum_weights(self) -> SumWeights:
        return SumWeights(self.W, self.U, self.b)

    def run(self, x_TBF: Tensor, state: State, mask_BH: Tensor | None) -> tuple[Tensor, State]:
        return self.run_loop(GRUResetBeforeLoop, x_TBF, (self.W, self.U, self.b), state, mask_BH)


class GRUResetBeforeLoop(torch.autograd.Function):
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
        factor, s = choose_activation(activation, x_TBF)
        H = h_BH.shape[1]
        W_zr, W_n, U_zr, U_n, b_zr, b_n = *split_gates(W_GF, H), *split_gates(U_GH, H), *split_gates(b_G, H)
        zr_TBG, n_TBH = functional.linear(x_TBF, W_zr, b_zr), functional.linear(x_TBF, factor * W_n, factor * b_n)
        z_TBH, r_TBH = zr_TBG.chunk(2, 2)
        q_TBH = torch.empty_like(n_TBH)
        h_SBH = allocate_states(h_BH, steps=len(x_TBF))
        U_zr_T, U_n_T = U_zr.t().contiguous(), factor * U_n.t().contiguous()
        for zr, z, r, n, q, before, h in iterate_steps(zr_TBG, z_TBH, r_TBH, n_TBH, q_TBH, h_SBH[:-1], h_SBH[1:]):
            k = apply_mask(before, mask_BH)
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
        activation_backward = ACTIVATION_BACKWARD[ctx.activation]
        H = n_TBH.shape[2]
        U_zr, U_n = split_gates(U_GH, H)
        z_TBH, r_TBH = zr_TBG.chunk(2, 2)
        da_TBG = zr_TBG.new_empty(*n_TBH.shape[:2], 3 * H)
        dzr_TBG, dn_TBH = da_TBG[..., : 2 * H], da_TBG[..., 2 * H :]
        dz_TBH, dr_TBH = dzr_TBG.chunk(2, 2)
        dh = zeros_if_none(d_BH, h_SBH[0])
        for d, zr, z, r, n, before, dzr, dz, dr, dn in iterate_steps_reversed(
            d_TBH, zr_TBG, z_TBH, r_TBH, n_TBH, h_SBH[:-1], dzr_TBG, dz_TBH, dr_TBH, dn_TBH
        ):
            dh = add_gradient(dh, d)
            into_n = dh * z
            activation_backward(into_n, n, grad_input=dn)
            dq = dn.mm(U_n)
            torch.mul(dh, n - before, out=dz)
            torch.mul(dq, apply_mask(before, mask_BH), out=dr)
            sigmoid_backward(dzr, zr, grad_input=dzr)
            carried = dh - into_n
            if mask_BH is None:
                dh = carried.addcmul_(dq, r).addmm_(dzr, U_zr)
            else:
                dh = carried.addcmul_(dq.mul_(r).addmm_(dzr, U_zr), mask_BH)
        dU_GH = torch.cat((matrix_gradient(dzr_TBG, apply_mask(h_SBH[:-1], mask_BH)), matrix_gradient(dn_TBH, q_TBH)))
        return None, *input_gradients(ctx, da_TBG, x_TBF, W_GF), dU_GH, da_TBG.sum((0, 1)), dh, None


def split_gates(weights: Tensor, units: int) -> tuple[Tensor, Tensor]:
    """The rows of a GRU's two gates, and the rows of its candidate."""
    return weights[: 2 * units], weights[2 * units :]
