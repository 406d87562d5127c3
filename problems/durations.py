"""Lengths of time as params.yaml has them: a number and a unit, such as 10m, 24h or 5d."""

import re
from datetime import timedelta
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_PATTERN = r"(?P<number>[0-9]+(\.[0-9]+)?)(?P<unit>[smhdw])"
_SHORTEST_SECONDS, _LONGEST_SECONDS = 0.001, 36_500 * 86_400


def _parse_duration(value: Any) -> Any:
    """Read a duration that is written as a number and a unit: 10m, 24h, 5d."""
    match = re.fullmatch(_PATTERN, value) if isinstance(value, str) else None
    if match is None:
        raise ValueError("write a number above 0 and a unit, such as 10m, 1h or 5d (s, m, h, d, w)")
    seconds = float(match["number"]) * _UNIT_SECONDS[match["unit"]]
    if not _SHORTEST_SECONDS <= seconds <= _LONGEST_SECONDS:
        raise ValueError("write a number above 0 and a unit, from 0.001s to 36500d")
    return timedelta(seconds=seconds)


def format_duration(value: timedelta) -> str:
    """Write a duration as briefly as params.yaml allows: 90 minutes are 90m, 120 minutes are 2h."""
    seconds = value.total_seconds()
    unit = next(unit for unit in ("d", "h", "m", "s") if seconds % _UNIT_SECONDS[unit] == 0 or unit == "s")
    return f"{seconds / _UNIT_SECONDS[unit]:g}{unit}"


Duration = Annotated[
    timedelta,
    BeforeValidator(_parse_duration),
    PlainSerializer(format_duration, return_type=str),
    WithJsonSchema({"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?[smhdw]$", "examples": ["10m", "1h", "5d"]}),
]


def format_length(duration: timedelta) -> str:
    """Write a duration in hours or days, with one decimal."""
    return (
        f"{duration / timedelta(days=1):.1f} d"
        if duration >= 2 * timedelta(days=1)
        else f"{duration / timedelta(hours=1):.1f} h"
    )
