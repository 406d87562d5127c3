"""Rows that a person has taken back: no champion serves that was trained on them, if there is another."""

from dataclasses import asdict
from pathlib import Path

import pytest

from lifecycle.champions import history
from lifecycle.champions.history import Version
from lifecycle.champions.lineage import Lineage
from lifecycle.champions.withdrawal import withdraw_versions
from project.atomic import write_json

BAD = "b" * 64


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def promote(number: int, *raw: str, known: bool = True) -> None:
    """Make a version the champion that was trained on raw files with these checksums."""
    version = Version("demo", number, f"key{number}", f"run{number}", f"gru seed={number}")
    history.append_entry(
        "demo", lambda entries: history.make_entry("promotion", version, entries, None, "", history.RETRAIN)
    )
    files = {f"fresh/{i}.csv": sha256 for i, sha256 in enumerate(raw)}
    lineage = Lineage("demo", number, version.key, version.label, version.run, "", "", files, {})
    if known:
        write_json(history.champion_folder("demo") / "versions" / f"{number}.json", asdict(lineage))


def test_the_newest_champion_that_never_saw_the_rows_serves_again() -> None:
    promote(1)
    promote(2, "a" * 64)
    promote(3, "a" * 64, BAD)
    promote(4, BAD)
    withdrawal = withdraw_versions("demo", BAD, "anna", "increment 0002 was taken back")
    assert (withdrawal.trained, withdrawal.after) == ((3, 4), history.find_champion("demo"))
    assert history.find_champion("demo") == Version("demo", 2, "key2", "run2", "gru seed=2")
    entry = history.read_history("demo")[-1]
    assert (entry.kind, entry.by, entry.reason) == ("rollback", "anna", "increment 0002 was taken back")
    told = "\n".join(withdrawal.describe("demo"))
    assert "trained on these rows: version 3, 4" in told
    assert "version 4, the champion, was among them; version 2, gru seed=2, which was not, is the champion" in told
    again = withdraw_versions("demo", BAD, "anna", "again")
    assert again.before == again.after
    assert "the champion was not among them" in again.describe("demo")[-1]
    assert len(history.read_history("demo")) == 6


def test_a_champion_stays_if_all_were_trained_on_the_rows_or_nobody_knows() -> None:
    assert "no known version" in withdraw_versions("demo", BAD, "anna", "").describe("demo")[0]
    promote(1, BAD)
    promote(2, BAD)
    stays = withdraw_versions("demo", BAD, "anna", "")
    assert stays.after == stays.before
    assert "version 2 stays the champion although it was among them" in stays.describe("demo")[-1]
    promote(3, known=False)
    assert "does not know whether version 3" in withdraw_versions("demo", BAD, "anna", "").describe("demo")[0]
    assert len(history.read_history("demo")) == 3
