"""The adding problem: remember two numbers of a long sequence, and add them (lecture row T3).

Hochreiter and Schmidhuber 1997, "Long Short-Term Memory", section 5.4; as in the public code of Bai, Kolter and Koltun
2018, "An Empirical Evaluation of Generic Convolutional and Recurrent Networks for Sequence Modeling", which marks any
two steps of a sequence. Always answering 1 has a mean squared error of 1/6.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field

from problems.chunks import chunk, chunk_rows, scanned
from problems.sequences import Asked, Sequences, SequenceSource
from problems.source import Progress

Numbers = NDArray[np.float32]


class AddingSource(SequenceSource):
    """Generated sequences of two numbers a step; the counts are those of the paper's code, which has no validation."""

    synthetic: ClassVar[bool] = True

    kind: Literal["adding"]
    length: int = Field(600, ge=2, le=1_000_000, description="steps of a sequence (T)")
    train: int = Field(50_000, ge=1, le=100_000_000, description="training sequences")
    validation: int = Field(1_000, ge=1, le=100_000_000, description="validation sequences")
    test: int = Field(1_000, ge=1, le=100_000_000, description="test sequences")
    seed: int = Field(0, ge=0)

    @property
    def asked(self) -> Asked:
        """One number at the end."""
        return Asked(objective="value", features=2)

    def fetch(self, store: Path, progress: Progress, attempts: int) -> None:
        """Nothing: the sequences are made when they are read."""

    def sequences(self, store: Path, scratch: Path) -> Sequences:
        """The sequences, written to `scratch` in chunks, so that memory does not grow with their number."""
        return Sequences(scanned(self._chunks(), scratch))

    def _chunks(self) -> Iterator[pl.DataFrame]:
        rows = chunk_rows(2 * self.length)
        counts = {"train": self.train, "validation": self.validation, "test": self.test}
        for part, (split, count) in enumerate(counts.items()):
            for number, first in enumerate(range(0, count, rows)):
                # A stream of random numbers each: no split's sequences depend on how many another has.
                random = np.random.default_rng([self.seed, part, number])
                inputs_NT2, sums_N1 = additions(min(rows, count - first), self.length, random)
                places = [f"generated {split} sequence {first + n + 1}" for n in range(len(sums_N1))]
                yield chunk(split, inputs_NT2.reshape(len(places), -1), sums_N1, places)


def additions(count: int, length: int, random: np.random.Generator) -> tuple[Numbers, Numbers]:
    """Inputs (N, T, 2), a number from 0 to 1 and a mark, which is 1 at two steps and else 0; their sums (N, 1)."""
    numbers_NT = random.random((count, length), dtype=np.float32)
    first_N = random.integers(length, size=count)
    second_N = random.integers(length - 1, size=count)
    second_N += second_N >= first_N  # any other step, each as likely
    marked_N2 = np.stack([first_N, second_N], axis=1)
    marks_NT = np.zeros_like(numbers_NT)
    np.put_along_axis(marks_NT, marked_N2, 1, axis=1)
    sums_N1 = np.take_along_axis(numbers_NT, marked_N2, axis=1).sum(axis=1, keepdims=True)
    return np.stack([numbers_NT, marks_NT], axis=2), sums_N1
