"""Paths of the user's own files, as params.yaml and the command line name them."""

from pathlib import Path

from problems.errors import RecastError
from problems.wording import shorten


def resolve_path(path: str, setting: str) -> Path:
    """The path with the user's folder in place of ~; nothing needs to exist there.

    Args:
        setting: where the path comes from, for messages.

    Raises:
        RecastError: nothing can exist there: a name is too long, or ~ names a user whom the system does not know.
    """
    try:
        place = Path(path).expanduser()
        place.exists()
        if "\0" in path:
            raise ValueError("a name cannot contain a null character")
    except (OSError, RuntimeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise RecastError(f"{setting}: {shorten(path)}: {reason}; correct it") from None
    return place
