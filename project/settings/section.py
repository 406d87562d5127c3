"""What the sections of params.yaml have in common: their base class, and checks of single values."""

import json
import re
from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict

AnySequence = TypeVar("AnySequence", bound=Sequence[Any])


def reject_duplicates(values: AnySequence) -> AnySequence:
    """Refuse a list that has a value twice."""
    for i, value in enumerate(values):
        if value in values[:i]:
            raise ValueError(f"{json.dumps(value)} is listed twice")
    return values


class Section(BaseModel):
    """A section of params.yaml. It has no undeclared keys, and its values do not change.

    The message of a rule about several keys begins with the key to change, and the error then names this key.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def require_pattern(pattern: str, what: str) -> AfterValidator:
    """Refuse a text that does not match `pattern`; the message says what to write."""

    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(f"write {what}")
        return value

    return AfterValidator(check)
