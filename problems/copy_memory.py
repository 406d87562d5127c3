"""The copy memory task: say ten digits again after a long blank (lecture row T4).

Hochreiter and Schmidhuber 1997; as in the public code of Bai, Kolter and Koltun 2018, "An Empirical Evaluation of
Generic Convolutional and Recurrent Networks for Sequence Modeling". Who answers 0 until the digits are due, and then
any of the eight, has a cross-entropy of 10 log(8) / (T + 20).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field, model_validator

from problems.chunks import chunk, chunk_rows, scanned
from problems.sequences import Asked, Sequences, SequenceSource
from problems.source import Progress

DIGITS, KINDS = 10, 8
"""Digits to be remembered, each one of 1 to 8."""
MARK = 9
"""What stands in the inputs from the step before the first answer is due to the end."""
MOST = 10_000_000
"""Sequences at most, in all splits together: under a fiftieth of the 8^10 that there are."""


class CopyMemorySource(SequenceSource):
    """Generated sequences of codes; the counts are those of the paper's code, which has no validation.

    No two sequences of a source are the same, so none of the test was seen in training.
    """

    synthetic: ClassVar[bool] = True

    kind: Literal["copy_memory"]
    length: int = Field(
        1_000,
        ge=1,
        le=1_000_000,
        description="steps between a digit and its answer, less 10 (T); a sequence has T + 20",
    )
    train: int = Field(10_000, ge=1, le=MOST, description="training sequences")
    validation: int = Field(1_000, ge=1, le=MOST, description="validation sequences")
    test: int = Field(1_000, ge=1, le=MOST, description="test sequences")
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _there_are_as_many(self) -> "CopyMemorySource":
        if self.train + self.validation + self.test > MOST:
            raise ValueError(f"train, validation and test together must be {MOST:,} at most")
        return self

    @property
    def asked(self) -> Asked:
        """At each step one of ten classes."""
        return Asked(objective="classes", each=True, codes=10, answers=10)

    def fetch(self, store: Path, progress: Progress, attempts: int) -> None:
        """Nothing: the sequences are made when they are read."""

    def sequences(self, store: Path, scratch: Path) -> Sequences:
        """The sequences, written to `scratch` in chunks: in memory are eight bytes of each, and a chunk."""
        return Sequences(scanned(self._chunks(), scratch))

    def _chunks(self) -> Iterator[pl.DataFrame]:
        counts = {"train": self.train, "validation": self.validation, "test": self.test}
        # Ten digits of eight kinds are a number in base eight; drawn without repetition.
        numbers = np.random.default_rng(self.seed).choice(KINDS**DIGITS, size=sum(counts.values()), replace=False)
        rows, begin = chunk_rows(self.length + 2 * DIGITS), 0
        for split, count in counts.items():
            for first in range(0, count, rows):
                some_N = numbers[begin + first : begin + min(first + rows, count)]
                inputs_NL, answers_NL = recollections(some_N, self.length)
                places = [f"generated {split} sequence {first + n + 1}" for n in range(len(some_N))]
                yield chunk(split, inputs_NL, answers_NL, places)
            begin += count


def recollections(numbers_N: NDArray[np.int64], length: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Inputs and answers, each (N, T + 20), for T = `length`.

    Inputs are ten digits, T - 1 zeros and eleven nines; answers are T + 10 zeros and the ten digits.

    Args:
        numbers_N: the digits, each less one, as one number in base eight.
    """
    places_D = KINDS ** np.arange(DIGITS - 1, -1, -1)
    digits_ND = numbers_N[:, None] // places_D % KINDS + 1
    inputs_NL = np.zeros((len(numbers_N), length + 2 * DIGITS), dtype=np.float32)
    answers_NL = np.zeros_like(inputs_NL)
    inputs_NL[:, :DIGITS] = digits_ND
    inputs_NL[:, DIGITS + length - 1 :] = MARK
    answers_NL[:, -DIGITS:] = digits_ND
    return inputs_NL, answers_NL
