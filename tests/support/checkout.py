"""A checkout of this project in an empty folder, with a small table, to run the real commands in."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from project.source_code import PACKAGES
from tests.support import commands
from tests.support.commands import BIN, Command

ROOT = Path(__file__).parents[2]
PROJECT_FILES = ("dvc.yaml", ".dvcignore", ".gitignore", ".dvc/config", ".dvc/.gitignore")

SETTINGS: dict[str, Any] = {
    "run": ["demo"],
    "problems": {
        "demo": {
            "title": "Temperature of a small table",
            "source": {"kind": "table", "path": "demo.csv", "time": "time"},
            "table": {"features": ["T (degC)", "p (mbar)"], "target": "T (degC)", "unit": "°C"},
            "split": "half",
            "window": {"lookback": "2d", "step": "1h", "delay": "24h"},
        }
    },
    "ingest": {"attempts": 1},
    "normalize": {"scale": "standard"},
    "window": {"stride": 1},
    "train": {
        "epochs": 2,
        "steps_per_epoch": 10,
        "batch_size": 32,
        "loss": "mae",
        "patience": None,
        "clip": None,
        "precision": "float32",
        "threads": 1,
    },
    "evaluate": {"bootstrap": {"resamples": 100, "block": "2d", "level": 0.95}, "forecasts": "4d"},
    "grid": {"seeds": [0, 1], "architectures": {"persistence": {}, "dense": {"units": [4]}, "gru": {"units": [4]}}},
    "runner": {"kind": "inline", "workers": 2, "slots_per_gpu": 1, "devices": "cpu", "bundle": 1},
}


@dataclass(frozen=True)
class Checkout:
    """A folder with the project in it.

    Attributes:
        environment: of the commands run there.
    """

    root: Path
    environment: dict[str, str]

    def start(self, *command: str, new_process: bool = False, **environment: str) -> Command | subprocess.Popen[str]:
        """Start a command of the project, in a process group of its own.

        Args:
            new_process: start it as a user does. Otherwise it has loaded the libraries already; see
                tests/support/fork_server.py.
        """
        return commands.start(list(command), self.root, self.environment | environment, new_process)

    def run(self, *command: str, status: int | None = 0, new_process: bool = False, **environment: str) -> str:
        """What a command of the project prints; it must end with `status`, unless that is None."""
        process = self.start(*command, new_process=new_process, **environment, PYTHONFAULTHANDLER="1")
        try:
            printed, _ = process.communicate(timeout=300)
        except subprocess.TimeoutExpired:
            # It tells where each of its threads is.
            process.send_signal(signal.SIGABRT)
            process.wait(60)
            os.killpg(process.pid, signal.SIGKILL)
            printed, _ = process.communicate()
            raise AssertionError(f"{' '.join(command)} did not end:\n{printed}") from None
        assert status in (None, process.returncode), f"{' '.join(command)} ended with {process.returncode}:\n{printed}"
        return printed

    def recast(self, *arguments: str, status: int = 0, new_process: bool = False, **environment: str) -> str:
        """What `recast` prints."""
        words = (sys.executable, "-m", "flows", *arguments)
        return self.run(*words, status=status, new_process=new_process, **environment)

    def dvc(self, *arguments: str, status: int | None = 0, new_process: bool = False, **environment: str) -> str:
        """What `dvc` prints."""
        return self.run(str(BIN / "dvc"), *arguments, status=status, new_process=new_process, **environment)

    def settings(self, **changes: Any) -> None:
        """Write params.yaml: the small settings with some values, named by their path with __ between, changed."""
        yaml = YAML()
        settings = yaml.load(self.file("params.yaml").read_text()) if self.file("params.yaml").exists() else SETTINGS
        for path, value in changes.items():
            *parents, last = path.split("__")
            section = settings
            for parent in parents:
                section = section[parent]
            section[last] = value
        with self.file("params.yaml").open("w") as file:
            yaml.dump(settings, file)

    def file(self, name: str) -> Path:
        return self.root / name

    def copy(self, root: Path, with_servers: bool = False) -> "Checkout":
        """The same checkout, with all that it has made, in another folder; its input is its own.

        Args:
            with_servers: and with the data of its servers, which must be down.
        """
        # PostgreSQL accepts data only of their owner. `shutil.copytree` takes three times as long.
        subprocess.run(["cp", "-a", str(self.root), str(root)], check=True)
        copied = Checkout(root, dict(self.environment))
        if not with_servers:
            for name in (".recast", ".dvc/tmp"):
                shutil.rmtree(copied.file(name), ignore_errors=True)
        link = copied.file("data/raw/demo/demo.csv")
        if link.is_symlink():
            link.unlink()
            link.symlink_to(copied.file("demo.csv"))
        return copied

    @contextmanager
    def entered(self) -> Iterator[None]:
        """This process works in the checkout, and reports where its commands do."""
        # `flows` first: it tells Prefect where to keep its things.
        from prefect.settings import PREFECT_API_URL, temporary_settings

        import flows  # noqa: F401
        from stages.tracking import store

        api = {PREFECT_API_URL: self.environment["PREFECT_API_URL"]}
        with pytest.MonkeyPatch.context() as patch, temporary_settings(api):
            patch.chdir(self.root)
            # By a whole path: MLflow keeps what it has opened by its name, and the relative one is every checkout's.
            patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{self.file('mlruns/mlflow.db')}")
            store.get_client.cache_clear()
            try:
                yield
            finally:
                store.get_client.cache_clear()


def make_checkout(root: Path, mlflow_db: Path | None = None, rows: int = 600, **environment: str) -> Checkout:
    """A new checkout with the small settings and a table of `rows` hourly rows.

    Args:
        mlflow_db: an empty database of MLflow to copy, which saves the seconds of its creation.
    """
    for name in PACKAGES:
        # With what Python has compiled of it.
        shutil.copytree(ROOT / name, root / name)
    for name in PROJECT_FILES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    if mlflow_db:
        (root / "mlruns").mkdir()
        shutil.copy(mlflow_db, root / "mlruns" / "mlflow.db")
    write_table(root / "demo.csv", rows)
    (root / "data/raw/demo").mkdir(parents=True)
    (root / "data/raw/demo/demo.csv").symlink_to(root / "demo.csv")
    checkout = open_checkout(root, **environment)
    checkout.run("git", "init", "--quiet")
    checkout.settings()
    return checkout


def open_checkout(root: Path, **environment: str) -> Checkout:
    """The checkout in a folder.

    Args:
        environment: of its commands, beside this process's own; of Prefect's and MLflow's variables only these.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))}
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    return Checkout(root, inherited | {"PATH": path, "COLUMNS": "200", "DVC_NO_ANALYTICS": "1"} | environment)


def copy_database(file: Path, to: Path) -> None:
    """Copy a SQLite database that is in use: what has not come from its log into the file yet belongs to it."""
    with closing(sqlite3.connect(file)) as source, closing(sqlite3.connect(to)) as copied:
        source.backup(copied)


def write_table(file: Path, rows: int, offset: float = 0.0) -> None:
    """A CSV of hourly rows whose temperature has a daily wave, a slow one and a wobble."""
    import math
    from datetime import datetime, timedelta

    lines = ["time,T (degC),p (mbar)"]
    for i in range(rows):
        time = datetime(2020, 1, 1) + timedelta(hours=i)
        wave = 10 + 5 * math.sin(i / 24 * 2 * math.pi) + 4 * math.sin(i / 97) + math.sin(i * i) + offset
        lines.append(f"{time:%Y-%m-%dT%H:%M:%S},{wave:.3f},{1000 + 8 * math.cos(i / 61):.3f}")
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
