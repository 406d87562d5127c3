"""Paths of the user's own files, as params.yaml and the command line name them."""

import glob
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


def list_files(place: Path) -> list[Path]:
    """List by name the files that a path names: itself, those of a folder, or those that match a pattern."""
    if place.is_file():
        return [place]  # even if its name has brackets, as a pattern has
    # glob.glob, not Path.glob: a pattern may be absolute.
    candidates = place.iterdir() if place.is_dir() else map(Path, glob.glob(str(place)))  # noqa: PTH207
    return sorted(file for file in candidates if file.is_file())
