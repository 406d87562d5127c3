"""The settings of the data contract for new rows, which `lifecycle/new_rows/contract.py` checks."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from problems.source import Duration

Bounds = Annotated[tuple[float | None, float | None], Field(description="the least and the most; null: no such bound")]

Stay = Annotated[float, Field(gt=0)] | Duration | None
"""How long a column may stay at one value: a length of time, or a multiple; None: for any time."""
USUAL_STAY = 3.0


class Contract(BaseModel):
    """Rules that new rows must keep. What is left out has a default that fits most tables; null switches a rule off."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    ranges: dict[str, Bounds] = Field({}, description="least and most value by column; values beyond are a breach")
    margin: float | None = Field(
        1.0,
        ge=0,
        description="a value may lie outside the range of the known rows by so many times its width; null: by any",
    )
    stuck: Stay | dict[str, Stay] = Field(
        USUAL_STAY,
        description="a column may stay at one value for so long, or for so many times as long as it ever did in the "
        "known rows, and for six rows in any case; one for all, or by column, 3 where a column is not named; null: for "
        "any time",
    )
    gap: Duration | None = Field("5d", validate_default=True, description="longest time without a row; null: any")
    missing: float | None = Field(
        0.25, ge=0, le=1, description="largest share of rows, or of a column's values, that may be missing; null: any"
    )
    clock: bool = Field(True, description="check that the clock is right, by the daily cycle and by rows that overlap")
    drift: float | None = Field(
        3.0,
        gt=0,
        description="a column's mean may differ from that of the known rows of the same season by so many of their "
        "deviations, that of less than a week by a third more; null: by any",
    )

    @model_validator(mode="after")
    def _bounds_rise(self) -> "Contract":
        for column, (least, most) in self.ranges.items():
            if least is not None and most is not None and least > most:
                raise ValueError(f"ranges of {column!r}: the least, {least:g}, is above the most, {most:g}")
        return self
