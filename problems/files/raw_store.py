"""The raw store of a problem: the folder with its raw files, and the increments of a source that grows.

The increments are in the folder `fresh` of the store, `0001-<first digits of the sha256>.csv` or `.parquet`. They never
change.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from problems.errors import RecastError
from problems.files.download import DOWNLOAD_SUFFIXES, checksum_file

INCREMENTS_FOLDER = "fresh"

RESERVED_NAMES = (".gitkeep", ".gitignore", INCREMENTS_FOLDER, f"{INCREMENTS_FOLDER}.dvc")
"""What a raw store may hold beside the files of its source: the increments, and what DVC and Git keep beside them."""

_INCREMENT_NAME = re.compile(r"(\d{4,})-[0-9a-f]{8}\.(csv|parquet)")


def list_stored_files(store: Path) -> list[Path]:
    """List the data files of a store by name, without its increments and without links whose target is gone."""
    files = [
        file
        for file in store.iterdir()
        if file.name not in RESERVED_NAMES and not file.name.endswith(DOWNLOAD_SUFFIXES)
    ]
    return sorted(file for file in files if file.is_file())


def replace_with_links(store: Path, files: Iterable[Path]) -> None:
    """Make the store hold links to these files, under their own names, and no other data.

    Older links and downloads are removed. A file that somebody put there by hand is not, nor are increments.

    Raises:
        RecastError: two files have the same name, or the store holds a file that is neither a link nor a download.
    """
    targets: dict[Path, Path] = {}
    for file in files:
        link, target = store / file.name, file.absolute()
        if targets.setdefault(link, target) != target:
            raise RecastError(f"{targets[link]} and {target} have the same name: rename one of them")
    # A file that is in the store already is its own target.
    old = [file for file in store.iterdir() if file.name not in RESERVED_NAMES and targets.get(file) != file.absolute()]
    ours = {
        file
        for file in old
        if file.is_symlink() or file.name.endswith(DOWNLOAD_SUFFIXES) or checksum_file(file).exists()
    }
    if foreign := [str(file) for file in old if file not in ours]:
        raise RecastError(f"{', '.join(foreign)}: neither a link nor a download; move it elsewhere, then run again")
    for file in old:
        file.unlink()
    for link, target in targets.items():
        if not link.exists():
            link.symlink_to(target.resolve())


def list_increments(folder: Path) -> list[Path]:
    """List the increments in a folder, the oldest first; there are none where the folder does not exist.

    Raises:
        RecastError: the folder holds another table.
    """
    files = folder.iterdir() if folder.is_dir() else ()
    return sorted((file for file in files if file.suffix in (".csv", ".parquet")), key=increment_number)


def increment_number(increment: Path) -> int:
    """The sequence number of an increment.

    Raises:
        RecastError: the file does not have the name of an increment.
    """
    match = _INCREMENT_NAME.fullmatch(increment.name)
    if match is None:
        raise RecastError(
            f"{increment}: not an increment: recast refresh gives them names such as 0001-0a1b2c3d.csv; move the file "
            "elsewhere"
        )
    return int(match[1])
