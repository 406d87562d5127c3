"""How data are split into training, validation and test: the section `split` of a problem in params.yaml."""

import itertools
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from problems.durations import Duration, format_duration
from problems.errors import RecastError

SPLITS = ("train", "validation", "test")
"""The names of the splits, in the order in which files list them."""


class Cuts(NamedTuple):
    """Where a series is cut, as numbers of rows counted from its first row.

    Training is from `begin` up to, not including, `train`; validation continues to `validation`, the test to `end`. The
    rows before `begin` and from `end` on are left out of the table.
    """

    begin: int
    train: int
    validation: int
    end: int

    @property
    def are_apart(self) -> bool:
        """Whether each of the three splits has a row."""
        return 0 <= self.begin < self.train < self.validation < self.end


RowsBefore = Callable[[datetime], int]
"""How many rows of a series are earlier than a moment."""


class Split(BaseModel):
    """A rule that cuts each series into training, validation and test rows, in this order.

    Attributes:
        delay_from_row: the delay is counted from the row after the lookback, as in the lecture's generator; otherwise
            from the last input.
        targets_may_cross: a target may lie after the end of its split (inputs never do).
        skipped_rows: how many rows are left out at the beginning of validation and of test.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    delay_from_row: ClassVar[bool] = False
    targets_may_cross: ClassVar[bool] = False
    skipped_rows: ClassVar[int] = 0

    def find_cuts(self, rows: int, cadence: timedelta, last: datetime, before: RowsBefore) -> Cuts:
        """Find the cuts of a series.

        Args:
            rows: how many rows the series has.
            last: the time of its last row.
            before: how many of its rows are earlier than a moment.

        Raises:
            RecastError: the series is too short for the rule.
        """
        raise NotImplementedError


class LectureSplit(Split):
    """The split of the lecture (row D3): 200,000 and 300,000 rows of ten minutes, scaled to the cadence.

    The lecture's generator starts validation and test one row late, and lets targets cross the cuts. So does this one.
    """

    kind: Literal["lecture"] = "lecture"

    delay_from_row: ClassVar[bool] = True
    targets_may_cross: ClassVar[bool] = True
    skipped_rows: ClassVar[int] = 1

    def find_cuts(self, rows: int, cadence: timedelta, last: datetime, before: RowsBefore) -> Cuts:
        # Whole rows of exact times: 200,000 * (10 minutes / cadence) could be one row short.
        train, validation = (rows_of_ten * timedelta(minutes=10) // cadence for rows_of_ten in (200_000, 300_000))
        cuts = Cuts(0, train, validation, rows)
        if rows <= cuts.validation:
            raise RecastError(
                f"split: lecture needs more than {cuts.validation:,} rows at a cadence of {cadence}, and the series "
                f"has {rows:,}; use half, {{train: 0.5, validation: 0.25}} or dates"
            )
        return cuts


class FractionSplit(Split):
    """The first rows train, the next validate, and the rest test; `train` and `validation` are shares of the rows."""

    kind: Literal["fractions"] = "fractions"
    train: float = Field(gt=0, lt=1)
    validation: float = Field(gt=0, lt=1)

    @model_validator(mode="after")
    def _check_rows_are_left(self) -> "FractionSplit":
        if self.train + self.validation >= 1:
            raise ValueError("train and validation together must be below 1, so that test rows are left")
        return self

    def find_cuts(self, rows: int, cadence: timedelta, last: datetime, before: RowsBefore) -> Cuts:
        train = int(self.train * rows)
        return Cuts(0, train, train + int(self.validation * rows), rows)


def _parse_moment(value: Any) -> Any:
    """Read a date, or a date and a time; one with a zone becomes UTC, which is what the times of the table are."""
    if not isinstance(value, str):
        return value
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise ValueError("write a date, 2015-01-01, or in quotes a date and a time, '2015-01-01 12:00'") from None
    return moment.astimezone(UTC).replace(tzinfo=None) if moment.tzinfo else moment


Moment = Annotated[
    datetime,
    BeforeValidator(_parse_moment),
    WithJsonSchema({"type": "string", "examples": ["2015-01-01", "2015-01-01 12:00"]}),
]


class DateSplit(Split):
    """Validation begins at one moment and the test at another, the same for every series.

    With `train_from` and `test_until` it is an origin of a backtest: rows outside of them are treated as if they did
    not exist.
    """

    kind: Literal["dates"] = "dates"
    # Not written where they are null, so that what was written before they existed stays the same, byte for byte.
    train_from: Moment | None = Field(
        None,
        exclude_if=lambda value: value is None,
        description="rows before it are left out; null: all earlier rows train",
    )
    validation_from: Moment
    test_from: Moment
    test_until: Moment | None = Field(
        None, exclude_if=lambda value: value is None, description="rows from it on are left out; null: no rows are"
    )

    @model_validator(mode="after")
    def _check_order(self) -> "DateSplit":
        moments = {name: getattr(self, name) for name in ("train_from", "validation_from", "test_from", "test_until")}
        given = [(name, moment) for name, moment in moments.items() if moment is not None]
        for (name, moment), (next_name, next_moment) in itertools.pairwise(given):
            if next_moment <= moment:
                raise ValueError(f"{next_name} must be later than {name}")
        return self

    def find_cuts(self, rows: int, cadence: timedelta, last: datetime, before: RowsBefore) -> Cuts:
        begin = 0 if self.train_from is None else before(self.train_from)
        end = rows if self.test_until is None else before(self.test_until)
        cuts = Cuts(begin, before(self.validation_from), before(self.test_from), end)
        if not cuts.are_apart:
            left_out = f", {cuts.begin:,} before train_from {self.train_from}" if self.train_from else ""
            left_out += f", {cuts.end:,} before test_until {self.test_until}" if self.test_until else ""
            raise RecastError(
                f"split: validation_from {self.validation_from} and test_from {self.test_from} leave a part of the "
                f"series empty: of its {rows:,} rows {cuts.train:,} are before the first and {cuts.validation:,} "
                f"before the second{left_out}"
            )
        return cuts


class RecentSplit(Split):
    """The last rows of each series test, the rows before them validate, and the rows before those train.

    All three are counted back in time from where the row after the last one would be, so they move as rows come. With
    `train: null` the training rows become more, with a duration they roll.
    """

    kind: Literal["recent"] = "recent"
    train: Duration | None = Field(
        None, description="how far the training rows reach back; older rows are left out; null: no rows are"
    )
    validation: Duration
    test: Duration

    def find_cuts(self, rows: int, cadence: timedelta, last: datetime, before: RowsBefore) -> Cuts:
        end = last + cadence
        test = end - self.test
        validation = test - self.validation
        begin = 0 if self.train is None else before(validation - self.train)
        cuts = Cuts(begin, before(validation), before(test), rows)
        if not cuts.are_apart:
            durations = f"validation {format_duration(self.validation)} and test {format_duration(self.test)}"
            raise RecastError(
                f"split: {durations} before the last row, {last}, leave a part of the series empty: of its {rows:,} "
                f"rows {cuts.begin:,} are left out, {cuts.train - cuts.begin:,} train, "
                f"{cuts.validation - cuts.train:,} validate and {cuts.end - cuts.validation:,} test"
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
        description="share of the training sequences that validate, drawn at random, if the source has no validation",
    )


def _add_kind(value: Any) -> Any:
    """Write out a split that is given by a name, and add the kind to one that is recognised by its keys."""
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
        _add_kind, json_schema_input_type=Literal["lecture", "half"] | FractionSplit | DateSplit | RecentSplit
    ),
]

SequenceSplit = Annotated[
    GivenSplit | FractionSplit,
    Field(discriminator="kind"),
    BeforeValidator(_add_kind, json_schema_input_type=Literal["given", "half"] | GivenSplit | FractionSplit),
]
