"""MNIST, read pixel by pixel: sequential MNIST, and with its pixels in another order permuted MNIST (T1, T2).

LeCun, Bottou, Bengio and Haffner 1998, "Gradient-Based Learning Applied to Document Recognition": 60,000 digits of 28 x
28 pixels for training and 10,000 for the test, in four files of the idx format; Le, Jaitly and Hinton 2015, "A Simple
Way to Initialize Recurrent Networks of Rectified Linear Units", section 4.2, reads them as sequences. The checksums are
those that public code pins, alike in all of it.
"""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field

from problems.chunks import chunk, chunk_rows, scanned
from problems.digits import pixel_order
from problems.errors import RecastError
from problems.public import GZIP, PublicFile, fetch_public, link_folder
from problems.sequences import Asked, Sequences, SequenceSource
from problems.source import Progress

SIDE, CLASSES = 28, 10
PIXELS = SIDE * SIDE
MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
FILES = {
    "train": (
        PublicFile(
            "train-images-idx3-ubyte.gz", "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609", GZIP
        ),
        PublicFile(
            "train-labels-idx1-ubyte.gz", "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c", GZIP
        ),
    ),
    "test": (
        PublicFile(
            "t10k-images-idx3-ubyte.gz", "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6", GZIP
        ),
        PublicFile(
            "t10k-labels-idx1-ubyte.gz", "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6", GZIP
        ),
    ),
}
"""Images and labels of each split."""
_IMAGES, _LABELS = 0x803, 0x801
"""What an idx file begins with: unsigned bytes, of three dimensions or one."""


class MnistSource(SequenceSource):
    """A digit is 784 steps of one number from 0 to 1, row by row; the split is the data set's own, train and test."""

    kind: Literal["mnist"]
    path: str | None = Field(None, description="a folder with the four .gz files; null: they are downloaded")
    mirrors: tuple[str, ...] = Field(MIRRORS, min_length=1, description="where to download them without a local folder")
    permuted: bool = Field(False, description="the pixels in another order, the same for every digit (row T2)")
    seed: int = Field(0, ge=0, description="of the order of permuted pixels")

    @property
    def asked(self) -> Asked:
        """Which digit it is."""
        return Asked(objective="classes", answers=CLASSES)

    def fetch(self, store: Path, progress: Progress, attempts: int) -> None:
        """Link the four files of the folder `path`; without one keep what is there, and download what is missing.

        Raises:
            Unreachable: no mirror gives a file.
            RecastError: the folder lacks a file, or a download has changed since it came.
        """
        files = [file for pair in FILES.values() for file in pair]
        if self.path is not None:
            link_folder(store, self.path, [file.name for file in files])
        else:
            fetch_public(store, files, self.mirrors, progress, attempts)

    def sequences(self, store: Path, scratch: Path) -> Sequences:
        """The digits, written to `scratch` in chunks.

        Raises:
            RecastError: a file is not a whole idx file of 28 x 28 pixels or of digits, or two differ in their number.
        """
        return Sequences(scanned(self._chunks(store), scratch))

    def _chunks(self, store: Path) -> Iterator[pl.DataFrame]:
        order, rows = pixel_order(PIXELS, self.permuted, self.seed), chunk_rows(PIXELS)
        for split, (images, labels) in FILES.items():
            file = store / images.name
            labels_N = _labels(store / labels.name)
            begin = 0
            for pixels_NP in _images(file, rows, len(labels_N)):
                some_N = labels_N[begin : begin + len(pixels_NP)]
                places = [f"{file}, image {begin + n + 1}" for n in range(len(some_N))]
                yield chunk(split, pixels_NP[:, order] / np.float32(255), some_N[:, None], places)
                begin += len(pixels_NP)


def _images(file: Path, rows: int, count: int) -> Iterator[NDArray[np.uint8]]:
    """The images of an idx file (N, 784), so many at once.

    Raises:
        RecastError: it is not a whole idx file of `count` images of 28 x 28 pixels.
    """
    try:
        with gzip.open(file) as content:
            found, height, width = _header(file, content, _IMAGES, 3)
            if (height, width) != (SIDE, SIDE):
                raise RecastError(f"{file}: images of {height} x {width} pixels, not {SIDE} x {SIDE}")
            if found != count:
                raise RecastError(f"{file}: {found:,} images, but there are {count:,} labels; fetch both files anew")
            for begin in range(0, count, rows):
                some = min(rows, count - begin)
                yield _whole(file, content, some * PIXELS).reshape(some, PIXELS)
            _ends(file, content)
    except (OSError, EOFError, zlib.error) as error:
        raise RecastError(f"{file}: not a whole gzip file ({error}); delete it and fetch it anew") from error


def _labels(file: Path) -> NDArray[np.uint8]:
    """The labels of an idx file (N).

    Raises:
        RecastError: it is not a whole idx file of labels from 0 to 9, or holds none.
    """
    try:
        with gzip.open(file) as content:
            (count,) = _header(file, content, _LABELS, 1)
            labels_N = _whole(file, content, count)
            _ends(file, content)
    except (OSError, EOFError, zlib.error) as error:
        raise RecastError(f"{file}: not a whole gzip file ({error}); delete it and fetch it anew") from error
    if not count:
        raise RecastError(f"{file}: it holds no label; fetch it anew")
    if (wrong := np.flatnonzero(labels_N >= CLASSES)).size:
        n = int(wrong[0])
        raise RecastError(f"{file}, label {n + 1}: {labels_N[n]} is not a digit from 0 to {CLASSES - 1}")
    return labels_N


def _header(file: Path, content: gzip.GzipFile, magic: int, dimensions: int) -> tuple[int, ...]:
    """The sizes that the header of an idx file says."""
    found = np.frombuffer(content.read(4), dtype=">u4")
    if found.tolist() != [magic]:
        raise RecastError(f"{file}: not an idx file of {'images' if magic == _IMAGES else 'labels'}; fetch it anew")
    sizes = content.read(4 * dimensions)
    if len(sizes) != 4 * dimensions:
        raise RecastError(f"{file}: cut short in its header; delete it and fetch it anew")
    return tuple(np.frombuffer(sizes, dtype=">u4").tolist())


def _whole(file: Path, content: gzip.GzipFile, size: int) -> NDArray[np.uint8]:
    """So many bytes."""
    found = content.read(size)
    if len(found) != size:
        raise RecastError(f"{file}: cut short: its header says more than it holds; delete it and fetch it anew")
    return np.frombuffer(found, dtype=np.uint8)


def _ends(file: Path, content: gzip.GzipFile) -> None:
    if content.read(1):
        raise RecastError(f"{file}: it holds more than its header says; delete it and fetch it anew")
