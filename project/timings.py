"""Where the time of a command goes: its phases, with the time on the clock and the processor's time of this process.

Phases of stages that run side by side overlap, and each counts the processor's time of the whole process.
"""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Phase:
    """A part of a command.

    Attributes:
        begun: the time in seconds since the epoch.
        seconds: on the clock; where the phase has several parts, of all of them together.
        cpu_seconds: of this process, with all its threads, meanwhile; None: other processes did the work.
    """

    name: str
    begun: float
    seconds: float
    cpu_seconds: float | None


_lock = threading.Lock()
_phases: dict[str, Phase] = {}


@contextmanager
def time_phase(name: str) -> Iterator[None]:
    """Note how long the block takes. Blocks of the same name add up to one phase."""
    begun, clock, cpu = time.time(), time.perf_counter(), time.process_time()
    try:
        yield
    finally:
        add_phase(Phase(name, begun, time.perf_counter() - clock, time.process_time() - cpu))


def add_phase(phase: Phase) -> None:
    """Note a phase, or another part of it."""
    with _lock:
        former = _phases.get(phase.name)
        if former is not None:
            phase = Phase(
                phase.name,
                min(former.begun, phase.begun),
                former.seconds + phase.seconds,
                None if phase.cpu_seconds is None else (former.cpu_seconds or 0.0) + phase.cpu_seconds,
            )
        _phases[phase.name] = phase


def list_phases() -> Sequence[Phase]:
    """The phases of this process so far, in the order in which they began."""
    with _lock:
        return sorted(_phases.values(), key=lambda phase: phase.begun)
