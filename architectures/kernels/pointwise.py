"""The equations of the cells, elementwise: what a step computes from its sums, and the derivatives.

A cell has blocks of H rows of lanes. The first are its sums, which become its gates in place; the others keep what the
derivatives need. Some cells have a second product: `inner` makes of the first sums what it multiplies, q, and its
result is added to the last sum.

    outer(a, p, before, after)                   from the sums a and the states before, the gates and the states after
    outer_slopes(a, p, before, after, d, da, dp) from the derivatives d with respect to the states after, those with
                                                 respect to the sums; d becomes what the states before get directly
    inner(a, k, q)                               q, from the sums of the first product and k, the output before
    inner_slopes(a, k, dq, da, dk)               from the derivatives with respect to q, those with respect to the
                                                 other sums; what k gets directly is added to dk

`p` are weights that multiply a state elementwise (P, H), and dp their derivatives by lane (P, H, LANES).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from architectures.kernels.blocks import ACTIVATIONS, LANES, kernel, sigmoid, sigmoid_slope

Ranges = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Pointwise:
    """A cell's equations for one activation.

    Attributes:
        sums: the blocks that are sums.
        blocks: all blocks.
        from_x, from_k: which sums the inputs, and the output of the step before, have a product in: first and end.
        q: the block with what the second product multiplies; None: there is no second product.
        states: tensors of the state.
    """

    sums: int
    blocks: int
    from_x: Ranges
    from_k: Ranges
    outer: Callable[..., None]
    outer_slopes: Callable[..., None]
    q: int | None = None
    inner: Callable[..., None] | None = None
    inner_slopes: Callable[..., None] | None = None
    states: int = 1


def elman(activation: str) -> Pointwise:
    """h = s(a)."""
    s, slope = ACTIVATIONS[activation]

    @kernel
    def unit(a, h):  # type: ignore[no-untyped-def]
        for lane in range(LANES):
            h[lane] = s(a[lane])

    @kernel
    def unit_slopes(h, d, da):  # type: ignore[no-untyped-def]
        for lane in range(LANES):
            da[lane] = d[lane] * slope(h[lane])
            d[lane] = np.float32(0)

    @kernel
    def outer(a, p, before, after):  # type: ignore[no-untyped-def]
        for j in range(a.shape[1]):
            unit(a[0, j], after[0, j])

    @kernel
    def outer_slopes(a, p, before, after, d, da, dp):  # type: ignore[no-untyped-def]
        for j in range(a.shape[1]):
            unit_slopes(after[0, j], d[0, j], da[0, j])

    return Pointwise(1, 1, ((0, 1),), ((0, 1),), outer, outer_slopes)


def jordan(activation: str) -> Pointwise:
    """h = s(a_h), which is q; y = s(a_y + V h)."""
    s, slope = ACTIVATIONS[activation]

    @kernel
    def unit(a, out):  # type: ignore[no-untyped-def]
        for lane in range(LANES):
            out[lane] = s(a[lane])

    @kernel
    def unit_slopes(value, d, da):  # type: ignore[no-untyped-def]
        for lane in range(LANES):
            da[lane] = d[lane] * slope(value[lane])

    @kernel
    def inner(a, k, q):  # type: ignore[no-untyped-def]
        for j in range(a.shape[1]):
            unit(a[0, j], q[j])

    @kernel
    def outer(a, p, before, after):  # type: ignore[no-untyped-def]
        for j in range(a.shape[1]):
            unit(a[1, j], after[0, j])

    @kernel
    def outer_slopes(a, p, before, after, d, da, dp):  # type: ignore[no-untyped-def]
        for j in range(a.shape[1]):
            unit_slopes(after[0, j], d[0, j], da[1, j])
            for lane in range(LANES):
                d[0, j, lane] = np.float32(0)

    @kernel
    def inner_slopes(a, k, dq, da, dk):  # type: ignore[no-untyped-def]
        for j in range(a.shape[1]):
            unit_slopes(a[0, j], dq[j], da[0, j])

    return Pointwise(2, 2, ((0, 1),), ((0, 1),), outer, outer_slopes, 0, inner, inner_slopes)


def lstm(activation: str) -> Pointwise:
    """i = sigma(. + p_i c'), f = sigma(. + p_f c'), g = s(.), c = f c' + i g, o = sigma(. + p_o c), h = o s(c).

    A dot stands for the sum; c' is the c of the step before. The blocks are i, f, g, o and s(c); p is zero without
    peepholes.
    """
    s, slope = ACTIVATIONS[activation]

    @kernel
    def unit(i, f, g, o, sc, p_i, p_f, p_o, c_before, h, c):  # type: ignore[no-untyped-def]
        for lane in range(LANES):
            i[lane] = sigmoid(i[lane] + p_i * c_before[lane])
            f[lane] = sigmoid(f[lane] + p_f * c_before[lane])
            g[lane] = s(g[lane])
            c[lane] = f[lane] * c_before[lane] + i[lane] * g[lane]
            o[lane] = sigmoid(o[lane] + p_o * c[lane])
            sc[lane] = s(c[lane])
            h[lane] = o[lane] * sc[lane]

    @kernel
    def unit_slopes(i, f, g, o, sc, p_i, p_f, p_o, c_before, dh, dc, di, df, dg, do):  # type: ignore[no-untyped-def]
        for lane in range(LANES):
            do[lane] = dh[lane] * sc[lane] * sigmoid_slope(o[lane])
            d = dc[lane] + dh[lane] * o[lane] * slope(sc[lane]) + p_o * do[lane]
            di[lane] = d * g[lane] * sigmoid_slope(i[lane])
            df[lane] = d * c_before[lane] * sigmoid_slope(f[lane])
            dg[lane] = d * i[lane] * slope(g[lane])
            dc[lane] = d * f[lane] + p_i * di[lane] + p_f * df[lane]
            dh[lane] = np.float32(0)

    @kernel
    def weight_slopes(c_before, c, di, df, do, dp_i, dp_f, dp_o):  # type: ignore[no-untyped-def]
        for lane in range(LANES):
            dp_i[lane] += di[lane] * c_before[lane]
            dp_f[lane] += df[lane] * c_before[lane]
            dp_o[lane] += do[lane] * c[lane]

    @kernel
    def outer(a, p, before, after):  # type: ignore[no-untyped-def]
        for j in range(a.shape[1]):
            unit(
                a[0, j],
                a[1, j],
                a[2, j],
                a[3, j],
                a[4, j],
                p[0, j],
                p[1, j],
                p[2, j],
                before[1, j],
                after[0, j],
                after[1, j],
            )

    @kernel
    def outer_slopes(a, p, before, after, d, da, dp):  # type: ignore[no-untyped-def]
        for j in range(a.shape[1]):
            unit_slopes(
                a[0, j],
                a[1, j],
                a[2, j],
                a[3, j],
                a[4, j],
                p[0, j],
                p[1, j],
                p[2, j],
                before[1, j],
                d[0, j],
                d[1, j],
                da[0, j],
                da[1, j],
                da[2, j],
                da[3, j],
            )
            weight_slopes(before[1, j], after[1, j], da[0, j], da[1, j], da[3, j], dp[0, j], dp[1, j], dp[2, j])

    return Pointwise(4, 5, ((0, 4),), ((0, 4),), outer, outer_slopes, states=2)


def gru(activation: str) -> Pointwise:
    """r, z = sigma(.), m = U k + d, n = s(. + r m), h = n + z (h' - n). The blocks are r, z, n and m."""
    s, slope = ACTIVATIONS[activation]

    @kernel
    def unit(r, z, n, m, before, h):  # type: ignore[no-untyped-def]
        for lane in range(LANES):
            r[lane] = sigmoid(r[lane])
            z[lane] = sigmoid(z[lane])
            n[lane] = s(n[lane] + r[lane] * m[lane])
            h[lane] = n[lane] + z[lane] * (before[lane] - n[lane])

    @kernel
    def unit_slopes(r, z, n, m, before, d, dr, dz, dn, dm):  # type: ignore[no-untyped-def]
        for lane in range(LANES):
            carried = d[lane] * z[lane]
            dn[lane] = (d[lane] - carried) * slope(n[lane])
            dm[lane] = dn[lane] * r[lane]
            dr[lane] = dn[lane] * m[lane] * sigmoid_slope(r[lane])
            dz[lane] = d[lane] * (before[lane] - n[lane]) * sigmoid_slope(z[lane])
            d[lane] = carried

    @kernel
    def outer(a, p, before, after):  # type: ignore[no-untyped-def]
        for j in range(a.shape[1]):
            unit(a[0, j], a[1, j], a[2, j], a[3, j], before[0, j], after[0, j])

    @kernel
    def outer_slopes(a, p, before, after, d, da, dp):  # type: ignore[no-untyped-def]
        for j in range(a.shape[1]):
            unit_slopes(
                a[0, j],
                a[1, j],
                a[2, j],
                a[3, j],
                before[0, j],
                d[0, j],
                da[0, j],
                da[1, j],
                da[2, j],
                da[3, j],
            )

    return Pointwise(4, 4, ((0, 3),), ((0, 2), (3, 4)), outer, outer_slopes)


def gru_reset_before(activation: str) -> Pointwise:
    """z, r = sigma(.), q = r k, n = s(. + V q), h = h' + z (n - h'). The blocks are z, r, n and q."""
    s, slope = ACTIVATIONS[activation]

    @kernel
    def reset(z, r, k, q):  # type: ignore[no-untyped-def]
        for lane in range(LANES):
            z[lane] = sigmoid(z[lane])
            r[lane] = sigmoid(r[lane])
            q[lane] = r[lane] * k[lane]

    @kernel
    def reset_slopes(r, k, dq, dr, dk):  # type: ignore[no-untyped-def]
        for lane in range(LANES):
            dr[lane] = dq[lane] * k[lane] * sigmoid_slope(r[lane])
            dk[lane] += dq[lane] * r[lane]

    @kernel
    def unit(z, n, before, h):  # type: ignore[no-untyped-def]
        for lane in range(LANES):
            n[lane] = s(n[lane])
            h[lane] = before[lane] + z[lane] * (n[lane] - before[lane])

    @kernel
    def unit_slopes(z, n, before, d, dz, dn):  # type: ignore[no-untyped-def]
        for lane in range(LANES):
            into_n = d[lane] * z[lane]
            dn[lane] = into_n * slope(n[lane])
            dz[lane] = d[lane] * (n[lane] - before[lane]) * sigmoid_slope(z[lane])
            d[lane] -= into_n

    @kernel
    def inner(a, k, q):  # type: ignore[no-untyped-def]
        for j in range(a.shape[1]):
            reset(a[0, j], a[1, j], k[j], q[j])

    @kernel
    def inner_slopes(a, k, dq, da, dk):  # type: ignore[no-untyped-def]
        for j in range(a.shape[1]):
            reset_slopes(a[1, j], k[j], dq[j], da[1, j], dk[j])

    @kernel
    def outer(a, p, before, after):  # type: ignore[no-untyped-def]
        for j in range(a.shape[1]):
            unit(a[0, j], a[2, j], before[0, j], after[0, j])

    @kernel
    def outer_slopes(a, p, before, after, d, da, dp):  # type: ignore[no-untyped-def]
        for j in range(a.shape[1]):
            unit_slopes(a[0, j], a[2, j], before[0, j], d[0, j], da[0, j], da[2, j])

    return Pointwise(3, 4, ((0, 3),), ((0, 2),), outer, outer_slopes, 3, inner, inner_slopes)


POINTWISE: dict[str, Callable[[str], Pointwise]] = {
    "elman": elman,
    "jordan": jordan,
    "lstm": lstm,
    "gru": gru,
    "gru_reset_before": gru_reset_before,
}
"""The equations of each cell, by its name and its activation."""
