"""What a migration checks. `tests/infra/test_servers.py` migrates a project."""

from pathlib import Path
from typing import Any

import pytest

from flows import migrate as migration
from project import profile


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({"x": 1e23, "y": -0.0, "z": {"a": 1, "b": 2}}, {"z": {"b": 2, "a": 1.0}, "y": 0, "x": 10**23}, True),
        ({"x": 0.1}, {"x": 0.2}, False),
        ({"x": None}, {"x": 0}, False),
        ({"x": 1}, {"x": "1"}, False),
        ({"x": {"a": [1, 2]}}, {"x": {"a": [2, 1]}}, False),
    ],
)
def test_the_checksum_of_rows_is_of_what_they_say(one: dict[str, Any], other: dict[str, Any], same: bool) -> None:
    first, second, third = migration.RowChecksum(), migration.RowChecksum(), migration.RowChecksum()
    first.add([one, {"y": 1}])
    second.add([{"y": 1}])
    assert first.total != second.total, "a row is missing"
    second.add([other])
    assert (first.total == second.total) == same
    third.add([one, one])
    assert third.total not in (0, first.total)


def test_both_databases_are_checked_before_anything_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for database in migration.DATABASES.values():
        database.parent.mkdir()
        database.touch()
    profile.save_profile(profile.Profile("servers"))
    done = []

    def check(name: str, *_: Any) -> None:
        done.append(name)
        if name == "prefect":
            raise migration.RecastError("prefect: the servers have 2 runs")

    monkeypatch.setattr(migration, "start", lambda server: "")
    monkeypatch.setattr(migration, "running_port", lambda server: 1)
    monkeypatch.setattr(migration, "_check_databases", check)
    monkeypatch.setattr(migration, "_copy_database", lambda name, *_: done.append(f"copied {name}"))
    monkeypatch.setattr(migration, "_send_artifacts", lambda folder: done.append("sent"))
    with pytest.raises(migration.RecastError, match="2 runs"):
        migration.migrate(Path(), replace=False)
    assert done == ["mlflow", "prefect"]
