"""TODO: what problems.columns is for."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from problems.source import Duration

Scale = Literal["standard", "range", "none"]


class Harmonics(BaseModel):
    """How many harmonics of the year and of the day follow the seasons and the hours."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    year: int = Field(ge=0, le=12, description="sines and cosines with 1, 2, ... waves a year")
    day: int = Field(ge=0, le=12, description="sines and cosines with 1, 2, ... waves a day")


CLIMATOLOGY = ("climatology", "climatology at the target")
"""The columns of the climatology: at a row's time, and a horizon after it."""


RESERVED = ("time", "series")
"""Names of columns that every table has."""


class Table(BaseModel):
    """The columns that are used of a source, what is forecast, and what stands for a missing value."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    features: tuple[str, ...] = Field(min_length=1, description="columns that a forecast is made from")
    target: str = Field(description="the column that is forecast; one of the features")
    unit: str = Field(description="the target's unit, for people")
    cadence: Duration | None = Field(None, description="time between rows; null: the most frequent one")
    thin: bool = Field(
        False,
        description="where rows come more often than `cadence`, keep of each stretch without a gap those that stand "
        "whole cadences after its first",
    )
    sentinels: dict[str, tuple[float, ...]] = Field({}, description="values that stand for a missing one, by column")
    fill: Duration | None = Field(None, description="carry the last value forward over nulls, at most so long")
    scale: Scale | None = Field(None, description="how the columns are scaled; null: as normalize.scale says")
    known: tuple[str, ...] = Field(
        (),
        description="features that are known in advance, such as holidays or a timetable: what they "
        "are at the target's time is a further input",
    )
    calendar: Harmonics | None = Field(None, description="so many harmonics of the time as further inputs")
    climatology: Harmonics | None = Field(
        None,
        description="the target's mean by day of the year and hour of the day, in so many harmonics, fitted on the "
        "training rows; at each row and a horizon after it, as further inputs",
    )

    @model_validator(mode="after")
    def _thins_to_a_cadence(self) -> "Table":
        if self.thin and self.cadence is None:
            raise ValueError("cadence must be given where thin is true: it says which rows are kept")
        return self

    @model_validator(mode="after")
    def _columns_are_declared(self) -> "Table":
        if self.target not in self.features:
            raise ValueError(f"target {self.target!r} is not among the features: {', '.join(self.features)}")
        if len(set(self.features)) < len(self.features):
            raise ValueError(f"features must differ, and one is listed twice: {', '.join(self.features)}")
        if reserved := set(RESERVED) & set(self.features):
            raise ValueError(f"features cannot have {reserved.pop()!r}: the table has a column of that name of its own")
        if taken := set(derived_names(self)) & set(self.features):
            raise ValueError(f"features cannot have {taken.pop()!r}: it is a column that Recast adds")
        if unknown := set(self.sentinels) - set(self.features):
            raise ValueError(f"sentinels for {sorted(unknown)}, which are no features")
        if self.target in self.known:
            raise ValueError(f"known cannot have {self.target!r}: the target is what is not known in advance")
        if unknown := set(self.known) - set(self.features):
            raise ValueError(f"known lists {sorted(unknown)}, which are no features: {', '.join(self.features)}")
        if len(set(self.known)) < len(self.known):
            raise ValueError(f"known lists a feature twice: {', '.join(self.known)}")
        return self


def ahead(known: str) -> str:
    """The column of a feature that is known in advance, at the target's time."""
    return f"{known} at the target"


def derived_names(table: Table) -> tuple[str, ...]:
    """The columns that `normalize` adds: what is known in advance, the calendar's, then those of the climatology."""
    calendar = (
        [
            f"{period} {function} {k}"
            for period, count in (("year", table.calendar.year), ("day", table.calendar.day))
            for k in range(1, count + 1)
            for function in ("sin", "cos")
        ]
        if table.calendar
        else []
    )
    return (*map(ahead, table.known), *calendar, *(CLIMATOLOGY if table.climatology else ()))
