"""The Prefect task of one bundle of trials, whichever process of this machine trains it."""

from collections.abc import Callable, Sequence
from functools import partial

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger

from flows.runners.slot_training import train_on_free_slot
from flows.runners.work import Work
from infra.devices.packing import Device
from infra.devices.slots import Slot, slots_are_exclusive
from stages.training.outcomes import Outcome
from stages.training.trials import Trial


# Without a cache, Prefect need not compute what a bundle would be found by.
@task(name="train bundle", task_run_name="{name}", persist_result=False, cache_policy=NO_CACHE)
def bundle_task(name: str, train: Callable[[], list[Outcome]]) -> list[Outcome]:
    """Train one bundle; how its trials ended.

    Args:
        name: of the task run.
        train: trains it, here or in another process.
    """
    outcomes = train()
    log_outcomes(outcomes)
    return outcomes


def log_outcomes(outcomes: Sequence[Outcome]) -> None:
    """Write how trials ended into the log of the Prefect task that runs."""
    logger = get_run_logger()
    for outcome in outcomes:
        logger.info("%s: %s", outcome.label, outcome.reason or f"validation {outcome.measure} {outcome.error:.4f}")


def bundle_training(work: Work, bundle: list[Trial], device: Device) -> Callable[[], list[Outcome]]:
    """The call that trains a bundle on a device. It can be sent to another process."""
    slots = [Slot(device.name, i) for i in range(device.slots)]
    keep_slot = slots_are_exclusive(work.settings.runner)
    return partial(train_on_free_slot, bundle, slots, keep_slot, work.contexts[bundle[0].origin])
