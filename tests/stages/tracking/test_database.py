"""The database of MLflow's store is complete, or it is created again; nothing that has runs is lost."""

import errno
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import mlflow.store.db_migrations
import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from mlflow import MlflowClient
from mlflow.store.tracking.dbmodels.initial_models import Base
from sqlalchemy import create_engine

from problems.errors import RecastError
from stages.tracking import store
from stages.tracking.database import prepare_database

MIGRATIONS = Path(mlflow.store.db_migrations.__file__).parent


def create_half(file: Path, revision: str | None) -> None:
    """What MLflow leaves if it is killed after the first tables, or after one of its migrations."""
    engine = create_engine(f"sqlite:///{file}")
    Base.metadata.create_all(engine)
    if revision:
        config = Config(str(MIGRATIONS / "alembic.ini"))
        config.set_main_option("script_location", str(MIGRATIONS))
        config.set_main_option("sqlalchemy.url", f"sqlite:///{file}")
        command.upgrade(config, revision)
    engine.dispose()


@contextmanager
def run_beside(code: str) -> Iterator[int]:
    """The id of another Python process that has run this code, and waits."""
    process = subprocess.Popen(
        [sys.executable, "-c", f"{code}; print('ready', flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout
    process.stdout.readline()
    try:
        yield process.pid
    finally:
        process.communicate(b"\n")


def last_revisions() -> list[str]:
    """The last migrations of this version of MLflow, the newest first."""
    return [script.revision for script in ScriptDirectory(str(MIGRATIONS)).walk_revisions()]


@pytest.fixture(scope="module")
def one_migration_short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database of the version before the present one, without runs."""
    file = tmp_path_factory.mktemp("short") / "mlflow.db"
    create_half(file, last_revisions()[1])
    return file


@pytest.mark.parametrize("kind", ["empty file", "first tables", "one migration short"])
def test_a_database_whose_creation_was_killed_is_created_again(
    kind: str, one_migration_short: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mlflow.db"
    if kind == "empty file":
        file.touch()
    elif kind == "first tables":
        create_half(file, None)
    else:
        shutil.copyfile(one_migration_short, file)
    file.with_name("mlflow.db.tmp").write_bytes(b"what was killed while it wrote a copy")
    file.with_name("mlflow.db.tmp-journal").write_bytes(b"its journal")
    prepare_database(file)
    assert "was not created completely" in capsys.readouterr().err
    client = MlflowClient(f"sqlite:///{file}")
    client.create_run(client.create_experiment("demo"))
    client.create_registered_model("demo")
    assert not list(tmp_path.glob("*.tmp*"))


def test_a_process_creates_a_database_in_each_folder_that_it_works_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("first", "second"):
        folder = tmp_path / name
        folder.mkdir()
        monkeypatch.chdir(folder)
        prepare_database(Path("mlflow.db"))
        with closing(sqlite3.connect("mlflow.db")) as connection:
            assert connection.execute("select count(*) from runs").fetchone() == (0,)


def test_a_database_of_another_version_is_migrated_with_its_runs(one_migration_short: Path, tmp_path: Path) -> None:
    file = tmp_path / "mlflow.db"
    shutil.copyfile(one_migration_short, file)
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("insert into runs (run_uuid, name, status) values ('a', 'kept', 'FINISHED')")
    with run_beside(f"file = open({str(file)!r})") as pid, pytest.raises(RecastError, match=f"in use by process {pid}"):
        prepare_database(file)
    prepare_database(file)
    for database in (file, *tmp_path.glob("mlflow-*.db")):
        with closing(sqlite3.connect(database)) as connection:
            assert connection.execute("select name from runs").fetchall() == [("kept",)]
            (revision,) = connection.execute("select version_num from alembic_version").fetchone()
            assert (revision == last_revisions()[0]) == (database == file)
    assert len(list(tmp_path.glob("mlflow-*.db"))) == 1, "the former database is kept"


def test_a_file_that_is_not_a_database_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "mlflow.db"
    file.write_bytes(b"not a database" * 1000)
    with pytest.raises(RecastError, match=r"mlflow\.db cannot be read .* `recast rebuild-mlflow`"):
        prepare_database(file)
    assert file.read_bytes() == b"not a database" * 1000


def test_a_locked_database_is_said_to_be_locked_and_by_whom(
    servers: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    Path("mlruns").mkdir()
    shutil.copyfile(servers["mlflow_db"], "mlruns/mlflow.db")
    store.get_client.cache_clear()
    lock = "import sqlite3; c = sqlite3.connect('mlruns/mlflow.db'); c.execute('begin exclusive')"
    with run_beside(lock) as pid, pytest.raises(store.TrackingError, match=rf"is locked by .* process {pid} \("):
        store.get_client()
    store.get_client.cache_clear()


@pytest.mark.parametrize(
    ("raised", "expected", "message"),
    [
        (OSError(errno.EROFS, os.strerror(errno.EROFS), "mlruns"), OSError, "Read-only file system"),
        (KeyError("a bug"), KeyError, "a bug"),
        (
            sqlite3.OperationalError("database or disk is full"),
            store.TrackingError,
            r"cannot write, because the disk is full: .* Free some space and run again",
        ),
        (
            sqlite3.OperationalError("no"),
            store.TrackingError,
            r"reached: no\. Check that [^,]*mlflow\.db can",
        ),
    ],
)
def test_only_what_mlflow_does_is_reported_as_a_failure_of_mlflow(
    raised: Exception, expected: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(file: Path) -> None:
        raise raised

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(store, "prepare_database", fail)
    store.get_client.cache_clear()
    with pytest.raises(expected, match=message) as error:
        store.get_client()
    assert "unset" not in str(error.value)
