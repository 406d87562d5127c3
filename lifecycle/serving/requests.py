"""Requests and answers of the service as JSON: windows are parsed and checked, forecasts are written."""

import re
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

import numpy as np
import orjson
import polars as pl
from numpy.typing import NDArray

from forecasting.about import About
from forecasting.forecaster import Forecaster
from forecasting.windows import InputError, Windows


class RefusedRequest(Exception):
    """A request that is refused; the message says why."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def parse_request(body: bytes, forecaster: Forecaster) -> list[Windows]:
    """The windows of a request.

    Raises:
        RefusedRequest: the body is not JSON.
        InputError: it does not have the form that the OpenAPI document describes, or no forecast can be made from it.
    """
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RefusedRequest(HTTPStatus.BAD_REQUEST, f"the body is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise InputError("the body must be an object with time and columns, or with windows")
    if "windows" not in document:
        return [_parse_window(document, forecaster, "")]
    if extra := sorted(set(document) - {"windows"}):
        raise InputError(f"unknown key {extra[0]!r} beside windows")
    windows = document["windows"]
    if not isinstance(windows, list) or not windows:
        raise InputError("windows must be a list of objects with time and columns; it must not be empty")
    return [_parse_window(window, forecaster, f"windows[{i}]: ") for i, window in enumerate(windows)]


def _parse_window(window: Any, forecaster: Forecaster, place: str) -> Windows:
    """One window of a request.

    Args:
        place: where the window is in the request, as the beginning of error messages.

    Raises:
        InputError: it is not valid; the message says why.
    """
    about = forecaster.about
    if not isinstance(window, dict):
        raise InputError(f"{place}must be an object with time and columns")
    if extra := sorted(set(window) - {"time", "columns", "series"}):
        raise InputError(f"{place}unknown key {extra[0]!r}; allowed are time, columns, series")
    times, columns = window.get("time"), window.get("columns")
    series = window.get("series", about.series[0] if len(about.series) == 1 else None)
    if not isinstance(series, str):
        raise InputError(f"{place}series must be one of {', '.join(about.series)}")
    if not isinstance(times, list) or not times:
        raise InputError(f"{place}time must be a list of times, such as 2016-01-01T00:00:00; it must not be empty")
    if not isinstance(columns, dict):
        raise InputError(
            f"{place}columns must be an object with a list of numbers for each of {_quote_names(about.columns)}"
        )
    if missing := [name for name in about.columns if name not in columns]:
        raise InputError(f"{place}columns lacks {_quote_names(missing)}; it must have {_quote_names(about.columns)}")
    if unknown := [name for name in columns if name not in about.columns]:
        raise InputError(f"{place}columns has {_quote_names(unknown)}; it may only have {_quote_names(about.columns)}")
    values_NC = np.empty((len(times), len(about.columns)))
    for i, name in enumerate(about.columns):
        values_NC[:, i] = _parse_numbers(columns[name], name, len(times), place)
    if wrong := forecaster.window_builder.find_implausible(values_NC):
        raise InputError(f"{place}{wrong}")
    try:
        return forecaster.window_builder.build_series(series, _parse_times(times, place), values_NC)
    except InputError as error:
        raise InputError(f"{place}{error}") from None


_NUMBER_TYPES = {int, float, type(None)}


def _parse_numbers(values: Any, name: str, count: int, place: str) -> NDArray[np.float64]:
    """The numbers of a column, NaN for null."""
    if not isinstance(values, list):
        raise InputError(f"{place}column {name!r} must be a list of numbers, with null for unknown values")
    if len(values) != count:
        raise InputError(f"{place}column {name!r} has {len(values):,} values, but time has {count:,}")
    # NumPy would make numbers of texts and truth values.
    if not set(map(type, values)) <= _NUMBER_TYPES:
        wrong = next(value for value in values if type(value) not in _NUMBER_TYPES)
        raise InputError(f"{place}column {name!r} contains {shorten_value(wrong)}, which is not a number")
    return np.array(values, dtype=np.float64)


_PLAIN_TIMES = re.compile(r"(?:(?!0000)\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ?\n)+", re.ASCII)


def _parse_times(times: list[Any], place: str) -> NDArray[np.datetime64]:
    """Times in UTC; those without a time zone are in UTC too."""
    # A request has hundreds. If all are in the plain form, they are parsed at once, in a tenth of the time.
    if set(map(type, times)) == {str} and _PLAIN_TIMES.fullmatch(lines := "\n".join([*times, ""])):
        # A 30th of February is refused below, where the message names it.
        with suppress(ValueError):
            return np.array(lines.replace("Z", "").split(), dtype="datetime64[ms]")
    parsed = []
    for time in times:
        try:
            parsed.append(_parse_time(time))
        except (TypeError, ValueError, OverflowError):
            reason = f"time contains {shorten_value(time)}, which is not a time such as 2016-01-01T00:00:00"
            raise InputError(f"{place}{reason}") from None
    return np.array(parsed, dtype="datetime64[ms]")


def _parse_time(value: Any) -> datetime:
    """A time in UTC, without a time zone.

    Raises:
        TypeError, ValueError, OverflowError: the value is not a time.
    """
    if not isinstance(value, str):
        raise TypeError
    # Python 3.11 accepts "08:Z" as a time, but not "08:".
    time = datetime.fromisoformat(value[:-1] if value[-1:] == "Z" else value)
    return time.astimezone(UTC).replace(tzinfo=None) if time.tzinfo else time


def _quote_names(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))


def shorten_value(value: Any) -> str:
    """A value as it was sent, or the beginning of a long one."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def forecasts_for_json(forecasts: pl.DataFrame, about: About) -> list[dict[str, Any]]:
    """Forecasts as JSON objects.

    Args:
        forecasts: as the forecast log has them.
    """
    levels = [(level, f"low_{level:g}", f"high_{level:g}") for level in about.levels]
    return [
        {
            "forecast_id": row["forecast_id"],
            "series": row["series"],
            "origin": row["origin"],
            "target_time": row["target_time"],
            "lead": row["lead"],
            "forecast": row["forecast"],
            "intervals": [{"level": level, "low": row[low], "high": row[high]} for level, low, high in levels],
        }
        for row in forecasts.iter_rows(named=True)
    ]


def encode_json(value: Any) -> bytes:
    """A value as JSON; its times are in UTC, with a Z."""
    return orjson.dumps(value, option=orjson.OPT_NAIVE_UTC | orjson.OPT_UTC_Z)
