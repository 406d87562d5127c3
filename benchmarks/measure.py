"""Measuring: contenders in turn, so that a busy machine slows all of them, and ratios rather than seconds."""

import os
import platform
import statistics
import subprocess
import sys
import threading
import time
import venv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil


@dataclass(frozen=True)
class Result:
    """What one contender did, and how it compares with the first.

    Attributes:
        median, low, high: of the rounds, in `unit`.
        ratio: median over the rounds of Recast's figure to this one's in the same round; above 1, Recast is better.
    """

    name: str
    unit: str
    median: float
    low: float
    high: float
    ratio: float


def alternate(contenders: dict[str, Callable[[], float]], unit: str, rounds: int, more_is_better: bool) -> list[Result]:
    """Ask each contender for its figure in turn, `rounds` times after one round that does not count.

    Args:
        contenders: by name, Recast first; each does its work and returns its figure in `unit`.
    """
    figures: dict[str, list[float]] = {name: [] for name in contenders}
    for i in range(rounds + 1):
        for name, contender in contenders.items():
            figure = contender()
            if i:
                figures[name].append(figure)
    ours = next(iter(figures.values()))

    def ratio(theirs: list[float]) -> float:
        pairs = zip(ours, theirs, strict=True)
        return statistics.median(a / b if more_is_better else b / a for a, b in pairs)

    return [
        Result(name, unit, statistics.median(each), min(each), max(each), ratio(each)) for name, each in figures.items()
    ]


def seconds(work: Callable[[], object]) -> float:
    """How long the work takes."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


@dataclass(frozen=True)
class Peak:
    """The most memory that a process held, in MiB: what no file backs, and with the pages of mapped files."""

    anonymous: float
    whole: float


def watched(command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> tuple[str, Peak]:
    """What a command prints, and its peak of memory, looked at every 10 ms; that of its children is not counted."""
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
    peaks = {"RssAnon": 0, "VmRSS": 0}

    def watch() -> None:
        while process.poll() is None:
            try:
                lines = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8").splitlines()
            except (FileNotFoundError, ProcessLookupError):
                return
            status = dict(line.split(":", 1) for line in lines if ":" in line)
            for key in peaks:
                if key in status:
                    peaks[key] = max(peaks[key], int(status[key].split()[0]))
            time.sleep(0.01)

    watcher = threading.Thread(target=watch)
    watcher.start()
    printed, _ = process.communicate()
    watcher.join()
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}")
    return printed, Peak(peaks["RssAnon"] / 1024, peaks["VmRSS"] / 1024)


def peers(name: str) -> Path | None:
    """The interpreter of an environment with what NAME-requirements.txt says; None if it cannot be installed."""
    here = Path(__file__).parent.absolute()
    folder = here / f".{name}"
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        venv.create(folder, with_pip=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "-r", str(here / f"{name}-requirements.txt")]
        if subprocess.run(install, check=False).returncode:
            return None
        (folder / "ready").touch()
    return python


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "polars", "prefect", "mlflow", "dvc")},
    }


def table(results: list[Result]) -> list[dict[str, Any]]:
    """The results as JSON, figures to four digits."""
    return [
        {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in asdict(each).items()}
        for each in results
    ]
