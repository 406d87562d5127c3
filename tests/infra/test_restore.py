"""A restore that is killed is completed by the next command, or has changed nothing."""

import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from infra import restore as restoring
from infra.backup import back_up
from infra.restore import finish_interrupted_restore, restore
from project.paths import INTERRUPTED_RESTORE

FILES = {
    "mlruns/artifacts/1/weights": "weights",
    "data/champion/demo/history.json": "[]",
    "data/forecasts/demo.json": "{}",
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
