"""Packing: which bundle is trained on which device next, by memory and by expected time.

Where slots are scarce, the longest bundle goes first (Graham's longest-processing-time rule: at worst 4/3 of the
shortest schedule). Where memory is scarce, small bundles are left for the gaps beside large ones. This module does not
know what runs the bundles: the runners use it, and so does the simulator, `python -m benchmarks schedule`.
"""

import bisect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

MEMORY_MARGIN = 0.1
"""The share of a device's memory that no bundle gets: for fragmentation, and for later epochs that take more."""

URGENT_SHARE = 0.4
"""A job that takes at least this share of the remaining time may be the last to end: it does not wait for a better fit.
"""

PILOT_SHARE = 0.5
"""A job of a shape that was never measured gets all free memory, once at least this share of the device is free."""


@dataclass(frozen=True)
class Job:
    """A bundle to be trained.

    Attributes:
        number: identifies the job.
        shape: jobs of the same shape take the same memory, and their epochs the same time; see `infra.devices.costs`.
        seconds: how long it is expected to take.
    """

    number: int
    shape: str
    seconds: float


@dataclass
class Device:
    """A GPU, or the machine's CPUs, and what is trained on it.

    Attributes:
        slots: the most bundles at the same time.
        memory: the bytes that bundles may have; None: memory is not counted.
        running: the bytes that are reserved for each job, by its number.
        used: the bytes that are reserved for all jobs.
    """

    name: str
    slots: int
    memory: int | None = None
    running: dict[int, int] = field(default_factory=dict)
    used: int = 0

    def available_bytes(self, peak: int | None) -> int | None:
        """The bytes to reserve for a job that starts here now, or None if it has to wait.

        Args:
            peak: the bytes that a job of its shape takes; None: none was measured.
        """
        if len(self.running) >= self.slots:
            return None
        if self.memory is None:
            return 0
        free = self.memory - self.used
        if peak is None:
            return free if free >= PILOT_SHARE * self.memory else None
        # A job that is larger than the device is tried on it alone: only the device can say whether it fits.
        return peak if peak <= free or not self.running else None

    def reserve(self, number: int, size: int) -> None:
        """Reserve so many bytes for a job, in place of those that were reserved for it."""
        self.used += size - self.running.get(number, 0)
        self.running[number] = size

    def release(self, number: int) -> None:
        """Free the bytes that are reserved for a job."""
        self.used -= self.running.pop(number)


class Packer:
    """Decides which of the waiting jobs goes to which device.

    Shapes that were never measured come first, with one job of each, so that the other jobs can be packed by what that
    one took. Then the longest of the jobs that fit starts. But where memory is what jobs wait for, only a job that is
    urgent goes first because of its length. Else a job of the shape goes first that has the most work left, in seconds
    times bytes. So all shapes last until the end, and none remains that nothing fits beside.
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
            peaks: the bytes that a job takes, by shape, as far as they were measured.
            pilots: whether shapes are measured first; None: if a device counts its memory.
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
        for waiting in self.waiting.values():
            # The longest job is taken from the end; of equally long ones, the first that was given.
            waiting.reverse()
            waiting.sort(key=lambda job: job.seconds)

    def add(self, job: Job) -> None:
        """Have a job wait that has lost its device."""
        bisect.insort(self.waiting.setdefault(job.shape, []), job, key=lambda waiting: waiting.seconds)
        self.seconds[job.shape] = self.seconds.get(job.shape, 0.0) + job.seconds

    @property
    def waiting_seconds(self) -> float:
        """How long all waiting jobs together are expected to take."""
        return sum(self.seconds[shape] for shape in self.waiting)

    def __len__(self) -> int:
        """The number of waiting jobs."""
        return sum(len(jobs) for jobs in self.waiting.values())

    def start(self) -> Iterator[tuple[Job, Device]]:
        """Give jobs to devices as long as one fits: one job to each device before a second one to any."""
        while True:
            started = [(job, device) for device in self._idlest_first() if (job := self.start_next(device))]
            if not started:
                return
            yield from started

    def start_next(self, device: Device) -> Job | None:
        """Give this device the job that it should have now, or return None if no job fits."""
        urgent_seconds = self._urgent_seconds()
        best: tuple[int, int, float] | None = None
        best_shape = ""
        for shape, jobs in self.waiting.items():
            peak = self.peaks.get(shape)
            if device.available_bytes(peak) is None or self._fits_only_elsewhere(peak, device):
                continue
            seconds = jobs[-1].seconds
            urgent = seconds >= urgent_seconds
            rank = self._priority(shape), int(urgent), seconds if urgent else self.seconds[shape] * (peak or 0)
            if best is None or rank > best:
                best, best_shape = rank, shape
        if best is None:
            return None
        job = self.waiting[best_shape].pop()
        self.seconds[best_shape] -= job.seconds
        if not self.waiting[best_shape]:
            del self.waiting[best_shape], self.seconds[best_shape]
        device.reserve(job.number, device.available_bytes(self.peaks.get(best_shape)) or 0)
        self.running[job.number] = job, device
        return job

    def _urgent_seconds(self) -> float:
        """The length from which on a job is urgent; 0, so that all are, where jobs do not wait for memory."""
        if not self.memory:
            return 0.0
        by_memory = sum(self.seconds[shape] * self.peaks.get(shape, 0) for shape in self.waiting) / self.memory
        return URGENT_SHARE * by_memory if by_memory > self.waiting_seconds / self.slots else 0.0

    def _fits_only_elsewhere(self, peak: int | None, device: Device) -> bool:
        """Whether a job is too large for this device, but not for the largest one."""
        return peak is not None and device.memory is not None and device.memory < peak <= self.largest

    def _priority(self, shape: str) -> int:
        """2: its next job is the first one, which measures the shape; 1: it was measured; 0: it is being measured."""
        if not self.pilots or shape in self.peaks:
            return 1
        return 0 if any(job.shape == shape for job, _ in self.running.values()) else 2

    def record_peak(self, shape: str, peak: int) -> None:
        """A job of this shape took so many bytes: reserve as many for all of them from now on."""
        self.peaks[shape] = max(peak, self.peaks.get(shape, 0))
        for job, device in self.running.values():
            if job.shape == shape and device.memory is not None:
                device.reserve(job.number, self.peaks[shape])

    def remove(self, number: int) -> None:
        """A job has ended, in whatever way."""
        job, device = self.running.pop(number)
        device.release(job.number)

    def _idlest_first(self) -> list[Device]:
        return sorted(self.devices, key=lambda device: len(device.running))


def shortest_possible_seconds(jobs: Iterable[Job], devices: Iterable[Device], peaks: Mapping[str, int]) -> float:
    """Seconds that no schedule can beat: by the longest job, by slots, and by memory that is reserved for some time.

    The last two bounds are those of all jobs on all devices, and those of the jobs that are too large for the smaller
    devices on the larger ones.
    """
    jobs, devices = list(jobs), list(devices)
    bounds = [max((job.seconds for job in jobs), default=0.0)]
    for floor in {0, *(device.memory for device in devices if device.memory is not None)}:
        larger = [device for device in devices if device.memory is None or device.memory > floor]
        confined = [job for job in jobs if peaks.get(job.shape, 0) > floor or not floor]
        if not larger or not confined:
            continue
        bounds.append(sum(job.seconds for job in confined) / sum(device.slots for device in larger))
        if memory := sum(device.memory or 0 for device in larger):
            bounds.append(sum(job.seconds * peaks.get(job.shape, 0) for job in confined) / memory)
    return max(bounds)


def gpu_share(peak: int, total: int) -> float:
    """The share of a GPU that a job takes, as Ray counts it: at least a hundredth, with four digits."""
    return min(1.0, max(0.01, round(peak / (total * (1 - MEMORY_MARGIN)), 4)))
