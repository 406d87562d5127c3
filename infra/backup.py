"""Backups of all that cannot be made again, as one file or folder: MLflow's runs, models and artifacts, the histories
of champions, the forecast log, the results of monitoring, the rows in quarantine, Prefect's state and DVC's data. Each
file is checked by its SHA-256 before a backup is restored, as a whole or not at all.

    backup.json                the manifest, which is written last: the files and their hashes
    mlflow.db, prefect.db      profile laptop: SQLite's own online backups
    mlflow.dump, prefect.dump  profile servers: what pg_dump writes
    artifacts/, objects/       profile laptop: MLflow's artifacts; profile servers: these and DVC's remote, from S3
    data/champion/, data/forecasts/, data/monitor/, data/quarantine/
    dvc/                       DVC's cache
"""

import hashlib
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from infra import postgres
from infra.laptop import ARTIFACTS, DATABASES
from infra.s3 import DVC_FOLDER, MLFLOW_FOLDER
from infra.server_process import running_port, start
from infra.servers import POSTGRES, connect_object_store
from problems.errors import RecastError
from project import profile
from project.atomic import replace_file, replace_folder
from project.paths import DVC_CACHE, STATE
from project.sqlite_files import SIDE_FILES, copy_database

MANIFEST = "backup.json"
FORMAT = 1
CHUNK_BYTES = 1 << 20

RECORD_FOLDERS = tuple(Path("data") / name for name in ("champion", "forecasts", "monitor", "quarantine"))
"""What neither git nor DVC keeps, and no stage makes again."""

_SCRATCH = STATE / "backing-up"
"""Copies of the stores while a backup is written."""


@dataclass(frozen=True)
class BackedUpFile:
    """A file of a backup."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Backup:
    """The manifest of a backup.

    Attributes:
        made: when it was made, in UTC, ISO 8601.
        profile: of the project; the backup can be restored into a project with the same profile.
        files: by name.
        folders: the folders of records that it contains, even if they are empty. The first versions had only two.
    """

    format: int
    made: str
    profile: str
    files: dict[str, BackedUpFile]
    folders: tuple[str, ...] = ("data/champion", "data/forecasts")

    @property
    def size(self) -> int:
        """The size of all files together, in bytes."""
        return sum(file.bytes for file in self.files.values())


def back_up(target: Path) -> Backup:
    """Write a backup. The servers may run meanwhile.

    Args:
        target: a tar file if it ends with .tar, else a folder.

    Raises:
        RecastError: the target exists already or cannot be written, or a database cannot be read.
    """
    _check_target(target)
    # Not in the system's temporary folder, which may be small, and always the same: a killed backup leaves it.
    shutil.rmtree(_SCRATCH, ignore_errors=True)
    _SCRATCH.mkdir(mode=0o700, parents=True)
    try:
        sources = _collect_files(_SCRATCH)
        if target.suffix == ".tar":
            with replace_file(target) as temporary, tarfile.open(temporary, "w") as archive:
                backup = _make_manifest({name: _add_to_archive(archive, name, file) for name, file in sources.items()})
                manifest = _SCRATCH / MANIFEST
                _write_manifest(manifest, backup)
                archive.add(manifest, MANIFEST)
        else:
            with replace_folder(target) as temporary:
                backup = _make_manifest({name: _copy_file(file, temporary / name) for name, file in sources.items()})
                _write_manifest(temporary / MANIFEST, backup)
    finally:
        shutil.rmtree(_SCRATCH, ignore_errors=True)
    return backup


def _check_target(target: Path) -> None:
    """Check that a backup can be written there, before minutes are spent on it.

    Raises:
        RecastError: the target exists already, cannot be written, or would be a part of later backups.
    """
    try:
        if target.exists():
            raise RecastError(
                f"{target} exists already; name another file or folder, such as {target.stem}-2{target.suffix}"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f"{target.name}."):
            pass
    except FileExistsError:
        raise RecastError(f"{target} cannot be written: {target.parent} is not a folder; name another one") from None
    except OSError as error:
        raise RecastError(f"{target} cannot be written: {error.strerror}; name another file or folder") from None
    for folder in (ARTIFACTS, DVC_CACHE, *RECORD_FOLDERS):
        if target.resolve().is_relative_to(folder.resolve()):
            raise RecastError(f"{target} is in {folder}, which is backed up itself; name a file or folder elsewhere")


def _collect_files(scratch: Path) -> dict[str, Path]:
    """The files of a backup by their names in it. What is not a plain file of the project is written to `scratch`."""
    sources = {}
    if profile.read_profile().name == "laptop":
        for name, database in DATABASES.items():
            if database.exists():
                sources[f"{name}.db"] = copy_database(database, scratch / f"{name}.db")
        sources |= {f"artifacts/{file.relative_to(ARTIFACTS)}": file for file in list_files(ARTIFACTS)}
    else:
        start(POSTGRES)
        for name in postgres.DATABASES:
            sources[f"{name}.dump"] = scratch / f"{name}.dump"
            address = postgres.address(running_port(POSTGRES), name)
            run_program("pg_dump", "--format", "custom", "--file", str(sources[f"{name}.dump"]), address)
        with connect_object_store() as (store, bucket, prefix):
            for folder in (MLFLOW_FOLDER, DVC_FOLDER):
                for key in list_keys(store, bucket, f"{prefix}{folder}/"):
                    file = scratch / "objects" / key.removeprefix(prefix)
                    file.parent.mkdir(parents=True, exist_ok=True)
                    store.download_file(bucket, key, str(file))
                    sources[f"objects/{key.removeprefix(prefix)}"] = file
    for records in RECORD_FOLDERS:
        for file in list_files(records):
            # A copied database is whole without them, and SQLite removes them at any moment.
            if file.name.endswith(SIDE_FILES):
                continue
            # The forecast log may be written at this moment.
            sources[str(file)] = copy_database(file, scratch / file) if file.suffix == ".db" else file
    return sources | {f"dvc/{file.relative_to(DVC_CACHE)}": file for file in list_files(DVC_CACHE)}


def list_files(folder: Path) -> Iterator[Path]:
    """All files below a folder, in order, except those that are being written."""
    yield from sorted(file for file in folder.rglob("*") if file.is_file() and file.suffix != ".tmp")


def run_program(program: str, *arguments: str) -> None:
    """Run a program of PostgreSQL.

    Raises:
        RecastError: it has failed.
    """
    command = [str(postgres.program(program)), *arguments]
    result = subprocess.run(
        command, env=os.environ | postgres.client_environment(), capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise RecastError(f"{program} has failed: {result.stderr.strip()}; the log of PostgreSQL is {POSTGRES.log}")


def list_keys(store: Any, bucket: str, prefix: str) -> list[str]:
    pages = store.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    return [entry["Key"] for page in pages for entry in page.get("Contents", ())]


class _HashingReader:
    """Hashes a file while it is read, so that it is read once."""

    def __init__(self, file: Any) -> None:
        self.file, self.digest, self.bytes = file, hashlib.sha256(), 0

    def read(self, size: int = -1) -> bytes:
        block: bytes = self.file.read(size)
        self.digest.update(block)
        self.bytes += len(block)
        return block

    def entry(self) -> BackedUpFile:
        """The entry of the manifest, once the file was read."""
        return BackedUpFile(self.digest.hexdigest(), self.bytes)


def _add_to_archive(archive: tarfile.TarFile, name: str, file: Path) -> BackedUpFile:
    """Add a file to an archive."""
    with file.open("rb") as opened:
        reader = _HashingReader(opened)
        archive.addfile(archive.gettarinfo(name=str(file), arcname=name, fileobj=opened), reader)
    return reader.entry()


def _copy_file(file: Path, target: Path) -> BackedUpFile:
    """Copy a file, and have the copy on the disk."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with file.open("rb") as opened, target.open("wb") as copy:
        reader = _HashingReader(opened)
        shutil.copyfileobj(reader, copy, CHUNK_BYTES)
        os.fsync(copy.fileno())
    return reader.entry()


def _make_manifest(files: Mapping[str, BackedUpFile]) -> Backup:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return Backup(FORMAT, now, profile.read_profile().name, dict(files), tuple(map(str, RECORD_FOLDERS)))


def _write_manifest(file: Path, backup: Backup) -> None:
    file.write_text(json.dumps(asdict(backup), indent=1) + "\n", encoding="utf-8")
