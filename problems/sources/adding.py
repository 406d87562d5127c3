"""The adding problem: remember two numbers of a long sequence and add them (lecture row T3).

Hochreiter and Schmidhuber 1997, "Long Short-Term Memory", section 5.4; as in the public code of Bai, Kolter and Koltun
2018, "An Empirical Evaluation of Generic Convolutional and Recurrent Networks for Sequence Modeling", which marks any
two steps of a sequence. A network that always answers 1 has a mean squared error of 1/6.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias

from pydantic import Field

from problems.files.sequence_chunks import make_chunk, sequences_per_chunk, write_chunks
from problems.lazy_modules import np, pl
from problems.sequences import SequenceFormat, Sequences, SequenceSource
from problems.source import DownloadProgress

if TYPE_CHECKING:
    from numpy.typing import NDArray

Numbers: TypeAlias = "NDArray[np.float32]"


class AddingSource(SequenceSource):
    """Generated sequences, two numbers at each step; the counts are those of the paper's code, without validation."""

    synthetic: ClassVar[bool] = True

    kind: Literal["adding"]
    length: int = Field(600, ge=2, le=1_000_000, description="number of steps of a sequence (T)")
    train: int = Field(50_000, ge=1, le=100_000_000, description="number of training sequences")
    validation: int = Field(1_000, ge=1, le=100_000_000, description="number of validation sequences")
    test: int = Field(1_000, ge=1, le=100_000_000, description="number of test sequences")
    seed: int = Field(0, ge=0, description="of the random numbers")

    @property
    def format(self) -> SequenceFormat:
        """One answer at the end, a number."""
        return SequenceFormat(objective="value", features=2)

    def fetch(self, store: Path, progress: DownloadProgress, attempts: int) -> None:
        """Do nothing: the sequences are generated when they are read."""

    def read_sequences(self, store: Path, scratch: Path) -> Sequences:
        """Generate the sequences into `scratch`, in chunks, so that memory does not grow with their number."""
        return Sequences(write_chunks(self._generate_chunks(), scratch))

    def _generate_chunks(self) -> Iterator[pl.DataFrame]:
        rows = sequences_per_chunk(2 * self.length)
        counts = {"train": self.train, "validation": self.validation, "test": self.test}
        for part, (split, count) in enumerate(counts.items()):
            for number, first in enumerate(range(0, count, rows)):
                # Each chunk has its own stream of random numbers: no split depends on the size of another.
                random = np.random.default_rng([self.seed, part, number])
                inputs_NT2, sums_N1 = generate_additions(min(rows, count - first), self.length, random)
                places = [f"generated {split} sequence {first + n + 1}" for n in range(len(sums_N1))]
                yield make_chunk(split, inputs_NT2.reshape(len(places), -1), sums_N1, places)


def generate_additions(count: int, length: int, random: np.random.Generator) -> tuple[Numbers, Numbers]:
    """Generate inputs (N, T, 2), a number from 0 to 1 and a mark, 1 at two steps and else 0; and the sums (N, 1)."""
    numbers_NT = random.random((count, length), dtype=np.float32)
    first_N = random.integers(length, size=count)
    second_N = random.integers(length - 1, size=count)
    second_N += second_N >= first_N  # any other step, all equally likely
    marked_N2 = np.stack([first_N, second_N], axis=1)
    marks_NT = np.zeros_like(numbers_NT)
    np.put_along_axis(marks_NT, marked_N2, 1, axis=1)
    sums_N1 = np.take_along_axis(numbers_NT, marked_N2, axis=1).sum(axis=1, keepdims=True)
    return np.stack([numbers_NT, marks_NT], axis=2), sums_N1
