"""Reading what the stages wrote for a problem of whole sequences: steps, targets, bounds, and the pieces cut from them.

All steps of all sequences lie in one memory-mapped array, one after the other, as the rows of a table do. A piece is a
range of these steps.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from architectures.shape import WindowShape
from learning.answers import AnswerKindName
from project.records import read_record

SEQUENCES_FILE, VOCABULARY_FILE, WINDOWS_FILE = "sequences.parquet", "vocabulary.json", "windows.json"
DESCRIPTION_FILE = "table.json"
"""What `normalize` writes of a table, or of sequences, beside their values."""


@dataclass(frozen=True)
class EncodedSequences:
    """A description of encoded sequences, beside their steps.

    Attributes:
        features: numbers per step.
        codes: steps are codes below this number; None: steps are numbers.
        answers: outputs that an answer needs.
        sequences: number of sequences, by split.
        unknown: the share of each split's tokens that are not in the vocabulary.
        synthetic: the sequences are simulated.
        sha256: of the vocabulary, steps, targets and bounds: the identity of the data in a trial's key.
    """

    features: int
    codes: int | None
    answers: int
    sequences: dict[str, int]
    unknown: dict[str, float]
    synthetic: bool
    sha256: str

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the description that `encode_sequences` wrote into `folder`."""
        return read_record(folder / DESCRIPTION_FILE, cls, fix=f"run `recast run {folder.name}`")


def read_steps(folder: Path) -> NDArray[Any]:
    """The steps of all sequences, (N, F) float32, or (N, 1) int32 where they are codes; memory-mapped."""
    steps: NDArray[Any] = np.load(folder / "steps.npy", mmap_mode="c", allow_pickle=False)
    return steps


def read_targets(folder: Path) -> NDArray[np.float32] | None:
    """The targets, (M, K): a row per sequence, or per step where every step has an answer; memory-mapped.

    None: the target of a step is the next step.
    """
    file = folder / "targets.npy"
    return np.load(file, mmap_mode="c", allow_pickle=False) if file.exists() else None


def read_bounds(folder: Path) -> NDArray[np.int64]:
    """The bounds of the sequences, (Q, 3): the first step, the step after the last, and the index of the split."""
    bounds: NDArray[np.int64] = np.load(folder / "sequences.npy", allow_pickle=False)
    return bounds


@dataclass(frozen=True)
class SequenceWindows:
    """How sequences are cut into pieces, in steps; the pieces themselves are in `<split>.npy`.

    The pieces of a split, (K, 4), are the first step that is read, the first step that is scored, the step after the
    last, all counted over all sequences, and the number of the sequence.

    Attributes:
        length: the longest piece; None: whole sequences.
        context: steps before each piece that are read but not scored.
        scored: steps at the end of a sequence that are scored; None: all.
        carry: a network carries its state from a piece to the next one of the same sequence.
        windows: number of pieces, by split.
        left_out: steps that are in no piece, by split: where a sequence has one answer, those before its last `length`.
        table: sha256 of the sequences that were cut.
        objective: the kind of answer.
        token: what a class stands for where it is part of a text.
        shape: the shape of a piece, for a network.
    """

    length: int | None
    context: int
    scored: int | None
    carry: bool
    windows: dict[str, int]
    left_out: dict[str, int]
    table: str
    objective: AnswerKindName
    token: Literal["characters", "words"] | None
    shape: WindowShape

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read what `cut_sequences` wrote into `folder`."""
        return read_record(folder / WINDOWS_FILE, cls, fix=f"run `recast run {folder.name}`")
