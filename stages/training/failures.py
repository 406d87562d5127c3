"""Failures of single trials."""

import torch


class TrialFailed(Exception):
    """The trial has no result, and the message says why. The rest of the grid is still trained.

    Attributes:
        transient: another attempt may succeed, for example on a machine with more memory.
    """

    def __init__(self, reason: str, transient: bool = False) -> None:
        super().__init__(reason)
        self.transient = transient


_MEMORY_MESSAGES = ("out of memory", "not enough memory", "can't allocate memory", "_alloc_failed")
"""Parts of PyTorch's messages, in lower case: only CUDA's own allocator has an exception class for lack of memory."""


def to_trial_failure(error: Exception) -> TrialFailed:
    """An error raised while a trial was trained, as the failure of that trial."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        sign in text.lower() for sign in _MEMORY_MESSAGES
    ):
        return TrialFailed(f"out of memory: {text}", transient=True)
    return TrialFailed(f"{type(error).__name__}: {text}")
