"""Backups of all that cannot be made again, as one file or folder: MLflow's runs, models and artifacts, the histories
of champions, the forecast log, Prefect's state and DVC's data. Each file is checked by its SHA-256 before a backup is
restored, as a whole or not at all.

    backup.json                the manifest, which is written last: the files and their hashes
    mlflow.db, prefect.db      profile laptop: SQLite's own online backups
    mlflow.dump, prefect.dump  profile servers: what pg_dump writes
    artifacts/, objects/       profile laptop: MLflow's artifacts; profile servers: all objects of the S3 store
    data/champion/, data/forecasts/
    dvc/                       DVC's cache
"""

import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import text

from infra import postgres
from infra.laptop import ARTIFACTS, DATABASES, LOCATIONS
from infra.server_process import running_address, running_port, start
from infra.servers import POSTGRES, S3, SERVERS, connect_object_store
from problems.errors import RecastError
from problems.files.file_hash import file_sha256
from project import profile
from project.atomic import replace_file, replace_folder
from project.paths import STATE
from project.records import read_record

MANIFEST = "backup.json"
FORMAT = 1
CHUNK_BYTES = 1 << 20

RECORD_FOLDERS = (Path("data/champion"), Path("data/forecasts"))
DVC_CACHE = Path(".dvc/cache")


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
    """

    format: int
    made: str
    profile: str
    files: dict[str, BackedUpFile]

    @property
    def size(self) -> int:
        """The size of all files together, in bytes."""
        return sum(file.bytes for file in self.files.values())


def back_up(target: Path) -> Backup:
    """Write a backup. The servers may run meanwhile.

    Args:
        target: a tar file if it ends with .tar, else a folder.

    Raises:
        RecastError: the target exists already, or a database cannot be read.
    """
    if target.exists():
        raise RecastError(
            f"{target} exists already; name another file or folder, such as {target.stem}-2{target.suffix}"
        )
    with tempfile.TemporaryDirectory(prefix="recast-backup-") as scratch:
        sources = _collect_files(Path(scratch))
        if target.suffix == ".tar":
            with replace_file(target) as temporary, tarfile.open(temporary, "w") as archive:
                backup = _make_manifest({name: _add_to_archive(archive, name, file) for name, file in sources.items()})
                manifest = Path(scratch) / MANIFEST
                _write_manifest(manifest, backup)
                archive.add(manifest, MANIFEST)
        else:
            with replace_folder(target) as temporary:
                backup = _make_manifest({name: _copy_file(file, temporary / name) for name, file in sources.items()})
                _write_manifest(temporary / MANIFEST, backup)
    return backup


def restore(source: Path, replace: bool) -> Backup:
    """Restore a backup. Nothing is changed before all of its files have been checked.

    Args:
        replace: also if the project has runs or histories already, which are lost then.

    Raises:
        RecastError: the source is not a backup, is damaged, or has another profile; servers run; or the project is not
            empty.
    """
    with _unpack(source) as folder:
        backup = _check_files(source, folder)
        name = profile.read_profile().name
        if backup.profile != name:
            raise RecastError(
                f"{source} has the profile {backup.profile}, but this project has {name}: `recast up --profile "
                f"{backup.profile}`, `recast down`, then restore; `recast migrate` moves a laptop's stores to servers"
            )
        if running := [server.title for server in SERVERS if server not in (POSTGRES, S3) and running_address(server)]:
            raise RecastError(f"{', '.join(running)} would go on using what is replaced: `recast down` first")
        existing = [str(path) for path in (*DATABASES.values(), *RECORD_FOLDERS) if path.exists()]
        if name == "servers" and (postgres.DATA / "PG_VERSION").exists():
            existing.append("PostgreSQL's databases")
        if existing and not replace:
            raise RecastError(
                f"this project has {', '.join(existing)} already; `--replace` puts the backup in their place"
            )
        if name == "laptop":
            _restore_laptop(folder)
        else:
            _restore_servers(folder)
        for records in RECORD_FOLDERS:
            _restore_folder(folder / records, records)
        # DVC names files by their content: a file that exists already is the same.
        for file in _list_files(folder / "dvc"):
            target = DVC_CACHE / file.relative_to(folder / "dvc")
            if not target.exists():
                with replace_file(target) as temporary:
                    shutil.copyfile(file, temporary)
    return backup


def _collect_files(scratch: Path) -> dict[str, Path]:
    """The files of a backup by their names in it. What is not a plain file of the project is written to `scratch`."""
    sources = {}
    if profile.read_profile().name == "laptop":
        for name, database in DATABASES.items():
            if database.exists():
                sources[f"{name}.db"] = _copy_database(database, scratch / f"{name}.db")
        sources |= {f"artifacts/{file.relative_to(ARTIFACTS)}": file for file in _list_files(ARTIFACTS)}
    else:
        start(POSTGRES)
        for name in postgres.DATABASES:
            sources[f"{name}.dump"] = scratch / f"{name}.dump"
            address = postgres.address(running_port(POSTGRES), name)
            _run_program("pg_dump", "--format", "custom", "--file", str(sources[f"{name}.dump"]), address)
        store, bucket, prefix = connect_object_store()
        for key in _list_keys(store, bucket, prefix):
            file = scratch / "objects" / key.removeprefix(prefix)
            file.parent.mkdir(parents=True, exist_ok=True)
            store.download_file(bucket, key, str(file))
            sources[f"objects/{key.removeprefix(prefix)}"] = file
    for records in RECORD_FOLDERS:
        for file in _list_files(records):
            # The forecast log may be written at this moment.
            sources[str(file)] = _copy_database(file, scratch / file) if file.suffix == ".db" else file
    return sources | {f"dvc/{file.relative_to(DVC_CACHE)}": file for file in _list_files(DVC_CACHE)}


def _list_files(folder: Path) -> Iterator[Path]:
    """All files below a folder, in order, except those that are being written."""
    yield from sorted(file for file in folder.rglob("*") if file.is_file() and file.suffix != ".tmp")


def _copy_database(database: Path, target: Path) -> Path:
    """Copy a SQLite database as it is at one moment, even if others write to it, and return the copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(database)) as original, closing(sqlite3.connect(target)) as copy:
        original.backup(copy)
    return target


def _run_program(program: str, *arguments: str) -> None:
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


def _list_keys(store: Any, bucket: str, prefix: str) -> list[str]:
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
    return Backup(FORMAT, now, profile.read_profile().name, dict(files))


def _write_manifest(file: Path, backup: Backup) -> None:
    file.write_text(json.dumps(asdict(backup), indent=1) + "\n", encoding="utf-8")


@contextmanager
def _unpack(source: Path) -> Iterator[Path]:
    """The folder of a backup; an archive is unpacked into a temporary one."""
    if source.is_dir():
        yield source
        return
    # Beside the stores, so that files can be renamed into them, and because they need the space there anyway.
    STATE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="restore-", dir=STATE) as folder:
        try:
            with tarfile.open(source) as archive:
                archive.extractall(folder, filter="data")
        except (FileNotFoundError, tarfile.TarError, EOFError) as error:
            raise RecastError(f"{source} is not a backup that can be read: {error}; name another one") from error
        yield Path(folder)


def _check_files(source: Path, folder: Path) -> Backup:
    """The manifest of a backup, after all of its files have been checked.

    Raises:
        RecastError: a file is not as it was written.
    """
    try:
        backup = read_record(folder / MANIFEST, Backup, f"nothing was restored from {source}: take another backup")
    except FileNotFoundError as error:
        raise RecastError(f"{source} is not a backup, or not a complete one: it has no {MANIFEST}") from error
    if backup.format != FORMAT:
        raise RecastError(
            f"{source} has the format {backup.format}; restore it with the version of Recast that made it"
        )
    for name, expected in backup.files.items():
        file = folder / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise RecastError(f"{source} names a file outside itself, {name}; nothing was restored")
        if not file.is_file():
            raise RecastError(f"{source} lacks {name}; nothing was restored: take another backup")
        if file_sha256(file) != expected.sha256:
            raise RecastError(f"{source}: {name} is damaged; nothing was restored: take another backup")
    return backup


def _restore_laptop(folder: Path) -> None:
    _restore_folder(folder / "artifacts", ARTIFACTS)
    for name, database in DATABASES.items():
        if not (folder / f"{name}.db").exists():
            continue
        with replace_file(database) as temporary:
            shutil.copyfile(folder / f"{name}.db", temporary)
            if name == "mlflow":
                _relocate_artifacts(temporary)
            # These files of the former database SQLite would take for files of this one.
            for end in ("-wal", "-shm", "-journal"):
                database.with_name(database.name + end).unlink(missing_ok=True)


def _relocate_artifacts(database: Path) -> None:
    """Have MLflow look for artifacts in this project, wherever the project was that was backed up."""
    below = f"/{ARTIFACTS}/"
    with closing(sqlite3.connect(database)) as connection, connection:
        for table, columns in LOCATIONS.items():
            for column in columns:
                for beginning, root in (("file://", Path.cwd().as_uri()), ("/", str(Path.cwd()))):
                    # SQLite takes no parameters for names; these are not input.
                    update = f"update {table} set {column} = ? || substr({column}, instr({column}, ?))"
                    condition = f"where {column} like ? and instr({column}, ?)"
                    connection.execute(f"{update} {condition}", (root, below, f"{beginning}%", below))


def _restore_folder(folder: Path, target: Path) -> None:
    """Put a folder in the place of another. A folder that the backup does not have was empty, and becomes empty."""
    with replace_folder(target) as temporary:
        if folder.exists():
            shutil.copytree(folder, temporary, dirs_exist_ok=True)


def _restore_servers(folder: Path) -> None:
    start(POSTGRES)
    port = running_port(POSTGRES)
    store, bucket, prefix = connect_object_store()
    objects = {f"{prefix}{file.relative_to(folder / 'objects')}": file for file in _list_files(folder / "objects")}
    for key, file in objects.items():
        store.upload_file(str(file), bucket, key)
    admin = postgres.engine(port, "postgres", postgres.ADMIN, isolation_level="AUTOCOMMIT")
    try:
        for name in postgres.DATABASES:
            restored = f"{name}_restored"
            with admin.connect() as connection:
                connection.execute(text(f"drop database if exists {restored}"))
                connection.execute(text(f"create database {restored} owner {postgres.ROLE}"))
            dump = str(folder / f"{name}.dump")
            address = postgres.address(port, restored)
            _run_program(
                "pg_restore", "--no-owner", "--exit-on-error", "--single-transaction", "--dbname", address, dump
            )
        # Both databases are complete: only now do they take their places.
        with admin.connect() as connection:
            for name in postgres.DATABASES:
                connection.execute(text(f"drop database if exists {name} with (force)"))
                connection.execute(text(f"alter database {name}_restored rename to {name}"))
    finally:
        admin.dispose()
    for key in set(_list_keys(store, bucket, prefix)) - set(objects):
        store.delete_object(Bucket=bucket, Key=key)
