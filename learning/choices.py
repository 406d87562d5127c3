"""Settings whose allowed values are the names in a table."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema


@dataclass(frozen=True)
class Choice:
    """Restricts a text to some names, as `typing.Literal` does: `Annotated[str, Choice(OPTIMIZERS)]`.

    Pydantic refuses any other text, and the JSON schema lists the names.

    Attributes:
        names: a table with these keys, or the names themselves.
    """

    names: Iterable[str]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.literal_schema(list(self.names))
