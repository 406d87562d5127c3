"""A backup restores what it contains, in another folder too; a damaged one restores nothing."""

import re
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from infra.backup import back_up
from problems.errors import RecastError
from tests.support.checkout import Checkout, copy_database


def test_a_backup_brings_everything_back_in_another_folder(
    finished: Checkout, servers: dict[str, Any], tmp_path: Path
) -> None:
    before = finished.copy(tmp_path / "before")
    before.file(".recast").mkdir()
    copy_database(servers["prefect_db"], before.file(".recast/prefect.db"))
    before.file("data/champion/demo").mkdir(parents=True)
    before.file("data/champion/demo/history.json").write_text("[]\n")
    before.file("data/forecasts").mkdir()
    with closing(sqlite3.connect(before.file("data/forecasts/demo.db"))) as log, log:
        log.execute("create table forecasts (forecast real)")
        log.execute("insert into forecasts values (1.5)")
    archive = str(tmp_path / "all.tar")
    assert "each with its hash" in before.recast("backup", archive, new_process=True)
    assert "exists already" in before.recast("backup", archive, status=1)

    after = before.copy(tmp_path / "after")
    assert "--replace" in after.recast("restore", archive, status=1)
    for name in ("mlruns", "data/champion", "data/forecasts", ".dvc/cache"):
        shutil.rmtree(after.file(name))
    after.recast("restore", archive, new_process=True)
    assert after.file("data/champion/demo/history.json").read_text() == "[]\n"
    with closing(sqlite3.connect(after.file("data/forecasts/demo.db"))) as log:
        assert log.execute("select * from forecasts").fetchall() == [(1.5,)]
    with closing(sqlite3.connect(after.file(".recast/prefect.db"))) as prefect:
        assert prefect.execute("select count(*) from flow_run").fetchone()[0] > 0
    shutil.rmtree(before.root)
    client = MlflowClient(f"sqlite:///{after.file('mlruns/mlflow.db')}")
    (experiment,) = client.search_experiments(filter_string="name = 'demo'")
    runs = client.search_runs([experiment.experiment_id])
    assert len(runs) == 6
    for run in runs:
        assert run.info.artifact_uri.startswith(after.root.as_uri())
        assert client.list_artifacts(run.info.run_id)
    shutil.rmtree(after.file("data/evaluate"))
    after.dvc("checkout")
    assert after.file("data/evaluate/demo/report.html").exists()


def test_a_damaged_backup_is_refused_and_nothing_is_changed(finished: Checkout, tmp_path: Path) -> None:
    copied = finished.copy(tmp_path / "copied")
    folder = tmp_path / "folder"
    copied.recast("backup", str(folder))
    database = copied.file("mlruns/mlflow.db").read_bytes()
    damaged = next(file for file in folder.rglob("*") if file.name == "weights.safetensors")
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\0\0")
    assert "is damaged; nothing was restored" in copied.recast("restore", str(folder), "--replace", status=1)
    damaged.unlink()
    assert "lacks" in copied.recast("restore", str(folder), "--replace", status=1)
    assert "is not a backup" in copied.recast("restore", str(copied.file("demo.csv")), status=1)
    assert copied.file("mlruns/mlflow.db").read_bytes() == database


def test_a_database_is_backed_up_without_the_side_files_that_a_killed_process_has_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data/forecasts").mkdir(parents=True)
    Path("log").mkdir()
    with closing(sqlite3.connect("log/demo.db")) as log:
        log.execute("pragma journal_mode = wal")
        with log:
            log.execute("create table forecasts as select 1.5 as forecast")
        for file in Path("log").iterdir():
            shutil.copy(file, "data/forecasts")
    assert Path("data/forecasts/demo.db-wal").exists()
    # And by a backup that was killed.
    Path(".recast/backing-up/objects").mkdir(parents=True)
    assert list(back_up(Path("all")).files) == ["data/forecasts/demo.db"]
    with closing(sqlite3.connect("all/data/forecasts/demo.db")) as log:
        assert log.execute("select * from forecasts").fetchall() == [(1.5,)]
    assert not Path(".recast/backing-up").exists()


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("/dev/null/x.tar", "/dev/null is not a folder"),
        ("/proc/x.tar", "cannot be written: "),
        ("file/x.tar", "file is not a folder"),
        ("file/x", "file is not a folder"),
        (f"{'n' * 300}.tar", "File name too long"),
        (f"{'n' * 250}.tar", "File name too long"),
        (f"{'n' * 300}/x", "File name too long"),
        ("/", "exists already"),
        (".", "exists already"),
        ("data/forecasts/x.tar", "is in data/forecasts, which is backed up itself"),
        ("mlruns/artifacts/../artifacts/x", "is in mlruns/artifacts, which is backed up itself"),
    ],
)
def test_a_place_that_cannot_hold_a_backup_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    with pytest.raises(RecastError, match=re.escape(message)) as raised:
        back_up(Path(target))
    assert "\n" not in str(raised.value)
