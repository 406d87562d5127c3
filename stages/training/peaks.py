"""The most memory that a trial takes, measured while it trains."""

import resource
import sys
from pathlib import Path

import torch

CUDA_CONTEXT = 800 << 20
"""Bytes that a process holds on a GPU beside what PyTorch allocates: CUDA's context and the kernels that are loaded.

Measured on an H200, where it is 750 MiB (`python -m benchmarks gpu`); within a container a driver does not tell it.
"""


def reset(device: torch.device) -> None:
    """Count the peak from here on; where the system cannot (CPU, not Linux), it stays that of the whole process."""
    if device.type == "cuda":
        # Before anything is on the device, there is nothing to reset, and PyTorch refuses.
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


def peak(device: torch.device) -> int:
    """Bytes that this process has taken on the device at most: of a GPU's memory, or of the machine's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) + CUDA_CONTEXT
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except FileNotFoundError:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most << 10
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) << 10
