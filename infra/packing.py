"""Packing: which bundle is trained on which device next, by memory and by expected cost.

The longest that fits goes first (Graham's longest-processing-time rule, list scheduling on parallel machines: at worst
4/3 of the shortest schedule where memory does not bind). It knows nothing of what runs the bundles: the runners use it,
and so does the simulator, `python -m benchmarks schedule`.
"""

import bisect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

MARGIN = 0.1
"""The share of a device's memory that is not given away: what fragments, and what a later epoch takes more."""

PILOT_SHARE = 0.5
"""A shape that nobody has measured gets all the memory that is free, once this share of the device is."""


@dataclass(frozen=True)
class Job:
    """A bundle to be trained.

    Attributes:
        number: its own.
        shape: what its memory and its cost follow from; see `infra.costs`.
        seconds: that it is expected to take.
    """

    number: int
    shape: str
    seconds: float


@dataclass
class Device:
    """A GPU, or the machine's CPUs, and what is trained there.

    Attributes:
        slots: bundles at once, at most.
        memory: bytes to give away; None: memory is not counted.
        running: the bytes that are kept for each job, by its number.
    """

    name: str
    slots: int
    memory: int | None = None
    running: dict[int, int] = field(default_factory=dict)
    used: int = 0

    def room(self, peak: int | None) -> int | None:
        """The bytes to keep for a job here and now, or None where it has to wait.

        Args:
            peak: what its shape takes; None: nobody has measured it.
        """
        if len(self.running) >= self.slots:
            return None
        if self.memory is None:
            return 0
        free = self.memory - self.used
        if peak is None:
            return free if free >= PILOT_SHARE * self.memory else None
        # What is larger than the device is tried on it alone: whether it fits, only the device can say.
        return peak if peak <= free or not self.running else None

    def keep(self, number: int, bytes_: int) -> None:
        """Keep so much for a job, in place of what was kept for it."""
        self.used += bytes_ - self.running.get(number, 0)
        self.running[number] = bytes_

    def release(self, number: int) -> None:
        """Give back what is kept for a job."""
        self.used -= self.running.pop(number)


class Packer:
    """Jobs that wait, devices, and which goes where.

    Shapes that nobody has measured come first, one job of each, so that the rest can be packed by what it took; then
    the longest job that fits.
    """

    def __init__(
        self,
        jobs: Iterable[Job],
        devices: Iterable[Device],
        peaks: Mapping[str, int] | None = None,
        pilots: bool | None = None,
    ) -> None:
        """
        Args:
            peaks: the bytes that a job of a shape takes, of the shapes that were measured.
            pilots: shapes are to be measured first; None: where a device has memory to give away.
        """
        self.devices = list(devices)
        self.peaks = dict(peaks or {})
        self.pilots = any(device.memory is not None for device in self.devices) if pilots is None else pilots
        self.running: dict[int, tuple[Job, Device]] = {}
        self.waiting: dict[str, list[Job]] = {}
        self.waiting_seconds = 0.0
        for job in jobs:
            self.waiting.setdefault(job.shape, []).append(job)
            self.waiting_seconds += job.seconds
        for each in self.waiting.values():
            # The longest is taken from the end, and of equals the first that was given.
            each.reverse()
            each.sort(key=lambda job: job.seconds)

    def add(self, job: Job) -> None:
        """Let a job wait that has lost its device."""
        bisect.insort(self.waiting.setdefault(job.shape, []), job, key=lambda each: each.seconds)
        self.waiting_seconds += job.seconds

    def __len__(self) -> int:
        """How many jobs wait."""
        return sum(len(each) for each in self.waiting.values())

    def start(self) -> Iterator[tuple[Job, Device]]:
        """Give jobs to devices for as long as one fits: one to each device before a second to any."""
        while True:
            begun = [(job, device) for device in self._idlest() if (job := self.next(device))]
            if not begun:
                return
            yield from begun

    def next(self, device: Device) -> Job | None:
        """Give this device the job that it should have now, or None where none fits."""
        best: tuple[int, float, str] | None = None
        for shape, jobs in self.waiting.items():
            peak = self.peaks.get(shape)
            if device.room(peak) is None:
                continue
            rank = (self._urgency(shape), jobs[-1].seconds, shape)
            if best is None or rank[:2] > best[:2]:
                best = rank
        if best is None:
            return None
        shape = best[2]
        job = self.waiting[shape].pop()
        if not self.waiting[shape]:
            del self.waiting[shape]
        self.waiting_seconds -= job.seconds
        device.keep(job.number, device.room(self.peaks.get(shape)) or 0)
        self.running[job.number] = job, device
        return job

    def _urgency(self, shape: str) -> int:
        """2: its first job, which measures its shape; 1: measured; 0: another job of a shape that is being measured."""
        if not self.pilots or shape in self.peaks:
            return 1
        return 0 if any(job.shape == shape for job, _ in self.running.values()) else 2

    def measured(self, shape: str, peak: int) -> None:
        """A job of this shape took so much: keep as much for all of them, from now on."""
        self.peaks[shape] = max(peak, self.peaks.get(shape, 0))
        for job, device in self.running.values():
            if job.shape == shape and device.memory is not None:
                device.keep(job.number, self.peaks[shape])

    def ended(self, number: int) -> None:
        """A job has ended, however it ended."""
        job, device = self.running.pop(number)
        device.release(job.number)

    def _idlest(self) -> list[Device]:
        return sorted(self.devices, key=lambda device: len(device.running))


def bound(jobs: Iterable[Job], devices: Iterable[Device], peaks: Mapping[str, int]) -> float:
    """Seconds that no schedule can beat: by slots, by the longest job, and by memory held for a time."""
    jobs, devices = list(jobs), list(devices)
    slots = sum(device.slots for device in devices)
    by_slots = sum(job.seconds for job in jobs) / slots
    longest = max((job.seconds for job in jobs), default=0.0)
    memory = sum(device.memory or 0 for device in devices)
    by_memory = sum(job.seconds * peaks.get(job.shape, 0) for job in jobs) / memory if memory else 0.0
    return max(by_slots, longest, by_memory)


def share(peak: int, total: int) -> float:
    """The share of a device that a job takes, at least a hundredth and to four digits, as Ray counts it."""
    return min(1.0, max(0.01, round(peak / (total * (1 - MARGIN)), 4)))
