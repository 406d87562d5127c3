"""Sequences that are learned whole: texts, pieces of music, generated tasks, pictures read pixel by pixel.

A table has rows in time, and any window of it may be learned from. Here the source says what a sequence is: a review, a
chorale. A network gives one answer at the end of a sequence, or one answer at each of its steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from learning.answers import AnswerKindName
from problems.lazy_modules import pl
from problems.source import Source

SPLIT_COLUMN, INPUTS_COLUMN, TARGET_COLUMN = "split", "inputs", "target"
"""The columns of `Sequences.frame`, beside `PLACE_COLUMN`."""


@dataclass(frozen=True)
class SequenceFormat:
    """What the sequences of a source consist of, and which answers a network gives to them (lecture row P1).

    Attributes:
        objective: the kind of an answer, a name in `learning.answers`.
        per_step: there is an answer at each step (many-to-many, aligned); otherwise one, at the end (many-to-one).
        is_shifted: the answer at a step is the input of the next step; the source has no separate target.
        is_text: inputs are text, whose tokens become codes by a vocabulary of the training split.
        codes: inputs are codes below this number; None: they are numbers, or text.
        features: how many numbers each step has; 1 for codes and for text.
        answers: how many classes or labels there are; 1 for a number and for yes or no; None: one for each code of the
            vocabulary.
        is_stream: the sequences of a split follow each other without a break, so that they are one.
    """

    objective: AnswerKindName
    per_step: bool = False
    is_shifted: bool = False
    is_text: bool = False
    codes: int | None = None
    features: int = 1
    answers: int | None = 1
    is_stream: bool = False


@dataclass(frozen=True)
class Sequences:
    """The sequences of a source, one in each row, in the order of the source.

    Attributes:
        frame: `split` (train, validation or test; null where the source has no split of its own); `inputs` (String for
            text, else List(Float32): the steps one after the other, `features` numbers each); `target` (List(Float32):
            one number, or where there is an answer at each step as many as steps times labels; no such column where the
            target is shifted); and `PLACE_COLUMN`, which says, for people, where a sequence stands.
    """

    frame: pl.LazyFrame


class SequenceSource(Source):
    """Where sequences come from; each kind of source is a subclass in a module of its own.

    Attributes:
        unit: the unit of a target that is a number, for people.
    """

    unit: ClassVar[str] = ""

    @property
    def format(self) -> SequenceFormat:
        """What the sequences consist of, and which answers a network gives to them."""
        raise NotImplementedError

    def read_sequences(self, store: Path, scratch: Path) -> Sequences:
        """Read the sequences of the files in `store`, which stay as they are.

        `scratch` is an empty folder for files that the frame is scanned from; it lives as long as the frame is used.

        Raises:
            RecastError: a file cannot be read as what it should be; the message names the file and the place in it.
        """
        raise NotImplementedError
