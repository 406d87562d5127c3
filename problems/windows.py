"""What a network sees at once: the section `window` of a problem in params.yaml."""

from datetime import timedelta

from pydantic import BaseModel, ConfigDict, Field, model_validator

from problems.durations import Duration, format_duration


class WindowSettings(BaseModel):
    """Which past rows a forecast is made from, and how far ahead it reaches."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    lookback: Duration = Field(description="how far back the inputs reach")
    step: Duration = Field(description="time between two inputs")
    delay: Duration = Field(
        description="time from the last input to the target; with split: lecture, from the row after the last input"
    )
    first: Duration | None = Field(
        None,
        description="one network forecasts every step from this delay (the shortest lead) to `delay` (the longest); "
        "null: `delay` alone",
    )

    @property
    def leads(self) -> int:
        """How many leads are forecast at once."""
        return 1 if self.first is None else (self.delay - self.first) // self.step + 1

    @model_validator(mode="after")
    def _check_whole_steps(self) -> "WindowSettings":
        lookback, step, delay = map(format_duration, (self.lookback, self.step, self.delay))
        if self.first is not None and not (
            self.step <= self.first <= self.delay and (self.delay - self.first) % self.step == timedelta(0)
        ):
            raise ValueError(
                f"first {format_duration(self.first)} must be at least a step of {step}, and a whole number of steps "
                f"before delay {delay}"
            )
        if self.step > self.lookback:
            raise ValueError(f"step {step} is longer than lookback {lookback}")
        if self.lookback % self.step:
            raise ValueError(f"lookback {lookback} is not a whole number of steps of {step}")
        return self


class PieceSettings(BaseModel):
    """Which part of a sequence a network sees at once, in steps."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    length: int | None = Field(
        None,
        ge=1,
        description="where a sequence has one answer: only its last steps are read, this many, and shorter sequences "
        "are padded in front; null: as many as the longest training sequence has. Where each step has an answer: "
        "sequences are cut into pieces of this length; null: they are not cut",
    )
    context: int = Field(
        0, ge=0, description="steps before a piece that are read but not scored, where the sequence has them"
    )
    scored: int | None = Field(
        None, ge=1, description="only the last steps of a sequence are scored, this many; null: all (many-to-many)"
    )
    carry: bool = Field(
        False,
        description="each piece begins with the state in which the piece before it ended: truncated back-propagation",
    )

    @model_validator(mode="after")
    def _check_pieces_are_cut(self) -> "PieceSettings":
        if self.length is None and (self.carry or self.context):
            raise ValueError("length must be given where context or carry is: without it nothing is cut")
        if self.carry and self.context:
            raise ValueError("context must be 0 where carry is true: the state holds what came before")
        return self
