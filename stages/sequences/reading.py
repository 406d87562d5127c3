"""The stages ingest, normalize and window of a problem of whole sequences: checked, made into numbers, cut in pieces.

All steps of all sequences lie in one memory-mapped array, one after the other, as the rows of a table do; a piece is a
range of them.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from architectures.shape import WindowShape
from problems.sequences import Objective

WINDOWS = "windows.json"


# Ingest


# Normalize


@dataclass(frozen=True)
class Encoded:
    """What there is to know about encoded sequences beside their steps.

    Attributes:
        features: numbers a step.
        codes: steps are codes below this number; None: they are numbers.
        answers: outputs that an answer needs.
        sequences: how many each split has.
        unknown: the share of each split's tokens that are not in the vocabulary.
        sha256: of steps, targets and vocabulary: the identity of the data for a trial's key.
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
        """What `encode` wrote into `folder`."""
        return TypeAdapter(cls).validate_json((folder / "table.json").read_bytes())


def steps_of(folder: Path) -> NDArray[Any]:
    """The steps of all sequences, (N, F) float32, or (N, 1) int32 where they are codes; memory-mapped."""
    steps: NDArray[Any] = np.load(folder / "steps.npy", mmap_mode="c", allow_pickle=False)
    return steps


def targets_of(folder: Path) -> NDArray[np.float32] | None:
    """The targets, (M, K): a row a sequence, or with an answer at each step a row a step; None: the next step is it."""
    file = folder / "targets.npy"
    return np.load(file, mmap_mode="c", allow_pickle=False) if file.exists() else None


def bounds_of(folder: Path) -> NDArray[np.int64]:
    """Of each sequence (Q, 3): its first step, the one after its last, and its split, as `SPLITS` counts them."""
    bounds: NDArray[np.int64] = np.load(folder / "sequences.npy", allow_pickle=False)
    return bounds


def vocabulary_of(folder: Path) -> list[str]:
    """The tokens of the vocabulary by code; padding and unknown ones have names in angle brackets."""
    words: list[str] = json.loads((folder / VOCABULARY).read_text(encoding="utf-8"))
    return words


# Window


@dataclass(frozen=True)
class Piecing:
    """What a piece of a sequence is, in steps; the numbers of a piece stand in `<split>.npy`.

    A piece (K, 4) is the first step that is read, the first that is scored, the one after the last, and the sequence
    that it is of, all counted over all sequences.

    Attributes:
        windows: how many there are, by split.
        left_out: steps that no piece has, by split: of one answer a sequence, those before the last `length`.
        table: sha256 of the sequences that they are of.
        shape: what a network is told of them.
        objective: what an answer is.
        token: what a class is, where it is one of a text.
    """

    length: int | None
    context: int
    scored: int | None
    carry: bool
    windows: dict[str, int]
    left_out: dict[str, int]
    table: str
    objective: Objective
    token: Literal["characters", "words"] | None
    shape: WindowShape

    @classmethod
    def read(cls, folder: Path) -> Self:
        """What `cut` wrote into `folder`."""
        return TypeAdapter(cls).validate_json((folder / WINDOWS).read_bytes())


SEQUENCES, VOCABULARY = "sequences.parquet", "vocabulary.json"
