"""Archives read as streams, their members by name: nothing is unpacked, so no member can be written anywhere."""

import gzip
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from problems.errors import RecastError

BROKEN = (OSError, EOFError, zlib.error, zipfile.BadZipFile, tarfile.TarError)
"""What reading a file, or an archive of any kind, may raise."""


def tar_gz_files(file: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """The regular files of a .tar.gz archive in its order: a name, and what is to be read before the next is asked for.

    Raises:
        RecastError: the archive is cut short or broken, which may show only at its end.
    """
    try:
        with gzip.open(file) as content:
            yield from tar_files(content)
            while content.read(1 << 20):  # to the checksum, which tarfile leaves unread
                pass
    except BROKEN as error:
        raise RecastError(f"{file}: cut short or no tar.gz archive ({error}); delete it and fetch it anew") from error


def tar_files(content: IO[bytes] | gzip.GzipFile) -> Iterator[tuple[str, IO[bytes]]]:
    """The regular files of a tar archive, as `tar_gz_files` gives them; any of `BROKEN` may be raised."""
    with tarfile.open(fileobj=content, mode="r|") as archive:
        for member in archive:
            found = archive.extractfile(member) if member.isfile() else None
            if found is not None:
                yield member.name.removeprefix("./"), found


def zip_member(file: Path, name: str) -> IO[bytes]:
    """A member of a zip archive.

    Raises:
        RecastError: the archive is cut short or broken, or has no such member.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.open(name)  # its file stays open until the member is closed
    except KeyError:
        raise RecastError(f"{file}: the archive has no {name}; delete it and fetch it anew") from None
    except (*BROKEN, NotImplementedError, RuntimeError) as error:
        raise RecastError(f"{file}: cut short or no zip archive ({error}); delete it and fetch it anew") from error
