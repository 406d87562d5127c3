"""Measuring: contenders in turn, so that a busy machine slows all of them, and ratios rather than seconds."""

import os
import platform
import statistics
import time
from collections.abc import Callable
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
