"""What the compiled loops are made of: sums of products of small matrices, transpositions, and activations.

A lane is a window. Lanes lie side by side in the last dimension of an array: one instruction computes several of them.
The order of every sum is that of this code, whatever the width of the processor's vectors.

Blocks of these operations are written as instructions of LLVM, because Numba's loops would not keep sums in registers.
Matrices are given to them as an array, the offset of their first number in it, and strides, all counted in numbers.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 64
"""The most windows in a tile. Several vectors of every processor's width, and few enough for a step to stay in its
cache."""

WIDTH = 16
"""The columns of a block of sums, which stay in the processor's registers. Tiles have a multiple of it as lanes."""

ROWS = 6
"""The rows of a block of sums: 12 of the 16 registers of AVX2."""

SQUARE = 8
"""The rows and columns of a block that is transposed in registers."""

# Contraction to fused multiply-add is on; nothing is reassociated.
OPTIONS: dict[str, Any] = {"error_model": "numpy", "fastmath": {"contract"}}

# What only compiled functions call needs no entries for Python and C, which would take as long to compile.
kernel = njit(**OPTIONS, no_cpython_wrapper=True, no_cfunc_wrapper=True)
inline = njit(**OPTIONS, no_cpython_wrapper=True, no_cfunc_wrapper=True, forceinline=True)

_I32, _I64, _FLOAT = ir.IntType(32), ir.IntType(64), ir.FloatType()


def _data(context: Any, builder: Any, signature: Any, arguments: Any, position: int) -> Any:
    """The pointer to the first number of an argument that is an array."""
    return context.make_array(signature.args[position])(context, builder, arguments[position]).data


def _load(builder: Any, pointer: Any, width: int) -> Any:
    vector = builder.load(builder.bitcast(pointer, ir.VectorType(_FLOAT, width).as_pointer()))
    vector.align = 4
    return vector


def _store(builder: Any, vector: Any, pointer: Any) -> None:
    builder.store(vector, builder.bitcast(pointer, vector.type.as_pointer())).align = 4


def _add_terms(
    builder: Any, sums: list[Any], a_rows: list[Any], a_step: Any, b: Any, b_step: Any, terms: Any
) -> list[Any]:
    """A loop over the terms of a product: sums[r] += a_rows[r][k a_step] b[k b_step + v] for every k below `terms`."""
    vector = ir.VectorType(_FLOAT, WIDTH)
    everywhere = ir.Constant(ir.VectorType(_I32, WIDTH), [0] * WIDTH)
    undefined = ir.Constant(vector, ir.Undefined)
    multiply_add = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fma.v{WIDTH}f32"
    )
    before, head, body, after = builder.block, *(builder.append_basic_block(name) for name in ("head", "body", "after"))
    builder.branch(head)
    builder.position_at_end(head)
    k = builder.phi(_I64)
    totals = [builder.phi(vector) for _ in sums]
    builder.cbranch(builder.icmp_signed("<", k, terms), body, after)
    builder.position_at_end(body)
    columns = _load(builder, builder.gep(b, [builder.mul(k, b_step)]), WIDTH)
    place = builder.mul(k, a_step)
    added = []
    for row, total in zip(a_rows, totals, strict=True):
        factor = builder.insert_element(undefined, builder.load(builder.gep(row, [place])), ir.Constant(_I32, 0))
        spread = builder.shuffle_vector(factor, undefined, everywhere)
        added.append(builder.call(multiply_add, [spread, columns, total]))
    k.add_incoming(ir.Constant(_I64, 0), before)
    k.add_incoming(builder.add(k, ir.Constant(_I64, 1)), body)
    for total, first, following in zip(totals, sums, added, strict=True):
        total.add_incoming(first, before)
        total.add_incoming(following, body)
    builder.branch(head)
    builder.position_at_end(after)
    return totals


def _make_sum_block(rows: int) -> Any:
    """One block of `sum_products`, of `rows` rows and `WIDTH` columns."""

    @intrinsic  # type: ignore[untyped-decorator]
    def sum_block(
        _: Any,
        out: Any, o: Any, out_row: Any,
        start: Any, s: Any, start_row: Any,
        a: Any, oa: Any, a_row: Any, a_step: Any, b: Any, ob: Any, b_step: Any, terms: Any,
        c: Any, oc: Any, c_row: Any, c_step: Any, d: Any, od: Any, d_step: Any, other_terms: Any,
    ) -> Any:  # fmt: skip
        n = types.int64
        signature = types.void(out, n, n, start, n, n, a, n, n, n, b, n, n, n, c, n, n, n, d, n, n, n)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            def rows_at(array: int) -> list[Any]:
                """Pointers into an argument, `rows` rows apart as the two arguments after it say."""
                data = _data(context, builder, signature, arguments, array)
                first, stride = arguments[array + 1], arguments[array + 2]
                return [
                    builder.gep(data, [builder.add(first, builder.mul(stride, ir.Constant(_I64, r)))])
                    for r in range(rows)
                ]

            def row_at(array: int) -> Any:
                return builder.gep(_data(context, builder, signature, arguments, array), [arguments[array + 1]])

            results = rows_at(0)
            sums = [_load(builder, pointer, WIDTH) for pointer in rows_at(3)]
            sums = _add_terms(builder, sums, rows_at(6), arguments[9], row_at(10), arguments[12], arguments[13])
            sums = _add_terms(builder, sums, rows_at(14), arguments[17], row_at(18), arguments[20], arguments[21])
            for total, pointer in zip(sums, results, strict=True):
                _store(builder, total, pointer)
            return context.get_dummy_value()

        return signature, generate

    return sum_block


_sum_6_rows, _sum_4_rows, _sum_row = (_make_sum_block(rows) for rows in (ROWS, 4, 1))


@kernel
def sum_products(  # type: ignore[no-untyped-def]
    out, o, out_row, start, s, start_row, start_column,
    a, oa, a_row, a_step, b, ob, b_step, terms,
    c, oc, c_row, c_step, d, od, d_step, other_terms,
    rows, columns,
):  # fmt: skip
    """out = start + a b + c d, for columns that are a multiple of `WIDTH`.

    Args:
        out, o, out_row: the result (rows, columns): an array, the offset of its first number, and that of the next row.
        start, s, start_row, start_column: what the products are added to (rows, columns); start_column: the offset of
            the next block of columns, 0 to take the same block for all.
        a, oa, a_row, a_step: (rows, terms); a_step: the offset of the next number in a row.
        b, ob, b_step: (terms, columns), whose columns lie side by side.
        c to other_terms: as a to terms.
    """
    for column in range(0, columns, WIDTH):
        s_column = column // WIDTH * start_column
        r = 0
        while r < rows:
            left = rows - r
            if left >= ROWS and left != 8:
                _sum_6_rows(
                    out, o + r * out_row + column, out_row, start, s + r * start_row + s_column, start_row,
                    a, oa + r * a_row, a_row, a_step, b, ob + column, b_step, terms,
                    c, oc + r * c_row, c_row, c_step, d, od + column, d_step, other_terms,
                )  # fmt: skip
                r += ROWS
            elif left >= 4:
                _sum_4_rows(
                    out, o + r * out_row + column, out_row, start, s + r * start_row + s_column, start_row,
                    a, oa + r * a_row, a_row, a_step, b, ob + column, b_step, terms,
                    c, oc + r * c_row, c_row, c_step, d, od + column, d_step, other_terms,
                )  # fmt: skip
                r += 4
            else:
                _sum_row(
                    out, o + r * out_row + column, out_row, start, s + r * start_row + s_column, start_row,
                    a, oa + r * a_row, a_row, a_step, b, ob + column, b_step, terms,
                    c, oc + r * c_row, c_row, c_step, d, od + column, d_step, other_terms,
                )  # fmt: skip
                r += 1


@kernel
def add_product(  # type: ignore[no-untyped-def]
    out, o, out_row, a, oa, a_row, a_step, b, ob, b_step, terms, rows, columns
):
    """out += a b; see `sum_products`."""
    sum_products(
        out, o, out_row, out, o, out_row, WIDTH,
        a, oa, a_row, a_step, b, ob, b_step, terms,
        a, oa, a_row, a_step, b, ob, b_step, 0,
        rows, columns,
    )  # fmt: skip


@intrinsic  # type: ignore[untyped-decorator]
def _transpose_square(_: Any, out: Any, o: Any, out_row: Any, a: Any, rows: Any, first: Any, shift: Any) -> Any:
    """One block of `transpose`, of `SQUARE` rows and columns."""
    n = types.int64
    signature = types.void(out, n, n, a, rows, n, n)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        out, a = (_data(context, builder, signature, arguments, position) for position in (0, 3))
        starts = _data(context, builder, signature, arguments, 4)
        _, o, out_row, _, _, first, shift = arguments

        def read_row(i: int) -> Any:
            start = builder.load(builder.gep(starts, [builder.add(first, ir.Constant(_I64, i))]))
            return _load(builder, builder.gep(a, [builder.add(start, shift)]), SQUARE)

        vectors = [read_row(i) for i in range(SQUARE)]
        # Each round interleaves the upper four rows with the lower four. After three rounds, the row and the column of
        # every number have changed places.
        for _round in range(3):
            low = [builder.shuffle_vector(vectors[i], vectors[i + 4], _interleave(0)) for i in range(4)]
            high = [builder.shuffle_vector(vectors[i], vectors[i + 4], _interleave(4)) for i in range(4)]
            vectors = [vector for pair in zip(low, high, strict=True) for vector in pair]
        for j, vector in enumerate(vectors):
            place = builder.add(o, builder.mul(out_row, ir.Constant(_I64, j)))
            _store(builder, vector, builder.gep(out, [place]))
        return context.get_dummy_value()

    return signature, generate


def _interleave(first: int) -> Any:
    """Of two vectors, the numbers from `first` on, by turns."""
    half = range(first, first + SQUARE // 2)
    return ir.Constant(ir.VectorType(_I32, SQUARE), [place for i in half for place in (i, i + SQUARE)])


@intrinsic  # type: ignore[untyped-decorator]
def _read_number(_: Any, a: Any, place: Any) -> Any:
    """The number at an offset in an array of any dimensions."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(builder.gep(_data(context, builder, signature, arguments, 0), [arguments[1]]))

    return types.float32(a, types.int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def _write_number(_: Any, out: Any, place: Any, number: Any) -> Any:
    """Write the number at an offset in an array of any dimensions."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store(arguments[2], builder.gep(_data(context, builder, signature, arguments, 0), [arguments[1]]))
        return context.get_dummy_value()

    return types.void(out, types.int64, types.float32), generate


@intrinsic  # type: ignore[untyped-decorator]
def _copy_width(_: Any, out: Any, o: Any, a: Any, oa: Any) -> Any:
    """Copy `WIDTH` numbers."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        out, a = (_data(context, builder, signature, arguments, position) for position in (0, 2))
        _store(builder, _load(builder, builder.gep(a, [arguments[3]]), WIDTH), builder.gep(out, [arguments[1]]))
        return context.get_dummy_value()

    return types.void(out, types.int64, a, types.int64), generate


@kernel
def copy_padded(out, o, a, oa, columns):  # type: ignore[no-untyped-def]
    """Copy `columns` numbers; up to a multiple of `WIDTH`, any others may follow them."""
    for column in range(0, columns, WIDTH):
        if oa + column + WIDTH <= a.size:
            _copy_width(out, o + column, a, oa + column)
        else:
            for j in range(column, columns):
                _write_number(out, o + j, _read_number(a, oa + j))


@kernel
def transpose(out, o, out_row, a, rows, first, count, shift, columns):  # type: ignore[no-untyped-def]
    """out[j, i] = a[rows[first + i] + shift + j], for i below `count` and j below `columns`.

    Args:
        out, o, out_row: the result, as in `sum_products`.
        rows: the offsets of all rows in `a`.
    """
    whole_rows, whole_columns = count // SQUARE * SQUARE, columns // SQUARE * SQUARE
    for i in range(0, whole_rows, SQUARE):
        for j in range(0, whole_columns, SQUARE):
            _transpose_square(out, o + j * out_row + i, out_row, a, rows, first + i, shift + j)
    for i in range(count):
        for j in range(whole_columns if i < whole_rows else 0, columns):
            _write_number(out, o + j * out_row + i, _read_number(a, rows[first + i] + shift + j))


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
def fill(numbers, value):  # type: ignore[no-untyped-def]
    for i in range(len(numbers)):
        numbers[i] = value


@kernel
def add(out, numbers):  # type: ignore[no-untyped-def]
    for i in range(len(out)):
        out[i] += numbers[i]


@kernel
def multiply(out, numbers, others):  # type: ignore[no-untyped-def]
    for i in range(len(out)):
        out[i] = numbers[i] * others[i]


@kernel
def add_multiplied(out, numbers, others):  # type: ignore[no-untyped-def]
    for i in range(len(out)):
        out[i] += numbers[i] * others[i]
