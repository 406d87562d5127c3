"""The checksum of a file."""

import hashlib
from pathlib import Path


def file_sha256(file: Path) -> str:
    """The SHA-256 of the bytes of a file, in hexadecimal; the file is read in pieces."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
