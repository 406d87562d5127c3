"""The Prefect task that trains one bundle of trials on this machine."""

import multiprocessing
import os
from collections.abc import Sequence
from typing import Any

import torch
from prefect import task
from prefect.logging import get_run_logger

from flows.runners.stopping import raise_if_stopped
from flows.runners.work import Work, bundle_label
from infra.devices.costs import cost_shape
from infra.devices.packing import Device
from infra.devices.slots import Slot, claim_slot, claim_slot_for_process, slots_are_exclusive
from problems.errors import RecastError
from stages.tracking import runs
from stages.tracking.tolerant_run import MlflowLogger
from stages.training.bundle import train_bundle
from stages.training.outcomes import Outcome
from stages.training.trials import Trial, add_run_notes, trial_folder


@task(name="train bundle", task_run_name="{name}", persist_result=False)
def bundle_task(
    name: str, bundle: list[Trial], slots: list[Slot], keep_slot: bool, context: runs.RunContext
) -> list[Outcome]:
    """Train one bundle on the first slot that is free; how its trials ended.

    Args:
        name: of the task run.
        keep_slot: keep the slot for as long as this process lives.

    Raises:
        Stopped: a person has stopped the training.
        RecastError: the device has failed.
    """
    for trial in bundle:
        add_run_notes(trial_folder(trial), shape=cost_shape(trial))
    logger = MlflowLogger(context)
    try:
        if keep_slot:
            outcomes = train_bundle(bundle, claim_slot_for_process(tuple(slots)), logger, raise_if_stopped)
        else:
            with claim_slot(slots) as device:
                outcomes = train_bundle(bundle, device, logger, raise_if_stopped)
                if device.type == "cuda":
                    # Another process may need the memory that PyTorch keeps cached for the next bundle.
                    torch.cuda.empty_cache()
    except torch.AcceleratorError as error:
        if multiprocessing.parent_process() is not None:
            # This process cannot use the device any more; a new one tries these trials again.
            os._exit(1)
        raise RecastError(f"{name}: the device has failed: {error}; run again") from error
    log_outcomes(outcomes)
    return outcomes


def log_outcomes(outcomes: Sequence[Outcome]) -> None:
    """Write how trials ended into the log of the Prefect task that runs."""
    logger = get_run_logger()
    for outcome in outcomes:
        logger.info("%s: %s", outcome.label, outcome.reason or f"validation {outcome.measure} {outcome.error:.4f}")


def bundle_parameters(work: Work, bundle: list[Trial], device: Device) -> dict[str, Any]:
    """The parameters of `bundle_task` for a bundle that is to run on a device."""
    return {
        "name": bundle_label(bundle),
        "bundle": bundle,
        "slots": [Slot(device.name, i) for i in range(device.slots)],
        "keep_slot": slots_are_exclusive(work.settings.runner),
        "context": work.contexts[bundle[0].origin],
    }
