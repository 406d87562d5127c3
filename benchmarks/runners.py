"""What a trial costs beyond its training on each runner: 1,000 trivial trials with two workers, 200 with one or four.

A trial is one step of a small network. Seconds per trial are the mean time from the end of one trial to the end of the
next, after a tenth of the trials have ended. Start-up is the time from the start of the command to the end of the first
trial. `resident` is the memory of the dispatching process, once a quarter of the trials have ended and at the end. The
databases are SQLite files; their columns say by how much each trial enlarges them.
"""

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil

from infra import server_process, servers
from problems.errors import RecastError
from tests.support import checkout
from tests.support.checkout import Checkout

WORKERS = {"inline": (1,), "local": (1, 2, 4), "ray": (1, 2, 4)}


def run(quick: bool) -> dict[str, Any]:
    """Train a grid for every runner and number of workers, each in a checkout of its own, with one Prefect server."""
    many, few = (24, 12) if quick else (1000, 200)
    table = {}
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        api = f"{server_process.start(servers.PREFECT)}/api"
        try:
            windowed = checkout.make_checkout(
                Path(name) / "windowed", PREFECT_API_URL=api, RECAST_CACHE=f"{name}/cache"
            )
            for stage in ("ingest", "normalize", "window"):
                windowed.run(sys.executable, "-m", f"stages.{stage}", "demo")
            for kind, numbers in WORKERS.items():
                for workers in numbers:
                    trials = many if workers == 2 else few
                    title = f"{kind}, {workers} worker{'s' if workers > 1 else ''}"
                    project = windowed.copy(Path(name) / f"{kind}-{workers}")
                    table[title] = _measure(project, kind, workers, trials, Path(name) / ".recast/prefect.db")
        finally:
            server_process.stop(servers.PREFECT)
    load = psutil.getloadavg()[0]
    return {"load of the machine at the end": f"{load:.1f} on {psutil.cpu_count()} cores", "results": table}


def _measure(project: Checkout, kind: str, workers: int, trials: int, prefect: Path) -> dict[str, Any]:
    """Train `trials` trials, and watch the process that dispatches them.

    Args:
        prefect: the database of the Prefect server.
    """
    project.settings(
        runner__kind=kind,
        runner__workers=workers,
        train__epochs=1,
        train__steps_per_epoch=1,
        grid={"seeds": list(range(trials)), "architectures": {"dense": {"units": [4]}}},
    )
    size_before, begun = _database_bytes(prefect), time.time()
    process = project.start(sys.executable, "-m", "flows.train", "demo")
    dispatcher = psutil.Process(process.pid)
    samples: list[tuple[int, int]] = []
    folder = project.file("trials/demo")
    while process.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError):
            count = sum(1 for _ in folder.iterdir())
            # A process that has ended, but that nothing has waited for yet, has no memory any more.
            if resident := dispatcher.memory_info().rss:
                samples.append((count, resident))
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.5)
    printed, _ = process.communicate()
    if process.returncode:
        raise RecastError(f"the train flow ended with {process.returncode}:\n{printed}")
    ends = sorted(file.stat().st_mtime for file in folder.glob("*/trial.json"))
    if len(ends) != trials:
        raise RecastError(f"only {len(ends)} of {trials} trials ended:\n{printed}")
    tenth = trials // 10
    return {
        "trials": trials,
        "s per trial": round((ends[-1] - ends[tenth]) / (trials - tenth - 1), 3),
        "start-up s": round(ends[0] - begun, 1),
        "resident MiB, after a quarter": _first_in_mib(resident for count, resident in samples if count >= trials // 4),
        "resident MiB, at the end": _first_in_mib(resident for count, resident in reversed(samples) if count == trials),
        "Prefect kB per trial": round((_database_bytes(prefect) - size_before) / trials / 1000, 1),
        "MLflow kB per trial": round(_database_bytes(project.file("mlruns/mlflow.db")) / trials / 1000, 1),
    }


def _first_in_mib(samples: Iterable[int]) -> int | str:
    """The first of some samples in bytes, as MiB; "not read" where the process had ended before it was sampled."""
    first = next(iter(samples), None)
    return "not read" if first is None else first >> 20


def _database_bytes(database: Path) -> int:
    """Bytes of an SQLite database and of its write-ahead log."""
    return sum(file.stat().st_size for file in database.parent.glob(f"{database.name}*"))
