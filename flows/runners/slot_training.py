"""The training of one bundle on a free slot of this machine: what a worker process does.

It loads neither Prefect nor DVC, which no worker needs.
"""

import os
from collections.abc import Callable, Sequence

import torch

from flows.runners.stopping import raise_if_stopped
from infra.devices.costs import cost_shape
from infra.devices.slots import Slot, claim_slot, claim_slot_for_process
from stages.tracking.runs import RunContext
from stages.tracking.tolerant_run import MlflowLogger
from stages.training.bundle import train_bundle
from stages.training.outcomes import Outcome
from stages.training.trials import Trial, add_run_notes, trial_folder


def train_on_free_slot(
    bundle: Sequence[Trial], slots: Sequence[Slot], keep_slot: bool, context: RunContext
) -> list[Outcome]:
    """Train one bundle on the first slot that is free; how its trials ended.

    Args:
        keep_slot: keep the slot for as long as this process lives.

    Raises:
        Stopped: a person has stopped the training.
        RecastError: the code was edited after the grid was expanded.
        torch.AcceleratorError: this process cannot use the device any more.
    """
    for trial in bundle:
        add_run_notes(trial_folder(trial), shape=cost_shape(trial))
    logger = MlflowLogger(context)
    if keep_slot:
        return train_bundle(bundle, claim_slot_for_process(tuple(slots)), logger, raise_if_stopped)
    with claim_slot(slots) as device:
        outcomes = train_bundle(bundle, device, logger, raise_if_stopped)
        if device.type == "cuda":
            # Another process may need the memory that PyTorch keeps cached for the next bundle.
            torch.cuda.empty_cache()
        return outcomes


def train_or_exit(train: Callable[[], list[Outcome]]) -> list[Outcome]:
    """In a worker process: train, and end this process if it cannot use its device any more."""
    try:
        return train()
    except torch.AcceleratorError:
        # A new process tries these trials again.
        os._exit(1)
