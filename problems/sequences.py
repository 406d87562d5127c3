"""Sequences that are learned whole: texts, pieces of music, generated tasks, pictures read pixel by pixel.

A table has rows in time, and any window of it may be learned from. Here a sequence is what its source says it is: a
review, a chorale. What is asked of it is one answer at its end, or one at each of its steps.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import polars as pl

from problems.source import Source

SPLIT, INPUTS, TARGET = "split", "inputs", "target"
"""The columns of `Sequences.frame`, beside `PLACE`."""

Objective = Literal["value", "binary", "classes", "labels"]
"""What is forecast: a number; yes or no; one of several classes; for each of several labels, whether it is there."""


@dataclass(frozen=True)
class Asked:
    """What a source's sequences are made of, and what is asked of them (lecture row P1).

    Attributes:
        objective: what an answer is.
        each: an answer at each step (many-to-many, aligned); otherwise one, at the end (many-to-one).
        shifted: the answer at a step is the next step's input; there is no target of its own.
        text: inputs are text, whose tokens become codes by a vocabulary of the training split.
        codes: inputs are codes below this number; None: they are numbers, or text.
        features: numbers at each step; 1 for codes and text.
        answers: classes, or labels; 1 for a number and for yes or no; None: as many as the vocabulary has codes.
        stream: the sequences of a split, one after the other, are one.
    """

    objective: Objective
    each: bool = False
    shifted: bool = False
    text: bool = False
    codes: int | None = None
    features: int = 1
    answers: int | None = 1
    stream: bool = False


@dataclass(frozen=True)
class Sequences:
    """A source's sequences, one a row, in its own order.

    Attributes:
        frame: `split` (train, validation or test; null where the source has no split of its own); `inputs` (String for
            text; else List(Float32), the steps one after the other, `features` numbers each); `target` (List(Float32):
            one number, or where there is an answer at each step as many as steps times labels; missing where the target
            is shifted); and `PLACE`, which says for people where a sequence stands.
    """

    frame: pl.LazyFrame


class SequenceSource(Source):
    """Where sequences come from; one subclass a kind of source, in a module of its own.

    Attributes:
        unit: of a target that is a number, for people.
    """

    unit: ClassVar[str] = ""

    @property
    def asked(self) -> Asked:
        """What its sequences are, and what is asked of them."""
        raise NotImplementedError

    def sequences(self, store: Path, scratch: Path) -> Sequences:
        """The sequences of the files in `store`, which stay as they are.

        `scratch` is an empty folder for files that the frame is scanned from; it lives as long as the frame is used.

        Raises:
            RecastError: a file cannot be read as what it should be; the message names the file and the place in it.
        """
        raise NotImplementedError
