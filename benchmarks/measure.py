"""Tools for measuring. Contenders take turns, so that a busy machine slows all of them, and ratios are compared."""

import os
import platform
import shlex
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

from problems.errors import RecastError


@dataclass(frozen=True)
class Result:
    """The figures of one contender, and how it compares with the first.

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


def measure_in_turn(
    contenders: dict[str, Callable[[], float]], unit: str, rounds: int, more_is_better: bool
) -> list[Result]:
    """Call every contender in turn, `rounds` times after one warm-up round that does not count.

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

    def median_ratio(theirs: list[float]) -> float:
        pairs = zip(ours, theirs, strict=True)
        return statistics.median(a / b if more_is_better else b / a for a, b in pairs)

    return [
        Result(name, unit, statistics.median(values), min(values), max(values), median_ratio(values))
        for name, values in figures.items()
    ]


def time_call(work: Callable[[], object]) -> float:
    """Seconds that the work takes."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


@dataclass(frozen=True)
class PeakMemory:
    """The most memory that a process held, in MiB.

    Attributes:
        anonymous: memory that no file backs.
        resident: that, and the pages of mapped files.
    """

    anonymous: float
    resident: float


def run_and_watch_memory(
    command: Sequence[str], folder: Path, environment: Mapping[str, str]
) -> tuple[str, PeakMemory]:
    """Run a command.

    Returns:
        what it prints, and its peak memory, sampled every 10 ms; that of its children is not counted
    """
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
    peaks = {"RssAnon": 0, "VmRSS": 0}
    ended = threading.Event()

    def watch() -> None:
        while not ended.is_set():
            try:
                lines = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8").splitlines()
            except (FileNotFoundError, ProcessLookupError):
                return
            status = dict(line.split(":", 1) for line in lines if ":" in line)
            for key in peaks:
                if key in status:
                    peaks[key] = max(peaks[key], int(status[key].split()[0]))
            ended.wait(0.01)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        printed, _ = process.communicate()
    finally:
        ended.set()
    watcher.join()
    if process.returncode:
        sys.exit(f"{shlex.join(command)} ended with {process.returncode}")
    return printed, PeakMemory(peaks["RssAnon"] / 1024, peaks["VmRSS"] / 1024)


def send_go(process: "subprocess.Popen[str]") -> None:
    """Write the line for which the process waits on its standard input."""
    if process.stdin is None:
        raise ValueError("the process was started without a pipe to its standard input")
    process.stdin.write("go\n")
    process.stdin.flush()


def read_line(process: "subprocess.Popen[str]") -> str:
    """The next line that the process prints.

    Raises:
        RecastError: it ended instead.
    """
    if process.stdout is None:
        raise ValueError("the process was started without a pipe from its standard output")
    line = process.stdout.readline()
    if not line:
        command = shlex.join(map(str, process.args)) if isinstance(process.args, list) else process.args
        raise RecastError(f"a process ended with {process.wait()} and printed no result; run it by hand: {command}")
    return line


def install_peers(name: str) -> Path | None:
    """The Python of an environment with the packages in NAME-requirements.txt; None if they cannot be installed."""
    root = Path(__file__).parent.absolute()
    folder = root / f".{name}"
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        venv.create(folder, with_pip=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "-r", str(root / f"{name}-requirements.txt")]
        if subprocess.run(install, check=False).returncode:
            return None
        (folder / "ready").touch()
    return python


def describe_machine() -> dict[str, Any]:
    """The machine and the versions with which the figures are measured."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    if "NUMBA_CPU_NAME" in os.environ:
        # Recurrent layers are compiled for another processor, such as one without AVX-512.
        features = os.environ.get("NUMBA_CPU_FEATURES", "of this one")
        model += f", recurrent layers compiled for {os.environ['NUMBA_CPU_NAME']} with the instructions {features}"
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "polars", "prefect", "mlflow", "dvc")},
    }


def round_results(results: list[Result]) -> list[dict[str, Any]]:
    """The results as JSON, with four significant digits."""
    return [
        {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in asdict(result).items()}
        for result in results
    ]
