"""A simulated cluster of 1,000 GPUs that trains 100,000 trials, by the packer that the runners use.

What trials cost was measured: `python -m benchmarks costs`, 20 epochs of 250 steps. What they are expected to cost is
wrong by a factor that is drawn (log-normal, a deviation of 0.3). What they hold is drawn too where that is said. A slot
is taken to be as fast beside others as alone.

The efficiency is the lower bound over the time of the schedule: no schedule can be shorter than the longest trial, than
all of them over all slots, or than the memory that they hold for a time over all memory. Aim: 95 %. Where costs are
known exactly, what is missing is the packer's; what more is missing where they are drawn is the price of not knowing.
"""

import heapq
import json
import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from infra.devices.packing import MEMORY_MARGIN, Device, Job, Packer, shortest_possible_seconds

COSTS = Path(__file__).parent / "results" / "costs.json"
GIB = 1 << 30


def run(quick: bool) -> dict[str, Any]:
    """Simulate clusters on which slots are short, or memory, or the memory of half of the GPUs."""
    gpus, trials = (20, 2_000) if quick else (1_000, 100_000)
    costs = json.loads(COSTS.read_text(encoding="utf-8"))
    seconds = {name: each["seconds"] / costs["steps"] * 250 * 20 for name, each in costs["results"].items()}
    measured = {name: each["peak MiB"] << 20 for name, each in costs["results"].items()}
    drawn = random.Random(0)
    # As of models that are not small: most of them take a few GiB, and the costly ones no more than the others.
    large = {name: int(min(60, max(1, drawn.lognormvariate(2, 0.8))) * GIB) for name in seconds}
    same, mixed = [80] * gpus, [80, 24] * (gpus // 2)
    scenarios = {
        "4 slots a GPU of 80 GB, memory as measured": (4, same, measured),
        "16 slots a GPU of 80 GB, trials of 1 to 60 GiB": (16, same, large),
        "16 slots a GPU, half of them of 24 GB, trials of 1 to 60 GiB": (16, mixed, large),
    }
    found = {}
    for name, (slots, sizes, peaks) in scenarios.items():
        expected, actual = _jobs(trials, seconds, random.Random(1))
        known = [Job(job.number, job.shape, actual[job.number]) for job in expected]
        unknown = [Job(job.number, job.shape, 1.0) for job in expected]
        found[name] = _simulated(expected, actual, slots, sizes, peaks)
        found[f"{name}; their costs known exactly"] = _simulated(known, actual, slots, sizes, peaks)
        found[f"{name}; nothing known of their costs"] = _simulated(unknown, actual, slots, sizes, peaks)
    return {"GPUs": gpus, "trials": trials, "configurations": len(seconds), "results": found}


def _jobs(trials: int, seconds: Mapping[str, float], chance: random.Random) -> tuple[list[Job], dict[int, float]]:
    """Trials of every configuration, what each is expected to take, and by number what it does take."""
    names = sorted(seconds)
    expected, actual = [], {}
    for number in range(trials):
        name = names[number % len(names)]
        expected.append(Job(number, name, seconds[name]))
        actual[number] = seconds[name] * chance.lognormvariate(0, 0.3)
    return expected, actual


def _simulated(
    jobs: Sequence[Job], actual: Mapping[int, float], slots: int, sizes: Sequence[int], peaks: Mapping[str, int]
) -> dict[str, Any]:
    """How long a cluster takes, beside the lower bound.

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
    assert not len(packer)
    return {
        "hours": round(now / 3600, 2),
        "lower bound": round(least / 3600, 2),
        "efficiency %": round(100 * least / now, 1),
        "ms a decision": round((time.perf_counter() - begun) / max(1, decisions) * 1000, 3),
    }
