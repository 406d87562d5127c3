"""Where a series is cut into training, validation and test rows."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from problems.errors import RecastError


class Cuts(NamedTuple):
    """Rows of one series, counted from its first: training ends before `train`, validation before `validation`."""

    train: int
    validation: int


class Split(BaseModel):
    """A rule that cuts each series of a problem in two places.

    Attributes:
        delay_from_row: the delay is counted from the row after the lookback, as in the lecture's generator; otherwise
            from the last input.
        targets_may_cross: a target may lie past the end of its split (inputs never do).
        skipped_rows: rows left out at the beginning of validation and test.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    delay_from_row: ClassVar[bool] = False
    targets_may_cross: ClassVar[bool] = False
    skipped_rows: ClassVar[int] = 0

    def cuts(self, rows: int, cadence: timedelta, before: Callable[[datetime], int]) -> Cuts:
        """The cuts of a series of so many rows.

        Args:
            before: how many of its rows are earlier than a moment.

        Raises:
            RecastError: the series is too short for the rule.
        """
        raise NotImplementedError


class LectureSplit(Split):
    """The lecture's split (row D3): 200,000 and 300,000 rows of ten minutes, scaled for the cadence.

    Its generator starts validation and test one row late and lets targets cross the cuts; so does this.
    """

    kind: Literal["lecture"] = "lecture"

    delay_from_row: ClassVar[bool] = True
    targets_may_cross: ClassVar[bool] = True
    skipped_rows: ClassVar[int] = 1

    def cuts(self, rows: int, cadence: timedelta, before: Callable[[datetime], int]) -> Cuts:
        # Whole rows of exact time: 200,000 * (10 minutes / cadence) may come out one row short.
        cuts = Cuts(*(lecture * timedelta(minutes=10) // cadence for lecture in (200_000, 300_000)))
        if rows <= cuts.validation:
            raise RecastError(
                f"split: lecture needs more than {cuts.validation:,} rows at a cadence of {cadence}, and the series "
                f"has {rows:,}; use half, {{train: 0.5, validation: 0.25}} or dates"
            )
        return cuts


class FractionSplit(Split):
    """The first `train` of the rows, the next `validation` of them, and the rest for the test."""

    kind: Literal["fractions"] = "fractions"
    train: float = Field(gt=0, lt=1)
    validation: float = Field(gt=0, lt=1)

    @model_validator(mode="after")
    def _some_rows_are_left(self) -> "FractionSplit":
        if self.train + self.validation >= 1:
            raise ValueError("train and validation together must be below 1, so that test rows are left")
        return self

    def cuts(self, rows: int, cadence: timedelta, before: Callable[[datetime], int]) -> Cuts:
        train = int(self.train * rows)
        return Cuts(train, train + int(self.validation * rows))


def _moment(value: Any) -> Any:
    """A date, or a date and a time; a time of a zone in UTC, as `ingest` writes the table's times."""
    if not isinstance(value, str):
        return value
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise ValueError("write a date, 2015-01-01, or in quotes a date and a time, '2015-01-01 12:00'") from None
    return moment.astimezone(UTC).replace(tzinfo=None) if moment.tzinfo else moment


Moment = Annotated[
    datetime,
    BeforeValidator(_moment),
    WithJsonSchema({"type": "string", "examples": ["2015-01-01", "2015-01-01 12:00"]}),
]


class DateSplit(Split):
    """Validation from one moment on, test from another; the same for every series."""

    kind: Literal["dates"] = "dates"
    validation_from: Moment
    test_from: Moment

    @model_validator(mode="after")
    def _in_order(self) -> "DateSplit":
        if self.test_from <= self.validation_from:
            raise ValueError("test_from must be later than validation_from")
        return self

    def cuts(self, rows: int, cadence: timedelta, before: Callable[[datetime], int]) -> Cuts:
        cuts = Cuts(before(self.validation_from), before(self.test_from))
        if not 0 < cuts.train < cuts.validation < rows:
            raise RecastError(
                f"split: validation_from {self.validation_from} and test_from {self.test_from} leave a part of the "
                f"series empty: of its {rows:,} rows {cuts.train:,} are before the one and {cuts.validation:,} before "
                "the other"
            )
        return cuts


class GivenSplit(BaseModel):
    """The source's own split into training, validation and test sequences."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["given"] = "given"
    validation: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="share of the training sequences that validate, drawn at random, where the source has none for it",
    )


def _by_name(value: Any) -> Any:
    """Let names stand for themselves, and tell fractions from dates by their keys."""
    match value:
        case "given":
            return {"kind": "given"}
        case "lecture":
            return {"kind": "lecture"}
        case "half":
            return {"kind": "fractions", "train": 0.5, "validation": 0.25}
        case {"kind": _}:
            return value
        case {"validation_from": _} | {"test_from": _}:
            return {"kind": "dates", **value}
        case dict():
            return {"kind": "fractions", **value}
        case Split() | GivenSplit():
            return value
    raise ValueError("allowed: lecture, half, {train, validation} or {validation_from, test_from}")


AnySplit = Annotated[
    LectureSplit | FractionSplit | DateSplit,
    Field(discriminator="kind"),
    BeforeValidator(_by_name, json_schema_input_type=Literal["lecture", "half"] | FractionSplit | DateSplit),
]

SequenceSplit = Annotated[
    GivenSplit | FractionSplit,
    Field(discriminator="kind"),
    BeforeValidator(_by_name, json_schema_input_type=Literal["given", "half"] | GivenSplit | FractionSplit),
]
