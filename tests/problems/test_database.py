"""A problem whose rows are the answer to a query; the database is a real SQLite file."""

import sqlite3
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from problems.errors import RecastError
from problems.problem import Problem
from problems.sources import database
from problems.sources.database import ANSWER_FILE, DatabaseSource
from stages.ingest import ingest
from stages.tables.quality import Quality

START = datetime(2020, 1, 1)
QUERY = "select at, plant, kw, note from readings order by at"


@pytest.fixture
def plant(tmp_path: Path) -> Path:
    """Two plants' readings, 300 hours; the first hundred notes are null."""
    file = tmp_path / "plant.db"
    with sqlite3.connect(file) as connection:
        connection.execute("create table readings (at text, plant text, kw real, note real)")
        connection.executemany(
            "insert into readings values (?, ?, ?, ?)",
            [
                ((START + timedelta(hours=i)).isoformat(), plant, i % 24 + k, None if i < 100 else 1.5)
                for i in range(300)
                for k, plant in enumerate(("north", "south"))
            ],
        )
    connection.close()
    return file


@pytest.fixture
def store(tmp_path: Path) -> Path:
    folder = tmp_path / "raw" / "plant"
    folder.mkdir(parents=True)
    return folder


def source(plant: Path, **keys: Any) -> DatabaseSource:
    about = {"kind": "database", "address": f"sqlite:///{plant}", "query": QUERY, "time": "at", "series": "plant"}
    return DatabaseSource.model_validate(about | keys)


def fetch(database_source: DatabaseSource, store: Path) -> None:
    database_source.fetch(store, lambda received, total: None, 1)


def ingest_answer(database_source: DatabaseSource, store: Path, root: Path) -> tuple[pl.DataFrame, Quality]:
    problem = Problem.model_validate(
        {
            "title": "test",
            "source": database_source.model_dump(),
            "table": {"features": ["kw", "note"], "target": "kw", "unit": "kW"},
            "split": "half",
            "window": {"lookback": "2h", "step": "1h", "delay": "1h"},
        }
    )
    quality = ingest(problem, store, root / "ingest" / "plant")
    return pl.read_parquet(root / "ingest" / "plant" / "table.parquet"), quality


def test_an_answer_is_a_table(plant: Path, store: Path, tmp_path: Path) -> None:
    fetch(source(plant), store)
    assert sorted(file.name for file in store.iterdir()) == [
        ANSWER_FILE,
        f"{ANSWER_FILE}.part.json",
        f"{ANSWER_FILE}.sha256",
    ]
    table, quality = ingest_answer(source(plant), store, tmp_path)
    assert list(quality.series) == ["north", "south"]
    assert quality.rows_kept == 600
    assert table["kw"].to_list() == [i % 24 + k for k in (0.0, 1.0) for i in range(300)]
    assert table["time"][0] == START


def test_batches_make_the_same_table(plant: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a column is null in all rows of the first batch, and so has no type yet."""
    fetch(source(plant), store)
    whole, _ = ingest_answer(source(plant), store, tmp_path)
    (store / ANSWER_FILE).unlink()
    monkeypatch.setattr(database, "BATCH_ROWS", 64)
    fetch(source(plant), store)
    parts, _ = ingest_answer(source(plant), store, tmp_path)
    assert parts.equals(whole)


def test_it_is_asked_again_only_for_another_query_or_a_removed_file(plant: Path, store: Path) -> None:
    def rows() -> int:
        return pl.read_parquet(store / ANSWER_FILE).height

    fetch(source(plant), store)
    with sqlite3.connect(plant) as connection:
        connection.execute("delete from readings where at >= '2020-01-05'")
    connection.close()
    fetch(source(plant), store)
    assert rows() == 600, "the raw rows stay as they came"
    fetch(source(plant, query=f"{QUERY} limit 5"), store)
    assert rows() == 5
    (store / ANSWER_FILE).unlink()
    fetch(source(plant), store)
    assert rows() == 2 * 4 * 24


def test_a_changed_file_is_not_an_answer(plant: Path, store: Path) -> None:
    fetch(source(plant), store)
    (store / ANSWER_FILE).write_bytes(b"other")
    with pytest.raises(RecastError, match=r"rows\.parquet: the file is not what was downloaded"):
        fetch(source(plant), store)


def test_a_failure_keeps_the_former_answer(plant: Path, store: Path) -> None:
    fetch(source(plant), store)
    before = (store / ANSWER_FILE).read_bytes()
    with pytest.raises(RecastError, match=r"source\.query: sqlite:.* refuses it: no such column: mw"):
        fetch(source(plant, query="select mw from readings"), store)
    with pytest.raises(RecastError, match="the answer has no rows"):
        fetch(source(plant, query=f"{QUERY.partition(' order')[0]} where kw > 1000"), store)
    assert (store / ANSWER_FILE).read_bytes() == before


def test_no_database_is_created_where_there_is_none(plant: Path, store: Path) -> None:
    with pytest.raises(RecastError, match=r"there is no file .*none\.db"):
        fetch(source(plant.with_name("none.db")), store)
    assert not plant.with_name("none.db").exists()


def test_an_address_may_begin_in_the_users_folder(plant: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(plant.parent))
    fetch(source(plant, address="sqlite:///~/plant.db"), store)
    assert pl.read_parquet(store / ANSWER_FILE).height == 600


def test_secrets_come_from_the_environment_and_are_never_shown(
    plant: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="a password must not stand in the file"):
        source(plant, address="postgresql://reader:secret@localhost/plant")
    address = "sqlite:///${PLACE}/plant.db"
    with pytest.raises(RecastError, match=r"problems\.plant\.source\.address: the environment has no variable PLACE"):
        fetch(source(plant, address=address), store)
    monkeypatch.setenv("PLACE", str(plant.parent))
    fetch(source(plant, address=address), store)
    monkeypatch.setenv("PASSWORD", "hunter2")
    with pytest.raises(RecastError) as raised:
        fetch(source(plant, address="mysql+nothing://reader:${PASSWORD}@localhost/plant"), store)
    assert "no driver for mysql+nothing" in str(raised.value)
    assert "hunter2" not in str(raised.value)


def test_a_file_that_is_not_a_database_is_named(plant: Path, store: Path) -> None:
    plant.write_bytes(b"no database" * 100)
    with pytest.raises(RecastError, match=r"plant\.db refuses it: file is not a database"):
        fetch(source(plant), store)


@pytest.mark.parametrize("address", ["plant.db", "not an address"])
def test_an_address_must_be_one(plant: Path, address: str) -> None:
    with pytest.raises(ValueError, match="write dialect://"):
        source(plant, address=address)


def test_a_driver_that_refuses_the_address_is_named_without_its_secrets(
    plant: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN", "hunter2")
    monkeypatch.setenv("PORT", "hunter2")
    with pytest.raises(RecastError, match=r"address: sqlite:.*timeout=\$\{TOKEN\} is refused: .*\$\{TOKEN\}") as raised:
        fetch(source(plant, address=f"sqlite:///{plant}?timeout=${{TOKEN}}"), store)
    assert "hunter2" not in str(raised.value)
    with pytest.raises(RecastError, match="is not an address once its variables have their values") as raised:
        fetch(source(plant, address="postgresql://reader@localhost:${PORT}/plant"), store)
    assert "hunter2" not in str(raised.value)
