"""Slots: how many trials run at once in this checkout, and on which device each does.

A slot is a locked file, so that two grids side by side share the machine, and a slot whose owner dies is free again.
"""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from filelock import FileLock, Timeout

from stages.places import STATE
from stages.settings import Runner

POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Slot:
    """A place for one trial on a device, such as cuda:1."""

    device: str
    number: int


def slots(runner: Runner) -> list[Slot]:
    """The slots of this machine: `slots_per_gpu` on every visible GPU; without a GPU, `workers` on the CPU."""
    gpus = torch.cuda.device_count() if runner.devices == "auto" else 0
    if gpus:
        # One of each GPU before a second of any.
        return [Slot(f"cuda:{gpu}", i) for i in range(runner.slots_per_gpu) for gpu in range(gpus)]
    # Not every system can say which cores this process may use.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = runner.workers or cores
    return [Slot("cpu", i) for i in range(workers)]


@contextmanager
def claimed(choice: Sequence[Slot]) -> Iterator[torch.device]:
    """The device of a free slot, waited for; the slot is taken until the block ends."""
    folder = STATE / "slots"
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        for slot in choice:
            lock = FileLock(folder / f"{slot.device.replace(':', '')}-{slot.number}.lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            try:
                yield torch.device(slot.device)
            finally:
                lock.release()
            return
        time.sleep(POLL_SECONDS)
