"""Where a series is cut into training, validation and test rows, and which rows are left out before and after them."""

import itertools
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from problems.errors import RecastError
from problems.source import Duration, written


class Cuts(NamedTuple):
    """Rows of one series, counted from its first: training is `begin` up to, not including, `train`; validation goes on
    to `validation`, the test to `end`. What is before `begin`, and from `end` on, is left out of the table.
    """

    begin: int
    train: int
    validation: int
    end: int

    @property
    def are_apart(self) -> bool:
        """Whether each part has a row."""
        return 0 <= self.begin < self.train < self.validation < self.end


Before = Callable[[datetime], int]
"""How many rows of a series are earlier than a moment."""


class Split(BaseModel):
    """A rule that cuts each series of a problem into training, validation and test rows, in this order.

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

    def cuts(self, rows: int, cadence: timedelta, last: datetime, before: Before) -> Cuts:
        """The cuts of a series of so many rows.

        Args:
            last: the time of its last row.
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

    def cuts(self, rows: int, cadence: timedelta, last: datetime, before: Before) -> Cuts:
        # Whole rows of exact time: 200,000 * (10 minutes / cadence) may come out one row short.
        train, validation = (lecture * timedelta(minutes=10) // cadence for lecture in (200_000, 300_000))
        cuts = Cuts(0, train, validation, rows)
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

    def cuts(self, rows: int, cadence: timedelta, last: datetime, before: Before) -> Cuts:
        train = int(self.train * rows)
        return Cuts(0, train, train + int(self.validation * rows), rows)


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
    """Validation from one moment on, test from another; the same for every series.

    With `train_from` and `test_until` it is an origin of a backtest: rows outside are as if they were not there.
    """

    kind: Literal["dates"] = "dates"
    # Left out where they are null, so that what was written before they existed stays byte for byte.
    train_from: Moment | None = Field(
        None, exclude_if=lambda value: value is None, description="rows before it are left out; null: all rows train"
    )
    validation_from: Moment
    test_from: Moment
    test_until: Moment | None = Field(
        None, exclude_if=lambda value: value is None, description="rows from it on are left out; null: none are"
    )

    @model_validator(mode="after")
    def _in_order(self) -> "DateSplit":
        given = {name: getattr(self, name) for name in ("train_from", "validation_from", "test_from", "test_until")}
        there = [(name, moment) for name, moment in given.items() if moment is not None]
        for (earlier, one), (later, other) in itertools.pairwise(there):
            if other <= one:
                raise ValueError(f"{later} must be later than {earlier}")
        return self

    def cuts(self, rows: int, cadence: timedelta, last: datetime, before: Before) -> Cuts:
        begin = 0 if self.train_from is None else before(self.train_from)
        end = rows if self.test_until is None else before(self.test_until)
        cuts = Cuts(begin, before(self.validation_from), before(self.test_from), end)
        if not cuts.are_apart:
            left_out = f", {cuts.begin:,} before train_from {self.train_from}" if self.train_from else ""
            left_out += f", {cuts.end:,} before test_until {self.test_until}" if self.test_until else ""
            raise RecastError(
                f"split: validation_from {self.validation_from} and test_from {self.test_from} leave a part of the "
                f"series empty: of its {rows:,} rows {cuts.train:,} are before the one and {cuts.validation:,} before "
                f"the other{left_out}"
            )
        return cuts


class RecentSplit(Split):
    """The last rows of each series test, those before them validate, and those before these train.

    All are counted back in time from where the row after the last would stand: as rows come, the three move on. With
    `train: null` the training rows grow, with a duration they roll.
    """

    kind: Literal["recent"] = "recent"
    train: Duration | None = Field(
        None, description="how long the training rows reach back; older rows are left out; null: none is"
    )
    validation: Duration
    test: Duration

    def cuts(self, rows: int, cadence: timedelta, last: datetime, before: Before) -> Cuts:
        end = last + cadence
        test = end - self.test
        validation = test - self.validation
        begin = 0 if self.train is None else before(validation - self.train)
        cuts = Cuts(begin, before(validation), before(test), rows)
        if not cuts.are_apart:
            raise RecastError(
                f"split: validation {written(self.validation)} and test {written(self.test)} before the last row, "
                f"{last}, leave a part of the series empty: of its {rows:,} rows {cuts.begin:,} are left out, "
                f"{cuts.train - cuts.begin:,} train, {cuts.validation - cuts.train:,} validate and "
                f"{cuts.end - cuts.validation:,} test"
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
    """Let names stand for themselves, and tell the kinds by their keys."""
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
        case {"test": str()}:
            return {"kind": "recent", **value}
        case dict():
            return {"kind": "fractions", **value}
        case Split() | GivenSplit():
            return value
    raise ValueError("allowed: lecture, half, {train, validation}, {validation_from, test_from} or {kind: recent}")


AnySplit = Annotated[
    LectureSplit | FractionSplit | DateSplit | RecentSplit,
    Field(discriminator="kind"),
    BeforeValidator(
        _by_name, json_schema_input_type=Literal["lecture", "half"] | FractionSplit | DateSplit | RecentSplit
    ),
]

SequenceSplit = Annotated[
    GivenSplit | FractionSplit,
    Field(discriminator="kind"),
    BeforeValidator(_by_name, json_schema_input_type=Literal["given", "half"] | GivenSplit | FractionSplit),
]


SPLITS = ("train", "validation", "test")
