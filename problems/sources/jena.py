"""The Jena weather station of the Max Planck Institute for Biogeochemistry: the public archive or its own files."""

import os
import zipfile
import zlib
from collections.abc import Collection
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

from pydantic import Field

from problems.errors import RecastError
from problems.files.archive import open_zip_member
from problems.files.download import download, verify_checksum
from problems.files.local_paths import resolve_path
from problems.files.raw_store import list_stored_files, replace_with_links
from problems.files.tables import scan_table, write_unpacked
from problems.growing_source import GrowingSource
from problems.source import DownloadProgress, Rows

ARCHIVE_VARIABLE = "JENA_ARCHIVE"
"""The environment variable that names a local file or folder; it has priority over the settings."""

MIRRORS = (
    "https://s3.amazonaws.com/keras-datasets/jena_climate_2009_2016.csv.zip",
    "https://storage.googleapis.com/tensorflow/tf-keras-datasets/jena_climate_2009_2016.csv.zip",
)
_FIX = f"set {ARCHIVE_VARIABLE} to a local file or folder, or try again later"


class JenaSource(GrowingSource):
    """A CSV file of the station, plain or zipped, with its times in `Date Time` as dd.mm.yyyy HH:MM:SS."""

    kind: Literal["jena"]
    path: str | None = Field(
        None, description=f"a local .csv or .zip file, or a folder with one; {ARCHIVE_VARIABLE} has priority over it"
    )
    mirrors: tuple[str, ...] = Field(
        MIRRORS, min_length=1, description="addresses to download the public archive from, where there is no local file"
    )

    @property
    def longest_span(self) -> timedelta | None:
        """The eight years of the public archive; None for a file of the user's."""
        if self.path is not None or os.environ.get(ARCHIVE_VARIABLE):
            return None
        return datetime(2017, 1, 1) - datetime(2009, 1, 1)

    def fetch(self, store: Path, progress: DownloadProgress, attempts: int) -> None:
        """Link the local file that `JENA_ARCHIVE` or `path` names; or keep what is there; or download the archive.

        Raises:
            Unreachable: there is no local file and no mirror gives the archive.
            RecastError: the local file is missing or ambiguous, or the download has changed since it came.
        """
        if local := os.environ.get(ARCHIVE_VARIABLE):
            replace_with_links(store, [_find_data_file(local, f"the environment variable {ARCHIVE_VARIABLE}")])
        elif self.path is not None:
            replace_with_links(store, [_find_data_file(self.path, f"problems.{store.name}.source.path")])
        elif files := list_stored_files(store):
            for file in files:
                verify_checksum(file)
        else:
            replace_with_links(store, [])  # a link whose target is gone would remain beside the download
            name = self.mirrors[0].rsplit("/", 1)[-1]
            download(self.mirrors, store / name, progress, attempts=attempts, magic=b"PK\x03\x04", fix=_FIX)

    def read_base(self, store: Path, scratch: Path, numbers: Collection[str] = ()) -> Rows:
        """Read the rows of the one file in the store, unzipped into `scratch` if necessary.

        Raises:
            RecastError: there is not exactly one file, or it is a web page or a broken archive.
        """
        file = _find_data_file(str(store), "the store")
        with file.open("rb") as content:
            if content.read(512).lstrip().startswith(b"<"):
                raise RecastError(f"{file}: a web page, not the station's data; delete it, then {_FIX}")
        return self._scan_rows(self.unpack(file, scratch), str(file), numbers)

    def read_increment(self, file: Path, scratch: Path, numbers: Collection[str] = ()) -> Rows:
        """Read the rows of a CSV file of the station.

        Raises:
            RecastError: the file cannot be read as a table.
        """
        return self._scan_rows(file, str(file), numbers)

    def _scan_rows(self, file: Path, name: str, numbers: Collection[str]) -> Rows:
        time = "Date Time"
        frame = scan_table(file, name=name, numbers={*numbers} - {time})
        return Rows(frame, time, time_format="%d.%m.%Y %H:%M:%S")

    def unpack(self, file: Path, scratch: Path) -> Path:
        """Unpack the CSV file from a zip archive.

        Raises:
            RecastError: the archive is broken or encrypted, or does not hold one CSV file, or one far too large.
        """
        return _unzip(file, scratch) if file.suffix == ".zip" else file

    def is_fresh_file(self, file: Path) -> bool:
        """Whether its name is that of a CSV file or of a zip archive."""
        return file.suffix in (".csv", ".zip")


def _find_data_file(path: str, named_by: str) -> Path:
    """Find the one data file that a path names: the file itself, or the file in the folder.

    Args:
        named_by: where the path comes from, for messages.

    Raises:
        RecastError: there is no such file, or there are several.
    """
    place = resolve_path(path, named_by)
    if place.is_file():
        if place.suffix not in (".zip", ".csv"):
            raise RecastError(f"{named_by}: {place} is neither a .csv nor a .zip file; give it the right name")
        return place
    if not place.is_dir():
        raise RecastError(f"{named_by}: there is no file or folder {place}; correct or remove the setting")
    files = sorted(file for file in place.iterdir() if file.suffix in (".zip", ".csv") and file.is_file())
    if len(files) != 1:
        names = ", ".join(file.name for file in files) or "none"
        raise RecastError(f"{named_by}: {place} must hold one .csv or .zip file, found: {names}; name the file itself")
    return files[0]


def _unzip(archive: Path, scratch: Path) -> Path:
    """Extract the one CSV file of an archive, so that it can be scanned."""
    extracted = scratch / f"{archive.stem}.csv"
    try:
        with zipfile.ZipFile(archive) as members:
            tables = [name for name in members.namelist() if name.endswith(".csv") and not name.startswith("__MACOSX/")]
            if len(tables) != 1:
                raise RecastError(f"{archive}: must hold one .csv file, found: {', '.join(tables) or 'none'}")
        with open_zip_member(archive, tables[0]) as content:
            write_unpacked(content, extracted, archive)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise RecastError(f"{archive}: cut short or not a zip archive ({error}); delete it, then {_FIX}") from error
    return extracted
