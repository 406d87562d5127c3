"""A simulated weather station like that in Jena: of any length and cadence, with the same rows for the same seed.

Nothing here was measured. The temperature follows the year and the day, plus weather that persists for days and shows
in the pressure before it shows in the temperature. The other columns follow by the formulas of the real station.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias

from pydantic import Field, model_validator

from problems.durations import Duration
from problems.lazy_modules import np, pl
from problems.source import PLACE_COLUMN, DownloadProgress, Rows, Source

if TYPE_CHECKING:
    from numpy.typing import NDArray

CHUNK_ROWS = 1 << 18
START = datetime(2009, 1, 1)
_KELVIN = 273.15
_YEAR = timedelta(days=365.2425)
_DAY = timedelta(days=1)

Floats: TypeAlias = "NDArray[np.float64]"


class StationSource(Source):
    """The fourteen columns of the Jena station, simulated; give `rows` or `years`."""

    synthetic: ClassVar[bool] = True

    kind: Literal["station"]
    rows: int | None = Field(None, ge=2, description="number of rows; give either rows or years")
    years: float | None = Field(None, gt=0, description="length in years; give either rows or years")
    cadence: Duration = Field(timedelta(minutes=10), description="time between rows")
    seed: int = Field(0, ge=0, description="of the random numbers")

    @model_validator(mode="after")
    def _check_length(self) -> StationSource:
        if (self.rows is None) == (self.years is None):
            raise ValueError("give either rows or years")
        try:
            if self._row_count() < 2:
                raise ValueError("years is too short for two rows at this cadence")
            START + self.longest_span
        except OverflowError:
            length = "years" if self.rows is None else "rows"
            raise ValueError(f"{length} is too large: the last row would be after the year 9999") from None
        return self

    def _row_count(self) -> int:
        return self.rows if self.rows is not None else int((self.years or 0) * _YEAR / self.cadence)

    @property
    def longest_span(self) -> timedelta:
        """The time from the first row to the last."""
        return (self._row_count() - 1) * self.cadence

    def fetch(self, store: Path, progress: DownloadProgress, attempts: int) -> None:
        """Do nothing: the rows are simulated when they are read."""

    def read(self, store: Path, scratch: Path) -> Rows:
        """Simulate the rows into `scratch`, in chunks, so that memory does not grow with their number."""
        for number, chunk in enumerate(simulate_rows(self._row_count(), self.cadence, self.seed)):
            chunk.write_parquet(scratch / f"{number:06d}.parquet", compression="lz4")
        frame = pl.scan_parquet(scratch / "*.parquet", row_index_name=PLACE_COLUMN, row_index_offset=1)
        return Rows(frame.with_columns(pl.format("simulated row {}", PLACE_COLUMN).alias(PLACE_COLUMN)), time="time")


def simulate_rows(rows: int, cadence: timedelta, seed: int, chunk_rows: int = CHUNK_ROWS) -> Iterator[pl.DataFrame]:
    """Simulate the rows of a station, in chunks; the rows do not depend on where the chunks end.

    Columns: `time` (ms) and the fourteen of the station, rounded to two decimals as the station rounds them.
    """
    air, humidity, pressure, wind_x, wind_y = (
        _Weather(timedelta(hours=hours), cadence, [seed, stream]) for stream, hours in enumerate((36, 18, 60, 30, 30))
    )
    cloud, flutter, gust_x, gust_y = (
        _Weather(timedelta(minutes=minutes), cadence, [seed, 100 + stream])
        for stream, minutes in enumerate((600, 60, 40, 40))
    )
    gust = _Weather(timedelta(minutes=15), cadence, [seed, 200])
    warming = _Lag(timedelta(hours=24), cadence)
    for first in range(0, rows, chunk_rows):
        n = min(chunk_rows, rows - first)
        elapsed: Floats = np.arange(first + 1.0, first + n + 1) * cadence.total_seconds()
        season = _wave(elapsed, _YEAR, peak=timedelta(days=200))
        hour = _wave(elapsed, _DAY, peak=timedelta(hours=14.5))
        sun = (3.3 + 2.0 * season) * np.clip(1 + 0.5 * cloud.draw_steps(n), 0.1, 2.0) * hour
        front = air.draw_steps(n)
        mass = warming.follow(front) / 0.77  # the lag takes that share of the standard deviation
        T = np.round(9.4 + 8.9 * season + sun + 4.0 * mass + 0.5 * flutter.draw_steps(n), 2)
        # The pressure falls with the front; the air mass behind the front arrives about a day later.
        p = np.round(989.2 + 8.3 * (-0.5 * front + 0.87 * pressure.draw_steps(n)), 2)
        dampness = 1.75 - 0.8 * season - 0.28 * sun - 0.25 * mass + 0.75 * humidity.draw_steps(n)
        rh: Floats = np.maximum(100 / (1 + np.exp(-dampness)), 12.0).round(2)
        x = 1.1 + 1.4 * wind_x.draw_steps(n) + 0.5 * gust_x.draw_steps(n)
        y = 0.9 + 1.3 * wind_y.draw_steps(n) + 0.5 * gust_y.draw_steps(n)
        wv = np.hypot(x, y)
        columns = {
            **derive_quantities(T, p, rh),
            "wv (m/s)": wv,
            "max. wv (m/s)": 1.35 * wv + 0.6 * np.abs(gust.draw_steps(n)),
            "wd (deg)": np.degrees(np.arctan2(-x, -y)) % 360,  # where the wind comes from, clockwise from north
        }
        milliseconds = (elapsed * 1000).round().astype("timedelta64[ms]")
        yield pl.DataFrame(
            {
                "time": np.datetime64(START, "ms") + milliseconds,
                **{name: np.round(values, 2) for name, values in columns.items()},
            }
        )


def derive_quantities(T: Floats, p: Floats, rh: Floats) -> dict[str, Floats]:
    """Compute what the station derives from temperature (degC), pressure (mbar) and relative humidity (%).

    Returns:
        these three and the derived quantities, by column
    """
    VPmax = 6.1078 * np.exp(17.08085 * T / (234.175 + T))  # Magnus, with the station's constants
    VPact = VPmax * rh / 100
    logarithm = np.log(VPact / 6.1078)
    return {
        "p (mbar)": p,
        "T (degC)": T,
        "Tpot (K)": (T + _KELVIN) * (1000 / p) ** 0.286,
        "Tdew (degC)": 234.175 * logarithm / (17.08085 - logarithm),
        "rh (%)": rh,
        "VPmax (mbar)": VPmax,
        "VPact (mbar)": VPact,
        "VPdef (mbar)": VPmax - VPact,
        "sh (g/kg)": 622 * VPact / (p - 0.378 * VPact),
        "H2OC (mmol/mol)": 1000 * VPact / p,
        "rho (g/m**3)": 1e5 * (p - 0.378 * VPact) / (287.058 * (T + _KELVIN)),  # moist air is lighter than dry
    }


def _wave(elapsed: Floats, period: timedelta, peak: timedelta) -> Floats:
    """A cosine of the seconds since `START` that is highest at `peak`."""
    cosine: Floats = np.cos(2 * np.pi * (elapsed - peak.total_seconds()) / period.total_seconds())
    return cosine


class _Weather:
    """An Ornstein-Uhlenbeck process of mean 0 and deviation 1, whose steps may be drawn in pieces of any length."""

    def __init__(self, persistence: timedelta, cadence: timedelta, seed: list[int]) -> None:
        self._random = np.random.default_rng(seed)
        self._keep = float(np.exp(-cadence / persistence))
        self._state = self._keep * self._random.standard_normal(1)

    def draw_steps(self, n: int) -> Floats:
        noise = np.sqrt(1 - self._keep**2) * self._random.standard_normal(n)
        values, self._state = _decay(noise, self._keep, self._state)
        return values


class _Lag:
    """A quantity that follows its input slowly, as the ground follows the air."""

    def __init__(self, persistence: timedelta, cadence: timedelta) -> None:
        self._keep = float(np.exp(-cadence / persistence))
        self._state = np.zeros(1)

    def follow(self, driver: Floats) -> Floats:
        values, self._state = _decay((1 - self._keep) * driver, self._keep, self._state)
        return values


def _decay(added: Floats, keep: float, state: Floats) -> tuple[Floats, Floats]:
    """Compute values that are `keep` times the value before plus what is added, and the state for the next piece."""
    # Only this source pays the half second that the import takes.
    from scipy.signal import lfilter  # noqa: PLC0415 - saves start-up time

    values, state = lfilter([1], [1, -keep], added, zi=state)
    return values, state
