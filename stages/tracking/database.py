"""The SQLite database of MLflow's store: it is complete, or it does not exist.

MLflow creates and migrates a database in many transactions. If it is killed between two of them, or the disk is full,
every later start refuses what is left. So a copy is created or migrated, which takes its place once it is complete.
"""

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import mlflow.store.db_migrations
from alembic.script import ScriptDirectory
from filelock import FileLock
from mlflow import MlflowClient

from problems.errors import RecastError
from project.atomic import replace_file
from project.progress import print_warning
from project.sqlite_files import copy_database, is_locked, list_holders, remove_database

_RECOVERY = (
    "Restore a backup (`recast restore`); or move the file away, and `recast rebuild-mlflow` writes the runs of all "
    "trials again"
)
"""What to do about a database with runs that is of no use."""


def prepare_database(file: Path) -> None:
    """Create or migrate a database, unless it is complete. Checkouts that share one do this one after the other.

    Raises:
        RecastError: the file is not a database that can be read; or it has runs, but cannot be migrated, or is in use.
        sqlite3.OperationalError: another process holds its lock.
    """
    if _is_complete(file):
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{file}.lock"):
        if _is_complete(file):
            return
        if file.exists() and _is_empty(file):
            print_warning(f"{file} was not created completely, and has no runs; it is created again")
            remove_database(file)
        with replace_file(file) as temporary:
            remove_database(temporary)
            if file.exists():
                _migrate(file, temporary)
            else:
                # By the models, because that client creates their tables as well. The path is absolute, because MLflow
                # keeps the store of each address: a relative one may be that of a file in a former working directory.
                MlflowClient(f"sqlite:///{temporary.absolute()}").search_registered_models(max_results=1)


def _is_complete(file: Path) -> bool:
    """Whether a database has gone through all migrations of this version of MLflow, which note their progress in it."""
    return file.exists() and _find_revision(file) == _latest_revision()


def _find_revision(file: Path) -> str | None:
    """The last migration that a database has gone through; None: none, or it is not a database."""
    try:
        with closing(sqlite3.connect(file)) as connection:
            row = connection.execute("select version_num from alembic_version").fetchone()
    except sqlite3.DatabaseError as error:
        if is_locked(error):
            raise
        return None
    return str(row[0]) if row else None


@cache
def _latest_revision() -> str | None:
    """The last migration of this version of MLflow."""
    return ScriptDirectory(str(Path(mlflow.store.db_migrations.__file__).parent)).get_current_head()


def _is_empty(file: Path) -> bool:
    """Whether a database has neither runs nor models, so that nothing is lost with it."""
    if file.stat().st_size == 0:
        return True
    try:
        with closing(sqlite3.connect(file)) as connection:
            tables = {name for (name,) in connection.execute("select name from sqlite_master where type = 'table'")}
            # SQLite takes no parameters for names; these are not input.
            return not any(
                connection.execute(f"select 1 from {table} limit 1").fetchone()
                for table in tables & {"runs", "registered_models"}
            )
    except sqlite3.DatabaseError as error:
        if is_locked(error):
            raise
        raise RecastError(f"{file} cannot be read ({error}). {_RECOVERY}") from error


def _migrate(file: Path, copy: Path) -> None:
    """Write a copy of a database that has gone through all migrations. The former database is kept beside it.

    Raises:
        RecastError: the database is in use, or a migration fails.
    """
    if holders := list_holders(file):
        raise RecastError(f"{file} is of another version of MLflow, and in use by {holders}: stop that, and run again")
    print_warning(f"{file} is of another version of MLflow; a copy of it is migrated")
    copy_database(file, copy)
    command = [sys.executable, "-m", "mlflow", "db", "upgrade", f"sqlite:///{copy}"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode or not _is_complete(copy):
        reason = (result.stderr.strip().splitlines() or ["it ended without an error"])[-1]
        raise RecastError(f"{file} has runs, but MLflow cannot migrate it ({reason}). {_RECOVERY}")
    former = file.with_name(f"{file.stem}-{datetime.now(UTC):%Y%m%dT%H%M%S}.db")
    os.link(file, former)
    print_warning(f"the database as it was before is {former}")
