"""A laptop's project comes to the stores whole, ids and all, also after a kill."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.input.run_input import keyset_from_paused_state
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Paused

from flows import migrate as migration
from infra import postgres, server_process
from infra import servers as own
from project import profile
from tests.support.checkout import Checkout, copy_database

pytestmark = pytest.mark.skipif(
    not (list(postgres.PACKAGED_PROGRAMS.glob("*/bin/initdb")) or shutil.which("initdb")),
    reason="PostgreSQL is not installed: apt install postgresql",
)


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


def test_a_laptops_runs_and_flows_are_the_servers(
    finished: Checkout,
    servers: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    laptop = finished.copy(tmp_path / "laptop")
    laptop.file(".recast").mkdir(exist_ok=True)
    with temporary_settings({PREFECT_API_URL: servers["api"]}), get_client(sync_client=True) as client:
        # PostgreSQL keeps JSON, but neither the order of its names nor how a number is written.
        written = {"large": [1e16, 1e23, 1e300], "zero": -0.0, "b": {"longer": 1, "a": [0.1, 1e-300, None]}}
        waits = Paused(pause_key="proposal")
        waits.state_details.run_input_keyset = keyset_from_paused_state(waits)
        asked = client.create_flow_run(
            flow(lambda written: 0, name="waits"), parameters={"written": written}, state=waits
        )
    copy_database(servers["prefect_db"], laptop.file(".recast/prefect.db"))
    with temporary_settings({PREFECT_API_URL: servers["api"]}), get_client(sync_client=True) as client:
        # Nobody will answer.
        client.delete_flow_run(asked.id)
    monkeypatch.chdir(laptop.root)
    for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    own.switch_profile("servers")
    try:
        for server in (own.PREFECT, own.MLFLOW):
            server_process.start(server)
        for server in (own.PREFECT, own.MLFLOW):
            server_process.stop(server)
        # As a kill in the middle leaves it: some of the artifacts are there, and no row.
        some = sorted(Path("mlruns/artifacts").rglob("*.json"))[:3]
        store = own.s3.client(server_process.start(own.S3))
        for file in some:
            key = f"mlflow/{file.relative_to('mlruns/artifacts')}"
            store.upload_file(str(file), own.s3.BUCKET, key)
        done = migration.migrate(Path(), replace=False)
        assert done.artifacts[0] - done.artifacts[1] == len(some)
        assert done.rows["prefect"]["flow_run"] > 0
        assert not done.left
        again = migration.migrate(Path(), replace=False)
        assert again.rows == done.rows
        assert again.artifacts == (done.artifacts[0], 0)

        local = MlflowClient(f"sqlite:///{laptop.file('mlruns/mlflow.db')}")
        (experiment,) = local.search_experiments(filter_string="name = 'demo'")
        remote = MlflowClient(server_process.start(own.MLFLOW))
        assert profile.read_profile().mlflow == remote.tracking_uri
        mine, theirs = (
            {run.info.run_id: run for run in each.search_runs([experiment.experiment_id])} for each in (local, remote)
        )
        assert set(mine) == set(theirs)
        assert len(mine) == 6
        for run, ours in mine.items():
            assert ours.data.to_dictionary() == theirs[run].data.to_dictionary()
        key = next(run for run, ours in mine.items() if "train_loss" in ours.data.metrics)
        histories = [
            [(each.step, each.value) for each in client.get_metric_history(key, "train_loss")]
            for client in (local, remote)
        ]
        assert histories[0] == histories[1]
        assert len(histories[0]) == 2
        fetched = Path(remote.download_artifacts(key, "weights.safetensors", str(tmp_path)))
        assert fetched.read_bytes() == Path(local.download_artifacts(key, "weights.safetensors")).read_bytes()
        # A number that the laptop has is not given again.
        assert int(remote.create_experiment("next")) > int(experiment.experiment_id)
        server_process.stop(own.MLFLOW)

        with closing(sqlite3.connect("mlruns/mlflow.db")) as database, database:
            database.execute("pragma foreign_keys = off")
            database.execute("delete from runs where run_uuid = ?", (key,))
        with pytest.raises(migration.RecastError, match="would lose them"):
            migration.migrate(Path(), replace=False)
    finally:
        for server in reversed(own.SERVERS):
            server_process.stop(server)
