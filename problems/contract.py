"""The rules for new rows: the section `contract` of a problem in params.yaml. `lifecycle/new_rows/` applies them."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from problems.durations import Duration

Bounds = Annotated[tuple[float | None, float | None], Field(description="minimum and maximum; null: no such bound")]

ConstantLimit = Annotated[float, Field(gt=0)] | Duration | None
"""How long a column may keep one value: a length of time, or a multiple of its longest constant stretch so far; None:
for any time.
"""

DEFAULT_CONSTANT_LIMIT = 3.0


class Contract(BaseModel):
    """Rules that new rows must keep. The defaults fit most tables; null switches a rule off."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    ranges: dict[str, Bounds] = Field(
        {}, description="minimum and maximum by column; a value outside of them is a breach of the contract"
    )
    margin: float | None = Field(
        1.0,
        ge=0,
        description="how far a value may lie outside the range of the known rows, as a multiple of the width of that "
        "range, for columns that ranges does not list; null: no limit",
    )
    stuck: ConstantLimit | dict[str, ConstantLimit] = Field(
        DEFAULT_CONSTANT_LIMIT,
        description="how long a column may keep one value: a length of time, or a multiple of its longest constant "
        "stretch in the known rows (six rows are always allowed); one limit for all columns, or limits by column, with "
        "3 for the others; null: no limit",
    )
    gap: Duration | None = Field("5d", validate_default=True, description="longest time without a row; null: no limit")
    missing: float | None = Field(
        0.25,
        ge=0,
        le=1,
        description="largest share of the rows, or of the values of a column, that may be missing; null: no limit",
    )
    clock: bool = Field(
        True, description="check that the clock is right, by the daily cycle and by rows that overlap known ones"
    )
    drift: float | None = Field(
        3.0,
        gt=0,
        description="how far the mean of a column may be from its mean in the known rows of the same season, in "
        "standard deviations of those rows; a third more for less than a week; null: no limit",
    )
    change: float | None = Field(
        2.0,
        ge=1,
        description="how much a column may change from one row to the next, and from a day, a week and four weeks to "
        "the same time after them, as a multiple of the largest such change in the known rows; null: no limit",
    )

    @model_validator(mode="after")
    def _check_bounds(self) -> "Contract":
        for column, (least, most) in self.ranges.items():
            if least is not None and most is not None and least > most:
                raise ValueError(f"ranges of {column!r}: the minimum, {least:g}, is above the maximum, {most:g}")
        return self
