"""The two kinds of problems in params.yaml, with their sections; and the list of data sources for each kind."""

from datetime import timedelta
from typing import Annotated, Any, NamedTuple, get_args

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from learning.answers import ANSWER_KINDS
from problems.columns import TableSettings
from problems.contract import Contract
from problems.durations import format_duration
from problems.encoding import EncodingSettings
from problems.fresh import AnyFresh, Fresh
from problems.growing_source import GrowingSource
from problems.sources.adding import AddingSource
from problems.sources.copy_memory import CopyMemorySource
from problems.sources.database import DatabaseSource
from problems.sources.digits import DigitsSource
from problems.sources.imdb import ImdbSource
from problems.sources.jena import JenaSource
from problems.sources.language import LanguageSource
from problems.sources.mnist import MnistSource
from problems.sources.music import MusicSource
from problems.sources.nyc import NycSource
from problems.sources.questions import QuestionsSource
from problems.sources.station import StationSource
from problems.sources.table import TableSource
from problems.split import AnySplit, SequenceSplit
from problems.windows import PieceSettings, WindowSettings

AnySource = Annotated[
    DatabaseSource | JenaSource | NycSource | QuestionsSource | StationSource | TableSource,
    Field(discriminator="kind"),
]


class Growth(NamedTuple):
    """A source that grows, and the place that its new rows come from."""

    source: GrowingSource
    fresh: Fresh


class Problem(BaseModel):
    """A column that is forecast from a table of rows in time. All of it can be written in params.yaml.

    Each section is what one or two stages depend on. None may be missing: to DVC, a parameter that does not exist is an
    error.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str = Field(description="one line for the report")
    source: AnySource = Field(description="where the rows come from")
    table: TableSettings
    fresh: AnyFresh | None = Field(None, description="where new rows come from; null: the source does not grow")
    contract: Contract = Contract()
    split: AnySplit = Field(
        description="lecture, half, {train, validation}, {validation_from, test_from} or {kind: recent, ...}"
    )
    window: WindowSettings

    @property
    def target(self) -> str:
        """What is forecast: the name of a column."""
        return self.table.target

    @property
    def unit(self) -> str:
        """The unit of the target, for people."""
        return self.table.unit

    @property
    def horizon(self) -> timedelta:
        """The time from the last input to the target; to the last one where there are several."""
        return self.window.delay + (self.window.step if self.split.delay_from_row else timedelta(0))

    @property
    def growth(self) -> Growth | None:
        """The source and the place of its new rows; None where the source does not grow."""
        if self.fresh is None or not isinstance(self.source, GrowingSource):
            return None
        return Growth(self.source, self.fresh)

    @model_validator(mode="after")
    def _check_fresh(self) -> "Problem":
        allowed = self.source.fresh_kinds
        if self.fresh is not None and self.fresh.kind not in allowed:
            raise ValueError(
                f"fresh cannot be {self.fresh.kind} where the source is {self.source.kind}: "
                + (f"it can be {' or '.join(allowed)}" if allowed else "such a source never gets new rows")
            )
        return self

    @model_validator(mode="after")
    def _check_contract(self) -> "Problem":
        for rule, columns in (("ranges", self.contract.ranges), ("stuck", self.contract.stuck)):
            unknown = [name for name in columns if name not in self.table.features] if isinstance(columns, dict) else []
            if unknown:
                raise ValueError(f"contract has {rule} for {unknown[0]!r}, which is not a feature")
        return self

    @model_validator(mode="after")
    def _check_span(self) -> "Problem":
        span, lookback, delay = self.source.longest_span, self.window.lookback, self.window.delay
        if span is not None and lookback + delay > span:
            raise ValueError(
                f"lookback {format_duration(lookback)} and delay {format_duration(delay)} reach beyond the data, which "
                f"cover at most {format_duration(span)}"
            )
        return self


AnySequenceSource = Annotated[
    AddingSource | CopyMemorySource | DigitsSource | ImdbSource | LanguageSource | MnistSource | MusicSource,
    Field(discriminator="kind"),
]


class SequenceProblem(BaseModel):
    """A question about each whole sequence. Its sections are named like those of `Problem`: stages depend on them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str = Field(description="one line for the report")
    source: AnySequenceSource = Field(description="where the sequences come from")
    table: EncodingSettings
    split: SequenceSplit = Field(description="given, {kind: given, validation} or {train, validation}")
    window: PieceSettings

    @property
    def target(self) -> str:
        """What is forecast, in a few words."""
        sequence_format = self.source.format
        if sequence_format.is_shifted:
            return "next token" if sequence_format.is_text else "next step"
        return ANSWER_KINDS[sequence_format.objective].title

    @property
    def unit(self) -> str:
        """The unit of the target, for people."""
        return self.source.unit

    @model_validator(mode="after")
    def _check_sections_fit_the_source(self) -> "SequenceProblem":
        sequence_format, window = self.source.format, self.window
        if sequence_format.is_text and self.table.tokens is None:
            raise ValueError("tokens must be words, spaces or characters: the source is text")
        if not sequence_format.is_text and (self.table.tokens or self.table.vocabulary):
            raise ValueError("tokens and vocabulary must be left out: the source is not text")
        if not sequence_format.per_step and (window.carry or window.context or window.scored):
            raise ValueError("carry, context and scored must be left out: each sequence has one answer")
        if window.carry and not sequence_format.is_stream:
            raise ValueError("carry must be false: these sequences have nothing to do with each other")
        if sequence_format.is_stream and window.length is None:
            raise ValueError("length must be given: the text is one sequence, which is learned in pieces")
        return self


TABLE_TAG, SEQUENCES_TAG = "<table>", "<sequences>"

_SEQUENCE_KINDS = {
    kind
    for source in get_args(get_args(AnySequenceSource)[0])
    for kind in get_args(source.model_fields["kind"].annotation)
}
"""The kinds of sources in `AnySequenceSource`."""


def _choose_tag(value: Any) -> str:
    """The tag of the class that a problem belongs to, which follows from its source; `value` is written or read."""
    source = value.get("source") if isinstance(value, dict) else getattr(value, "source", None)
    kind = source.get("kind") if isinstance(source, dict) else getattr(source, "kind", None)
    return SEQUENCES_TAG if isinstance(kind, str) and kind in _SEQUENCE_KINDS else TABLE_TAG


AnyProblem = Annotated[
    Annotated[Problem, Tag(TABLE_TAG)] | Annotated[SequenceProblem, Tag(SEQUENCES_TAG)], Discriminator(_choose_tag)
]
