"""The equations of the cells, elementwise: what a step computes from its sums, and the derivatives.

A cell has blocks of M = H L numbers, one for each unit and lane. The first are its sums, which become its gates in
place; the others keep what the derivatives need. Some cells have a second product: `inner` makes of the first sums what
it multiplies, q, and its result is part of the last sum.

    outer(a, p, before, after)                   from the sums a and the states before, the gates and the states after
    outer_slopes(a, p, before, after, d, da, dp) from the derivatives d with respect to the states after, those with
                                                 respect to the sums; d becomes what the states before get directly
    inner(a, k, q)                               q, from the sums of the first product and k, the output before
    inner_slopes(a, k, dq, da, dk)               from the derivatives with respect to q, those with respect to the
                                                 other sums; what k gets directly is added to dk

`p` are weights that multiply a state elementwise (3, M), the same for all lanes, and dp their derivatives.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from architectures.kernels.blocks import ACTIVATIONS, kernel, sigmoid, sigmoid_slope


@dataclass(frozen=True)
class Pointwise:
    """A cell's equations for one activation.

    Attributes:
        sums: groups of sums, each with its first block, the one after its last, the block of rows of W whose product
            with the inputs is in its first sum, and that of U, whose product is with the output of the step before;
            -1 where there is no such product.
        blocks: all blocks.
        q: the block that U multiplies in the last group, in place of the output of the step before; None where the cell
            has no such second product.
        states: tensors of the state.
    """

    sums: tuple[tuple[int, int, int, int], ...]
    blocks: int
    outer: Callable[..., None]
    outer_slopes: Callable[..., None]
    q: int | None = None
    inner: Callable[..., None] | None = None
    inner_slopes: Callable[..., None] | None = None
    states: int = 1


def elman(activation: str) -> Pointwise:
    """h = s(a)."""
    activate, activate_slopes = _apply(activation)

    @kernel
    def outer(a, p, before, after):  # type: ignore[no-untyped-def]
        activate(a[0], after[0])

    @kernel
    def outer_slopes(a, p, before, after, d, da, dp):  # type: ignore[no-untyped-def]
        activate_slopes(after[0], d[0], da[0])
        d[0] = np.float32(0)

    return Pointwise(((0, 1, 0, 0),), 1, outer, outer_slopes)


def jordan(activation: str) -> Pointwise:
    """h = s(a_h), which is q; y = s(a_y). The second block of rows of U is the lecture's V."""
    activate, activate_slopes = _apply(activation)

    @kernel
    def inner(a, k, q):  # type: ignore[no-untyped-def]
        activate(a[0], q)

    @kernel
    def outer(a, p, before, after):  # type: ignore[no-untyped-def]
        activate(a[1], after[0])

    @kernel
    def outer_slopes(a, p, before, after, d, da, dp):  # type: ignore[no-untyped-def]
        activate_slopes(after[0], d[0], da[1])
        d[0] = np.float32(0)

    @kernel
    def inner_slopes(a, k, dq, da, dk):  # type: ignore[no-untyped-def]
        activate_slopes(a[0], dq, da[0])

    return Pointwise(((0, 1, 0, 0), (1, 2, -1, 1)), 2, outer, outer_slopes, 0, inner, inner_slopes)


def _apply(activation: str) -> tuple[Callable[..., None], Callable[..., None]]:
    """An activation of all numbers of a block, and the derivatives, by the values."""
    s, slope = ACTIVATIONS[activation]

    @kernel
    def activate(a, out):  # type: ignore[no-untyped-def]
        for i in range(len(out)):
            out[i] = s(a[i])

    @kernel
    def activate_slopes(value, d, da):  # type: ignore[no-untyped-def]
        for i in range(len(da)):
            da[i] = d[i] * slope(value[i])

    return activate, activate_slopes


def lstm(activation: str) -> Pointwise:
    """i, f, o = sigma(.), g = s(.), c = f c' + i g, h = o s(c).

    A dot stands for the sum; c' is the c of the step before. The blocks are i, f, g, o and s(c).
    """
    s, slope = ACTIVATIONS[activation]

    @kernel
    def unit(i, f, g, o, sc, c_before, h, c):  # type: ignore[no-untyped-def]
        for n in range(len(h)):
            i[n] = sigmoid(i[n])
            f[n] = sigmoid(f[n])
            g[n] = s(g[n])
            c[n] = f[n] * c_before[n] + i[n] * g[n]
            o[n] = sigmoid(o[n])
            sc[n] = s(c[n])
            h[n] = o[n] * sc[n]

    @kernel
    def unit_slopes(i, f, g, o, sc, c_before, dh, dc, di, df, dg, do):  # type: ignore[no-untyped-def]
        for n in range(len(dh)):
            do[n] = dh[n] * sc[n] * sigmoid_slope(o[n])
            d = dc[n] + dh[n] * o[n] * slope(sc[n])
            di[n] = d * g[n] * sigmoid_slope(i[n])
            df[n] = d * c_before[n] * sigmoid_slope(f[n])
            dg[n] = d * i[n] * slope(g[n])
            dc[n] = d * f[n]
            dh[n] = np.float32(0)

    @kernel
    def outer(a, p, before, after):  # type: ignore[no-untyped-def]
        unit(a[0], a[1], a[2], a[3], a[4], before[1], after[0], after[1])

    @kernel
    def outer_slopes(a, p, before, after, d, da, dp):  # type: ignore[no-untyped-def]
        unit_slopes(a[0], a[1], a[2], a[3], a[4], before[1], d[0], d[1], da[0], da[1], da[2], da[3])

    return Pointwise(((0, 4, 0, 0),), 5, outer, outer_slopes, states=2)


def peephole_lstm(activation: str) -> Pointwise:
    """i = sigma(. + p_i c'), f = sigma(. + p_f c'), g = s(.), c = f c' + i g, o = sigma(. + p_o c), h = o s(c).

    As `lstm`, but for the products of p.
    """
    s, slope = ACTIVATIONS[activation]

    @kernel
    def unit(i, f, g, o, sc, p_i, p_f, p_o, c_before, h, c):  # type: ignore[no-untyped-def]
        for n in range(len(h)):
            i[n] = sigmoid(i[n] + p_i[n] * c_before[n])
            f[n] = sigmoid(f[n] + p_f[n] * c_before[n])
            g[n] = s(g[n])
            c[n] = f[n] * c_before[n] + i[n] * g[n]
            o[n] = sigmoid(o[n] + p_o[n] * c[n])
            sc[n] = s(c[n])
            h[n] = o[n] * sc[n]

    @kernel
    def unit_slopes(i, f, g, o, sc, p_i, p_f, p_o, c_before, dh, dc, di, df, dg, do):  # type: ignore[no-untyped-def]
        for n in range(len(dh)):
            do[n] = dh[n] * sc[n] * sigmoid_slope(o[n])
            d = dc[n] + dh[n] * o[n] * slope(sc[n]) + p_o[n] * do[n]
            di[n] = d * g[n] * sigmoid_slope(i[n])
            df[n] = d * c_before[n] * sigmoid_slope(f[n])
            dg[n] = d * i[n] * slope(g[n])
            dc[n] = d * f[n] + p_i[n] * di[n] + p_f[n] * df[n]
            dh[n] = np.float32(0)

    @kernel
    def weight_slopes(c_before, c, di, df, do, dp_i, dp_f, dp_o):  # type: ignore[no-untyped-def]
        for n in range(len(c)):
            dp_i[n] += di[n] * c_before[n]
            dp_f[n] += df[n] * c_before[n]
            dp_o[n] += do[n] * c[n]

    @kernel
    def outer(a, p, before, after):  # type: ignore[no-untyped-def]
        unit(a[0], a[1], a[2], a[3], a[4], p[0], p[1], p[2], before[1], after[0], after[1])

    @kernel
    def outer_slopes(a, p, before, after, d, da, dp):  # type: ignore[no-untyped-def]
        unit_slopes(a[0], a[1], a[2], a[3], a[4], p[0], p[1], p[2], before[1], d[0], d[1], da[0], da[1], da[2], da[3])
        weight_slopes(before[1], after[1], da[0], da[1], da[3], dp[0], dp[1], dp[2])

    return Pointwise(((0, 4, 0, 0),), 5, outer, outer_slopes, states=2)


def gru(activation: str) -> Pointwise:
    """r, z = sigma(.), m = U k + d, n = s(. + r m), h = n + z (h' - n). The blocks are r, z, n and m."""
    s, slope = ACTIVATIONS[activation]

    @kernel
    def unit(r, z, n, m, before, h):  # type: ignore[no-untyped-def]
        for i in range(len(h)):
            r[i] = sigmoid(r[i])
            z[i] = sigmoid(z[i])
            n[i] = s(n[i] + r[i] * m[i])
            h[i] = n[i] + z[i] * (before[i] - n[i])

    @kernel
    def unit_slopes(r, z, n, m, before, d, dr, dz, dn, dm):  # type: ignore[no-untyped-def]
        for i in range(len(d)):
            carried = d[i] * z[i]
            dn[i] = (d[i] - carried) * slope(n[i])
            dm[i] = dn[i] * r[i]
            dr[i] = dn[i] * m[i] * sigmoid_slope(r[i])
            dz[i] = d[i] * (before[i] - n[i]) * sigmoid_slope(z[i])
            d[i] = carried

    @kernel
    def outer(a, p, before, after):  # type: ignore[no-untyped-def]
        unit(a[0], a[1], a[2], a[3], before[0], after[0])

    @kernel
    def outer_slopes(a, p, before, after, d, da, dp):  # type: ignore[no-untyped-def]
        unit_slopes(a[0], a[1], a[2], a[3], before[0], d[0], da[0], da[1], da[2], da[3])

    return Pointwise(((0, 2, 0, 0), (2, 3, 2, -1), (3, 4, -1, 2)), 4, outer, outer_slopes)


def gru_reset_before(activation: str) -> Pointwise:
    """z, r = sigma(.), q = r k, n = s(.), h = h' + z (n - h'). The blocks are z, r, n and q."""
    s, slope = ACTIVATIONS[activation]

    @kernel
    def reset(z, r, k, q):  # type: ignore[no-untyped-def]
        for i in range(len(q)):
            z[i] = sigmoid(z[i])
            r[i] = sigmoid(r[i])
            q[i] = r[i] * k[i]

    @kernel
    def reset_slopes(r, k, dq, dr, dk):  # type: ignore[no-untyped-def]
        for i in range(len(dq)):
            dr[i] = dq[i] * k[i] * sigmoid_slope(r[i])
            dk[i] += dq[i] * r[i]

    @kernel
    def unit(z, n, before, h):  # type: ignore[no-untyped-def]
        for i in range(len(h)):
            n[i] = s(n[i])
            h[i] = before[i] + z[i] * (n[i] - before[i])

    @kernel
    def unit_slopes(z, n, before, d, dz, dn):  # type: ignore[no-untyped-def]
        for i in range(len(d)):
            into_n = d[i] * z[i]
            dn[i] = into_n * slope(n[i])
            dz[i] = d[i] * (n[i] - before[i]) * sigmoid_slope(z[i])
            d[i] -= into_n

    @kernel
    def inner(a, k, q):  # type: ignore[no-untyped-def]
        reset(a[0], a[1], k, q)

    @kernel
    def inner_slopes(a, k, dq, da, dk):  # type: ignore[no-untyped-def]
        reset_slopes(a[1], k, dq, da[1], dk)

    @kernel
    def outer(a, p, before, after):  # type: ignore[no-untyped-def]
        unit(a[0], a[2], before[0], after[0])

    @kernel
    def outer_slopes(a, p, before, after, d, da, dp):  # type: ignore[no-untyped-def]
        unit_slopes(a[0], a[2], before[0], d[0], da[0], da[2])

    return Pointwise(((0, 2, 0, 0), (2, 3, 2, 2)), 4, outer, outer_slopes, 3, inner, inner_slopes)


POINTWISE: dict[str, Callable[[str], Pointwise]] = {
    "elman": elman,
    "jordan": jordan,
    "lstm": lstm,
    "peephole_lstm": peephole_lstm,
    "gru": gru,
    "gru_reset_before": gru_reset_before,
}
"""The equations of each cell, by its name and its activation."""
