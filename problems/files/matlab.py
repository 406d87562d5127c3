"""Cells of numeric arrays in MATLAB files, read with every length checked.

"MAT-File Format" (MathWorks), level 5, which MATLAB writes with -v6 and -v7. SciPy's reader is faster and reads more,
but a few changed bytes make it crash the process, where a user needs a message. Nothing in such a file is executed.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from problems.errors import RecastError
from problems.lazy_modules import np

if TYPE_CHECKING:
    from numpy.typing import NDArray

MATLAB_HEADER = b"MATLAB 5.0 MAT-file"
_HEADER_SIZE, _ORDER_AT = 128, 126
_INT8, _INT32, _UINT32, _MATRIX, _COMPRESSED = 1, 5, 6, 14, 15
"""Kinds of elements."""
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
"""The NumPy types of the kinds of elements that hold numbers."""
_CELL, _FIRST_NUMERIC, _LAST_NUMERIC = 1, 6, 15
"""Classes of matrices."""
_COMPLEX = 1 << 11
"""The flag of a matrix of complex numbers."""
_LARGEST_BYTES = 1 << 31
"""The most bytes of one variable when it is unpacked; a file with more is taken to be broken."""


def read_cells(file: Path, names: Collection[str]) -> dict[str, list[NDArray[Any] | None]]:
    """Read the cells of the variables of these names, by name; a variable that the file does not have is left out.

    A cell that is not an array of real numbers, such as a text, is None.

    Raises:
        RecastError: the file is not a whole MATLAB 5 file, or such a variable is not one row or column of cells.
    """
    try:
        content = memoryview(file.read_bytes())
    except OSError as error:
        raise RecastError(f"{file}: cannot be read ({error}); run the ingest stage again") from error
    if content[: len(MATLAB_HEADER)] != MATLAB_HEADER:
        raise RecastError(f"{file}: not a MATLAB 5 file; save it from MATLAB with -v7, or fetch it again")
    cells = {}
    try:
        order = {b"IM": "<", b"MI": ">"}.get(bytes(content[_ORDER_AT:_HEADER_SIZE]))
        if order is None:
            raise ValueError("it does not say in which order its bytes are")
        for matrix in _read_variables(content[_HEADER_SIZE:], order):
            kind, shape, name, parts = _parse_matrix(matrix, order)
            if name not in names:
                continue
            if kind != _CELL or len(shape) != 2 or 1 not in shape:
                raise RecastError(f"{file}, {name}: not one row of cells, a piece each")
            cells[name] = [_parse_array(part, order) for part in _check_kinds(parts, _MATRIX)]
            if len(cells[name]) != math.prod(shape):
                raise ValueError(f"{name} has {len(cells[name])} cells of {math.prod(shape)}")
    except (ValueError, struct.error, zlib.error) as error:
        raise RecastError(f"{file}: not a whole MATLAB file ({error}); delete it and fetch it again") from error
    return cells


def _read_variables(content: memoryview, order: str) -> Iterator[memoryview]:
    """Read the matrices of a file, any of which may be packed."""
    for kind, data in _read_elements(content, order):
        if kind == _COMPRESSED:
            unpacking = zlib.decompressobj()
            unpacked = unpacking.decompress(data, _LARGEST_BYTES)
            if not unpacking.eof:
                raise ValueError("a packed variable does not end")
            yield from _check_kinds(_read_elements(memoryview(unpacked), order), _MATRIX)
        elif kind == _MATRIX:
            yield data
        else:
            raise ValueError(f"an element of kind {kind} stands where a variable should")


def _read_elements(content: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """Read the elements one after the other: kind and data."""
    at = 0
    while at < len(content):
        kind, size = struct.unpack_from(f"{order}II", content, at)
        begin = at + 8
        if kind >> 16:  # a short element: its size and its data are in the eight bytes of the tag
            kind, size, begin = kind & 0xFFFF, kind >> 16, at + 4
            after = at + 8
        else:
            after = begin + size + (0 if kind == _COMPRESSED else -size % 8)
        if begin + size > min(len(content), after):
            raise ValueError("an element is longer than the rest of the file")
        yield kind, content[begin : begin + size]
        at = after


def _check_kinds(parts: Iterator[tuple[int, memoryview]], kind: int) -> Iterator[memoryview]:
    """Check that all elements are of one kind, and give their data."""
    for part_kind, data in parts:
        if part_kind != kind:
            raise ValueError(f"an element of kind {part_kind} stands where one of kind {kind} should")
        yield data


def _parse_matrix(
    content: memoryview, order: str
) -> tuple[int, tuple[int, ...], str, Iterator[tuple[int, memoryview]]]:
    """Parse a matrix: its class (0 where its numbers are not real), its shape, its name, the elements that follow."""
    parts = _read_elements(content, order)
    begin = [next(parts, (0, content[:0])) for _ in range(3)]
    if [kind for kind, _ in begin] != [_UINT32, _INT32, _INT8]:
        raise ValueError("a matrix has no flags, shape and name")
    (_, flags), (_, sizes), (_, name) = begin
    if len(flags) != 8 or len(sizes) % 4 or len(sizes) < 8:
        raise ValueError("the flags or the shape of a matrix are cut")
    (flag,) = struct.unpack_from(f"{order}I", flags)
    shape = struct.unpack(f"{order}{len(sizes) // 4}i", sizes)
    if min(shape) < 0:
        raise ValueError("a matrix has a negative size")
    return (0 if flag & _COMPLEX else flag & 0xFF), shape, bytes(name).decode("latin-1"), parts


def _parse_array(content: memoryview, order: str) -> NDArray[Any] | None:
    """Parse the numbers of a matrix; None where it is not an array of real numbers."""
    if not content:
        return np.empty((0, 0))  # this is how MATLAB writes an empty cell
    kind, shape, _, parts = _parse_matrix(content, order)
    if not _FIRST_NUMERIC <= kind <= _LAST_NUMERIC:
        return None
    stored, data = next(parts, (0, content[:0]))
    if stored not in _NUMBERS:
        raise ValueError(f"an element of kind {stored} stands where numbers should")
    dtype = np.dtype(order + _NUMBERS[stored])
    if len(data) != math.prod(shape) * dtype.itemsize:
        raise ValueError("a matrix does not have as many numbers as its shape says")
    return np.frombuffer(data, dtype=dtype).reshape(shape, order="F")
