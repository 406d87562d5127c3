"""Slots: how many trials run at once in this checkout, and on which device each does.

A slot is a locked file, so that two grids side by side share the machine, and a slot whose owner dies is free again.
"""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil
import pynvml
import torch
from filelock import FileLock, Timeout

from infra.devices.packing import MARGIN, Device
from project.paths import STATE
from project.settings.sections import Runner

POLL_SECONDS = 0.05

MOST_SLOTS = 16
"""Trials at once on a GPU whose slots its memory decides: each takes a process, its context and a core's time."""


@dataclass(frozen=True)
class Slot:
    """A place for one trial on a device, such as cuda:1."""

    device: str
    number: int


def slots(runner: Runner, threads: int) -> list[Slot]:
    """The slots of this machine: `slots_per_gpu` on every visible GPU; without a GPU, `workers` on the CPU.

    Args:
        threads: of one trial; as many trials as the cores hold, unless `workers` says otherwise.
    """
    gpus = torch.cuda.device_count() if runner.devices == "auto" else 0
    if gpus:
        each = MOST_SLOTS if runner.slots_per_gpu == "auto" else runner.slots_per_gpu
        # One of each GPU before a second of any.
        return [Slot(f"cuda:{gpu}", i) for i in range(each) for gpu in range(gpus)]
    workers = runner.workers or max(1, cores() // threads)
    return [Slot("cpu", i) for i in range(workers)]


def devices(runner: Runner, threads: int) -> tuple[Device, ...]:
    """The devices of this machine with their slots, and with `slots_per_gpu: auto` the memory that is free there now.

    Grids that run side by side in this process share them; but not the fixed slots of GPUs, which are locked.
    """
    return _shared(runner, threads) if not keeps(runner) else _devices(runner, threads)


def keeps(runner: Runner) -> bool:
    """Whether a process keeps its slot for as long as it lives: what it has on a GPU, it would leave there."""
    return runner.slots_per_gpu != "auto" and runner.devices == "auto" and torch.cuda.device_count() > 0


def _devices(runner: Runner, threads: int) -> tuple[Device, ...]:
    names = [slot.device for slot in slots(runner, threads)]
    packed = runner.slots_per_gpu == "auto"
    return tuple(
        Device(name, names.count(name), int(free_memory(name) * (1 - MARGIN)) if packed else None)
        for name in dict.fromkeys(names)
    )


_shared = cache(_devices)


def free_memory(device: str, cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that are free on a device: of a GPU's memory, or of the machine's, or of this process's container."""
    kind, _, number = device.partition(":")
    if kind == "cuda":
        about = torch.cuda.get_device_properties(int(number))
        try:
            pynvml.nvmlInit()
            # Its number is another one where CUDA_VISIBLE_DEVICES names some.
            return int(pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{about.uuid}")).free)
        except pynvml.NVMLError:
            return int(about.total_memory)
    free = psutil.virtual_memory().available
    limit, used = cgroup / "memory.max", cgroup / "memory.current"
    if limit.exists() and (most := limit.read_text(encoding="utf-8").strip()) != "max":
        free = min(free, int(most) - int(used.read_text(encoding="utf-8")))
    return free


def cores(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """The cores that this process may use: by its affinity, and by the quota of its container.

    Args:
        cgroup: where Linux mounts control groups (version 2: cpu.max; version 1: cpu/cpu.cfs_quota_us).
    """
    # Not every system can say which cores this process may use.
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, period = "max", "1"
    if (cgroup / "cpu.max").exists():
        quota, period = (cgroup / "cpu.max").read_text(encoding="utf-8").split()
    elif (cgroup / "cpu/cpu.cfs_quota_us").exists():
        quota = (cgroup / "cpu/cpu.cfs_quota_us").read_text(encoding="utf-8").strip()
        period = (cgroup / "cpu/cpu.cfs_period_us").read_text(encoding="utf-8").strip()
    if quota in ("max", "-1"):
        return allowed
    return max(1, min(allowed, int(quota) // int(period)))


@contextmanager
def claimed(choice: Sequence[Slot]) -> Iterator[torch.device]:
    """The device of a free slot, waited for; the slot is taken until the block ends."""
    slot, lock = _taken(choice)
    try:
        yield torch.device(slot.device)
    finally:
        lock.release()


@cache
def claim(choice: tuple[Slot, ...]) -> torch.device:
    """The device of a free slot, waited for; the slot is this process's until it ends, however it ends."""
    slot, lock = _taken(choice)
    _kept.append(lock)
    return torch.device(slot.device)


_kept: list[FileLock] = []
"""A lock that nothing refers to is released."""


def _taken(choice: Sequence[Slot]) -> tuple[Slot, FileLock]:
    folder = STATE / "slots"
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        for slot in choice:
            lock = FileLock(folder / f"{slot.device.replace(':', '')}-{slot.number}.lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            return slot, lock
        time.sleep(POLL_SECONDS)
