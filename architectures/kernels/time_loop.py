"""The loop over tiles and steps that all cells share, forward and backward.

Tensors are named by their dimensions: B windows, T steps, F inputs, H units, S = T + 1 states, I tiles of `LANES`
lanes L, N tensors of the state, G sums, K blocks, and P weights that multiply a state elementwise. The second product's
matrix V (H, H) is empty where a cell has none.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numba import types

from architectures.kernels.blocks import (
    LANES,
    WIDTH,
    add_multiplied_row,
    add_product,
    add_row,
    fill_row,
    kernel,
    multiply_rows,
)
from architectures.kernels.compiled import compile_loop
from architectures.kernels.pointwise import POINTWISE, Pointwise


def round_up(columns: int) -> int:
    """The columns that a matrix is given so that products take all of them."""
    return -(-columns // WIDTH) * WIDTH


@kernel
def _no_inner(a, k, q):  # type: ignore[no-untyped-def]
    pass


@kernel
def _no_inner_slopes(a, k, dq, da, dk):  # type: ignore[no-untyped-def]
    pass


@kernel
def _gather(out_HL, values_BH, first, lanes):  # type: ignore[no-untyped-def]
    for lane in range(lanes):
        for j in range(values_BH.shape[1]):
            out_HL[j, lane] = values_BH[first + lane, j]


@kernel
def _scatter(out_BH, values_HL, first, lanes):  # type: ignore[no-untyped-def]
    for lane in range(lanes):
        for j in range(values_HL.shape[0]):
            out_BH[first + lane, j] = values_HL[j, lane]


@kernel
def _sum_row(row):  # type: ignore[no-untyped-def]
    total = row[0]
    for lane in range(1, LANES):
        total += row[lane]
    return total


@cache
def find_equations(cell: str, activation: str) -> Pointwise:
    """The equations of a cell, by its name in `POINTWISE`."""
    return POINTWISE[cell](activation)


@cache
def compile_forward(cell: str, activation: str) -> Callable[..., None]:
    """The loop of a cell over tiles and steps. Its arguments are described below."""
    equations = find_equations(cell, activation)
    sums, from_x, from_k, states = equations.sums, equations.from_x, equations.from_k, equations.states
    outer, inner = equations.outer, equations.inner or _no_inner
    has_inner, q_block = equations.q is not None, equations.q or 0
    last = sums - 1

    def forward(x_BTF, W_RF, U_RH, b_R, V_HH, p_PH, mask_BH, first_NBH, h_BTH, last_NBH, a_ITKHL, state_ISNHL):  # type: ignore[no-untyped-def]
        """
        Args:
            W_RF, U_RH, b_R: the weights of all sums, R = G H. Where a matrix does not contribute to a sum, its rows are
                not read.
            mask_BH: of recurrent dropout; empty: there is none.
            first_NBH: the state before the first step.
            h_BTH, last_NBH: get the outputs and the state after the last step.
            a_ITKHL, state_ISNHL: get all blocks and states. Where I, T or S are smaller, later ones replace earlier
                ones, because no derivative is needed.
        """
        B, T, F = x_BTF.shape
        H = h_BTH.shape[2]
        x_FL = np.zeros((F, LANES), np.float32)
        k_HL = np.zeros((H, LANES), np.float32)
        mask_HL = np.ones((H, LANES), np.float32)
        masked = len(mask_BH) > 0
        for tile in range((B + LANES - 1) // LANES):
            begin = tile * LANES
            lanes = min(LANES, B - begin)
            i = tile % len(a_ITKHL)
            if masked:
                _gather(mask_HL, mask_BH, begin, lanes)
            for n in range(states):
                for j in range(H):
                    fill_row(state_ISNHL[i, 0, n, j], np.float32(0))
                _gather(state_ISNHL[i, 0, n], first_NBH[n], begin, lanes)
            for t in range(T):
                a_KHL = a_ITKHL[i, t % a_ITKHL.shape[1]]
                before_NHL = state_ISNHL[i, t % state_ISNHL.shape[1]]
                after_NHL = state_ISNHL[i, (t + 1) % state_ISNHL.shape[1]]
                for lane in range(lanes):
                    for f in range(F):
                        x_FL[f, lane] = x_BTF[begin + lane, t, f]
                k = before_NHL[0]
                if masked:
                    for j in range(H):
                        multiply_rows(k_HL[j], k[j], mask_HL[j])
                    k = k_HL
                for g in range(sums):
                    for j in range(H):
                        fill_row(a_KHL[g, j], b_R[g * H + j])
                for block in from_x:
                    r = block[0] * H
                    rows = block[1] * H - r
                    add_product(a_KHL, r * LANES, LANES, W_RF, r * F, F, 1, x_FL, 0, LANES, rows, F, LANES)
                for block in from_k:
                    r = block[0] * H
                    rows = block[1] * H - r
                    add_product(a_KHL, r * LANES, LANES, U_RH, r * H, H, 1, k, 0, LANES, rows, H, LANES)
                if has_inner:
                    inner(a_KHL, k, a_KHL[q_block])
                    add_product(
                        a_KHL, last * H * LANES, LANES, V_HH, 0, H, 1, a_KHL, q_block * H * LANES, LANES, H, H, LANES
                    )
                outer(a_KHL, p_PH, before_NHL, after_NHL)
                for lane in range(lanes):
                    for j in range(H):
                        h_BTH[begin + lane, t, j] = after_NHL[0, j, lane]
            for n in range(states):
                _scatter(last_NBH[n], state_ISNHL[i, T % state_ISNHL.shape[1], n], begin, lanes)

    return compile_loop(forward, f"{cell}-{activation}", _void(3, 2, 2, 1, 2, 2, 2, 3, 3, 3, 5, 5))


@cache
def compile_backward(cell: str, activation: str) -> Callable[..., None]:
    """The loop of a cell over tiles and, from the last to the first, steps. Its arguments are described below."""
    equations = find_equations(cell, activation)
    sums, from_x, from_k, states = equations.sums, equations.from_x, equations.from_k, equations.states
    outer_slopes, inner_slopes = equations.outer_slopes, equations.inner_slopes or _no_inner_slopes
    has_inner, q_block = equations.q is not None, equations.q or 0
    last = sums - 1

    def backward(  # type: ignore[no-untyped-def]
        x_BTF,
        W_RF,
        U_RH,
        V_HH,
        p_PH,
        mask_BH,
        first_NBH,
        h_BTH,
        a_ITKHL,
        state_ISNHL,
        dh_BTH,
        dlast_NBH,
        dx_BTF,
        dW_RX,
        dU_RY,
        db_R,
        dV_HY,
        dp_PH,
        dfirst_NBH,
    ):
        """
        Args:
            dh_BTH: with respect to the outputs; empty: the loss reads only the last state.
            dlast_NBH: with respect to the last state.
            dx_BTF: gets the derivatives with respect to the inputs; empty: nobody needs them.
            dW_RX, dU_RY, dV_HY: get those with respect to the matrices, with F or H columns rounded up; zero before.
            db_R, dp_PH: get those with respect to b and p.
            dfirst_NBH: gets those with respect to the state before the first step.
        """
        B, T, F = x_BTF.shape
        H, X, Y = h_BTH.shape[2], dW_RX.shape[1], dU_RY.shape[1]
        R = sums * H
        UT_HR, WT_FR = U_RH.T.copy(), W_RF.T.copy()
        VT_HH = V_HH.T.copy()
        da_GHL = np.zeros((sums, H, LANES), np.float32)
        db_GHL = np.zeros((sums, H, LANES), np.float32)
        dp_PHL = np.zeros((len(p_PH), H, LANES), np.float32)
        d_NHL = np.zeros((states, H, LANES), np.float32)
        dk_HL = np.zeros((H, LANES), np.float32)
        dq_HL = np.zeros((H, LANES), np.float32)
        dx_FL = np.zeros((F, LANES), np.float32)
        k_HL = np.zeros((H, LANES), np.float32)
        mask_HL = np.ones((H, LANES), np.float32)
        # The same inputs and outputs by lane, for the products that sum over lanes.
        x_LX = np.zeros((LANES, X), np.float32)
        k_LY = np.zeros((LANES, Y), np.float32)
        q_LY = np.zeros((LANES, Y), np.float32)
        masked, each, needs_dx = len(mask_BH) > 0, len(dh_BTH) > 0, len(dx_BTF) > 0
        for i in range(len(a_ITKHL)):
            begin = i * LANES
            lanes = min(LANES, B - begin)
            if masked:
                _gather(mask_HL, mask_BH, begin, lanes)
            for n in range(states):
                for j in range(H):
                    fill_row(d_NHL[n, j], np.float32(0))
                _gather(d_NHL[n], dlast_NBH[n], begin, lanes)
            for step in range(T):
                t = T - 1 - step
                a_KHL, before_NHL, after_NHL = a_ITKHL[i, t], state_ISNHL[i, t], state_ISNHL[i, t + 1]
                for lane in range(lanes):
                    if each:
                        for j in range(H):
                            d_NHL[0, j, lane] += dh_BTH[begin + lane, t, j]
                    for f in range(F):
                        x_LX[lane, f] = x_BTF[begin + lane, t, f]
                    for j in range(H):
                        k_LY[lane, j] = h_BTH[begin + lane, t - 1, j] if t else first_NBH[0, begin + lane, j]
                    if masked:
                        for j in range(H):
                            k_LY[lane, j] *= mask_BH[begin + lane, j]
                k = before_NHL[0]
                if masked and has_inner:
                    for j in range(H):
                        multiply_rows(k_HL[j], k[j], mask_HL[j])
                    k = k_HL
                for j in range(H):
                    fill_row(dk_HL[j], np.float32(0))
                outer_slopes(a_KHL, p_PH, before_NHL, after_NHL, d_NHL, da_GHL, dp_PHL)
                if has_inner:
                    for j in range(H):
                        fill_row(dq_HL[j], np.float32(0))
                    add_product(dq_HL, 0, LANES, VT_HH, 0, H, 1, da_GHL, last * H * LANES, LANES, H, H, LANES)
                    inner_slopes(a_KHL, k, dq_HL, da_GHL, dk_HL)
                    for lane in range(LANES):
                        for j in range(H):
                            q_LY[lane, j] = a_KHL[q_block, j, lane]
                    add_product(dV_HY, 0, Y, da_GHL, last * H * LANES, LANES, 1, q_LY, 0, Y, H, LANES, Y)
                for g in range(sums):
                    for j in range(H):
                        add_row(db_GHL[g, j], da_GHL[g, j])
                for block in from_x:
                    r = block[0] * H
                    rows = block[1] * H - r
                    add_product(dW_RX, r * X, X, da_GHL, r * LANES, LANES, 1, x_LX, 0, X, rows, LANES, X)
                for block in from_k:
                    r = block[0] * H
                    rows = block[1] * H - r
                    add_product(dU_RY, r * Y, Y, da_GHL, r * LANES, LANES, 1, k_LY, 0, Y, rows, LANES, Y)
                    add_product(dk_HL, 0, LANES, UT_HR, r, R, 1, da_GHL, r * LANES, LANES, H, rows, LANES)
                for j in range(H):
                    if masked:
                        add_multiplied_row(d_NHL[0, j], dk_HL[j], mask_HL[j])
                    else:
                        add_row(d_NHL[0, j], dk_HL[j])
                if needs_dx:
                    for f in range(F):
                        fill_row(dx_FL[f], np.float32(0))
                    for block in from_x:
                        r = block[0] * H
                        rows = block[1] * H - r
                        add_product(dx_FL, 0, LANES, WT_FR, r, R, 1, da_GHL, r * LANES, LANES, F, rows, LANES)
                    for lane in range(lanes):
                        for f in range(F):
                            dx_BTF[begin + lane, t, f] = dx_FL[f, lane]
            for n in range(states):
                _scatter(dfirst_NBH[n], d_NHL[n], begin, lanes)
        for j in range(H):
            for g in range(sums):
                db_R[g * H + j] = _sum_row(db_GHL[g, j])
            for n in range(len(p_PH)):
                dp_PH[n, j] = _sum_row(dp_PHL[n, j])

    return compile_loop(
        backward, f"{cell}-{activation}", _void(3, 2, 2, 2, 2, 2, 3, 3, 5, 5, 3, 3, 3, 2, 2, 1, 2, 2, 3)
    )


def _void(*dimensions: int) -> Any:
    """The type of a function of contiguous arrays in single precision that returns nothing."""
    return types.void(*(types.Array(types.float32, n, "C") for n in dimensions))
