"""Problems and tables that many tests need, made in memory: no file of the machine, no network."""

import json
import os
import random
import shutil
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
from xdist.scheduler import LoadScopeScheduling

from infra import server_process
from problems.problem import Problem
from tests.support import checkout
from tests.support.checkout import Checkout
from tests.support.commands import shared_folder

pytest_plugins = ["tests.support.session"]

TRACKING_ADDRESS = "MLFLOW_TRACKING_URI"

START = datetime(2020, 1, 1)
CADENCE = timedelta(hours=1)

# Every checkout of the tests would compile the loops of the recurrent layers.
os.environ.setdefault("NUMBA_CACHE_DIR", str(checkout.ROOT / "architectures/kernels/__pycache__"))

# Where other programs compute too, a second thread waits for its processor in a loop: tests took many times as long.
torch.set_num_threads(1)

# A machine may be busy: no test of ours is about time.
settings.register_profile("recast", deadline=None)
settings.load_profile("recast")


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are processors: the longest tests wait half of their time, for servers and for processes.

    With twice as many the tests took 15 % more time of the processors, and no less by the clock.
    """
    return (os.cpu_count() or 1) + 1


LONGEST = ("test_servers", "test_retrain", "test_deployments", "test_cluster", "test_tracking", "test_pipeline")
"""The files that take minutes, which begin first: a long one at the end would leave the other processors idle."""

INDEPENDENT = ("test_pipeline", "test_flows", "test_commands")
"""The files whose tests may run in several workers: they share nothing but what all workers share."""


class FileScheduling(LoadScopeScheduling):
    """Gives all tests of a file to one worker, unless they are independent."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return nodeid if Path(file).stem in INDEPENDENT else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> FileScheduling:
    return FileScheduling(config, log)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--shuffle", type=int, metavar="SEED", help="run the files of tests in a random order")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The order of files: the longest first, or at random."""
    seed = config.getoption("shuffle")
    if seed is None:
        with_servers = {item.path for item in items if "servers" in getattr(item, "fixturenames", ())}
        items.sort(key=lambda item: _rank(item.path, item.path in with_servers))
    else:
        files = sorted({item.path for item in items})
        random.Random(seed).shuffle(files)
        items.sort(key=lambda item: files.index(item.path))


def _rank(file: Path, needs_servers: bool) -> tuple[int, bool]:
    """The place of a file: the long ones first, then those that need servers. Its tests stay in their order."""
    rank = LONGEST.index(file.stem) if file.stem in LONGEST else len(LONGEST)
    return rank, not needs_servers


@pytest.fixture(autouse=True)
def tracking_address() -> Iterator[None]:
    """MLflow writes the address of the store that it uses to the environment, where the next test would find it."""
    before = os.environ.get(TRACKING_ADDRESS)
    yield
    if before is None:
        os.environ.pop(TRACKING_ADDRESS, None)
    else:
        os.environ[TRACKING_ADDRESS] = before


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
def servers() -> dict[str, Any]:
    """A Prefect server and an empty MLflow database to copy, for all workers. The session stops the server."""
    from infra import servers
    from stages.tracking import store

    root = shared_folder() / "servers"
    with FileLock(f"{root}.lock"), pytest.MonkeyPatch.context() as patch:
        root.mkdir(exist_ok=True)
        patch.chdir(root)
        patch.delenv("PREFECT_API_URL", raising=False)
        patch.delenv(TRACKING_ADDRESS, raising=False)
        api = f"{server_process.start(servers.PREFECT)}/api"
        store.get_client()
    return {"api": api, "mlflow_db": root / "mlruns" / "mlflow.db", "prefect_db": root / ".recast" / "prefect.db"}


@pytest.fixture(scope="session")
def finished(servers: dict[str, Any]) -> Checkout:
    """A checkout in which the whole pipeline has run, by the flow, for all workers. Copy it; do not change it."""
    root = shared_folder() / "finished"
    made = root.with_suffix(".made")
    with FileLock(f"{root}.lock"):
        if not made.exists():
            # A run that has failed before leaves its checkout.
            shutil.rmtree(root, ignore_errors=True)
            checkout.make_checkout(root, servers["mlflow_db"], PREFECT_API_URL=servers["api"]).recast("run")
            made.touch()
    return checkout.open_checkout(root, PREFECT_API_URL=servers["api"])


@pytest.fixture
def fresh(servers: dict[str, Any], tmp_path: Path) -> Checkout:
    """A checkout in which nothing has run."""
    return checkout.make_checkout(tmp_path / "fresh", servers["mlflow_db"], PREFECT_API_URL=servers["api"])
