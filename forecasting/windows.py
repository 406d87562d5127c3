"""From a user's rows, in their own units and in any order, to the windows that a network reads."""

from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import polars as pl
from numpy.typing import NDArray

from forecasting.about import About
from forecasting.arrays import Times, Values
from forecasting.filling import fill_forward
from forecasting.preparation import Preparation
from problems.durations import format_duration
from problems.errors import RecastError

FIRST_TIME, LAST_TIME = np.datetime64("0001-01-01", "ms"), np.datetime64("9999-01-01", "ms")
"""Python can represent the times between them."""


class InputError(RecastError):
    """No forecast can be made from the input; the message names the column, the row, and what is allowed."""


@dataclass(frozen=True)
class Windows:
    """Windows of one series, ready for the network.

    Attributes:
        times_N: the times of the rows, to the millisecond.
        table_NF: the rows as the network reads them.
        last_K: the row of each window's last input.
    """

    series: str
    times_N: Times
    table_NF: NDArray[np.float32]
    last_K: NDArray[np.int64]


class WindowBuilder:
    """Makes the windows that a forecaster reads from rows of a table. Threads may share it."""

    def __init__(self, about: About) -> None:
        """
        Raises:
            InputError: the forecaster is one of sequences, for which there are no rows.
        """
        if about.preparation is None:
            raise InputError(f"{about.problem} is a problem of sequences: it takes windows, not rows")
        self.about = about
        self.preparation: Preparation = about.preparation
        self._ranges = np.array([about.ranges[name] for name in about.columns]).reshape(-1, 2).T
        fill = self.preparation.table.fill
        self._fill_rows = fill // timedelta(seconds=about.cadence) if fill else 0
        """Over how many rows a value is carried forward."""

    def build(self, rows: pl.DataFrame, all_windows: bool = False) -> list[Windows]:
        """The windows of each series in the rows; for the arguments see `Forecaster.forecast`.

        Raises:
            InputError: a column is missing or does not contain numbers, or no window can be made.
        """
        table = self._tidy(rows)
        if table.is_empty():
            raise InputError(f"there are no rows; a window takes {self._window_length}")
        return [
            self.build_series(
                str(series), part["time"].to_numpy(), part.select(self.about.columns).to_numpy(), all_windows
            )
            for (series,), part in table.group_by("series", maintain_order=True)
        ]

    def build_series(self, series: str, times_N: Times, values_NC: Values, all_windows: bool = False) -> Windows:
        """The windows of one series; see `Forecaster.forecast`.

        Args:
            times_N: to the millisecond, in UTC.
            values_NC: the columns `about.columns`, NaN or a sentinel of the problem where nothing is known.

        Raises:
            InputError: the times do not rise, a value is infinite, the series has no climatology, or the window at the
                end is not complete.
        """
        about, preparation = self.about, self.preparation
        values_NC = self._replace_sentinels(values_NC)
        cadence = np.timedelta64(round(1000 * about.cadence), "ms")
        steps_N = np.diff(times_N)
        self._check_series(series, times_N, steps_N, values_NC)
        breaks_N: NDArray[np.bool_] = np.concatenate([[True], steps_N != cadence])
        known = [about.columns.index(name) for name in self._known]
        others = np.delete(values_NC, known, axis=1)
        # Rows that contain nothing but what is known in advance come after the origin.
        observed = np.flatnonzero(~np.isnan(others).all(axis=1)) if known else np.arange(len(times_N))
        last = int(observed[-1]) if len(observed) else -1
        filled_NC = fill_forward(values_NC, breaks_N, self._fill_rows)
        ahead_NK = np.full((len(times_N), len(known)), np.nan)
        if len(times_N) > about.horizon_rows and known:
            ahead_NK[: -about.horizon_rows] = filled_NC[about.horizon_rows :, known]
        # A value that float32 cannot represent becomes infinite, and so does not give a finite forecast.
        with np.errstate(over="ignore"):
            normalized_NF = preparation.normalize_values(np.hstack([filled_NC, ahead_NK]), times_N, series)
            table_NF = normalized_NF.astype(np.float32)
        after = self._rows_after_window
        if all_windows:
            is_null_N = np.logical_or.reduce(np.isnan(table_NF), axis=1)
            last_K = _find_complete(breaks_N, is_null_N, about.window_rows, after)
            return Windows(series, times_N, table_NF, last_K[last_K <= last])
        self._require_complete(series, times_N, breaks_N, table_NF, last)
        return Windows(series, times_N, table_NF, np.array([last]))

    def select_newest(self, rows: pl.DataFrame) -> pl.DataFrame:
        """The rows that the newest complete window of each series takes; a series without one has none.

        Raises:
            InputError: a column is missing or does not contain numbers, or no window can be made.
        """
        about, table = self.about, self._tidy(rows)
        before = about.window_rows - 1 + self._fill_rows
        after = self._rows_after_window
        parts = []
        for windows in self.build(rows, all_windows=True):
            series_rows = table.filter(pl.col("series") == windows.series)
            last = int(windows.last_K[-1]) if len(windows.last_K) else None
            if last is not None:
                part = series_rows.slice(max(0, last - before), min(before, last) + 1 + after)
                others = [name for name in about.columns if name not in self._known]
                is_later = pl.col("time") > windows.times_N[last].item()
                parts.append(part.with_columns(pl.when(~is_later).then(pl.col(others))) if after else part)
        return pl.concat(parts) if parts else table.clear()

    def find_implausible(self, values_NC: Values) -> str | None:
        """Describe a value that is far outside the range of the training rows, as in another unit; None: all are near.

        Far outside is more than the width of that range below or above it. A column that never changed in training has
        no width, and is not checked.
        """
        values_NC = self._replace_sentinels(values_NC)
        low_C, high_C = self._ranges
        width_C = np.where(high_C > low_C, high_C - low_C, np.inf)
        is_far_NC = (values_NC < low_C - width_C) | (values_NC > high_C + width_C)
        if not is_far_NC.any():
            return None
        row, column = np.argwhere(is_far_NC)[0]
        return (
            f"column {self.about.columns[column]!r} holds {values_NC[row, column]:g}, far outside "
            f"{low_C[column]:g} to {high_C[column]:g}, the range of the training rows: is it in another unit?"
        )

    @property
    def _known(self) -> tuple[str, ...]:
        """The columns that are known in advance."""
        return self.preparation.table.known

    @property
    def _rows_after_window(self) -> int:
        """How many rows after the last input must be given; they are needed where columns are known in advance."""
        return self.about.horizon_rows if self._known else 0

    @property
    def _window_length(self) -> str:
        """The length of a window, for messages."""
        cadence = format_duration(timedelta(seconds=self.about.cadence))
        return f"{self.about.window_rows:,} rows, one every {cadence}"

    def _replace_sentinels(self, values_NC: Values) -> Values:
        """The values, NaN where a sentinel of the problem stands for a missing one: as `ingest` reads them."""
        sentinels = self.preparation.table.sentinels
        if not sentinels:
            return values_NC
        is_missing_NC = [np.isin(values_NC[:, i], sentinels.get(name, ())) for i, name in enumerate(self.about.columns)]
        return np.where(np.stack(is_missing_NC, axis=1), np.nan, values_NC)

    def _tidy(self, rows: pl.DataFrame) -> pl.DataFrame:
        """`time`, `series` and the declared columns, in the order of series and time.

        Raises:
            InputError: a column is missing, or its values have the wrong type.
        """
        columns, series = self.preparation.table.features, self.about.series
        if missing := [name for name in ("time", *columns) if name not in rows.columns]:
            raise InputError(
                f"there is no column {', '.join(map(repr, missing))}; needed are time, {', '.join(columns)}"
            )
        if "series" not in rows.columns:
            if len(series) > 1:
                raise InputError(
                    f"there is no column 'series', which says which series a row is of: {', '.join(series)}"
                )
            rows = rows.with_columns(series=pl.lit(series[0]))
        if not isinstance(rows.schema["time"], pl.Datetime | pl.Date):
            raise InputError(f"column 'time' holds {rows.schema['time']}, not times")
        time = pl.col("time")
        if getattr(rows.schema["time"], "time_zone", None):
            time = time.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
        for name in columns:
            if not (rows.schema[name].is_numeric() or rows.schema[name] in (pl.Boolean, pl.Null)):
                raise InputError(f"column {name!r} holds {rows.schema[name]}, not numbers")
        table = rows.select(
            time.cast(pl.Datetime("ms")),
            pl.col("series").cast(pl.String),
            *(pl.col(name).cast(pl.Float64).fill_null(float("nan")) for name in columns),
        )
        for name in ("time", "series"):
            if nulls := table[name].null_count():
                raise InputError(f"column {name!r} is empty in {nulls:,} rows")
        return table.sort("series", "time", maintain_order=True)

    def _check_series(self, series: str, times_N: Times, steps_N: NDArray[np.timedelta64], values_NC: Values) -> None:
        """
        Raises:
            InputError: the times do not rise or are out of range, a value is infinite, or the series has no
                climatology.
        """
        about, climatologies = self.about, self.preparation.climatologies
        if (steps_N <= np.timedelta64(0)).any() or np.isnat(times_N).any():
            row = int(np.argmax(np.isnat(times_N) | np.append(False, steps_N <= np.timedelta64(0))))
            raise InputError(
                f"series {series}: time {_format_time(times_N[row])} does not come after the one before it, "
                f"{_format_time(times_N[max(0, row - 1)])}; each row must be later than the last"
            )
        ahead = round(1000 * about.horizon_rows * about.cadence)
        if len(times_N) and (times_N[0] < FIRST_TIME or times_N[-1] > LAST_TIME - np.timedelta64(ahead, "ms")):
            raise InputError(
                f"series {series}: the times are from {_format_time(times_N[0])} to {_format_time(times_N[-1])}; they, "
                "and what is forecast from them, must be in the years 1 to 9998"
            )
        if (is_infinite_NC := np.isinf(values_NC)).any():
            row, column = np.argwhere(is_infinite_NC)[0]
            raise InputError(
                f"series {series}: column {about.columns[column]!r} is infinite at {_format_time(times_N[row])}; "
                "leave out what is not known"
            )
        if climatologies and series not in climatologies:
            raise InputError(self.preparation.describe_missing_climatology(series))

    def _require_complete(
        self, series: str, times_N: Times, breaks_N: NDArray[np.bool_], table_NF: NDArray[np.float32], last: int
    ) -> None:
        """
        Raises:
            InputError: the window whose last input is the row `last` is not complete.
        """
        rows, after = self.about.window_rows, self._rows_after_window
        first = last - rows + 1
        if last < 0:
            raise InputError(f"series {series}: no row holds a value; a window takes {self._window_length}")
        begin = max(first, 0) + 1
        gaps = begin + np.flatnonzero(breaks_N[begin : last + 1])
        if len(gaps):
            row = int(gaps[-1])
            raise InputError(
                f"series {series}: after {_format_time(times_N[row - 1])} comes {_format_time(times_N[row])}; a window "
                f"takes {self._window_length}, up to {_format_time(times_N[last])}"
            )
        if first < 0:
            raise InputError(f"series {series}: {last + 1:,} rows are too few; a window takes {self._window_length}")
        is_missing = last + after + 1 > len(times_N) or breaks_N[last + 1 : last + after + 1].any()
        if is_missing:
            raise InputError(
                f"series {series}: what is known in advance ({', '.join(self._known)}) must be given in {after:,} rows "
                f"after {_format_time(times_N[last])}, the last row with any other value: as far as the forecast "
                "reaches"
            )
        nulls = np.argwhere(np.isnan(table_NF[first : last + 1]))
        if len(nulls):
            row, column = nulls[0]
            fill = self.preparation.table.fill
            limit = f"; the last value is carried forward over at most {format_duration(fill)}" if fill else ""
            raise InputError(
                f"series {series}: column {self.preparation.features[column]!r} has no value at "
                f"{_format_time(times_N[first + row])}, which the window up to {_format_time(times_N[last])} "
                f"needs{limit}"
            )


def _find_complete(
    breaks_N: NDArray[np.bool_], is_null_N: NDArray[np.bool_], rows: int, after: int
) -> NDArray[np.int64]:
    """The rows of the last inputs of all complete windows.

    Args:
        rows: the rows of a window, none of which may be missing or contain a null.
        after: further rows, none of which may be missing.
    """
    last_K = np.arange(rows - 1, len(breaks_N) - after)
    breaks_before, nulls_before = (np.concatenate([[0], np.cumsum(flags_N)]) for flags_N in (breaks_N, is_null_N))
    is_whole_K = breaks_before[last_K + after + 1] == breaks_before[last_K - rows + 2]
    is_known_K = nulls_before[last_K + 1] == nulls_before[last_K - rows + 1]
    complete_K: NDArray[np.int64] = last_K[is_whole_K & is_known_K]
    return complete_K


def _format_time(time: np.datetime64) -> str:
    """A time, to the minute where it has no seconds."""
    if np.isnat(time):
        return "(none)"
    unit = "m" if time == time.astype("datetime64[m]") else "ms"
    return str(np.datetime_as_string(time, unit=unit))  # type: ignore[call-overload]
