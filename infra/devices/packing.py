"""Packing: which bundle is trained on which device next, by memory and by expected cost.

Where slots are short, the longest goes first (Graham's longest-processing-time rule: at worst 4/3 of the shortest
schedule). Where memory is, small bundles are kept for the gaps that large ones leave. It knows nothing of what runs the
bundles: the runners use it, and so does the simulator, `python -m benchmarks schedule`.
"""

import bisect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

MARGIN = 0.1
"""The share of a device's memory that is not given away: what fragments, and what a later epoch takes more."""

URGENT = 0.4
"""A job that takes this share of what is left, or more, may be the last to end: it does not wait for a better fit."""

PILOT_SHARE = 0.5
"""A shape that nobody has measured gets all the memory that is free, once this share of the device is."""


@dataclass(frozen=True)
class Job:
    """A bundle to be trained.

    Attributes:
        number: its own.
        shape: what its memory and its cost follow from; see `infra.devices.costs`.
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

    Shapes that nobody has measured come first, one job of each, so that the rest can be packed by what it took. Then,
    of the jobs that fit, the longest; but where memory is what the rest has to wait for, only a job that is urgent for
    its length, and else one of the shape that has the most left to hold, in seconds times bytes: so all shapes last to
    the end, and none remains that nothing fits beside.
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
        self.seconds: dict[str, float] = {}
        for job in jobs:
            self.waiting.setdefault(job.shape, []).append(job)
            self.seconds[job.shape] = self.seconds.get(job.shape, 0.0) + job.seconds
        self.slots = sum(device.slots for device in self.devices)
        self.memory = sum(device.memory or 0 for device in self.devices)
        self.largest = max((device.memory or 0 for device in self.devices), default=0)
        for each in self.waiting.values():
            # The longest is taken from the end, and of equals the first that was given.
            each.reverse()
            each.sort(key=lambda job: job.seconds)

    def add(self, job: Job) -> None:
        """Let a job wait that has lost its device."""
        bisect.insort(self.waiting.setdefault(job.shape, []), job, key=lambda each: each.seconds)
        self.seconds[job.shape] = self.seconds.get(job.shape, 0.0) + job.seconds

    @property
    def waiting_seconds(self) -> float:
        """What the jobs that wait are expected to take in all."""
        return sum(self.seconds[shape] for shape in self.waiting)

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
        patience = self._patience()
        best: tuple[int, int, float] | None = None
        chosen = ""
        for shape, jobs in self.waiting.items():
            peak = self.peaks.get(shape)
            if device.room(peak) is None or self._fits_elsewhere(peak, device):
                continue
            seconds = jobs[-1].seconds
            urgent = seconds >= patience
            rank = self._stage(shape), int(urgent), seconds if urgent else self.seconds[shape] * (peak or 0)
            if best is None or rank > best:
                best, chosen = rank, shape
        if best is None:
            return None
        job = self.waiting[chosen].pop()
        self.seconds[chosen] -= job.seconds
        if not self.waiting[chosen]:
            del self.waiting[chosen], self.seconds[chosen]
        device.keep(job.number, device.room(self.peaks.get(chosen)) or 0)
        self.running[job.number] = job, device
        return job

    def _patience(self) -> float:
        """Seconds from which on a job is urgent: all are, where memory is not what they have to wait for."""
        if not self.memory:
            return 0.0
        by_memory = sum(self.seconds[shape] * self.peaks.get(shape, 0) for shape in self.waiting) / self.memory
        return URGENT * by_memory if by_memory > self.waiting_seconds / self.slots else 0.0

    def _fits_elsewhere(self, peak: int | None, device: Device) -> bool:
        """Whether a job is too large for this device alone."""
        return peak is not None and device.memory is not None and device.memory < peak <= self.largest

    def _stage(self, shape: str) -> int:
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
    """Seconds that no schedule can beat: by the longest job, by slots, and by memory held for a time.

    The last two are of all jobs on all devices, and of those alone that are too large for the smaller devices, on the
    larger ones.
    """
    jobs, devices = list(jobs), list(devices)
    found = [max((job.seconds for job in jobs), default=0.0)]
    for floor in {0, *(device.memory for device in devices if device.memory is not None)}:
        larger = [device for device in devices if device.memory is None or device.memory > floor]
        confined = [job for job in jobs if peaks.get(job.shape, 0) > floor or not floor]
        if not larger or not confined:
            continue
        found.append(sum(job.seconds for job in confined) / sum(device.slots for device in larger))
        if memory := sum(device.memory or 0 for device in larger):
            found.append(sum(job.seconds * peaks.get(job.shape, 0) for job in confined) / memory)
    return max(found)


def share(peak: int, total: int) -> float:
    """The share of a device that a job takes, at least a hundredth and to four digits, as Ray counts it."""
    return min(1.0, max(0.01, round(peak / (total * (1 - MARGIN)), 4)))
