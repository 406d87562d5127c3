"""Files of NumPy's format, written piece by piece."""

from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import DTypeLike


def open_array(file: Path, dtype: DTypeLike, shape: tuple[int, ...]) -> BinaryIO:
    """Open a file of NumPy's format to write the rows of an array of this shape, one after another."""
    out = file.open("wb")
    descr = np.lib.format.dtype_to_descr(np.dtype(dtype))
    np.lib.format.write_array_header_1_0(out, {"descr": descr, "fortran_order": False, "shape": shape})
    return out
