"""Archives that are read as streams, their members by name. Nothing is unpacked, so no member can overwrite a file."""

import gzip
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from problems.errors import RecastError

READ_ERRORS = (OSError, EOFError, zlib.error, zipfile.BadZipFile, tarfile.TarError)
"""What may be raised while a file, or an archive of any kind, is read."""


def read_tar_gz(file: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Read the regular files of a .tar.gz archive in its order.

    Yields:
        the name of a member, and its content, which must be read before the next member is asked for

    Raises:
        RecastError: the archive is cut short or broken, which may show only at its end.
    """
    try:
        with gzip.open(file) as content:
            yield from read_tar(content)
            while content.read(1 << 20):  # to the checksum, which tarfile leaves unread
                pass
    except READ_ERRORS as error:
        raise RecastError(
            f"{file}: cut short or not a tar.gz archive ({error}); delete it and fetch it again"
        ) from error


def read_tar(content: IO[bytes] | gzip.GzipFile) -> Iterator[tuple[str, IO[bytes]]]:
    """Read the regular files of a tar archive as `read_tar_gz` does; any of `READ_ERRORS` may be raised."""
    with tarfile.open(fileobj=content, mode="r|") as archive:
        for member in archive:
            member_content = archive.extractfile(member) if member.isfile() else None
            if member_content is not None:
                yield member.name.removeprefix("./"), member_content


def open_zip_member(file: Path, name: str) -> IO[bytes]:
    """Open a member of a zip archive.

    Raises:
        RecastError: the archive is cut short or broken, or has no such member, or the member is encrypted.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.open(name)  # its file stays open until the member is closed
    except KeyError:
        raise RecastError(f"{file}: the archive has no {name}; delete it and fetch it again") from None
    except RuntimeError as error:  # it is encrypted, or packed in a way that Python does not know
        raise RecastError(
            f"{file}: {name} cannot be unpacked ({error}); pack it again as a plain zip archive"
        ) from None
    except READ_ERRORS as error:
        raise RecastError(f"{file}: cut short or not a zip archive ({error}); delete it and fetch it again") from error
