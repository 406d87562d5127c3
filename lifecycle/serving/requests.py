"""What the service is asked and answers, as JSON: windows read and checked, forecasts shown."""

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

from forecasting.forecaster import About, Forecaster, InputError, Windows


class Refused(Exception):
    """A request that is not answered; the message says why."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def read(body: bytes, forecaster: Forecaster) -> list[Windows]:
    """The windows of a request.

    Raises:
        Refused: it is no JSON, or not of the form that the OpenAPI document gives.
        InputError: no forecast can be made from what it holds.
    """
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Refused(HTTPStatus.BAD_REQUEST, f"the body is no JSON: {error}") from None
    if not isinstance(document, dict):
        raise InputError("the body must be an object with time and columns, or with windows")
    if "windows" not in document:
        return [_window(document, forecaster, "")]
    if extra := sorted(set(document) - {"windows"}):
        raise InputError(f"unknown key {extra[0]!r} beside windows")
    windows = document["windows"]
    if not isinstance(windows, list) or not windows:
        raise InputError("windows must be a list of objects with time and columns, and not empty")
    return [_window(each, forecaster, f"windows[{i}]: ") for i, each in enumerate(windows)]


def _window(given: Any, forecaster: Forecaster, place: str) -> Windows:
    """One window of a request.

    Raises:
        InputError: what is wrong with it.
    """
    about = forecaster.about
    if not isinstance(given, dict):
        raise InputError(f"{place}must be an object with time and columns")
    if extra := sorted(set(given) - {"time", "columns", "series"}):
        raise InputError(f"{place}unknown key {extra[0]!r}; allowed are time, columns, series")
    moments, columns = given.get("time"), given.get("columns")
    series = given.get("series", about.series[0] if len(about.series) == 1 else None)
    if not isinstance(series, str):
        raise InputError(f"{place}series must say which of {', '.join(about.series)} this is")
    if not isinstance(moments, list) or not moments:
        raise InputError(f"{place}time must be a list of times, such as 2016-01-01T00:00:00, and not empty")
    if not isinstance(columns, dict):
        raise InputError(f"{place}columns must be an object with a list of numbers for each of {_named(about.columns)}")
    if missing := [name for name in about.columns if name not in columns]:
        raise InputError(f"{place}columns lacks {_named(missing)}; needed are {_named(about.columns)}")
    if unknown := [name for name in columns if name not in about.columns]:
        raise InputError(f"{place}columns has {_named(unknown)}, which is none of {_named(about.columns)}")
    values_NC = np.empty((len(moments), len(about.columns)))
    for i, name in enumerate(about.columns):
        values_NC[:, i] = _numbers(columns[name], name, len(moments), place)
    if wrong := forecaster.implausible(values_NC):
        raise InputError(f"{place}{wrong}")
    try:
        return forecaster.windows_of(series, _times(moments, place), values_NC)
    except InputError as error:
        raise InputError(f"{place}{error}") from None


_NUMBERS = {int, float, type(None)}


def _numbers(values: Any, name: str, count: int, place: str) -> NDArray[np.float64]:
    """The numbers of a column, NaN where it has null."""
    if not isinstance(values, list):
        raise InputError(f"{place}column {name!r} must be a list of numbers, null where nothing is known")
    if len(values) != count:
        raise InputError(f"{place}column {name!r} has {len(values):,} values, and time has {count:,}")
    # A text or a truth value would become a number of NumPy's.
    if not set(map(type, values)) <= _NUMBERS:
        wrong = next(each for each in values if type(each) not in _NUMBERS)
        raise InputError(f"{place}column {name!r} holds {cut(wrong)}, which is no number")
    return np.array(values, dtype=np.float64)


_PLAIN = re.compile(r"(?:(?!0000)\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ?\n)+", re.ASCII)


def _times(moments: list[Any], place: str) -> NDArray[np.datetime64]:
    """Times in UTC; those without a zone are in UTC too."""
    # A request has hundreds: those that are all written plainly are read at once, in a tenth of the time.
    if set(map(type, moments)) == {str} and _PLAIN.fullmatch(lines := "\n".join([*moments, ""])):
        # A 30th of February is refused below, by name.
        with suppress(ValueError):
            return np.array(lines.replace("Z", "").split(), dtype="datetime64[ms]")
    read = []
    for each in moments:
        try:
            read.append(_moment(each))
        except (TypeError, ValueError, OverflowError):
            reason = f"time holds {cut(each)}, which is no time such as 2016-01-01T00:00:00"
            raise InputError(f"{place}{reason}") from None
    return np.array(read, dtype="datetime64[ms]")


def _moment(value: Any) -> datetime:
    """A time in UTC, without a zone.

    Raises:
        TypeError, ValueError, OverflowError: it is none.
    """
    if not isinstance(value, str):
        raise TypeError
    # Python 3.11 takes "08:Z" for a time, but not "08:".
    read = datetime.fromisoformat(value[:-1] if value[-1:] == "Z" else value)
    return read.astimezone(UTC).replace(tzinfo=None) if read.tzinfo else read


def _named(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))


def cut(value: Any) -> str:
    """A value as it was sent, or its beginning."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def shown(forecasts: pl.DataFrame, about: About) -> list[dict[str, Any]]:
    """Forecasts, as the log has them, for JSON."""
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


def encoded(value: Any) -> bytes:
    """JSON, whose times are in UTC and say so."""
    return orjson.dumps(value, option=orjson.OPT_NAIVE_UTC | orjson.OPT_UTC_Z)
