"""Problems and tables that many tests need, made in memory: no file of the machine, no network."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from filelock import FileLock
from hypothesis import settings

from infra import server_process
from problems.problem import Problem
from tests.support import checkout
from tests.support.checkout import Checkout

START = datetime(2020, 1, 1)
CADENCE = timedelta(hours=1)

# Where other programs compute too, a second thread waits for its processor in a loop: tests took many times as long.
torch.set_num_threads(1)

# A machine may be busy: no test of ours is about time.
settings.register_profile("recast", deadline=None)
settings.load_profile("recast")


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are processors: the longest tests wait half of their time, for servers and for processes."""
    return (os.cpu_count() or 1) + 1


LONGEST = ("test_flows", "test_pipeline", "test_commands", "test_deployments", "test_retrain", "test_cluster")
"""The files that take minutes, which begin first: a long one at the end would leave the other processors idle."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The order of files: the longest, then what starts processes, then the rest."""

    def place(item: pytest.Item) -> tuple[int, bool]:
        rank = LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST)
        return rank, "servers" not in getattr(item, "fixturenames", ())

    items.sort(key=place)


@pytest.fixture(scope="session")
def make_problem() -> Callable[..., Problem]:
    """A problem with the features a, b, ... whose target is b; keys go to its table."""

    def make(features: int = 3, split: Any = "half", window: dict[str, str] | None = None, **table: Any) -> Problem:
        names = [chr(ord("a") + i) for i in range(features)]
        return Problem.model_validate(
            {
                "title": "test",
                "source": {"kind": "table", "path": "none.csv", "time": "time"},
                "table": {"features": names, "target": names[min(1, features - 1)], "unit": "°C", **table},
                "split": split,
                "window": window or {"lookback": "6h", "step": "2h", "delay": "4h"},
            }
        )

    return make


@pytest.fixture(scope="session")
def write_ingested() -> Callable[..., None]:
    """What `ingest` leaves: a table of the features a, b, ... from one (N, F) array a series, NaN where null."""

    def write(
        folder: Path,
        series: Sequence[np.ndarray],
        times: Sequence[Sequence[datetime]] | None = None,
        cadence: timedelta = CADENCE,
    ) -> None:
        frames = []
        for i, values in enumerate(series):
            moments = times[i] if times else [START + k * cadence for k in range(len(values))]
            columns = {chr(ord("a") + f): values[:, f].astype(np.float64) for f in range(values.shape[1])}
            frame = pl.DataFrame({"time": moments, "series": [f"series{i}"] * len(values), **columns})
            frames.append(frame.with_columns(pl.col("time").cast(pl.Datetime("ms")), pl.col(*columns).fill_nan(None)))
        folder.mkdir(parents=True, exist_ok=True)
        pl.concat(frames).write_parquet(folder / "table.parquet")
        quality = {"cadence_seconds": cadence.total_seconds()}
        (folder / "quality.json").write_text(json.dumps(quality), encoding="utf-8")

    return write


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """A Prefect server of the tests' own, and an empty MLflow database to copy."""
    from infra import servers
    from stages.tracking import store

    root = tmp_path_factory.mktemp("servers")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.delenv("PREFECT_API_URL", raising=False)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        api = f"{server_process.start(servers.PREFECT)}/api"
        store.get_client()
        yield {"api": api, "mlflow_db": root / "mlruns" / "mlflow.db"}
        server_process.stop(servers.PREFECT)


@pytest.fixture(scope="session")
def finished(servers: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A checkout in which the whole pipeline has run, by the flow, for all workers. Copy it; do not change it."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    root, made = shared / "finished", shared / "finished.made"
    with FileLock(shared / "finished.lock"):
        if not made.exists():
            checkout.make_checkout(root, servers["mlflow_db"], PREFECT_API_URL=servers["api"]).recast("run")
            made.touch()
    return checkout.open_checkout(root, PREFECT_API_URL=servers["api"])


@pytest.fixture
def fresh(servers: dict[str, Any], tmp_path: Path) -> Checkout:
    """A checkout in which nothing has run."""
    return checkout.make_checkout(tmp_path / "fresh", servers["mlflow_db"], PREFECT_API_URL=servers["api"])
