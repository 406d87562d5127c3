"""The memory that a device has, and the peak of what a trial takes of it, measured while it trains."""

import resource
import sys
from pathlib import Path

import psutil
import torch

CUDA_CONTEXT = 800 << 20
"""Bytes that a process holds on a GPU beside what PyTorch allocates: CUDA's context and the kernels that are loaded.

Measured on an H200, where it is 750 MiB (`python -m benchmarks gpu`); within a container the driver does not report it.
"""


def total_memory(device: torch.device) -> int:
    """The bytes of memory that a GPU has, or the machine."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return int(psutil.virtual_memory().total)


def reset_peak_memory(device: torch.device) -> None:
    """Measure the peak from now on. Where the system cannot (CPU, not Linux), it stays that of the whole process."""
    if device.type == "cuda":
        # Before anything is on the device there is nothing to reset, and PyTorch refuses.
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


def measure_peak_memory(device: torch.device) -> int:
    """The most bytes that this process has taken: of a GPU's memory, or of the machine's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) + CUDA_CONTEXT
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except FileNotFoundError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak << 10
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) << 10
