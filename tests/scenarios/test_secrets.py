"""A planted secret is found nowhere: not in messages, logs, artifacts, runs and pages."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests.support.checkout import Checkout

SECRET = "planted-s3cret"

WITH_SECRETS = {
    "MLFLOW_TRACKING_URI": f"http://ann:{SECRET}@127.0.0.1:9/?token={SECRET}",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
}
"""Servers that do not answer."""


@pytest.mark.long
def test_a_secret_is_in_no_message_log_artifact_run_and_page(
    finished: Checkout, servers: dict[str, Any], tmp_path: Path
) -> None:
    checkout = finished.copy(tmp_path / "checkout")
    rows = pl.read_csv(checkout.file("demo.csv"))
    with closing(sqlite3.connect(checkout.file("plant.db"))) as database, database:
        database.execute(f"create table readings ({', '.join(f'`{name}`' for name in rows.columns)})")
        marks = ", ".join("?" * rows.width)
        database.executemany(f"insert into readings values ({marks})", rows.rows())
    source = {"kind": "database", "query": "select * from readings", "time": "time"}
    checkout.settings(problems__demo__source=source | {"address": f"sqlite:///plant.db?password={SECRET}"})
    printed = [checkout.recast("run", status=1)]
    assert "a password must not stand in the file" in printed[0]
    checkout.settings(problems__demo__source=source | {"address": "sqlite:///plant.db?password=${PLANT}"})
    printed += [checkout.recast("run", PLANT=SECRET)]
    checkout.settings(grid__seeds=[1])
    printed += [
        checkout.recast("run", status=1, PLANT=SECRET, **WITH_SECRETS),
        checkout.recast("status", PLANT=SECRET, **WITH_SECRETS),
        checkout.recast("doctor", status=1, PLANT=SECRET, **WITH_SECRETS),
    ]
    # The table is gone: the driver repeats what it was asked.
    checkout.file("plant.db").unlink()
    checkout.file("data/raw/demo/rows.parquet").unlink()
    printed += [checkout.recast("run", status=1, PLANT=SECRET)]
    for text in printed:
        assert SECRET not in text
        assert "Traceback" not in text
    prefect = Path(servers["prefect_db"])
    files = [file for file in checkout.root.rglob("*") if file.is_file()]
    files += [prefect, *prefect.parent.glob(f"{prefect.name}-*"), *prefect.parent.glob("*.log")]
    assert [file for file in files if SECRET.encode() in file.read_bytes()] == []
