"""A restore that is killed is completed by the next command, or has changed nothing."""

import json
import shutil
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from flows import cli
from infra import backup as backing_up
from infra import postgres, s3, server_process
from infra import restore as restoring
from infra.backup import back_up
from infra.restore import finish_interrupted_restore, restore
from infra.servers import S3, connect_object_store
from problems.errors import RecastError
from project.paths import INTERRUPTED_RESTORE
from project.profile import Profile, save_profile

FILES = {
    "mlruns/artifacts/1/weights": "weights",
    "data/champion/demo/history.json": "[]",
    "data/forecasts/demo.json": "{}",
    "data/monitor/demo/history.json": "[]",
    "data/quarantine/demo/1.csv": "1",
    ".dvc/cache/files/md5/ab/cd": "an object",
}


def fill(content: str, template: Path) -> None:
    """A project whose files and databases have this content."""
    for name, text in FILES.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(f"{text} {content}" if ".dvc" not in name else text)
    for name in ("mlruns/mlflow.db", ".recast/prefect.db"):
        Path(name).parent.mkdir(exist_ok=True)
        shutil.copyfile(template, name)
        with closing(sqlite3.connect(name)) as connection, connection:
            connection.execute("update experiments set name = ?", (content,))


def read_state() -> dict[str, Any]:
    """The content of the files and the databases."""
    state: dict[str, Any] = {name: Path(name).read_text() for name in FILES}
    for name in ("mlruns/mlflow.db", ".recast/prefect.db"):
        with closing(sqlite3.connect(name)) as connection:
            state[name] = connection.execute("select name from experiments").fetchall()
    return state


@pytest.fixture
def backup(servers: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A backup of a project with the content `former`; the current folder is that project, with the content `new`."""
    monkeypatch.chdir(tmp_path)
    fill("former", servers["mlflow_db"])
    back_up(Path("former.tar"))
    Path("former.json").write_text(json.dumps(read_state()))
    fill("new", servers["mlflow_db"])
    Path("data/forecasts/later.json").write_text("{}")
    return Path("former.tar")


class Killed(BaseException):
    """In place of a signal: whatever is between two steps is left as it is."""


def kill_at(step: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which ends the process when it is called for the n-th time, before or after its work."""
    calls = iter(range(step // 2))

    def call(*arguments: Any) -> Any:
        if next(calls, None) is not None:
            return function(*arguments)
        if step % 2:
            function(*arguments)
        raise Killed

    return call


@pytest.mark.parametrize("step", range(10))
def test_a_restore_that_is_killed_is_completed_by_the_next_command(
    step: int, backup: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(restoring, "move_to_place", kill_at(step, restoring.move_to_place))
        with pytest.raises(Killed):
            restore(backup, replace=True)
    assert INTERRUPTED_RESTORE.exists()
    assert finish_interrupted_restore() == "a restore that was interrupted is now complete"
    assert json.loads(json.dumps(read_state())) == json.loads(Path("former.json").read_text())
    assert not Path("data/forecasts/later.json").exists()
    assert not INTERRUPTED_RESTORE.exists()


def test_a_restore_that_is_killed_before_all_is_prepared_has_changed_nothing(
    backup: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = read_state()
    with monkeypatch.context() as patch:
        patch.setattr(restoring, "relocate_artifacts", kill_at(0, restoring.relocate_artifacts))
        # A signal runs no handler of an exception.
        patch.setattr(shutil, "rmtree", lambda *arguments, **options: None)
        with pytest.raises(Killed):
            restore(backup, replace=True)
    assert INTERRUPTED_RESTORE.exists()
    assert "before it changed anything" in str(finish_interrupted_restore())
    assert not INTERRUPTED_RESTORE.exists()
    assert read_state() == before


def test_a_restore_that_is_killed_while_it_cleans_up_is_complete(
    backup: Path, servers: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    remove = shutil.rmtree

    def remove_or_die(folder: Path, **options: Any) -> None:
        if folder == INTERRUPTED_RESTORE / "files":
            raise Killed
        remove(folder, **options)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", remove_or_die)
        with pytest.raises(Killed):
            restore(backup, replace=True)
    fill("later", servers["mlflow_db"])
    assert finish_interrupted_restore() == "a restore that was interrupted is now complete"
    assert Path("data/forecasts/demo.json").read_text() == "{} later"
    assert not INTERRUPTED_RESTORE.exists()


def test_a_backup_of_an_earlier_version_leaves_the_folders_that_it_does_not_have(
    backup: Path, servers: dict[str, Any]
) -> None:
    back_up(Path("earlier"))
    manifest = json.loads(Path("earlier/backup.json").read_text())
    del manifest["folders"]
    for folder in ("data/monitor", "data/quarantine"):
        shutil.rmtree(Path("earlier") / folder)
        manifest["files"] = {name: file for name, file in manifest["files"].items() if not name.startswith(folder)}
    Path("earlier/backup.json").write_text(json.dumps(manifest))
    fill("later", servers["mlflow_db"])
    restore(Path("earlier"), replace=True)
    state = read_state()
    assert {name: state[name] for name in FILES if name.startswith("data/")} == {
        "data/champion/demo/history.json": "[] new",
        "data/forecasts/demo.json": "{} new",
        "data/monitor/demo/history.json": "[] later",
        "data/quarantine/demo/1.csv": "1 later",
    }


def test_while_a_restore_goes_on_a_command_shows_its_help_and_does_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    INTERRUPTED_RESTORE.mkdir(parents=True)
    with FileLock(".recast/restore.lock"):
        for arguments, status, printed in (
            (["status"], 1, "a restore is going on in this project; wait for it"),
            (["status", "--help"], 0, "Usage"),
            (["--help"], 0, "Usage"),
        ):
            monkeypatch.setattr(sys, "argv", ["recast", *arguments])
            with pytest.raises(SystemExit) as ended:
                cli.main()
            assert ended.value.code == status
            assert printed in "".join(capsys.readouterr())
        with pytest.raises(RecastError, match="a restore is going on"):
            restore(Path("all.tar"), replace=True)
    assert INTERRUPTED_RESTORE.exists()


def test_a_restore_replaces_the_artifacts_of_a_store_once_all_is_prepared_and_nothing_else_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(".recast").mkdir()
    save_profile(Profile("servers"))
    monkeypatch.setattr(s3, "configure_dvc_remote", lambda *_: None)
    # PostgreSQL is another subject.
    monkeypatch.setattr(postgres, "DATABASES", ())
    monkeypatch.setattr(backing_up, "start", lambda server: "")
    monkeypatch.setattr(restoring, "_connect_as_admin", nullcontext)

    try:
        with connect_object_store() as (store, bucket, _):

            def write(content: str, *keys: str) -> None:
                for key in keys:
                    store.put_object(Bucket=bucket, Key=key, Body=content.encode())

            def read() -> dict[str, str]:
                keys = backing_up.list_keys(store, bucket, "")
                return {key: store.get_object(Bucket=bucket, Key=key)["Body"].read().decode() for key in keys}

            write("former", "mlflow/1", "dvc/1", "of-others/1")
            back_up(Path("former"))
            write("later", "mlflow/1", "mlflow/2", "dvc/2", "of-others/1", "of-others/2")
            later = read()
            with pytest.raises(RecastError, match="artifacts in the S3 store already"):
                restore(Path("former"), replace=False)
            with monkeypatch.context() as patch:
                patch.setattr(restoring, "_load_databases", kill_at(0, print))
                with pytest.raises(Killed):
                    restore(Path("former"), replace=True)
            assert read() == later
            restore(Path("former"), replace=True)
            later |= {"mlflow/1": "former"}
            del later["mlflow/2"]
            assert read() == later
    finally:
        server_process.stop(S3)
