"""Read the small JSON files in which the project keeps records, whichever version of Recast wrote them."""

from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, overload

from pydantic import TypeAdapter, ValidationError

from problems.errors import RecastError

T = TypeVar("T")


@overload
def read_record(file: Path, kind: type[T], fix: str) -> T: ...


@overload
def read_record(file: Path, kind: UnionType, fix: str) -> Any: ...


def read_record(file: Path, kind: Any, fix: str) -> Any:
    """The content of a JSON file.

    Args:
        kind: the type that the content must have: a dataclass, several of them, or a type such as `dict[str, Any]`.
        fix: what the user should do about a file that cannot be read; it ends the error message.

    Raises:
        FileNotFoundError: the file does not exist.
        RecastError: another version of Recast wrote the file, or it is damaged.
    """
    try:
        return _parse(file, kind)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"]))
        reason = f"{field}: {first['msg']}" if field else first["msg"]
        raise RecastError(
            f"{file} was written by another version of Recast, or is damaged ({reason}); {fix}"
        ) from error


def read_disposable_record(file: Path, kind: type[T]) -> T | None:
    """The content of a JSON file that the project writes anew by itself, such as the status of something that runs.

    Args:
        kind: the type that the content must have.

    Returns:
        None: the file does not exist, is damaged, or was written by another version of Recast.
    """
    try:
        value: T = _parse(file, kind)
    except (FileNotFoundError, ValidationError):
        return None
    return value


def _parse(file: Path, kind: Any) -> Any:
    return _adapter(kind).validate_json(file.read_bytes())


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    """Pydantic's validator of a type; building one takes longer than reading a file."""
    return TypeAdapter(kind)
