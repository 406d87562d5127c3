"""Restore a backup as a whole: what is restored is prepared beside the stores, and then put in their places.

A restore that is killed before everything is prepared has changed nothing. One that is killed later is completed by the
next command: each step can be repeated.
"""

import errno
import shutil
import sqlite3
import tarfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from sqlalchemy import Connection, text

from infra import postgres
from infra.backup import (
    FORMAT,
    MANIFEST,
    RECORD_FOLDERS,
    Backup,
    list_files,
    list_keys,
    run_program,
)
from infra.laptop import ARTIFACTS, DATABASES, LOCATIONS
from infra.s3 import MLFLOW_FOLDER
from infra.server_process import running_address, running_port, start
from infra.servers import POSTGRES, S3, SERVERS, connect_object_store
from problems.errors import RecastError
from problems.files.file_hash import file_sha256
from project import profile
from project.atomic import write_json
from project.paths import DVC_CACHE, INTERRUPTED_RESTORE, STATE
from project.records import read_record
from project.sqlite_files import remove_database

_PREPARED = INTERRUPTED_RESTORE / "prepared.json"
"""Written once everything is prepared: from then on the restore is completed."""

_COMPLETED = INTERRUPTED_RESTORE / "completed.json"
"""What the former becomes once everything is in its place: only the folder has to be removed."""

_FILES = INTERRUPTED_RESTORE / "files"
"""The files of the backup, checked."""

_IS_COMPLETE = "a restore that was interrupted is now complete"
_NOTHING_CHANGED = "a restore was interrupted before it changed anything; what it had unpacked is removed"


@dataclass(frozen=True)
class _PreparedRestore:
    """What is restored.

    Attributes:
        profile: of the project.
    """

    profile: str


def restore(source: Path, replace: bool) -> Backup:
    """Restore a backup. Nothing is changed before all of its files have been checked.

    Args:
        replace: also if the project has runs or histories already, which are lost then.

    Raises:
        RecastError: the source is not a backup, is damaged, or has another profile; servers run; the project is not
            empty; or another restore is going on.
    """
    STATE.mkdir(exist_ok=True)
    with _hold_lock():
        shutil.rmtree(INTERRUPTED_RESTORE, ignore_errors=True)
        try:
            backup = _prepare(source, replace)
        except BaseException:
            shutil.rmtree(INTERRUPTED_RESTORE, ignore_errors=True)
            raise
        write_json(_PREPARED, asdict(_PreparedRestore(backup.profile)))
        _complete(backup.profile)
    return backup


def finish_interrupted_restore() -> str | None:
    """Complete a restore that was killed, or remove what one has left that had changed nothing yet.

    Returns:
        What was done, for a message; None: nothing, because another process has done it.

    Raises:
        RecastError: a restore is going on, or a server of the project cannot be started.
    """
    with _hold_lock():
        if not INTERRUPTED_RESTORE.exists():
            return None
        if _PREPARED.exists():
            prepared = read_record(_PREPARED, _PreparedRestore, f"delete {INTERRUPTED_RESTORE} and restore again")
            _complete(prepared.profile)
            return _IS_COMPLETE
        result = _IS_COMPLETE if _COMPLETED.exists() else _NOTHING_CHANGED
        shutil.rmtree(INTERRUPTED_RESTORE)
        return result


def _hold_lock() -> AbstractContextManager[object]:
    """Hold the lock of the restores of this checkout. It is released however the process that holds it ends.

    Raises:
        RecastError: another process holds it.
    """
    try:
        return FileLock(STATE / "restore.lock").acquire(timeout=0)
    except Timeout:
        raise RecastError("a restore is going on in this project; wait for it") from None


def _prepare(source: Path, replace: bool) -> Backup:
    """Write all that is restored beside the stores, and check it.

    Raises:
        RecastError: see `restore`.
    """
    name = profile.read_profile().name
    _unpack(source)
    backup = _check_files(source)
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
    if name == "servers":
        # With --replace too: it is better to know now than halfway whether the store can be reached.
        with connect_object_store() as (store, bucket, prefix):
            if list_keys(store, bucket, f"{prefix}{MLFLOW_FOLDER}/"):
                existing.append("artifacts in the S3 store")
    if existing and not replace:
        raise RecastError(f"this project has {', '.join(existing)} already; `--replace` puts the backup in their place")
    if (_FILES / "mlflow.db").exists():
        relocate_artifacts(_FILES / "mlflow.db")
    # A folder without files was empty, and becomes empty. Those that the backup does not contain stay as they are.
    contained = [records for records in RECORD_FOLDERS if str(records) in backup.folders]
    for folder in (Path("artifacts"), *contained):
        (_FILES / folder).mkdir(parents=True, exist_ok=True)
    if name == "servers":
        _load_databases()
    return backup


def _unpack(source: Path) -> None:
    """Copy a backup, a folder or an archive, to where it is on the file system of the stores."""
    try:
        if source.is_dir():
            shutil.copytree(source, _FILES)
        else:
            with tarfile.open(source) as archive:
                archive.extractall(_FILES, filter="data")
    except (FileNotFoundError, tarfile.TarError, EOFError) as error:
        raise RecastError(f"{source} is not a backup that can be read: {error}; name another one") from error


def _check_files(source: Path) -> Backup:
    """The manifest of an unpacked backup, after all of its files have been checked.

    Raises:
        RecastError: a file is not as it was written.
    """
    try:
        backup = read_record(_FILES / MANIFEST, Backup, f"nothing was restored from {source}: take another backup")
    except FileNotFoundError as error:
        raise RecastError(f"{source} is not a backup, or not a complete one: it has no {MANIFEST}") from error
    if backup.format != FORMAT:
        raise RecastError(
            f"{source} has the format {backup.format}; restore it with the version of Recast that made it"
        )
    for name, expected in backup.files.items():
        file = _FILES / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise RecastError(f"{source} names a file outside itself, {name}; nothing was restored")
        if not file.is_file():
            raise RecastError(f"{source} lacks {name}; nothing was restored: take another backup")
        if file_sha256(file) != expected.sha256:
            raise RecastError(f"{source}: {name} is damaged; nothing was restored: take another backup")
    return backup


def relocate_artifacts(database: Path) -> None:
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


def _list_objects(prefix: str) -> dict[str, Path]:
    """The files of the backup that are objects of the S3 store, by their keys."""
    return {f"{prefix}{file.relative_to(_FILES / 'objects')}": file for file in list_files(_FILES / "objects")}


def _load_databases() -> None:
    """Profile servers: load the backup into databases beside those in use."""
    with _connect_as_admin() as connection:
        for name in postgres.DATABASES:
            restored = _restored_name(name)
            connection.execute(text(f"drop database if exists {restored}"))
            connection.execute(text(f"create database {restored} owner {postgres.ROLE}"))
            dump, address = str(_FILES / f"{name}.dump"), postgres.address(running_port(POSTGRES), restored)
            run_program(
                "pg_restore", "--no-owner", "--exit-on-error", "--single-transaction", "--dbname", address, dump
            )


def _restored_name(database: str) -> str:
    """The name of a database while it is prepared."""
    return f"{database}_restored"


@contextmanager
def _connect_as_admin() -> Iterator[Connection]:
    """A connection to PostgreSQL that may create and drop databases, outside a transaction."""
    start(POSTGRES)
    engine = postgres.engine(running_port(POSTGRES), "postgres", postgres.ADMIN, isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            yield connection
    finally:
        engine.dispose()


def _switch_databases_and_objects() -> None:
    """Profile servers: put the databases that are prepared and the objects in their places, and remove all artifacts
    that the backup does not have."""
    with connect_object_store() as (store, bucket, prefix):
        objects = _list_objects(prefix)
        for key, file in objects.items():
            store.upload_file(str(file), bucket, key)
        with _connect_as_admin() as connection:
            for name in postgres.DATABASES:
                restored = _restored_name(name)
                exists = text("select 1 from pg_database where datname = :name")
                if connection.execute(exists, {"name": restored}).scalar():
                    connection.execute(text(f"drop database if exists {name} with (force)"))
                    connection.execute(text(f"alter database {restored} rename to {name}"))
        # Only these: DVC's remote may have the data of others, and a bucket anything.
        for key in set(list_keys(store, bucket, f"{prefix}{MLFLOW_FOLDER}/")) - set(objects):
            store.delete_object(Bucket=bucket, Key=key)


def _complete(profile_name: str) -> None:
    """Put everything that is prepared in its place. What was done by a process that was killed is left as it is."""
    if profile_name == "laptop":
        for name, database in DATABASES.items():
            move_to_place(_FILES / f"{name}.db", database, remove_database)
        move_to_place(_FILES / "artifacts", ARTIFACTS, _remove_folder)
    else:
        _switch_databases_and_objects()
    for records in RECORD_FOLDERS:
        move_to_place(_FILES / records, records, _remove_folder)
    # DVC names files by their content: a file that exists already is the same.
    for file in list_files(_FILES / "dvc"):
        target = DVC_CACHE / file.relative_to(_FILES / "dvc")
        if not target.exists():
            move_to_place(file, target, Path.unlink)
    # First: what is removed only in part must not be restored again.
    _PREPARED.rename(_COMPLETED)
    shutil.rmtree(_FILES)
    shutil.rmtree(INTERRUPTED_RESTORE)


def move_to_place(prepared: Path, target: Path, remove: Callable[[Path], None]) -> None:
    """Move a file or a folder to its place, unless that was done."""
    if not prepared.exists():
        return
    if target.exists():
        remove(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        prepared.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _move_to_other_file_system(prepared, target)


def _move_to_other_file_system(prepared: Path, target: Path) -> None:
    """Move a file or a folder to a place where there is nothing. It counts as moved once it has another name here."""
    copy = target.with_name(f"{target.name}.tmp")
    if prepared.is_dir():
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(prepared, copy)
    else:
        shutil.copyfile(prepared, copy)
    copy.rename(target)
    # A name that `list_files` leaves out.
    prepared.rename(prepared.with_name(f"{prepared.name}.tmp"))


def _remove_folder(folder: Path) -> None:
    shutil.rmtree(folder)
