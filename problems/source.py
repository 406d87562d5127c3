"""Where the rows of a problem come from, and how a length of time is written in params.yaml."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import polars as pl
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, PlainSerializer, WithJsonSchema

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_PATTERN = r"(?P<number>[0-9]+(\.[0-9]+)?)(?P<unit>[smhdw])"
_SHORTEST, _LONGEST = 0.001, 36_500 * 86_400


def _duration(value: Any) -> Any:
    """A length of time from a number and a unit: 10m, 24h, 5d."""
    found = re.fullmatch(_PATTERN, value) if isinstance(value, str) else None
    if found is None:
        raise ValueError("write a number above 0 and a unit, such as 10m, 1h or 5d (s, m, h, d, w)")
    seconds = float(found["number"]) * _UNITS[found["unit"]]
    if not _SHORTEST <= seconds <= _LONGEST:
        raise ValueError("write a number above 0 and a unit, from 0.001s to 36500d")
    return timedelta(seconds=seconds)


def written(value: timedelta) -> str:
    """The shortest way to write a duration, as `_duration` reads it."""
    seconds = value.total_seconds()
    unit = next(u for u in ("d", "h", "m", "s") if seconds % _UNITS[u] == 0 or u == "s")
    return f"{seconds / _UNITS[unit]:g}{unit}"


Duration = Annotated[
    timedelta,
    BeforeValidator(_duration),
    PlainSerializer(written, return_type=str),
    WithJsonSchema({"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?[smhdw]$", "examples": ["10m", "1h", "5d"]}),
]

Progress = Callable[[int, int | None], None]
"""Told the bytes that have come so far and, where it is known, how many will."""


EPOCHS = {"epoch s": 1000, "epoch ms": 1}
"""Times as numbers since 1970-01-01 UTC, and milliseconds in one of them."""


def _zone(value: str) -> str:
    # Polars has the tz database with it; a machine need not.
    try:
        pl.select(pl.lit(datetime(2000, 1, 1)).dt.replace_time_zone(value))
    except pl.exceptions.PolarsError:
        raise ValueError(
            "no such time zone; write Europe/Berlin, America/New_York, UTC or another of the tz database"
        ) from None
    return value


TimeZone = Annotated[str, AfterValidator(_zone)]

RepeatedHour = Literal["refuse", "in order"]
"""When the clock is set back, an hour comes twice. `in order`: the row that stands first in the file is the earlier."""

PLACE = "__place__"
"""The column of `Rows.frame` that says where a row stands, for people: `weather.csv, line 7`."""

AGE = "__age__"
"""The column of `Rows.frame`, where there is one, by which rows of the same time count: the one with the least."""


@dataclass(frozen=True)
class Rows:
    """The rows of a source in any order, before anything about them is checked; `ingest` names what is wrong.

    Attributes:
        frame: the columns under the names that `features` uses, numbers or text that should be numbers, `PLACE`
            and perhaps `AGE`
        time: the column that holds the time: a Datetime, a Date, text, or numbers where `time_format` is given
        time_format: how the time is written, in strptime's letters, or one of `EPOCHS`; None: ISO 8601
        series: the column that names the series of a row; None: there is one series
        time_zone: of the times that are written without one; None: UTC
        repeated_hour: what an hour that a clock has shown twice means, see `RepeatedHour`
        decimal: what stands before the decimals of numbers that are text
    """

    frame: pl.LazyFrame
    time: str
    time_format: str | None = None
    series: str | None = None
    time_zone: str | None = None
    repeated_hour: RepeatedHour = "refuse"
    decimal: str = "."


class Source(BaseModel):
    """Where the rows of a problem come from; one subclass a kind of source, in a module of its own.

    Attributes:
        synthetic: the rows are simulated, which every table and picture must say.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    synthetic: ClassVar[bool] = False

    def span(self) -> timedelta | None:
        """The longest time the rows can cover, where it is known before they are read."""
        return None

    def fetch(self, store: Path, progress: Progress, attempts: int) -> None:
        """Put the raw files into the folder `store`, which exists, unless what it holds is right already.

        A file that the user owns is linked, not copied, so that DVC sees every change to it. A download is tried
        `attempts` times of each mirror.

        Raises:
            Unreachable: no source of the files can be reached now.
            RecastError: a file is not what it should be.
        """
        raise NotImplementedError

    def fault(self, store: Path) -> str | None:
        """Where a file in `store` breaks its own form, once Polars has refused it; None: that is not known."""
        return None

    def read(self, store: Path, scratch: Path) -> Rows:
        """The rows of the files in `store`, which stay as they are.

        `scratch` is an empty folder for files that the frame is scanned from; it lives as long as the frame is used.

        Raises:
            RecastError: a file cannot be read as what it should be.
        """
        raise NotImplementedError
