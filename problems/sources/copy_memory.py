"""The copy memory task: repeat ten digits after a long blank (lecture row T4).

Hochreiter and Schmidhuber 1997; as in the public code of Bai, Kolter and Koltun 2018, "An Empirical Evaluation of
Generic Convolutional and Recurrent Networks for Sequence Modeling". A network that
answers 0 until the digits are due, and then any of the eight, has a cross-entropy of 10 log(8) / (T + 20).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from problems.files.sequence_chunks import make_chunk, sequences_per_chunk, write_chunks
from problems.lazy_modules import np, pl
from problems.sequences import SequenceFormat, Sequences, SequenceSource
from problems.source import DownloadProgress

if TYPE_CHECKING:
    from numpy.typing import NDArray

DIGITS, DIGIT_VALUES = 10, 8
"""How many digits are to be remembered, and how many values each can have: 1 to 8."""
MARK = 9
"""The input from the step before the first answer is due to the end."""
MOST_SEQUENCES = 10_000_000
"""The largest number of sequences, in all splits together: under a fiftieth of the 8^10 that exist."""


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
        description="number of steps between a digit and its answer, less 10 (T); a sequence has T + 20 steps",
    )
    train: int = Field(10_000, ge=1, le=MOST_SEQUENCES, description="number of training sequences")
    validation: int = Field(1_000, ge=1, le=MOST_SEQUENCES, description="number of validation sequences")
    test: int = Field(1_000, ge=1, le=MOST_SEQUENCES, description="number of test sequences")
    seed: int = Field(0, ge=0, description="of the random numbers")

    @model_validator(mode="after")
    def _check_count(self) -> CopyMemorySource:
        if self.train + self.validation + self.test > MOST_SEQUENCES:
            raise ValueError(f"train, validation and test together must be {MOST_SEQUENCES:,} at most")
        return self

    @property
    def format(self) -> SequenceFormat:
        """An answer at each step, one of ten classes."""
        return SequenceFormat(objective="classes", per_step=True, codes=10, answers=10)

    def fetch(self, store: Path, progress: DownloadProgress, attempts: int) -> None:
        """Do nothing: the sequences are generated when they are read."""

    def read_sequences(self, store: Path, scratch: Path) -> Sequences:
        """Generate the sequences into `scratch`, in chunks; memory holds eight bytes of each sequence, and a chunk."""
        return Sequences(write_chunks(self._generate_chunks(), scratch))

    def _generate_chunks(self) -> Iterator[pl.DataFrame]:
        counts = {"train": self.train, "validation": self.validation, "test": self.test}
        # Ten digits with eight values are a number in base eight. The numbers are drawn without repetition.
        all_numbers = np.random.default_rng(self.seed).choice(
            DIGIT_VALUES**DIGITS, size=sum(counts.values()), replace=False
        )
        rows, begin = sequences_per_chunk(self.length + 2 * DIGITS), 0
        for split, count in counts.items():
            for first in range(0, count, rows):
                numbers_N = all_numbers[begin + first : begin + min(first + rows, count)]
                inputs_NL, answers_NL = generate_recollections(numbers_N, self.length)
                places = [f"generated {split} sequence {first + n + 1}" for n in range(len(numbers_N))]
                yield make_chunk(split, inputs_NL, answers_NL, places)
            begin += count


def generate_recollections(
    numbers_N: NDArray[np.int64], length: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Generate inputs and answers, both (N, T + 20), for T = `length`.

    The inputs are ten digits, T - 1 zeros and eleven nines. The answers are T + 10 zeros and the ten digits.

    Args:
        numbers_N: for each sequence, its digits less one, as one number in base eight.
    """
    powers_D = DIGIT_VALUES ** np.arange(DIGITS - 1, -1, -1)
    digits_ND = numbers_N[:, None] // powers_D % DIGIT_VALUES + 1
    inputs_NL = np.zeros((len(numbers_N), length + 2 * DIGITS), dtype=np.float32)
    answers_NL = np.zeros_like(inputs_NL)
    inputs_NL[:, :DIGITS] = digits_ND
    inputs_NL[:, DIGITS + length - 1 :] = MARK
    answers_NL[:, -DIGITS:] = digits_ND
    return inputs_NL, answers_NL
