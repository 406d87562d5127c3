"""Links in artifacts, alerts and questions lead to MLflow over HTTP, at an address that stays."""

from pathlib import Path
from typing import Any

import pytest

from flows.retraining.links import link_decision, link_versions
from infra.server_process import reserve_port
from infra.servers import MLFLOW
from lifecycle.champions.history import Version
from stages.tracking import store
from tests.support.checkout import copy_database


def test_a_decision_is_linked_in_mlflow(
    servers: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mlruns").mkdir()
    copy_database(servers["mlflow_db"], Path("mlruns/mlflow.db"))
    # By a whole path: MLflow keeps what it has opened by its name.
    monkeypatch.setattr(store, "OWN_DATABASE", tmp_path / "mlruns/mlflow.db")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    store.get_client.cache_clear()
    page = link_decision(Version("demo", 1, "key", "run"), "decision", patience=0)
    address = f"http://127.0.0.1:{reserve_port(MLFLOW)}"
    experiment = store.get_or_create_experiment("demo")
    assert page == f"{address}/#/experiments/{experiment}/runs/run/artifacts/decisions/decision/page.html"
    assert link_versions("demo") == f"{address}/#/models/demo"
    store.get_client.cache_clear()
