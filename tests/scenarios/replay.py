"""A year in minutes: months of real weather arrive one after another, through the real deployment, worker and servers.

    python -m tests.scenarios.replay --data jena_hourly_2009_2016.csv [--root FOLDER] [--months 12]

In a fresh checkout the rows before the year are the base. Each month's file is put into a folder, an event says so, and
the deployed flow retrains. In some months a poisoned file arrives first: a stuck sensor, a temperature in Fahrenheit, a
clock shifted by an hour, half of the rows gone. Every one must be caught before anything is trained, and the right file
that follows must be accepted. At the end there is one champion, with its history.
"""

import argparse
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import polars as pl
from rich.console import Console
from rich.table import Table

from tests.support import checkout
from tests.support.checkout import Checkout

FEATURES = ["p (mbar)", "T (degC)", "Tdew (degC)", "rh (%)", "wv (m/s)"]
TEMPERATURE = "T (degC)"
LIMIT_SECONDS = 600
"""How long one retraining may take."""

SETTINGS: dict[str, Any] = {
    "run": ["jena"],
    "problems": {
        "jena": {
            "title": "Temperature in Jena, 24 hours ahead",
            "source": {"kind": "jena", "path": "base.csv"},
            "fresh": {"kind": "folder", "path": "arrivals"},
            "table": {
                "features": FEATURES,
                "target": TEMPERATURE,
                "unit": "°C",
                "sentinels": {"wv (m/s)": [-9999]},
                "fill": "3h",
                "calendar": {"year": 1, "day": 1},
                "climatology": {"year": 2, "day": 2},
            },
            "split": {"kind": "recent", "train": None, "validation": "60d", "test": "31d"},
            "window": {"lookback": "1d", "step": "1h", "delay": "24h"},
        }
    },
    "train": checkout.SETTINGS["train"] | {"epochs": 6, "steps_per_epoch": 80, "batch_size": 64},
    "evaluate": {"bootstrap": {"resamples": 300, "block": "4d", "level": 0.95}, "forecasts": "7d"},
    "grid": {
        "seeds": [0],
        "architectures": {
            "linear": {"learning_rate": [0.003], "schedule": ["cosine"]},
            "gru": {"units": [8], "learning_rate": [0.01], "schedule": ["cosine"]},
        },
    },
    "retrain": {"level": 0.9, "worse": 0.5},
    "deploy": {"time_zone": "Europe/Berlin", "retries": 0, "retrain": {"cron": "0 3 * * *", "time_limit": "10m"}},
}


def stuck(rows: pl.DataFrame) -> pl.DataFrame:
    """The temperature does not change for ten days."""
    is_stuck = pl.int_range(pl.len()).is_between(200, 440)
    return rows.with_columns(pl.when(is_stuck).then(pl.lit("7.13")).otherwise(pl.col(TEMPERATURE)).alias(TEMPERATURE))


def fahrenheit(rows: pl.DataFrame) -> pl.DataFrame:
    """The temperature in another unit."""
    value = (pl.col(TEMPERATURE).str.strip_chars().cast(pl.Float64) * 9 / 5 + 32).round(2).cast(pl.String)
    return rows.with_columns(value.alias(TEMPERATURE))


def shifted(rows: pl.DataFrame) -> pl.DataFrame:
    """The logger's clock an hour ahead, as in summer time."""
    time_ = pl.col("Date Time").str.to_datetime("%d.%m.%Y %H:%M:%S") + pl.duration(hours=1)
    return rows.with_columns(time_.dt.strftime("%d.%m.%Y %H:%M:%S").alias("Date Time"))


def halved(rows: pl.DataFrame) -> pl.DataFrame:
    """Every other row is gone."""
    return rows.gather_every(2)


POISON: dict[int, Callable[[pl.DataFrame], pl.DataFrame]] = {3: stuck, 5: fahrenheit, 7: shifted, 10: halved}
"""What arrives first in some months."""


console = Console()


@dataclass(frozen=True)
class ArrivalResult:
    """What became of the rows that arrived.

    Attributes:
        state: the name of the flow run's state.
        trained: how many trials ended meanwhile.
    """

    arrival: str
    state: str
    message: str
    trained: int
    champion: int | None
    seconds: float


def prepare(root: Path, data: Path, year: int) -> tuple[Checkout, list[pl.DataFrame]]:
    """A fresh checkout whose base ends with the year before, and the months of the year."""
    rows = pl.read_csv(data, infer_schema=False)
    when = pl.col("Date Time").str.to_datetime("%d.%m.%Y %H:%M:%S")
    project = checkout.make_checkout(root)
    base = rows.filter(when.is_between(datetime(year - 2, 1, 1), datetime(year, 1, 1), closed="left"))
    base.write_csv(root / "base.csv")
    (root / "arrivals").mkdir()
    shutil.rmtree(root / "data/raw/demo")
    project.settings(**SETTINGS)
    months = [rows.filter((when.dt.year() == year) & (when.dt.month() == month)) for month in range(1, 13)]
    git = ("git", "-c", "user.name=replay", "-c", "user.email=replay@localhost")
    project.run(*git, "add", "--all")
    project.run(*git, "commit", "--quiet", "--message", "as it begins")
    return project, months


@contextmanager
def servers(project: Checkout) -> Iterator[None]:
    """The checkout's own servers and worker, and Prefect's address for this process too."""
    try:
        # The first time Prefect makes its database, which takes a busy machine minutes.
        project.start(sys.executable, "-m", "flows", "up").communicate()
        project.recast("deploy")
        yield
    finally:
        project.recast("down", "--force")


def prefect_address(project: Checkout) -> str:
    """Prefect's API on the checkout's own server."""
    printed = project.run(
        sys.executable,
        "-c",
        "from infra.server_process import running_address\n"
        "from infra.servers import PREFECT\n"
        "print(running_address(PREFECT))",
    )
    return f"{printed.strip().splitlines()[-1]}/api"


def arrive(project: Checkout, name: str, rows: pl.DataFrame, known: set[UUID]) -> Any:
    """Put a file into the folder, say so, and wait until the deployed flow that this starts has ended; its run."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowFilter, FlowFilterName

    file = project.file(f"arrivals/{name}.csv")
    rows.write_csv(file.with_suffix(".part"))
    file.with_suffix(".part").rename(file)
    project.recast("arrived", "jena")
    deadline = time.monotonic() + LIMIT_SECONDS
    pause = threading.Event()
    with get_client(sync_client=True) as client:
        while time.monotonic() < deadline:
            runs = client.read_flow_runs(flow_filter=FlowFilter(name=FlowFilterName(any_=["retrain"])), limit=200)
            new = [
                run for run in runs if run.id not in known and run.created_by and run.created_by.type == "AUTOMATION"
            ]
            if new and new[0].state and new[0].state.is_final():
                known.add(new[0].id)
                return new[0]
            pause.wait(0.5)
    raise AssertionError(f"{name}: no retraining ended within {LIMIT_SECONDS} s")


def main(data: Path, root: Path, year: int, months: int) -> None:
    """Replay, print what happened, and check it."""
    project, files = prepare(root, data, year)
    console.print(f"the checkout: {root}")
    with servers(project):
        results = replay_months(project, year, list(enumerate(files, 1))[:months])
        print_results(project, results)
    states = [result.state for result in results]
    assert months < 12 or ("Promoted" in states and "Refused" in states), states


def replay_months(project: Checkout, year: int, files: list[tuple[int, pl.DataFrame]]) -> list[ArrivalResult]:
    """Let months arrive, the poisoned ones first, and act as a person would; what became of each."""
    os.environ["PREFECT_API_URL"] = prefect_address(project)
    known: set[UUID] = set()
    results: list[ArrivalResult] = []

    def deliver(name: str, what: str, rows: pl.DataFrame) -> str:
        before, since = _trials(project), time.monotonic()
        run = arrive(project, name, rows, known)
        trained, seconds = len(_trials(project) - before), time.monotonic() - since
        message = run.state.message or ""
        results.append(ArrivalResult(f"{name} {what}", run.state.name, message, trained, _champion(project), seconds))
        console.print(f"{results[-1]}", markup=False, highlight=False, soft_wrap=True)
        return str(run.state.name)

    for month, rows in files:
        name = f"{year}-{month:02d}"
        if poison := POISON.get(month):
            serving = _champion(project)
            assert deliver(name, poison.__name__, poison(rows)) == "Breach"
            assert (results[-1].trained, results[-1].champion) == (0, serving), results[-1]
            # The file is fixed, and what is in quarantine is deleted.
            (increment,) = project.file("data/quarantine/jena").glob("*.csv")
            project.recast("quarantine", "--drop", increment.stem)
        assert deliver(name, "", rows) in ("Promoted", "Refused", "Champion stays")
    return results


def print_results(project: Checkout, results: list[ArrivalResult]) -> None:
    """Print what happened, month by month, and what Recast and DVC have kept of it."""
    table = Table("arrival", "retraining", "trials", "champion", "seconds", title="What happened")
    for result in results:
        table.add_row(result.arrival, result.state, str(result.trained), str(result.champion), f"{result.seconds:.0f}")
    console.print(table)
    console.print(project.recast("champion", "jena", "--history"), markup=False, highlight=False, soft_wrap=True)
    experiments = [line.split(",")[:4] for line in project.dvc("exp", "show", "--csv").splitlines()]
    console.print("\n".join("  ".join(cells) for cells in experiments), markup=False, highlight=False)
    page = project.file("data/champion/jena/history.html")
    assert page.exists()
    console.print(f"the history page: {page}", soft_wrap=True)


def _trials(project: Checkout) -> set[str]:
    return {str(file) for file in project.root.glob("trials/*/*/trial.json")}


def _champion(project: Checkout) -> int | None:
    """The version that MLflow's alias names."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        client = MlflowClient(f"sqlite:///{project.file('mlruns/mlflow.db')}")
        return int(client.get_model_version_by_alias("jena", "champion").version)
    except MlflowException:
        return None


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="the hourly rows of Jena as CSV")
    parser.add_argument("--root", type=Path, help="an empty folder; none: a temporary one, which is removed")
    parser.add_argument("--year", type=int, default=2015)
    parser.add_argument("--months", type=int, default=12)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        main(chosen.data.absolute(), (chosen.root or Path(temporary) / "replay").absolute(), chosen.year, chosen.months)
