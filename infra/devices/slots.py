"""Slots: how many trials run at the same time in this checkout, and on which devices.

Whoever holds a slot locks a file. So two grids that run side by side share the machine, and a slot is free again when
its owner dies.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil
import pynvml
import torch
from filelock import FileLock, Timeout
from tenacity import retry, retry_if_exception_type, wait_fixed

from infra.devices.packing import MEMORY_MARGIN, Device
from project.paths import STATE
from project.settings.operation import RunnerSettings

SLOT_POLL_SECONDS = 0.05

MAX_SLOTS_PER_GPU = 16
"""The most trials at the same time on a GPU whose memory decides how many: each takes a process with its context, and a
core's time."""


@dataclass(frozen=True)
class Slot:
    """A place for one trial on a device, such as cuda:1."""

    device: str
    number: int


def machine_slots(runner: RunnerSettings, threads: int) -> list[Slot]:
    """The slots of this machine: `slots_per_gpu` on every visible GPU; without a GPU, `workers` on the CPU.

    Args:
        threads: the threads of one trial. Without `workers`, there are as many slots as the cores allow.
    """
    gpus = torch.cuda.device_count() if runner.devices == "auto" else 0
    if gpus:
        slots_per_gpu = MAX_SLOTS_PER_GPU if runner.slots_per_gpu == "auto" else runner.slots_per_gpu
        # One slot of each GPU before a second one of any.
        return [Slot(f"cuda:{gpu}", i) for i in range(slots_per_gpu) for gpu in range(gpus)]
    workers = runner.workers or max(1, usable_cores() // threads)
    return [Slot("cpu", i) for i in range(workers)]


def machine_devices(runner: RunnerSettings, threads: int) -> tuple[Device, ...]:
    """The devices of this machine with their slots, and with `slots_per_gpu: auto` the memory that is free now.

    Grids that run side by side in this process share these objects, except where slots are exclusive: then the locks of
    the slots keep them apart.
    """
    return _shared_devices(runner, threads) if not slots_are_exclusive(runner) else _read_devices(runner, threads)


def slots_are_exclusive(runner: RunnerSettings) -> bool:
    """Whether a process keeps its slot as long as it lives, because what it has allocated on a GPU stays there."""
    return runner.slots_per_gpu != "auto" and runner.devices == "auto" and torch.cuda.device_count() > 0


def _read_devices(runner: RunnerSettings, threads: int) -> tuple[Device, ...]:
    names = [slot.device for slot in machine_slots(runner, threads)]
    packed = runner.slots_per_gpu == "auto"
    return tuple(
        Device(name, names.count(name), int(free_memory(name) * (1 - MEMORY_MARGIN)) if packed else None)
        for name in dict.fromkeys(names)
    )


_shared_devices = cache(_read_devices)


def free_memory(device: str, cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """The free bytes of a device: of a GPU, or of the machine, or of the container of this process."""
    kind, _, number = device.partition(":")
    if kind == "cuda":
        properties = torch.cuda.get_device_properties(int(number))
        try:
            pynvml.nvmlInit()
            # By its UUID: NVML numbers the GPUs otherwise if CUDA_VISIBLE_DEVICES is set.
            return int(pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{properties.uuid}")).free)
        except pynvml.NVMLError:
            return int(properties.total_memory)
    free = psutil.virtual_memory().available
    limit, used = cgroup / "memory.max", cgroup / "memory.current"
    if limit.exists() and (maximum := limit.read_text(encoding="utf-8").strip()) != "max":
        free = min(free, int(maximum) - int(used.read_text(encoding="utf-8")))
    return free


def usable_cores(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """The number of cores that this process may use, by its affinity and by the quota of its container.

    Args:
        cgroup: where Linux mounts control groups (version 2: cpu.max; version 1: cpu/cpu.cfs_quota_us).
    """
    # Not every system knows the affinity of a process.
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
def claim_slot(choice: Sequence[Slot]) -> Iterator[torch.device]:
    """Wait for a free slot, and hold it until the block ends; its device."""
    slot, lock = _acquire_slot(choice)
    try:
        yield torch.device(slot.device)
    finally:
        lock.release()


@cache
def claim_slot_for_process(choice: tuple[Slot, ...]) -> torch.device:
    """Wait for a free slot, and hold it until this process ends, in whatever way; its device."""
    slot, lock = _acquire_slot(choice)
    _held_locks.append(lock)
    return torch.device(slot.device)


_held_locks: list[FileLock] = []
"""Referred to from here, because a lock that nothing refers to is released."""


class _NoFreeSlot(Exception):
    """Others hold all slots."""


@retry(retry=retry_if_exception_type(_NoFreeSlot), wait=wait_fixed(SLOT_POLL_SECONDS))
def _acquire_slot(choice: Sequence[Slot]) -> tuple[Slot, FileLock]:
    """The first of these slots that is free, and its lock; waits until there is one."""
    folder = STATE / "slots"
    folder.mkdir(parents=True, exist_ok=True)
    for slot in choice:
        lock = FileLock(folder / f"{slot.device.replace(':', '')}-{slot.number}.lock")
        with suppress(Timeout):
            lock.acquire(timeout=0)
            return slot, lock
    raise _NoFreeSlot
