"""What a trial costs beyond its training on each runner: 1,000 trivial trials with two workers, 200 with one or four.

A trial is one step of a small network. Its seconds are those between two that end, once a tenth have ended; start-up is
the time to the first, from the start of the command. `resident` is the memory of the process that dispatches, when a
quarter of the trials have ended and at the end; the databases are SQLite's files, by what each trial has added.
"""

import contextlib
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil

from infra import server_process, servers
from tests.support import checkout
from tests.support.checkout import Checkout

WORKERS = {"inline": (1,), "local": (1, 2, 4), "ray": (1, 2, 4)}


def run(quick: bool) -> dict[str, Any]:
    """One grid a runner and a number of workers, each in a checkout of its own, against one Prefect server."""
    many, few = (24, 12) if quick else (1000, 200)
    found = {}
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        api = f"{server_process.start(servers.PREFECT)}/api"
        try:
            made = checkout.make_checkout(Path(name) / "windowed", PREFECT_API_URL=api, RECAST_CACHE=f"{name}/cache")
            for stage in ("ingest", "normalize", "window"):
                made.run(sys.executable, "-m", f"stages.{stage}", "demo")
            for kind, numbers in WORKERS.items():
                for workers in numbers:
                    trials = many if workers == 2 else few
                    title = f"{kind}, {workers} worker{'s' if workers > 1 else ''}"
                    there = made.copy(Path(name) / f"{kind}-{workers}")
                    found[title] = _measured(there, kind, workers, trials, Path(name) / ".recast/prefect.db")
        finally:
            server_process.stop(servers.PREFECT)
    busy = psutil.getloadavg()[0]
    return {"load of the machine at the end": f"{busy:.1f} on {psutil.cpu_count()} cores", "results": found}


def _measured(there: Checkout, kind: str, workers: int, trials: int, prefect: Path) -> dict[str, Any]:
    """Train so many trials, and watch the process that dispatches them."""
    there.settings(
        runner__kind=kind,
        runner__workers=workers,
        train__epochs=1,
        train__steps_per_epoch=1,
        grid={"seeds": list(range(trials)), "architectures": {"dense": {"units": [4]}}},
    )
    before, begun = _size(prefect), time.time()
    process = there.start(sys.executable, "-m", "flows.train", "demo")
    watched = psutil.Process(process.pid)
    resident: list[tuple[int, int]] = []
    folder = there.file("trials/demo")
    while process.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError):
            number = sum(1 for _ in folder.iterdir())
            # A process that has ended, and was not waited for yet, has no memory any more.
            if rss := watched.memory_info().rss:
                resident.append((number, rss))
        time.sleep(0.5)
    printed, _ = process.communicate()
    assert process.returncode == 0, printed
    ended = sorted(file.stat().st_mtime for file in folder.glob("*/trial.json"))
    assert len(ended) == trials
    tenth = trials // 10
    return {
        "trials": trials,
        "s a trial": round((ended[-1] - ended[tenth]) / (trials - tenth - 1), 3),
        "start-up s": round(ended[0] - begun, 1),
        "resident MiB, a quarter": _mib(rss for number, rss in resident if number >= trials // 4),
        "at the end": _mib(rss for number, rss in reversed(resident) if number == trials),
        "Prefect kB a trial": round((_size(prefect) - before) / trials / 1000, 1),
        "MLflow kB a trial": round(_size(there.file("mlruns/mlflow.db")) / trials / 1000, 1),
    }


def _mib(readings: Iterable[int]) -> int | str:
    """The first of some readings in bytes; that there is none, where the process had ended before it was looked at."""
    first = next(iter(readings), None)
    return "not read" if first is None else first >> 20


def _size(database: Path) -> int:
    """Bytes of a database and of what it has not yet merged."""
    return sum(file.stat().st_size for file in database.parent.glob(f"{database.name}*"))
