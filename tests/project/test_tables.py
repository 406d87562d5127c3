"""The tables that a champion forecasts from, after a stage has failed."""

from pathlib import Path

import pytest

from problems.errors import RecastError
from project.tables import keep_tables


@pytest.mark.parametrize(
    "lock", ["<<<<<<< HEAD\nstages:\n=======\n", "schema: '2.0'\n", "stages: {ingest@demo: {outs: [{}]}}"]
)
def test_the_error_of_a_stage_is_raised_although_its_table_cannot_be_restored(
    lock: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("dvc.lock").write_text(lock)
    with pytest.raises(RecastError, match="no such column"), keep_tables("ingest@demo"):
        raise RecastError("no such column")
    assert "warning: ingest@demo: its table cannot be restored as dvc.lock lists it: " in capsys.readouterr().err
