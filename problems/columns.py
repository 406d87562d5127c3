"""The columns of a problem's table: the section `table` of a problem in params.yaml."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from problems.durations import Duration

Scale = Literal["standard", "range", "none"]

CLIMATOLOGY_COLUMNS = ("climatology", "climatology at the target")
"""The columns of the climatology: at a row's time, and one horizon later."""

RESERVED_COLUMNS = ("time", "series")
"""The columns that every table has, whose names no feature may have."""


class Harmonics(BaseModel):
    """How many harmonics of the year and of the day describe the seasons and the hours."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    year: int = Field(ge=0, le=12, description="number of sines and cosines, with 1, 2, ... waves a year")
    day: int = Field(ge=0, le=12, description="number of sines and cosines, with 1, 2, ... waves a day")


class TableSettings(BaseModel):
    """Which columns of a source are used, which one is forecast, and which values mean that one is missing."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    features: tuple[str, ...] = Field(min_length=1, description="the columns that a forecast is made from")
    target: str = Field(description="the column that is forecast; one of the features")
    unit: str = Field(description="the unit of the target, as figures and tables show it")
    cadence: Duration | None = Field(None, description="time between rows; null: the most frequent one")
    thin: bool = Field(
        False,
        description="where rows come more often than `cadence`, keep only those that are a whole number of cadences "
        "after the first row of a stretch without gaps",
    )
    sentinels: dict[str, tuple[float, ...]] = Field({}, description="by column, the values that mean a missing value")
    fill: Duration | None = Field(
        None, description="fill missing values with the last value before them, at most for this long; null: do not"
    )
    scale: Scale | None = Field(None, description="how the columns are scaled; null: as normalize.scale says")
    known: tuple[str, ...] = Field(
        (),
        description="features that are known in advance, such as holidays or a timetable: their values at the target's "
        "time are additional inputs",
    )
    calendar: Harmonics | None = Field(
        None, description="harmonics of the year and of the day as additional inputs; null: none"
    )
    climatology: Harmonics | None = Field(
        None,
        description="the mean of the target by day of the year and hour of the day, described by this many harmonics "
        "and fitted on the training rows; its values at each row and one horizon later are additional inputs; null: "
        "none",
    )

    @model_validator(mode="after")
    def _check_thinning(self) -> "TableSettings":
        if self.thin and self.cadence is None:
            raise ValueError("cadence must be given where thin is true: it says which rows are kept")
        return self

    @model_validator(mode="after")
    def _check_columns(self) -> "TableSettings":
        if self.target not in self.features:
            raise ValueError(f"target {self.target!r} is not among the features: {', '.join(self.features)}")
        if len(set(self.features)) < len(self.features):
            raise ValueError(f"features must differ, and one is listed twice: {', '.join(self.features)}")
        if reserved := set(RESERVED_COLUMNS) & set(self.features):
            raise ValueError(f"features cannot have {reserved.pop()!r}: every table has a column of that name already")
        if derived := set(derived_columns(self)) & set(self.features):
            raise ValueError(f"features cannot have {derived.pop()!r}: Recast adds a column of that name")
        if unknown := set(self.sentinels) - set(self.features):
            raise ValueError(f"sentinels for {sorted(unknown)}, which are not features")
        if self.target in self.known:
            raise ValueError(f"known cannot have {self.target!r}: the target is what is not known in advance")
        if unknown := set(self.known) - set(self.features):
            raise ValueError(f"known lists {sorted(unknown)}, which are not features: {', '.join(self.features)}")
        if len(set(self.known)) < len(self.known):
            raise ValueError(f"known lists a feature twice: {', '.join(self.known)}")
        return self


def target_time_column(known: str) -> str:
    """The name of the column with the values, at the target's time, of a feature that is known in advance."""
    return f"{known} at the target"


def derived_columns(table: TableSettings) -> tuple[str, ...]:
    """The names of the columns that `normalize` adds, in order: known in advance, of the calendar, climatology."""
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
    climatology = CLIMATOLOGY_COLUMNS if table.climatology else ()
    return (*map(target_time_column, table.known), *calendar, *climatology)
