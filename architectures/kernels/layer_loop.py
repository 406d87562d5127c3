"""The compiled loops as a function of PyTorch."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from architectures.kernels.blocks import LANES
from architectures.kernels.time_loop import compile_backward, compile_forward, find_equations, round_up


class KernelLoop(torch.autograd.Function):
    """All steps of a recurrent layer on a CPU, in single precision."""

    @staticmethod
    def forward(
        ctx: Any,
        may_need_gradient: bool,
        cell: str,
        activation: str,
        x_BTF: Tensor,
        W_RF: Tensor,
        U_RH: Tensor,
        b_R: Tensor,
        V_HH: Tensor | None,
        p_PH: Tensor | None,
        mask_BH: Tensor | None,
        *first: Tensor,
    ) -> tuple[Tensor, ...]:
        """
        Args:
            may_need_gradient: whether gradients are computed at all; in here, PyTorch says that they never are.
            cell: its name in `architectures.kernels.pointwise`.
            W_RF, U_RH, b_R, V_HH, p_PH: see `compile_forward`.
            mask_BH: of recurrent dropout.
            first: the state before the first step.

        Returns:
            The outputs (B, T, H), and the state after the last step.
        """
        equations = find_equations(cell, activation)
        needs_gradient = may_need_gradient and any(ctx.needs_input_grad)
        (B, T, _), H = x_BTF.shape, U_RH.shape[1]
        tiles, steps = (-(-B // LANES), T) if needs_gradient else (1, 1)
        x_BTF = x_BTF.contiguous()
        first_NBH = torch.stack(first)
        h_BTH, last_NBH = x_BTF.new_empty(B, T, H), torch.empty_like(first_NBH)
        a_ITKHL = x_BTF.new_empty(tiles, steps, equations.blocks, H, LANES)
        state_ISNHL = x_BTF.new_empty(tiles, steps + 1, equations.states, H, LANES)
        weights = [tensor.contiguous() for tensor in (W_RF, U_RH, b_R)]
        V_HH = _or_empty(V_HH, x_BTF, 0, 0)
        p_PH = torch.zeros(3, H) if p_PH is None else p_PH
        mask_BH = _or_empty(mask_BH, x_BTF, 0, H)
        inputs = (x_BTF, *weights, V_HH, p_PH, mask_BH, first_NBH)
        compile_forward(cell, activation)(*_arrays(*inputs, h_BTH, last_NBH, a_ITKHL, state_ISNHL))
        if needs_gradient:
            ctx.set_materialize_grads(False)
            ctx.cell, ctx.activation = cell, activation
            ctx.save_for_backward(*inputs, h_BTH, a_ITKHL, state_ISNHL)
        return h_BTH, *last_NBH.unbind()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dh_BTH: Tensor | None, *dlast: Tensor | None) -> tuple[Tensor | None, ...]:
        x_BTF, W_RF, U_RH, b_R, V_HH, p_PH, mask_BH, first_NBH, h_BTH, a_ITKHL, state_ISNHL = ctx.saved_tensors
        H = h_BTH.shape[2]
        dlast_NBH = torch.stack([torch.zeros_like(first_NBH[0]) if d is None else d for d in dlast])
        dx_BTF = torch.empty_like(x_BTF) if ctx.needs_input_grad[3] else x_BTF.new_empty(0, 0, 0)
        dW_RX = W_RF.new_zeros(len(W_RF), round_up(W_RF.shape[1]))
        dU_RY = U_RH.new_zeros(len(U_RH), round_up(H))
        dV_HY = V_HH.new_zeros(len(V_HH), round_up(H))
        db_R, dp_PH = torch.empty_like(b_R), torch.empty_like(p_PH)
        dfirst_NBH = torch.empty_like(first_NBH)
        compile_backward(ctx.cell, ctx.activation)(
            *_arrays(x_BTF, W_RF, U_RH, V_HH, p_PH, mask_BH, first_NBH, h_BTH, a_ITKHL, state_ISNHL),
            *_arrays(_or_empty(dh_BTH, h_BTH, 0, 0, 0), dlast_NBH, dx_BTF),
            *_arrays(dW_RX, dU_RY, db_R, dV_HY, dp_PH, dfirst_NBH),
        )
        return (
            None,
            None,
            None,
            dx_BTF if ctx.needs_input_grad[3] else None,
            dW_RX[:, : W_RF.shape[1]],
            dU_RY[:, :H],
            db_R,
            dV_HY[:, :H] if ctx.needs_input_grad[7] else None,
            dp_PH if ctx.needs_input_grad[8] else None,
            None,
            *dfirst_NBH.unbind(),
        )


def _or_empty(tensor: Tensor | None, like: Tensor, *shape: int) -> Tensor:
    return like.new_empty(shape) if tensor is None else tensor.contiguous()


def _arrays(*tensors: Tensor) -> list[Any]:
    return [tensor.detach().numpy() for tensor in tensors]
