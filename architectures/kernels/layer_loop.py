"""The compiled loops as a function of PyTorch."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

from architectures.kernels.time_loop import choose_tiles, compile_backward, compile_forward, find_equations

Array = NDArray[np.float32]


class KernelLoop(torch.autograd.Function):
    """All steps of a recurrent layer on a CPU, in single precision."""

    @staticmethod
    def forward(
        ctx: Any,
        may_need_gradient: bool,
        cell: str,
        activation: str,
        x_BTF: Tensor,
        W_PF: Tensor,
        U_QH: Tensor,
        b_P: Tensor,
        d_Q: Tensor | None,
        p_3H: Tensor | None,
        mask_BH: Tensor | None,
        *first: Tensor,
    ) -> tuple[Tensor, ...]:
        """
        Args:
            may_need_gradient: whether gradients are computed at all; in here, PyTorch says that they never are.
            cell: its name in `architectures.kernels.pointwise`.
            W_PF, U_QH, b_P, d_Q, p_3H: see `compile_forward`.
            mask_BH: of recurrent dropout.
            first: the state before the first step; zeros if it is left out.

        Returns:
            The outputs (B, T, H), and the state after the last step.
        """
        equations = find_equations(cell, activation)
        needs_gradient = may_need_gradient and any(ctx.needs_input_grad)
        (B, T, _), H = x_BTF.shape, U_QH.shape[1]
        all_tiles, lanes = choose_tiles(B)
        tiles, steps = (all_tiles, T) if needs_gradient else (1, 1)
        inputs = _array(x_BTF), _array(W_PF), _array(U_QH)
        others = _array(p_3H, 0, H), _array(mask_BH, 0, H)
        first_NBH = np.stack([_array(tensor) for tensor in first]) if first else _zeros(equations.states, B, H)
        h_BTH, last_NBH = _empty(B, T, H), _empty(equations.states, B, H)
        kept = _empty(tiles, steps, equations.blocks, H * lanes), _empty(tiles, steps + 1, equations.states, H * lanes)
        compile_forward(cell, activation)(
            *inputs, _array(b_P), _array(d_Q, 0), *others, first_NBH, h_BTH, last_NBH, *kept
        )
        if needs_gradient:
            ctx.set_materialize_grads(False)
            ctx.cell, ctx.activation, ctx.shape = cell, activation, x_BTF.shape
            ctx.save_for_backward(x_BTF, W_PF, U_QH, b_P, d_Q, p_3H, mask_BH)
            ctx.arguments = *inputs, *others, *kept
        return torch.from_numpy(h_BTH), *torch.from_numpy(last_NBH).unbind()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dh_BTH: Tensor | None, *dlast: Tensor | None) -> tuple[Tensor | None, ...]:
        _, W_PF, U_QH, b_P, d_Q, p_3H, _ = ctx.saved_tensors  # raises an error if one was changed since
        (B, T, F), H = ctx.shape, U_QH.shape[1]
        dlast_NBH = np.stack([_zeros(B, H) if d is None else _array(d) for d in dlast])
        dx_BTF = _empty(B, T, F) if ctx.needs_input_grad[3] else _empty(0, 0, 0)
        slopes = [np.empty_like(_array(W)) for W in (W_PF, U_QH, b_P)]
        dd_Q, dp_3H = np.empty_like(_array(d_Q, 0)), np.empty_like(_array(p_3H, 0, H))
        dfirst_NBH = np.empty_like(dlast_NBH)
        compile_backward(ctx.cell, ctx.activation)(
            *ctx.arguments, _array(dh_BTH, B, 0, H), dlast_NBH, dx_BTF, *slopes, dd_Q, dp_3H, dfirst_NBH
        )
        computed = [dx_BTF, *slopes, dd_Q, dp_3H, None, *dfirst_NBH]
        return (
            None,
            None,
            None,
            *(
                torch.from_numpy(d) if d is not None and needed else None
                for d, needed in zip(computed, ctx.needs_input_grad[3:], strict=False)
            ),
        )


def _array(tensor: Tensor | None, *shape: int) -> Array:
    """The numbers of a tensor; where there is no tensor, an empty array of this shape."""
    if tensor is None:
        return _empty(*shape)
    array: Array = tensor.detach().contiguous().numpy()
    return array


def _empty(*shape: int) -> Array:
    # Not PyTorch's: in its deterministic mode it would fill them.
    return np.empty(shape, np.float32)


def _zeros(*shape: int) -> Array:
    return np.zeros(shape, np.float32)
