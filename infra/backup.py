"""All that cannot be made again, in one file or folder: MLflow's runs, models and artifacts, the champions' histories,
the log of forecasts, Prefect's state and DVC's data. Checked by SHA-256, put back whole or not at all.

    backup.json                the manifest, written last: what is there, and its hashes
    mlflow.db, prefect.db      of a laptop: SQLite's own online backups
    mlflow.dump, prefect.dump  of servers: what pg_dump writes
    artifacts/, objects/       of a laptop: MLflow's artifacts; of servers: all objects of the S3 store
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

from pydantic import TypeAdapter, ValidationError
from sqlalchemy import text

from infra import postgres
from infra.laptop import ARTIFACTS, DATABASES, LOCATIONS
from infra.servers import POSTGRES, S3, SERVERS, object_store, port_of, start, url
from problems.errors import RecastError
from project import profile
from project.atomic import replaced_file, replaced_folder
from project.paths import STATE

MANIFEST = "backup.json"
FORMAT = 1
CHUNK_BYTES = 1 << 20

HISTORIES = (Path("data/champion"), Path("data/forecasts"))
CACHE = Path(".dvc/cache")


@dataclass(frozen=True)
class Held:
    """A file of a backup."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Backup:
    """The manifest of a backup.

    Attributes:
        made: when, in UTC, ISO 8601.
        profile: of the project that it was made of; it can be put back into one of the same.
        files: by name.
    """

    format: int
    made: str
    profile: str
    files: dict[str, Held]

    @property
    def size(self) -> int:
        """All files together, in bytes."""
        return sum(each.bytes for each in self.files.values())


def back_up(target: Path) -> Backup:
    """Write a backup: a tar file where `target` ends with .tar, else a folder. The servers may run.

    Raises:
        RecastError: there is something of that name, or a database could not be read.
    """
    if target.exists():
        raise RecastError(f"{target} is there already; name another, such as {target.stem}-2{target.suffix}")
    with tempfile.TemporaryDirectory(prefix="recast-backup-") as scratch:
        sources = _sources(Path(scratch))
        if target.suffix == ".tar":
            with replaced_file(target) as temporary, tarfile.open(temporary, "w") as archive:
                made = _manifest({name: _into(archive, name, file) for name, file in sources.items()})
                manifest = Path(scratch) / MANIFEST
                _write(manifest, made)
                archive.add(manifest, MANIFEST)
        else:
            with replaced_folder(target) as temporary:
                made = _manifest({name: _copied(file, temporary / name) for name, file in sources.items()})
                _write(temporary / MANIFEST, made)
    return made


def restore(source: Path, replace: bool) -> Backup:
    """Put a backup back. Nothing is touched before every file of it has been found to be as it was written.

    Args:
        replace: also where the project has runs or histories already; these are gone then.

    Raises:
        RecastError: it is no backup, or damaged, or of another profile; servers run; or the project is not empty.
    """
    with _unpacked(source) as folder:
        held = _checked(source, folder)
        name = profile.read().name
        if held.profile != name:
            raise RecastError(
                f"{source} is of the profile {held.profile}, this project of {name}: `recast up --profile "
                f"{held.profile}`, `recast down`, then restore; `recast migrate` brings a laptop's to servers"
            )
        if running := [each.title for each in SERVERS if each not in (POSTGRES, S3) and url(each)]:
            raise RecastError(f"{', '.join(running)} would go on with what is replaced: `recast down` first")
        there = [str(each) for each in (*DATABASES.values(), *HISTORIES) if each.exists()]
        if name == "servers" and (postgres.DATA / "PG_VERSION").exists():
            there.append("PostgreSQL's databases")
        if there and not replace:
            raise RecastError(
                f"this project has {', '.join(there)} already; `--replace` puts the backup in their place"
            )
        if name == "laptop":
            _restore_laptop(folder)
        else:
            _restore_servers(folder)
        for history in HISTORIES:
            _restore_folder(folder / history, history)
        # Named by their content: what is there already is the same.
        for file in _files(folder / "dvc"):
            target = CACHE / file.relative_to(folder / "dvc")
            if not target.exists():
                with replaced_file(target) as temporary:
                    shutil.copyfile(file, temporary)
    return held


def _sources(scratch: Path) -> dict[str, Path]:
    """The files of a backup by their names in it; what is no plain file of the project is written to `scratch`."""
    sources = {}
    if profile.read().name == "laptop":
        for name, database in DATABASES.items():
            if database.exists():
                sources[f"{name}.db"] = _copied_database(database, scratch / f"{name}.db")
        sources |= {f"artifacts/{file.relative_to(ARTIFACTS)}": file for file in _files(ARTIFACTS)}
    else:
        start(POSTGRES)
        for name in postgres.DATABASES:
            sources[f"{name}.dump"] = scratch / f"{name}.dump"
            address = postgres.address(port_of(POSTGRES), name)
            _run("pg_dump", "--format", "custom", "--file", str(sources[f"{name}.dump"]), address)
        store, bucket, prefix = object_store()
        for key in _keys(store, bucket, prefix):
            file = scratch / "objects" / key.removeprefix(prefix)
            file.parent.mkdir(parents=True, exist_ok=True)
            store.download_file(bucket, key, str(file))
            sources[f"objects/{key.removeprefix(prefix)}"] = file
    for history in HISTORIES:
        for file in _files(history):
            # The log of forecasts may be written to at this moment.
            sources[str(file)] = _copied_database(file, scratch / file) if file.suffix == ".db" else file
    return sources | {f"dvc/{file.relative_to(CACHE)}": file for file in _files(CACHE)}


def _files(folder: Path) -> Iterator[Path]:
    """Every file below a folder, in order, but none that is just being written."""
    yield from sorted(file for file in folder.rglob("*") if file.is_file() and file.suffix != ".tmp")


def _copied_database(database: Path, target: Path) -> Path:
    """A copy of a SQLite database as it is at one moment, whoever writes to it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(database)) as from_, closing(sqlite3.connect(target)) as to:
        from_.backup(to)
    return target


def _run(program: str, *arguments: str) -> None:
    """Run a program of PostgreSQL.

    Raises:
        RecastError: it has failed.
    """
    command = [str(postgres.program(program)), *arguments]
    ended = subprocess.run(
        command, env=os.environ | postgres.environment(), capture_output=True, text=True, check=False
    )
    if ended.returncode:
        raise RecastError(f"{program} has failed: {ended.stderr.strip()}; the log of PostgreSQL is {POSTGRES.log}")


def _keys(store: Any, bucket: str, prefix: str) -> list[str]:
    pages = store.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    return [each["Key"] for page in pages for each in page.get("Contents", ())]


class _Hashed:
    """A file that is read once, and hashed as it is."""

    def __init__(self, file: Any) -> None:
        self.file, self.digest, self.bytes = file, hashlib.sha256(), 0

    def read(self, size: int = -1) -> bytes:
        block: bytes = self.file.read(size)
        self.digest.update(block)
        self.bytes += len(block)
        return block

    def held(self) -> Held:
        return Held(self.digest.hexdigest(), self.bytes)


def _into(archive: tarfile.TarFile, name: str, file: Path) -> Held:
    """Put a file into an archive."""
    with file.open("rb") as opened:
        hashed = _Hashed(opened)
        archive.addfile(archive.gettarinfo(name=str(file), arcname=name, fileobj=opened), hashed)
    return hashed.held()


def _copied(file: Path, target: Path) -> Held:
    target.parent.mkdir(parents=True, exist_ok=True)
    with file.open("rb") as opened, target.open("wb") as to:
        hashed = _Hashed(opened)
        shutil.copyfileobj(hashed, to, CHUNK_BYTES)
        os.fsync(to.fileno())
    return hashed.held()


def _manifest(files: Mapping[str, Held]) -> Backup:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return Backup(FORMAT, now, profile.read().name, dict(files))


def _write(file: Path, made: Backup) -> None:
    file.write_text(json.dumps(asdict(made), indent=1) + "\n", encoding="utf-8")


@contextmanager
def _unpacked(source: Path) -> Iterator[Path]:
    """The folder of a backup, unpacked where it is an archive."""
    if source.is_dir():
        yield source
        return
    # Beside the stores that it goes to: a rename away from them, and what has no room there has none anyway.
    STATE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="restore-", dir=STATE) as folder:
        try:
            with tarfile.open(source) as archive:
                archive.extractall(folder, filter="data")
        except (FileNotFoundError, tarfile.TarError, EOFError) as error:
            raise RecastError(f"{source} is no backup that can be read: {error}; name another one") from error
        yield Path(folder)


def _checked(source: Path, folder: Path) -> Backup:
    """The manifest of a backup of which every file is as it was written.

    Raises:
        RecastError: one is not.
    """
    try:
        held = TypeAdapter(Backup).validate_json((folder / MANIFEST).read_bytes())
    except (FileNotFoundError, ValidationError) as error:
        raise RecastError(f"{source} has no {MANIFEST} that can be read: it is no backup, or not whole") from error
    if held.format != FORMAT:
        raise RecastError(f"{source} is of format {held.format}; restore it with the version of Recast that made it")
    for name, expected in held.files.items():
        file = folder / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise RecastError(f"{source} names a file outside itself, {name}; nothing was restored")
        if not file.is_file():
            raise RecastError(f"{source} lacks {name}; nothing was restored: take another backup")
        with file.open("rb") as opened:
            found = hashlib.file_digest(opened, "sha256").hexdigest()
        if found != expected.sha256:
            raise RecastError(f"{source}: {name} is damaged; nothing was restored: take another backup")
    return held


def _restore_laptop(folder: Path) -> None:
    _restore_folder(folder / "artifacts", ARTIFACTS)
    for name, database in DATABASES.items():
        if not (folder / f"{name}.db").exists():
            continue
        with replaced_file(database) as temporary:
            shutil.copyfile(folder / f"{name}.db", temporary)
            if name == "mlflow":
                _settle(temporary)
            # The rest of the former one: SQLite would take it for this one's.
            for end in ("-wal", "-shm", "-journal"):
                database.with_name(database.name + end).unlink(missing_ok=True)


def _settle(database: Path) -> None:
    """Have MLflow look for the artifacts where this project is, wherever the one was that they come from."""
    below = f"/{ARTIFACTS}/"
    with closing(sqlite3.connect(database)) as connection, connection:
        for table, columns in LOCATIONS.items():
            for column in columns:
                for start_, here in (("file://", Path.cwd().as_uri()), ("/", str(Path.cwd()))):
                    # Names of our own, which SQLite takes no parameters for.
                    changed = f"update {table} set {column} = ? || substr({column}, instr({column}, ?))"
                    which = f"where {column} like ? and instr({column}, ?)"
                    connection.execute(f"{changed} {which}", (here, below, f"{start_}%", below))


def _restore_folder(folder: Path, target: Path) -> None:
    """Put a folder in the place of another; one that the backup does not have is empty there, and is so here."""
    with replaced_folder(target) as temporary:
        if folder.exists():
            shutil.copytree(folder, temporary, dirs_exist_ok=True)


def _restore_servers(folder: Path) -> None:
    start(POSTGRES)
    port = port_of(POSTGRES)
    store, bucket, prefix = object_store()
    wanted = {f"{prefix}{file.relative_to(folder / 'objects')}": file for file in _files(folder / "objects")}
    for key, file in wanted.items():
        store.upload_file(str(file), bucket, key)
    admin = postgres.engine(port, "postgres", postgres.ADMIN, isolation_level="AUTOCOMMIT")
    try:
        for name in postgres.DATABASES:
            fresh = f"{name}_restored"
            with admin.connect() as connection:
                connection.execute(text(f"drop database if exists {fresh}"))
                connection.execute(text(f"create database {fresh} owner {postgres.ROLE}"))
            dump = str(folder / f"{name}.dump")
            address = postgres.address(port, fresh)
            _run("pg_restore", "--no-owner", "--exit-on-error", "--single-transaction", "--dbname", address, dump)
        # Both are there whole: only now does either take its place.
        with admin.connect() as connection:
            for name in postgres.DATABASES:
                connection.execute(text(f"drop database if exists {name} with (force)"))
                connection.execute(text(f"alter database {name}_restored rename to {name}"))
    finally:
        admin.dispose()
    for key in set(_keys(store, bucket, prefix)) - set(wanted):
        store.delete_object(Bucket=bucket, Key=key)
