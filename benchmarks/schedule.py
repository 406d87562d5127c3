"""A simulated cluster of 1,000 GPUs that trains 100,000 trials, scheduled by the packer that the runners use.

The costs of the trials were measured by `python -m benchmarks costs`; a trial is 20 epochs of 250 steps. The actual
cost of a trial differs from the expected one by a random factor (log-normal, with a deviation of 0.3). The memory of a
trial is random too where the row gives its range. A slot is assumed to be as fast beside others as alone.

The efficiency is the lower bound divided by the duration of the schedule. No schedule can be shorter than the longest
trial, than the time of all trials divided by the number of slots, or than the sum of memory times duration of all
trials divided by all memory. Goal: 95 %. Where the costs are known exactly, the packer causes the loss; a larger loss
with random costs is the price of not knowing them.
"""

import heapq
import json
import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from infra.devices.packing import MEMORY_MARGIN, Device, Job, Packer, shortest_possible_seconds
from problems.errors import RecastError

COSTS = Path(__file__).parent / "results" / "costs.json"
GIB = 1 << 30


def run(quick: bool) -> dict[str, Any]:
    """Simulate clusters in which slots are scarce, or memory, or the memory of half of the GPUs."""
    gpus, trials = (20, 2_000) if quick else (1_000, 100_000)
    costs = json.loads(COSTS.read_text(encoding="utf-8"))
    seconds = {name: cost["seconds"] / costs["steps"] * 250 * 20 for name, cost in costs["results"].items()}
    measured = {name: cost["peak MiB"] << 20 for name, cost in costs["results"].items()}
    generator = random.Random(0)
    # Like models that are not small: most take a few GiB, and those that train longer take no more than the others.
    large = {name: int(min(60, max(1, generator.lognormvariate(2, 0.8))) * GIB) for name in seconds}
    same, mixed = [80] * gpus, [80, 24] * (gpus // 2)
    scenarios = {
        "4 slots per GPU of 80 GB, memory as measured": (4, same, measured),
        "16 slots per GPU of 80 GB, trials of 1 to 60 GiB": (16, same, large),
        "16 slots per GPU, half of the GPUs of 24 GB, trials of 1 to 60 GiB": (16, mixed, large),
    }
    table = {}
    for name, (slots, sizes, peaks) in scenarios.items():
        expected, actual = _make_jobs(trials, seconds, random.Random(1))
        known = [Job(job.number, job.shape, actual[job.number]) for job in expected]
        unknown = [Job(job.number, job.shape, 1.0) for job in expected]
        table[name] = _simulate(expected, actual, slots, sizes, peaks)
        table[f"{name}; exact costs known"] = _simulate(known, actual, slots, sizes, peaks)
        table[f"{name}; costs unknown"] = _simulate(unknown, actual, slots, sizes, peaks)
    return {"GPUs": gpus, "trials": trials, "configurations": len(seconds), "results": table}


def _make_jobs(
    trials: int, seconds: Mapping[str, float], generator: random.Random
) -> tuple[list[Job], dict[int, float]]:
    """Trials of all configurations with their expected seconds, and the actual seconds by number."""
    names = sorted(seconds)
    expected, actual = [], {}
    for number in range(trials):
        name = names[number % len(names)]
        expected.append(Job(number, name, seconds[name]))
        actual[number] = seconds[name] * generator.lognormvariate(0, 0.3)
    return expected, actual


def _simulate(
    jobs: Sequence[Job], actual: Mapping[int, float], slots: int, sizes: Sequence[int], peaks: Mapping[str, int]
) -> dict[str, Any]:
    """The time that a cluster takes, compared with the lower bound.

    Args:
        sizes: GB of each GPU.
    """
    devices = [Device(f"cuda:{i}", slots, int(size * 1e9 * (1 - MEMORY_MARGIN))) for i, size in enumerate(sizes)]
    least = shortest_possible_seconds([Job(job.number, job.shape, actual[job.number]) for job in jobs], devices, peaks)
    packer = Packer(jobs, devices, peaks)
    begun = time.perf_counter()
    running: list[tuple[float, int, Device]] = []
    now, decisions = 0.0, 0
    for job, device in packer.start():
        heapq.heappush(running, (actual[job.number], job.number, device))
    while running:
        now, number, device = heapq.heappop(running)
        packer.remove(number)
        while (job := packer.start_next(device)) is not None:
            heapq.heappush(running, (now + actual[job.number], job.number, device))
        decisions += 1
    if len(packer):
        raise RecastError(f"the packer has not started {len(packer)} of {len(jobs)} trials")
    return {
        "hours": round(now / 3600, 2),
        "lower bound": round(least / 3600, 2),
        "efficiency %": round(100 * least / now, 1),
        "ms per decision": round((time.perf_counter() - begun) / max(1, decisions) * 1000, 3),
    }
