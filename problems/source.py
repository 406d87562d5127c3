"""What every data source has in common: it fetches files into its raw store, and reads them as rows in time."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, ClassVar, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, BaseModel, ConfigDict

from problems.lazy_modules import pl

DownloadProgress = Callable[[int, int | None], None]
"""Called with the number of bytes that have come so far and, where it is known, the number that will come."""

EPOCHS = {"epoch s": 1000, "epoch ms": 1}
"""The formats of times that are numbers since 1970-01-01 UTC, and the milliseconds in one unit of each."""


def _check_time_zone(value: str) -> str:
    # Polars comes with the tz database. The machine may not have it, but where it has, loading Polars can be saved.
    # Names in small letters, such as localtime, are not of the database.
    with suppress(ZoneInfoNotFoundError, ValueError, OSError):
        if value[:1].isupper() and ZoneInfo(value):
            return value
    try:
        pl.select(pl.lit(datetime(2000, 1, 1)).dt.replace_time_zone(value))
    except pl.exceptions.PolarsError:
        raise ValueError(
            "no such time zone; write Europe/Berlin, America/New_York, UTC or another of the tz database"
        ) from None
    return value


TimeZone = Annotated[str, AfterValidator(_check_time_zone)]

RepeatedHour = Literal["refuse", "in order"]
"""When the clock is set back, an hour comes twice. `in order`: the row that stands first in the file is the earlier."""

PLACE_COLUMN = "__place__"
"""The column of `Rows.frame` that says, for people, where a row stands: `weather.csv, line 7`."""

AGE_COLUMN = "__age__"
"""The column of `Rows.frame`, where it has one, that says which of several rows with the same time counts: the one
with the lowest age.
"""


@dataclass(frozen=True)
class Rows:
    """The rows of a source in any order, before anything about them is checked; `ingest` reports what is wrong.

    Attributes:
        frame: the columns under the names that `features` uses, as numbers or as text that should be numbers;
            `PLACE_COLUMN`; and perhaps `AGE_COLUMN`.
        time: the column that holds the time: a Datetime, a Date, text, or numbers where `time_format` is one of
            `EPOCHS`.
        time_format: how the time is written, in strptime's letters, or one of `EPOCHS`; None: ISO 8601.
        series: the column that names the series of a row; None: there is one series.
        time_zone: the zone of times that are written without one; None: UTC.
        repeated_hour: how to read an hour that the clock has shown twice, see `RepeatedHour`.
        decimal: the decimal separator of numbers that are text.
    """

    frame: pl.LazyFrame
    time: str
    time_format: str | None = None
    series: str | None = None
    time_zone: str | None = None
    repeated_hour: RepeatedHour = "refuse"
    decimal: str = "."


class Source(BaseModel):
    """Where the data of a problem come from; each kind of source is a subclass in a module of its own.

    Attributes:
        synthetic: the data are simulated, which every table and picture must say.
        fresh_kinds: the kinds of places in `problems.fresh` that new rows may come from; none: the source never grows.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    synthetic: ClassVar[bool] = False
    fresh_kinds: ClassVar[tuple[str, ...]] = ()

    @property
    def longest_span(self) -> timedelta | None:
        """The longest time that the rows can cover; None where it is not known before they are read."""
        return None

    def fetch(self, store: Path, progress: DownloadProgress, attempts: int) -> None:
        """Put the raw files into the folder `store`, which exists, unless it holds the right ones already.

        A file that the user owns is linked, not copied, so that DVC sees every change to it. A download is tried
        `attempts` times from each mirror.

        Raises:
            Unreachable: the files cannot be had from anywhere now.
            RecastError: a file is not what it should be.
        """
        raise NotImplementedError

    def find_fault(self, store: Path) -> str | None:
        """Say which file in `store` is malformed, and where, once Polars has refused it; None where that is unknown."""
        return None

    def read(self, store: Path, scratch: Path) -> Rows:
        """Read the rows of the files in `store`, which stay as they are.

        `scratch` is an empty folder for files that the frame is scanned from; it lives as long as the frame is used.

        Raises:
            RecastError: a file cannot be read as what it should be.
        """
        raise NotImplementedError

    def read_parsed(self, store: Path, scratch: Path, numbers: Collection[str]) -> Rows | None:
        """Read the same rows as `read`, with the columns `numbers` of CSV files parsed while they are scanned.

        That takes half as long, but a cell that is not plainly a number stops Polars; see `scan_table`.

        Returns:
            The rows; None where there is nothing to gain, so that the caller has to `read` them.

        Raises:
            RecastError: a file cannot be read as what it should be.
        """
        return None
