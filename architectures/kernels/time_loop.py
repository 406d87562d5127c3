"""The loop over tiles and steps that all cells share, forward and backward.

Tensors are named by their dimensions: B windows, T steps, F inputs, H units, S = T + 1 states, I tiles of L lanes,
N tensors of the state, K blocks of M = H L numbers, of which the first G are sums, and V = `WIDTH`. The matrices W and
U have P and Q rows: H for each of the sums in which they have a product; see `Pointwise`.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numba import types

from architectures.kernels.blocks import (
    LANES,
    SQUARE,
    WIDTH,
    add,
    add_multiplied,
    add_product,
    copy_padded,
    fill,
    kernel,
    multiply,
    sum_products,
    transpose,
)
from architectures.kernels.compiled import compile_loop
from architectures.kernels.pointwise import POINTWISE, Pointwise


def choose_tiles(windows: int) -> tuple[int, int]:
    """The number of tiles of a batch, and the lanes of each: few windows have few lanes."""
    tiles = max(1, -(-windows // LANES))
    return tiles, max(WIDTH, round_up(-(-windows // tiles)))


def round_up(columns: int) -> int:
    """The columns that a matrix is given so that blocks take all of them."""
    return -(-columns // WIDTH) * WIDTH


@kernel
def _no_inner(a, k, q):  # type: ignore[no-untyped-def]
    pass


@kernel
def _no_inner_slopes(a, k, dq, da, dk):  # type: ignore[no-untyped-def]
    pass


@kernel
def _repeat(numbers_NH, times):  # type: ignore[no-untyped-def]
    """Each number several times, side by side."""
    N, H = numbers_NH.shape
    out = np.empty((N, H * times), np.float32)
    for n in range(N):
        for j in range(H):
            fill(out[n, j * times : (j + 1) * times], numbers_NH[n, j])
    return out


@kernel
def _sum_by_unit(out_H, numbers_M):  # type: ignore[no-untyped-def]
    lanes = len(numbers_M) // len(out_H)
    for j in range(len(out_H)):
        total = np.float32(0)
        for lane in range(lanes):
            total += numbers_M[j * lanes + lane]
        out_H[j] = total


@cache
def find_equations(cell: str, activation: str) -> Pointwise:
    """The equations of a cell, by its name in `POINTWISE`."""
    return POINTWISE[cell](activation)


@cache
def compile_forward(cell: str, activation: str) -> Callable[..., None]:
    """The loop of a cell over tiles and steps. Its arguments are described below."""
    equations = find_equations(cell, activation)
    sums, states = equations.sums, equations.states
    outer, inner = equations.outer, equations.inner or _no_inner
    has_inner, q_block = equations.q is not None, equations.q or 0
    # The sums that are complete before the second product, and the one that it is part of.
    first_sums = sums[:-1] if has_inner else sums
    last, all_sums, last_w, last_u = sums[-1]

    def forward(  # type: ignore[no-untyped-def]
        x_BTF, W_PF, U_QH, b_P, d_Q, p_3H, mask_BH, first_NBH, h_BTH, last_NBH, a_ITKM, state_ISNM
    ):
        """
        Args:
            W_PF, U_QH, b_P, d_Q: the weights, and what is added to their products; d is empty where there is only b.
            p_3H: what multiplies a state elementwise; empty where nothing does.
            mask_BH: of recurrent dropout; empty: there is none.
            first_NBH: the state before the first step.
            h_BTH: gets the outputs; where T is 0 there, only the last state is asked for.
            last_NBH: gets the state after the last step.
            a_ITKM, state_ISNM: get all blocks and states. Where I, T or S are smaller, later ones replace earlier
                ones, because no derivative is needed.
        """
        (B, T, F), H, M = x_BTF.shape, U_QH.shape[1], a_ITKM.shape[3]
        L = M // H
        # As many steps as make whole squares are read at once.
        many = SQUARE // math.gcd(F, SQUARE)
        x_L = np.zeros(many * F * L, np.float32)
        k_M = np.zeros(M, np.float32)
        mask_M = np.ones(M, np.float32)
        p_3M = _repeat(p_3H, L)
        # What the sums start with: in each row of blocks the same number.
        start_GH = np.zeros((all_sums, H), np.float32)
        for group in sums:
            for g in range(group[0], group[1]):
                if group[2] >= 0:
                    w = (group[2] + g - group[0]) * H
                    add(start_GH[g], b_P[w : w + H])
                if group[3] >= 0 and len(d_Q):
                    u = (group[3] + g - group[0]) * H
                    add(start_GH[g], d_Q[u : u + H])
        start = _repeat(start_GH, WIDTH).ravel()
        x, W, U, mask, h = x_BTF.ravel(), W_PF.ravel(), U_QH.ravel(), mask_BH.ravel(), h_BTH.ravel()
        window_B, row_B, unit_H = np.arange(B) * T * F, np.arange(B) * H, np.arange(H) * L
        masked, each = len(mask_BH) > 0, h_BTH.shape[1] > 0
        for tile in range((B + L - 1) // L):
            begin = tile * L
            lanes = min(L, B - begin)
            i = tile % len(a_ITKM)
            if lanes < L:
                fill(x_L, np.float32(0))
            if masked:
                transpose(mask_M, 0, L, mask, row_B, begin, lanes, 0, H)
            for n in range(states):
                fill(state_ISNM[i, 0, n], np.float32(0))
                transpose(state_ISNM[i, 0, n], 0, L, first_NBH[n].ravel(), row_B, begin, lanes, 0, H)
            for t in range(T):
                a_KM = a_ITKM[i, t % a_ITKM.shape[1]]
                a = a_KM.ravel()
                before_NM = state_ISNM[i, t % state_ISNM.shape[1]]
                after_NM = state_ISNM[i, (t + 1) % state_ISNM.shape[1]]
                if t % many == 0:
                    transpose(x_L, 0, L, x, window_B, begin, lanes, t * F, min(many, T - t) * F)
                x_now = t % many * F * L
                k = before_NM[0]
                if masked:
                    multiply(k_M, k, mask_M)
                    k = k_M
                for group in first_sums:
                    r = group[0] * H
                    rows = group[1] * H - r
                    sum_products(
                        a, r * L, L, start, r * WIDTH, WIDTH, 0,
                        W, group[2] * H * F, F, 1, x_L, x_now, L, F if group[2] >= 0 else 0,
                        U, group[3] * H * H, H, 1, k, 0, L, H if group[3] >= 0 else 0,
                        rows, L,
                    )  # fmt: skip
                if has_inner:
                    inner(a_KM, k, a_KM[q_block])
                    r = last * H
                    sum_products(
                        a, r * L, L, start, r * WIDTH, WIDTH, 0,
                        W, last_w * H * F, F, 1, x_L, x_now, L, F if last_w >= 0 else 0,
                        U, last_u * H * H, H, 1, a, q_block * M, L, H,
                        H, L,
                    )  # fmt: skip
                outer(a_KM, p_3M, before_NM, after_NM)
                if each:
                    transpose(h, (begin * T + t) * H, T * H, after_NM[0], unit_H, 0, H, 0, lanes)
            for n in range(states):
                transpose(
                    last_NBH[n].ravel(), begin * H, H, state_ISNM[i, T % state_ISNM.shape[1], n], unit_H, 0, H, 0, lanes
                )

    return compile_loop(forward, f"{cell}-{activation}", _void(3, 2, 2, 1, 1, 2, 2, 3, 3, 3, 4, 4))


@cache
def compile_backward(cell: str, activation: str) -> Callable[..., None]:
    """The loop of a cell over tiles and, from the last to the first, steps. Its arguments are described below."""
    equations = find_equations(cell, activation)
    sums, states = equations.sums, equations.states
    outer_slopes, inner_slopes = equations.outer_slopes, equations.inner_slopes or _no_inner_slopes
    has_inner, q_block = equations.q is not None, equations.q or 0
    last, all_sums, _, last_u = sums[-1]
    k_sums = sums[:-1] if has_inner else sums

    def backward(  # type: ignore[no-untyped-def]
        x_BTF,
        W_PF,
        U_QH,
        p_3H,
        mask_BH,
        a_ITKM,
        state_ISNM,
        dh_BTH,
        dlast_NBH,
        dx_BTF,
        dW_PF,
        dU_QH,
        db_P,
        dd_Q,
        dp_3H,
        dfirst_NBH,
    ):
        """
        Args:
            x_BTF to mask_BH, a_ITKM, state_ISNM: as forward.
            dh_BTH: with respect to the outputs; where T is 0 there, the loss reads only the last state.
            dlast_NBH: with respect to the last state.
            dx_BTF: gets the derivatives with respect to the inputs; empty: nobody needs them.
            dW_PF, dU_QH, db_P, dd_Q, dp_3H: get those with respect to the weights.
            dfirst_NBH: gets those with respect to the state before the first step.
        """
        (B, T, F), P, (Q, H) = x_BTF.shape, len(W_PF), U_QH.shape
        M, R = a_ITKM.shape[3], all_sums * H
        L = M // H
        W_T, U_T = W_PF.T.copy().ravel(), U_QH.T.copy().ravel()
        x, dh, dx, mask = x_BTF.ravel(), dh_BTH.ravel(), dx_BTF.ravel(), mask_BH.ravel()
        # Blocks take whole numbers of columns. One more column of inputs is 1, for the derivatives of what is added.
        X, Y = (F // WIDTH + 1) * WIDTH, (H + WIDTH - 1) // WIDTH * WIDTH
        dW_RX, dU_QY = np.zeros((R, X), np.float32), np.zeros((Q, Y), np.float32)
        dW, dU = dW_RX.ravel(), dU_QY.ravel()
        zero_V = np.zeros(WIDTH, np.float32)
        da_GM = np.zeros((all_sums, M), np.float32)
        da = da_GM.ravel()
        p_3M = _repeat(p_3H, L)
        dp_3M = np.zeros_like(p_3M)
        d_NM = np.zeros((states, M), np.float32)
        dk_M = np.zeros(M, np.float32)
        dq_M = np.zeros(M, np.float32)
        dx_L = np.zeros(F * L, np.float32)
        k_M = np.zeros(M, np.float32)
        mask_M = np.ones(M, np.float32)
        # Inputs and outputs by lane, for the products that sum over lanes.
        x_X, k_Y, q_Y = np.zeros(L * X, np.float32), np.zeros(L * Y, np.float32), np.zeros(L * Y, np.float32)
        row_B, step_B, unit_H, feature_F = np.arange(B) * H, np.arange(B) * T * H, np.arange(H) * L, np.arange(F) * L
        masked, each, needs_dx = len(mask_BH) > 0, dh_BTH.shape[1] > 0, len(dx_BTF) > 0
        for i in range(len(a_ITKM)):
            begin = i * L
            lanes = min(L, B - begin)
            if masked:
                transpose(mask_M, 0, L, mask, row_B, begin, lanes, 0, H)
            for n in range(states):
                # Lanes without a window stay zero, and so do their derivatives.
                fill(d_NM[n], np.float32(0))
                transpose(d_NM[n], 0, L, dlast_NBH[n].ravel(), row_B, begin, lanes, 0, H)
            if lanes < L:
                fill(dk_M, np.float32(0))
            for step in range(T):
                t = T - 1 - step
                a_KM, before_NM, after_NM = a_ITKM[i, t], state_ISNM[i, t], state_ISNM[i, t + 1]
                if each:
                    transpose(dk_M, 0, L, dh, step_B, begin, lanes, t * H, H)
                    add(d_NM[0], dk_M)
                for lane in range(lanes):
                    copy_padded(x_X, lane * X, x, ((begin + lane) * T + t) * F, F)
                    x_X[lane * X + F] = np.float32(1)
                k = before_NM[0]
                if masked:
                    multiply(k_M, k, mask_M)
                    k = k_M
                transpose(k_Y, 0, Y, k, unit_H, 0, H, 0, lanes)
                outer_slopes(a_KM, p_3M, before_NM, after_NM, d_NM, da_GM, dp_3M)
                dk = d_NM[0]
                if masked:
                    dk = dk_M
                    fill(dk, np.float32(0))
                if has_inner:
                    sum_products(
                        dq_M, 0, L, zero_V, 0, 0, 0,
                        U_T, last_u * H, Q, 1, da, last * M, L, H,
                        U_T, last_u * H, Q, 1, da, last * M, L, 0,
                        H, L,
                    )  # fmt: skip
                    inner_slopes(a_KM, k, dq_M, da_GM, dk)
                    transpose(q_Y, 0, Y, a_KM[q_block], unit_H, 0, H, 0, lanes)
                    add_product(dU, last_u * H * Y, Y, da, last * M, L, 1, q_Y, 0, Y, lanes, H, Y)
                add_product(dW, 0, X, da, 0, L, 1, x_X, 0, X, lanes, R, X)
                for group in k_sums:
                    if group[3] >= 0:
                        r, u = group[0] * H, group[3] * H
                        rows = group[1] * H - r
                        add_product(dU, u * Y, Y, da, r * L, L, 1, k_Y, 0, Y, lanes, rows, Y)
                        add_product(dk, 0, L, U_T, u, Q, 1, da, r * L, L, rows, H, L)
                if masked:
                    add_multiplied(d_NM[0], dk, mask_M)
                if needs_dx:
                    fill(dx_L, np.float32(0))
                    for group in sums:
                        if group[2] >= 0:
                            r = group[0] * H
                            add_product(dx_L, 0, L, W_T, group[2] * H, P, 1, da, r * L, L, group[1] * H - r, F, L)
                    transpose(dx, (begin * T + t) * F, T * F, dx_L, feature_F, 0, F, 0, lanes)
            for n in range(states):
                transpose(dfirst_NBH[n].ravel(), begin * H, H, d_NM[n], unit_H, 0, H, 0, lanes)
        for group in sums:
            r, w, u = group[0] * H, group[2] * H, group[3] * H
            for j in range(group[1] * H - r):
                if w >= 0:
                    dW_PF[w + j] = dW_RX[r + j, :F]
                    db_P[w + j] = dW_RX[r + j, F]
                if u >= 0:
                    dU_QH[u + j] = dU_QY[u + j, :H]
                    if len(dd_Q):
                        dd_Q[u + j] = dW_RX[r + j, F]
        for n in range(len(p_3H)):
            _sum_by_unit(dp_3H[n], dp_3M[n])

    return compile_loop(backward, f"{cell}-{activation}", _void(3, 2, 2, 2, 2, 4, 4, 3, 3, 3, 2, 2, 1, 1, 2, 3))


def _void(*dimensions: int) -> Any:
    """The type of a function of contiguous arrays in single precision that returns nothing."""
    return types.void(*(types.Array(types.float32, n, "C") for n in dimensions))
