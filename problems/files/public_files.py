"""Public files with known checksums: downloaded from the first mirror that gives them, or linked from a folder."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from problems.errors import RecastError
from problems.files.download import DOWNLOAD_SUFFIXES, download, verify_checksum
from problems.files.local_paths import resolve_path
from problems.files.raw_store import replace_with_links
from problems.source import DownloadProgress


@dataclass(frozen=True)
class PublicFile:
    """A file that is published under one name at every mirror.

    Attributes:
        sha256: its checksum, in hexadecimal; a mirror that gives another file is skipped.
        magic: the bytes that the file begins with.
    """

    name: str
    sha256: str
    magic: bytes = b""


GZIP_MAGIC, ZIP_MAGIC = b"\x1f\x8b", b"PK\x03\x04"


def fetch_public_files(
    store: Path, files: Iterable[PublicFile], mirrors: Sequence[str], progress: DownloadProgress, attempts: int
) -> None:
    """Make the store hold these files and no other data: verify those that are there, download those that are missing.

    Args:
        mirrors: addresses of folders that hold the files under their names, tried in order.

    Raises:
        Unreachable: no mirror gives a file.
        RecastError: a file has changed since it was downloaded, or the store holds a file that is not one of these.
    """
    files = list(files)
    names = {file.name for file in files}
    names |= {name + suffix for name in names for suffix in DOWNLOAD_SUFFIXES}
    # A link under one of the names is older, and leads to a file of the user's.
    replace_with_links(store, [file for file in store.iterdir() if file.name in names and not file.is_symlink()])
    fix = f"set problems.{store.name}.source.path to a copy on this machine, or try again later"
    for file in files:
        destination = store / file.name
        if destination.is_file():
            verify_checksum(destination)
            continue
        urls = [f"{mirror.rstrip('/')}/{file.name}" for mirror in mirrors]
        download(urls, destination, progress, attempts=attempts, sha256=file.sha256, magic=file.magic, fix=fix)


def link_files_of_folder(store: Path, path: str, names: Iterable[str]) -> None:
    """Make the store hold links to the files of these names in the folder `path`, and no other data.

    Raises:
        RecastError: there is no such folder, or it lacks one of the files.
    """
    setting = f"problems.{store.name}.source.path"
    folder = resolve_path(path, setting)
    if not folder.is_dir():
        raise RecastError(f"{setting}: there is no folder {path}; correct the setting, or remove it to download")
    files = [folder / name for name in names]
    if missing := [file.name for file in files if not file.is_file()]:
        raise RecastError(f"{setting}: {path} lacks {', '.join(missing)}; put it there, or name another folder")
    replace_with_links(store, files)


def find_local_file(store: Path, path: str, suffixes: tuple[str, ...]) -> Path:
    """Find the file that the setting `path` names.

    Raises:
        RecastError: there is no such file, or its name has none of the suffixes.
    """
    setting = f"problems.{store.name}.source.path"
    file = resolve_path(path, setting)
    if not file.is_file():
        raise RecastError(f"{setting}: there is no file {path}; correct the setting")
    if not file.name.endswith(suffixes):
        raise RecastError(f"{setting}: {path} is not a {' or '.join(suffixes)} file; give it the right name")
    return file
