"""What a problem is: where its table comes from, what is forecast from what, and in which unit."""

from datetime import timedelta
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from problems.adding import AddingSource
from problems.columns import Table
from problems.contract import Contract
from problems.copy_memory import CopyMemorySource
from problems.database import DatabaseSource
from problems.digits import DigitsSource
from problems.fresh import AnyFresh
from problems.imdb import ImdbSource
from problems.jena import JenaSource
from problems.language import LanguageSource
from problems.mnist import MnistSource
from problems.music import MusicSource
from problems.nyc import NycSource
from problems.questions import QuestionsSource
from problems.sequences import SequenceSource
from problems.source import Duration, written
from problems.split import AnySplit, SequenceSplit
from problems.station import StationSource
from problems.table import TableSource

AnySource = Annotated[
    DatabaseSource | JenaSource | NycSource | QuestionsSource | StationSource | TableSource,
    Field(discriminator="kind"),
]


class Windows(BaseModel):
    """Which past rows a forecast is made from, and how far ahead it reaches."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    lookback: Duration = Field(description="how far back the inputs reach")
    step: Duration = Field(description="one input each step")
    delay: Duration = Field(description="from the last input to the target (split lecture: from the row after it)")
    first: Duration | None = Field(
        None,
        description="one network forecasts each step from this delay to `delay`, the shortest lead to the longest; "
        "null: `delay` alone",
    )

    @property
    def leads(self) -> int:
        """How many steps are forecast."""
        return 1 if self.first is None else (self.delay - self.first) // self.step + 1

    @model_validator(mode="after")
    def _whole_steps(self) -> "Windows":
        if self.first is not None and not (
            self.step <= self.first <= self.delay and (self.delay - self.first) % self.step == timedelta(0)
        ):
            raise ValueError(
                f"first {written(self.first)} must be a step of {written(self.step)} or more, and a whole number of "
                f"them before delay {written(self.delay)}"
            )
        if self.step > self.lookback:
            raise ValueError(f"step {written(self.step)} is longer than lookback {written(self.lookback)}")
        if self.lookback % self.step:
            raise ValueError(f"lookback {written(self.lookback)} is no whole number of steps of {written(self.step)}")
        return self


class Problem(BaseModel):
    """What is learned: a source, its columns, the split and the windows. All of it can be written in params.yaml.

    Each part is what one stage or two depend on, and all must be there: DVC takes a parameter that is missing for an
    error.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str = Field(description="one line for the report")
    source: AnySource
    table: Table
    fresh: AnyFresh | None = Field(None, description="where new rows come from; null: the source does not grow")
    contract: Contract = Contract()
    split: AnySplit = Field(
        description="lecture, half, {train, validation}, {validation_from, test_from} or {kind: recent, ...}"
    )
    window: Windows

    @property
    def target(self) -> str:
        """What is forecast."""
        return self.table.target

    @property
    def unit(self) -> str:
        """The target's unit, for people."""
        return self.table.unit

    @property
    def horizon(self) -> timedelta:
        """From the last input to the target, the last one where there are several."""
        return self.window.delay + (self.window.step if self.split.delay_from_row else timedelta(0))

    @model_validator(mode="after")
    def _fresh_fits_the_source(self) -> "Problem":
        if self.fresh is not None and self.source.kind not in self.fresh.fits:
            raise ValueError(
                f"fresh cannot be {self.fresh.kind} where the source is {self.source.kind}: it fits "
                f"{' and '.join(self.fresh.fits)}"
            )
        for named, columns in (("ranges", self.contract.ranges), ("stuck", self.contract.stuck)):
            unknown = [name for name in columns if name not in self.table.features] if isinstance(columns, dict) else []
            if unknown:
                raise ValueError(f"contract has {named} for {unknown[0]!r}, which is no feature")
        return self

    @model_validator(mode="after")
    def _windows_fit(self) -> "Problem":
        span, needed = self.source.span(), self.window.lookback + self.window.delay
        if span is not None and needed > span:
            raise ValueError(
                f"lookback {written(self.window.lookback)} and delay {written(self.window.delay)} reach beyond the "
                f"data, which cover at most {written(span)}"
            )
        return self


class Encoding(BaseModel):
    """How a text becomes codes; numbers stay as the source gives them.

    Code 0 is padding, 1 a token that is not in the vocabulary; then come the tokens, the most frequent one first.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokens: Literal["words", "spaces", "characters"] | None = Field(
        None,
        description="words: in small letters, between spaces and punctuation, as Keras cuts them; spaces: whatever "
        "stands between spaces, a line's end too; characters",
    )
    vocabulary: int | None = Field(
        None, ge=3, description="codes, those of padding and unknown tokens among them; null: one a token"
    )


class Pieces(BaseModel):
    """Which part of a sequence a network sees at once, in steps."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    length: int | None = Field(
        None,
        ge=1,
        description="one answer: the last so many steps count, and shorter sequences are padded in front, null: as the "
        "longest in training; an answer at each step: sequences are cut into pieces so long, null: they are not",
    )
    context: int = Field(
        0, ge=0, description="steps before a piece that are read but not scored, where the sequence has them"
    )
    scored: int | None = Field(
        None, ge=1, description="only the last so many steps of a sequence are scored; null: all (many-to-many, last N)"
    )
    carry: bool = Field(
        False,
        description="a piece begins with the state that the one before it has left: truncated back-propagation",
    )

    @model_validator(mode="after")
    def _pieces_are_cut(self) -> "Pieces":
        if self.length is None and (self.carry or self.context):
            raise ValueError("length must be given where context or carry is: without it nothing is cut")
        if self.carry and self.context:
            raise ValueError("context must be 0 where carry is true: the state holds what came before")
        return self


AnySequenceSource = Annotated[
    AddingSource | CopyMemorySource | DigitsSource | ImdbSource | LanguageSource | MnistSource | MusicSource,
    Field(discriminator="kind"),
]

ANSWERS = {"value": "number", "binary": "yes or no", "classes": "class", "labels": "labels"}
"""What an answer is, in a word."""


class SequenceProblem(BaseModel):
    """What is learned of whole sequences. Its parts have the names of those of `Problem`, as stages depend on them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str = Field(description="one line for the report")
    source: AnySequenceSource
    table: Encoding
    split: SequenceSplit = Field(description="given, {kind: given, validation} or {train, validation}")
    window: Pieces

    @property
    def target(self) -> str:
        """What is forecast."""
        asked = self.source.asked
        return f"next {'token' if asked.text else 'step'}" if asked.shifted else ANSWERS[asked.objective]

    @property
    def unit(self) -> str:
        """The target's unit, for people."""
        return self.source.unit

    @model_validator(mode="after")
    def _fits_what_is_asked(self) -> "SequenceProblem":
        asked, window = self.source.asked, self.window
        if asked.text and self.table.tokens is None:
            raise ValueError("tokens must be words, spaces or characters: the source is text")
        if not asked.text and (self.table.tokens or self.table.vocabulary):
            raise ValueError("tokens and vocabulary must be left out: the source is no text")
        if not asked.each and (window.carry or window.context or window.scored):
            raise ValueError("carry, context and scored must be left out: there is one answer a sequence")
        if window.carry and not asked.stream:
            raise ValueError("carry must be false: these sequences have nothing to do with each other")
        if asked.stream and window.length is None:
            raise ValueError("length must be given: the text is one sequence, which is learned in pieces")
        return self


TABLE, SEQUENCES = "<table>", "<sequences>"

_OF_SEQUENCES = {
    kind for source in SequenceSource.__subclasses__() for kind in get_args(source.model_fields["kind"].annotation)
}


def _shape(value: Any) -> str:
    """Which model a problem is, written or read: its source tells."""
    source = value.get("source") if isinstance(value, dict) else getattr(value, "source", None)
    kind = source.get("kind") if isinstance(source, dict) else getattr(source, "kind", None)
    return SEQUENCES if kind in _OF_SEQUENCES else TABLE


AnyProblem = Annotated[
    Annotated[Problem, Tag(TABLE)] | Annotated[SequenceProblem, Tag(SEQUENCES)], Discriminator(_shape)
]
