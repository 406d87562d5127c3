"""What the compiled loops are made of: products of small matrices, activations, and rows of lanes.

A lane is a window. Lanes lie side by side in the last dimension of an array: one instruction computes several of them.
The order of every sum is that of this code, whatever the width of the processor's vectors.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 64
"""The windows of a tile. Several vectors of every processor's width, and few enough for a step to stay in its cache."""

WIDTH = 16
"""The columns that a block of a product has: what is added up stays in the processor's registers."""

ROWS = 4
"""The rows that a block has; with `WIDTH` columns they take half of the 16 registers of AVX2."""

# Contraction to fused multiply-add is on; nothing is reassociated. Threads of Python may run meanwhile.
kernel = njit(error_model="numpy", fastmath={"contract"}, nogil=True)
inline = njit(error_model="numpy", fastmath={"contract"}, nogil=True, inline="always")


def _make_block(rows: int) -> Any:
    """A block of a product, as instructions of LLVM: Numba would not keep its sums in registers.

    out[o + r ldo + v] += sum over k of a[oa + r ra + k ka] b[ob + k ldb + v], for `rows` rows r and `WIDTH` columns v.
    Offsets and strides count numbers from the first of each array, which is contiguous.
    """

    @intrinsic  # type: ignore[untyped-decorator]
    def add_block(
        _: Any, out: Any, o: Any, ldo: Any, a: Any, oa: Any, ra: Any, ka: Any, b: Any, ob: Any, ldb: Any, terms: Any
    ) -> Any:
        number = types.int64
        signature = types.void(out, number, number, a, number, number, number, b, number, number, number)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            i64, i32, vector = ir.IntType(64), ir.IntType(32), ir.VectorType(ir.FloatType(), WIDTH)
            out, a, b = (context.make_array(signature.args[i])(context, builder, arguments[i]).data for i in (0, 3, 7))
            o, ldo, oa, ra, ka, ob, ldb, terms = (arguments[i] for i in (1, 2, 4, 5, 6, 8, 9, 10))
            undefined = ir.Constant(vector, ir.Undefined)
            everywhere = ir.Constant(ir.VectorType(i32, WIDTH), [0] * WIDTH)
            multiply_add = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fma.v{WIDTH}f32"
            )

            def row(pointer: Any, first: Any, stride: Any, number: int) -> Any:
                return builder.gep(pointer, [builder.add(first, builder.mul(stride, ir.Constant(i64, number)))])

            def load(pointer: Any) -> Any:
                loaded = builder.load(builder.bitcast(pointer, vector.as_pointer()))
                loaded.align = 4
                return loaded

            results = [row(out, o, ldo, r) for r in range(rows)]
            factors = [row(a, oa, ra, r) for r in range(rows)]
            before = [load(pointer) for pointer in results]
            entry, loop, done = builder.block, *(builder.append_basic_block(name) for name in ("terms", "done"))
            builder.branch(loop)
            builder.position_at_end(loop)
            k = builder.phi(i64)
            k.add_incoming(ir.Constant(i64, 0), entry)
            sums = [builder.phi(vector) for _ in range(rows)]
            columns = load(builder.gep(b, [builder.add(ob, builder.mul(k, ldb))]))
            place = builder.mul(k, ka)
            after = []
            for r in range(rows):
                factor = builder.load(builder.gep(factors[r], [place]))
                spread = builder.shuffle_vector(
                    builder.insert_element(undefined, factor, ir.Constant(i32, 0)), undefined, everywhere
                )
                after.append(builder.call(multiply_add, [spread, columns, sums[r]]))
            k_after = builder.add(k, ir.Constant(i64, 1))
            k.add_incoming(k_after, loop)
            for total, first, following in zip(sums, before, after, strict=True):
                total.add_incoming(first, entry)
                total.add_incoming(following, loop)
            builder.cbranch(builder.icmp_signed("<", k_after, terms), loop, done)
            builder.position_at_end(done)
            for total, pointer in zip(after, results, strict=True):
                builder.store(total, builder.bitcast(pointer, vector.as_pointer())).align = 4
            return context.get_dummy_value()

        return signature, generate

    return add_block


_add_block, _add_row = _make_block(ROWS), _make_block(1)


@kernel
def add_product(out, o, ldo, a, oa, ra, ka, b, ob, ldb, rows, terms, columns):  # type: ignore[no-untyped-def]
    """out += a b, for a matrix a (rows, terms) and a matrix b (terms, columns), of columns a multiple of `WIDTH`.

    Each matrix is an array, the offset of its first number and its strides: of its rows for `out` and `b`, of its rows
    and of its columns for `a`.
    """
    for column in range(0, columns, WIDTH):
        whole = rows // ROWS * ROWS
        for r in range(0, whole, ROWS):
            _add_block(out, o + r * ldo + column, ldo, a, oa + r * ra, ra, ka, b, ob + column, ldb, terms)
        for r in range(whole, rows):
            _add_row(out, o + r * ldo + column, ldo, a, oa + r * ra, ra, ka, b, ob + column, ldb, terms)


@inline
def tanh(x):  # type: ignore[no-untyped-def]
    """Within 4 units in the last place: a quotient of polynomials of the degrees 13 and 6, as in the library Eigen."""
    # Comparisons that are false for NaN, which stays NaN.
    x = np.float32(-7.9053111) if x < np.float32(-7.9053111) else x
    x = np.float32(7.9053111) if x > np.float32(7.9053111) else x
    y = x * x
    p = np.float32(-2.76076847742355e-16)
    p = p * y + np.float32(2.00018790482477e-13)
    p = p * y + np.float32(-8.60467152213735e-11)
    p = p * y + np.float32(5.12229709037114e-08)
    p = p * y + np.float32(1.48572235717979e-05)
    p = p * y + np.float32(6.37261928875436e-04)
    p = p * y + np.float32(4.89352455891786e-03)
    q = np.float32(1.19825839466702e-06)
    q = q * y + np.float32(1.18534705686654e-04)
    q = q * y + np.float32(2.26843463243900e-03)
    q = q * y + np.float32(4.89352518554385e-03)
    return x * p / q


@inline
def sigmoid(x):  # type: ignore[no-untyped-def]
    """sigmoid(x) = (1 + tanh(x / 2)) / 2."""
    return np.float32(0.5) + np.float32(0.5) * tanh(np.float32(0.5) * x)


@inline
def relu(x):  # type: ignore[no-untyped-def]
    return np.float32(0) if x < np.float32(0) else x


@inline
def tanh_slope(s):  # type: ignore[no-untyped-def]
    """The derivative of tanh where its value is s."""
    return np.float32(1) - s * s


@inline
def sigmoid_slope(s):  # type: ignore[no-untyped-def]
    """The derivative of sigmoid where its value is s."""
    return s * (np.float32(1) - s)


@inline
def relu_slope(s):  # type: ignore[no-untyped-def]
    """The derivative of relu where its value is s; 0 at 0, as in PyTorch."""
    return np.float32(1) if s > np.float32(0) else np.float32(0)


ACTIVATIONS = {"tanh": (tanh, tanh_slope), "sigmoid": (sigmoid, sigmoid_slope), "relu": (relu, relu_slope)}
"""Each with its derivative, by its value."""


@kernel
def fill_row(row, value):  # type: ignore[no-untyped-def]
    for lane in range(LANES):
        row[lane] = value


@kernel
def add_row(row, other):  # type: ignore[no-untyped-def]
    for lane in range(LANES):
        row[lane] += other[lane]


@kernel
def multiply_rows(out, row, other):  # type: ignore[no-untyped-def]
    for lane in range(LANES):
        out[lane] = row[lane] * other[lane]


@kernel
def add_multiplied_row(out, row, other):  # type: ignore[no-untyped-def]
    for lane in range(LANES):
        out[lane] += row[lane] * other[lane]
