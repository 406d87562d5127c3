"""The Jena weather station of the Max Planck Institute for Biogeochemistry: the public archive or its own files."""

import os
import shutil
import zipfile
import zlib
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

from pydantic import Field

from problems.download import download, verify
from problems.errors import RecastError
from problems.increments import GrowingSource
from problems.source import Progress, Rows
from problems.table import link_only, scan, stored

ARCHIVE = "JENA_ARCHIVE"
"""The environment variable that names a local file or folder; it wins over every setting."""

MIRRORS = (
    "https://s3.amazonaws.com/keras-datasets/jena_climate_2009_2016.csv.zip",
    "https://storage.googleapis.com/tensorflow/tf-keras-datasets/jena_climate_2009_2016.csv.zip",
)
_MEND = f"set {ARCHIVE} to a local file or folder, or try again later"


class JenaSource(GrowingSource):
    """A CSV file of the station, plain or zipped, with its times in `Date Time` as dd.mm.yyyy HH:MM:SS."""

    kind: Literal["jena"]
    path: str | None = Field(None, description=f"a local .csv or .zip, or a folder with one; {ARCHIVE} wins over it")
    mirrors: tuple[str, ...] = Field(MIRRORS, min_length=1, description="where to download it without a local file")

    def span(self) -> timedelta | None:
        """The eight years of the public archive; unknown for a file of the user's."""
        if self.path is not None or os.environ.get(ARCHIVE):
            return None
        return datetime(2017, 1, 1) - datetime(2009, 1, 1)

    def fetch(self, store: Path, progress: Progress, attempts: int) -> None:
        """Link the local file that `JENA_ARCHIVE` or `path` names; else keep what is there; else download the archive.

        Raises:
            Unreachable: there is no local file and no mirror gives the archive.
            RecastError: the local file is missing or ambiguous, or the download has changed since it came.
        """
        if local := os.environ.get(ARCHIVE):
            link_only(store, [_data_file(Path(local), f"the environment variable {ARCHIVE}")])
        elif self.path is not None:
            link_only(store, [_data_file(Path(self.path), f"problems.{store.name}.source.path")])
        elif files := stored(store):
            for file in files:
                verify(file)
        else:
            link_only(store, [])  # a link whose target is gone would stand beside the download
            name = self.mirrors[0].rsplit("/", 1)[-1]
            download(self.mirrors, store / name, progress, attempts=attempts, magic=b"PK\x03\x04", mend=_MEND)

    def read_base(self, store: Path, scratch: Path) -> Rows:
        """The rows of the store's one file, unzipped into `scratch` if need be.

        Raises:
            RecastError: there is not exactly one file, or it is a web page or a broken archive.
        """
        file = _data_file(store, "the store")
        with file.open("rb") as content:
            if content.read(512).lstrip().startswith(b"<"):
                raise RecastError(f"{file}: a web page, not the station's data; delete it, then {_MEND}")
        return self._rows(self.plain(file, scratch), name=str(file))

    def read_increment(self, file: Path, scratch: Path) -> Rows:
        """The rows of a CSV file of the station.

        Raises:
            RecastError: it is no table.
        """
        return self._rows(file, name=str(file))

    def _rows(self, file: Path, name: str) -> Rows:
        return Rows(scan(file, name=name), time="Date Time", time_format="%d.%m.%Y %H:%M:%S")

    def plain(self, file: Path, scratch: Path) -> Path:
        """The file, or the one in the archive.

        Raises:
            RecastError: the archive is broken, or does not hold one CSV file.
        """
        return _unzipped(file, scratch) if file.suffix == ".zip" else file

    def is_fresh_file(self, file: Path) -> bool:
        """Whether its name is one of a CSV file or of an archive."""
        return file.suffix in (".csv", ".zip")


def _data_file(place: Path, named_by: str) -> Path:
    """The one data file at a place: the file itself, or what lies in the folder."""
    place = place.expanduser()
    if place.is_file():
        if place.suffix not in (".zip", ".csv"):
            raise RecastError(f"{named_by}: {place} is neither a .csv nor a .zip file; give it the right name")
        return place
    if not place.is_dir():
        raise RecastError(f"{named_by}: there is no file or folder {place}; correct or remove the setting")
    found = sorted(file for file in place.iterdir() if file.suffix in (".zip", ".csv") and file.is_file())
    if len(found) != 1:
        what = ", ".join(file.name for file in found) or "none"
        raise RecastError(f"{named_by}: {place} must hold one .csv or .zip file, found: {what}; name the file itself")
    return found[0]


def _unzipped(archive: Path, scratch: Path) -> Path:
    """The CSV file in an archive, as a file that can be scanned."""
    extracted = scratch / f"{archive.stem}.csv"
    try:
        with zipfile.ZipFile(archive) as members:
            tables = [m for m in members.namelist() if m.endswith(".csv") and not m.startswith("__MACOSX/")]
            if len(tables) != 1:
                raise RecastError(f"{archive}: must hold one .csv file, found: {', '.join(tables) or 'none'}")
            with members.open(tables[0]) as source, extracted.open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise RecastError(f"{archive}: cut short or no zip archive ({error}); delete it, then {_MEND}") from error
    return extracted
