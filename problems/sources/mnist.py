"""MNIST, read pixel by pixel: sequential MNIST, or with its pixels in another order permuted MNIST (T1, T2).

LeCun, Bottou, Bengio and Haffner 1998, "Gradient-Based Learning Applied to Document Recognition": 60,000 digits of 28 x
28 pixels for training and 10,000 for the test, in four files of the idx format; Le, Jaitly and Hinton 2015, "A Simple
Way to Initialize Recurrent Networks of Rectified Linear Units", section 4.2, reads them as sequences. The checksums are
those that public code pins, all of it the same ones.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from problems.errors import RecastError
from problems.files.public_files import GZIP_MAGIC, PublicFile, fetch_public_files, link_files_of_folder
from problems.files.sequence_chunks import make_chunk, sequences_per_chunk, write_chunks
from problems.lazy_modules import np, pl
from problems.sequences import SequenceFormat, Sequences, SequenceSource
from problems.source import DownloadProgress
from problems.sources.digits import pixel_order

if TYPE_CHECKING:
    from numpy.typing import NDArray

SIDE, CLASSES = 28, 10
PIXELS = SIDE * SIDE
MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
FILES = {
    "train": (
        PublicFile(
            "train-images-idx3-ubyte.gz", "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609", GZIP_MAGIC
        ),
        PublicFile(
            "train-labels-idx1-ubyte.gz", "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c", GZIP_MAGIC
        ),
    ),
    "test": (
        PublicFile(
            "t10k-images-idx3-ubyte.gz", "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6", GZIP_MAGIC
        ),
        PublicFile(
            "t10k-labels-idx1-ubyte.gz", "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6", GZIP_MAGIC
        ),
    ),
}
"""The images and the labels of each split."""
_IMAGES, _LABELS = 0x803, 0x801
"""The number that an idx file begins with: unsigned bytes in three dimensions, or in one."""


class MnistSource(SequenceSource):
    """A digit is 784 steps of one number from 0 to 1, row by row; the data set has its own split, train and test."""

    kind: Literal["mnist"]
    path: str | None = Field(None, description="a folder with the four .gz files; null: they are downloaded")
    mirrors: tuple[str, ...] = Field(MIRRORS, min_length=1, description="addresses of folders to download them from")
    permuted: bool = Field(False, description="read the pixels in a random order, the same for every digit (row T2)")
    seed: int = Field(0, ge=0, description="of the random order of permuted pixels")

    @property
    def format(self) -> SequenceFormat:
        """One answer at the end: which digit it is."""
        return SequenceFormat(objective="classes", answers=CLASSES)

    def fetch(self, store: Path, progress: DownloadProgress, attempts: int) -> None:
        """Link the four files of the folder `path`; without it keep what is there, and download what is missing.

        Raises:
            Unreachable: no mirror gives a file.
            RecastError: the folder lacks a file, or a download has changed since it came.
        """
        files = [file for pair in FILES.values() for file in pair]
        if self.path is not None:
            link_files_of_folder(store, self.path, [file.name for file in files])
        else:
            fetch_public_files(store, files, self.mirrors, progress, attempts)

    def read_sequences(self, store: Path, scratch: Path) -> Sequences:
        """Read the digits and write them to `scratch`, in chunks.

        Raises:
            RecastError: a file is not a whole idx file of 28 x 28 pixels or of digits, or images and labels differ
                in number.
        """
        return Sequences(write_chunks(self._read_chunks(store), scratch))

    def _read_chunks(self, store: Path) -> Iterator[pl.DataFrame]:
        order, rows = pixel_order(PIXELS, self.permuted, self.seed), sequences_per_chunk(PIXELS)
        for split, (images, labels) in FILES.items():
            file = store / images.name
            labels_N = _read_labels(store / labels.name)
            begin = 0
            for pixels_NP in _read_images(file, rows, len(labels_N)):
                split_labels_N = labels_N[begin : begin + len(pixels_NP)]
                places = [f"{file}, image {begin + n + 1}" for n in range(len(split_labels_N))]
                yield make_chunk(split, pixels_NP[:, order] / np.float32(255), split_labels_N[:, None], places)
                begin += len(pixels_NP)


def _read_images(file: Path, rows: int, count: int) -> Iterator[NDArray[np.uint8]]:
    """Read the images of an idx file, (N, 784) at once, where N is `rows` or what is left.

    Raises:
        RecastError: it is not a whole idx file of `count` images of 28 x 28 pixels.
    """
    try:
        with gzip.open(file) as content:
            images, height, width = _read_header(file, content, _IMAGES, 3)
            if (height, width) != (SIDE, SIDE):
                raise RecastError(f"{file}: images of {height} x {width} pixels, not {SIDE} x {SIDE}")
            if images != count:
                raise RecastError(f"{file}: {images:,} images, but there are {count:,} labels; fetch both files again")
            for begin in range(0, count, rows):
                number = min(rows, count - begin)
                yield _read_bytes(file, content, number * PIXELS).reshape(number, PIXELS)
            _check_end(file, content)
    except (OSError, EOFError, zlib.error) as error:
        raise RecastError(f"{file}: not a whole gzip file ({error}); delete it and fetch it again") from error


def _read_labels(file: Path) -> NDArray[np.uint8]:
    """Read the labels (N,) of an idx file.

    Raises:
        RecastError: it is not a whole idx file of labels from 0 to 9, or holds none.
    """
    try:
        with gzip.open(file) as content:
            (count,) = _read_header(file, content, _LABELS, 1)
            labels_N = _read_bytes(file, content, count)
            _check_end(file, content)
    except (OSError, EOFError, zlib.error) as error:
        raise RecastError(f"{file}: not a whole gzip file ({error}); delete it and fetch it again") from error
    if not count:
        raise RecastError(f"{file}: it holds no label; fetch it again")
    if (wrong := np.flatnonzero(labels_N >= CLASSES)).size:
        n = int(wrong[0])
        raise RecastError(f"{file}, label {n + 1}: {labels_N[n]} is not a digit from 0 to {CLASSES - 1}")
    return labels_N


def _read_header(file: Path, content: gzip.GzipFile, magic: int, dimensions: int) -> tuple[int, ...]:
    """Read the sizes in the header of an idx file."""
    number = np.frombuffer(content.read(4), dtype=">u4")
    if number.tolist() != [magic]:
        raise RecastError(f"{file}: not an idx file of {'images' if magic == _IMAGES else 'labels'}; fetch it again")
    sizes = content.read(4 * dimensions)
    if len(sizes) != 4 * dimensions:
        raise RecastError(f"{file}: cut short in its header; delete it and fetch it again")
    return tuple(np.frombuffer(sizes, dtype=">u4").tolist())


def _read_bytes(file: Path, content: gzip.GzipFile, size: int) -> NDArray[np.uint8]:
    """Read exactly `size` bytes."""
    data = content.read(size)
    if len(data) != size:
        raise RecastError(f"{file}: cut short: its header says more than it holds; delete it and fetch it again")
    return np.frombuffer(data, dtype=np.uint8)


def _check_end(file: Path, content: gzip.GzipFile) -> None:
    if content.read(1):
        raise RecastError(f"{file}: it holds more than its header says; delete it and fetch it again")
