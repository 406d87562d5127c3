"""Handwritten digits of 8 x 8 pixels, read pixel by pixel: real data, from the copy that comes with scikit-learn.

The test half of the UCI set "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak 1998): 1,797 digits by 13
people. A small substitute for the data of the lecture's rows T1 and T2, which `problems.sources.mnist` reads.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from problems.errors import RecastError
from problems.files.raw_store import replace_with_links
from problems.files.sequence_chunks import make_chunk
from problems.lazy_modules import np, pl
from problems.sequences import SequenceFormat, Sequences, SequenceSource
from problems.source import DownloadProgress

if TYPE_CHECKING:
    from numpy.typing import NDArray

_PACKAGE = "sklearn"
_FILE = "digits.csv.gz"
PIXELS, BRIGHTEST, CLASSES = 64, 16, 10


class DigitsSource(SequenceSource):
    """A digit is 64 steps of one number from 0 to 1, row by row; the data set has no split of its own."""

    kind: Literal["digits"]
    permuted: bool = Field(False, description="read the pixels in a random order, the same for every digit (row T2)")
    seed: int = Field(0, ge=0, description="of the random order of permuted pixels")

    @property
    def format(self) -> SequenceFormat:
        """Which digit it is."""
        return SequenceFormat(objective="classes", answers=CLASSES)

    def fetch(self, store: Path, progress: DownloadProgress, attempts: int) -> None:
        """Link the package's file into the store.

        Raises:
            RecastError: the package is not installed, or has no such file.
        """
        # The package is located, not imported: importing it takes seconds.
        spec = find_spec(_PACKAGE)
        if spec is None or not spec.submodule_search_locations:
            raise RecastError("the Python package scikit-learn is not installed: pip install scikit-learn")
        file = Path(spec.submodule_search_locations[0]) / "datasets" / "data" / _FILE
        if not file.is_file():
            raise RecastError(f"scikit-learn has no {file.name} in {file.parent}: pip install --force-reinstall it")
        replace_with_links(store, [file])

    def read_sequences(self, store: Path, scratch: Path) -> Sequences:
        """Read the digits in the order of the file.

        Raises:
            RecastError: the file is missing, or a line is not 64 numbers from 0 to 16 and a digit.
        """
        file = store / _FILE
        try:
            table = pl.read_csv(file, has_header=False, infer_schema=False, truncate_ragged_lines=False)
        except (OSError, pl.exceptions.PolarsError) as error:
            raise RecastError(f"{file}: not a readable table: {str(error).splitlines()[0]}") from error
        if table.width != PIXELS + 1:
            raise RecastError(f"{file}: {table.width} columns, not the {PIXELS} pixels of a digit and its class")
        numbers_NC = table.cast(pl.Float64, strict=False).to_numpy()
        largest_C = np.array([BRIGHTEST] * PIXELS + [CLASSES - 1])
        wrong_N = ~((numbers_NC >= 0) & (numbers_NC <= largest_C) & (numbers_NC % 1 == 0)).all(axis=1)
        if wrong_N.any():
            raise RecastError(
                f"{file}, line {np.flatnonzero(wrong_N)[0] + 1}: not {PIXELS} whole numbers from 0 to {BRIGHTEST} and "
                f"a class from 0 to {CLASSES - 1}; install scikit-learn again"
            )
        order = pixel_order(PIXELS, self.permuted, self.seed)
        places = [f"{file}, line {n + 1}" for n in range(len(numbers_NC))]
        frame = make_chunk(None, numbers_NC[:, :PIXELS][:, order] / BRIGHTEST, numbers_NC[:, PIXELS:], places)
        return Sequences(frame.lazy())


def pixel_order(pixels: int, permuted: bool, seed: int) -> NDArray[np.int64]:
    """The order in which pixels are read: row by row, or random, the same for the same seed."""
    return np.random.default_rng(seed).permutation(pixels) if permuted else np.arange(pixels)
