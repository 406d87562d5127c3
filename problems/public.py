"""Public files with known checksums: downloaded from the first mirror that gives them, or linked from a folder."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from problems.download import LEFTOVERS, download, verify
from problems.errors import RecastError
from problems.source import Progress
from problems.table import link_only


@dataclass(frozen=True)
class PublicFile:
    """A file that is published under one name at every mirror.

    Attributes:
        sha256: its checksum, in hexadecimal; a mirror that gives another file is passed over.
        magic: the bytes that it begins with.
    """

    name: str
    sha256: str
    magic: bytes = b""


GZIP, ZIP = b"\x1f\x8b", b"PK\x03\x04"


def fetch_public(
    store: Path, files: Iterable[PublicFile], mirrors: Sequence[str], progress: Progress, attempts: int
) -> None:
    """Make the store hold these files and no other data: what is there is verified, what is missing is downloaded.

    Args:
        mirrors: addresses of folders that hold the files under their names, tried in order.

    Raises:
        Unreachable: no mirror gives a file.
        RecastError: a file has changed since it was downloaded, or the store holds one that is none of ours.
    """
    wanted = list(files)
    names = {file.name for file in wanted}
    names |= {name + suffix for name in names for suffix in LEFTOVERS}
    # A link under a wanted name is one of another time, to a file of the user's.
    link_only(store, [file for file in store.iterdir() if file.name in names and not file.is_symlink()])
    mend = f"set problems.{store.name}.source.path to a copy on this machine, or try again later"
    for file in wanted:
        destination = store / file.name
        if destination.is_file():
            verify(destination)
            continue
        urls = [f"{mirror.rstrip('/')}/{file.name}" for mirror in mirrors]
        download(urls, destination, progress, attempts=attempts, sha256=file.sha256, magic=file.magic, mend=mend)


def link_folder(store: Path, path: str, names: Iterable[str]) -> None:
    """Make the store hold links to the files of these names in the folder `path`, and no other data.

    Raises:
        RecastError: there is no such folder, or it lacks one of them.
    """
    setting, folder = f"problems.{store.name}.source.path", Path(path).expanduser()
    if not folder.is_dir():
        raise RecastError(f"{setting}: there is no folder {path}; correct the setting, or remove it to download")
    wanted = [folder / name for name in names]
    if missing := [file.name for file in wanted if not file.is_file()]:
        raise RecastError(f"{setting}: {path} lacks {', '.join(missing)}; put it there, or name another folder")
    link_only(store, wanted)


def local_file(store: Path, path: str, suffixes: tuple[str, ...]) -> Path:
    """The file that the setting `path` names.

    Raises:
        RecastError: there is none, or its name ends otherwise.
    """
    setting, file = f"problems.{store.name}.source.path", Path(path).expanduser()
    if not file.is_file():
        raise RecastError(f"{setting}: there is no file {path}; correct the setting")
    if not file.name.endswith(suffixes):
        raise RecastError(f"{setting}: {path} is no {' or '.join(suffixes)} file; give it the right name")
    return file
