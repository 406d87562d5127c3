"""What runs on a node of a Ray cluster: the Prefect task of one bundle, and what it sends back to the driver."""

import contextlib
import os
import socket
import time
from dataclasses import dataclass
from typing import Any

import torch
from filelock import FileLock
from prefect import task

from flows.runners.bundle import log_outcomes
from flows.runners.ray_cluster import Parcel, node_cache, ray, unpack_parcel
from flows.runners.ray_progress import BundleProgress
from infra.devices.costs import cost_shape
from problems.errors import RecastError
from project.disk import DiskError, explain_disk_errors
from stages.training.bundle import train_bundle
from stages.training.outcomes import list_missing, read_outcome
from stages.training.peak_memory import total_memory
from stages.training.trials import RESULT_FILES, TRIAL_FILE, Trial, read_run_notes, trial_folder

SENT_FILES = (*RESULT_FILES, TRIAL_FILE)
"""The files that a trial leaves, in the order in which they are written. With the last, the trial has ended."""

PROGRESS_SECONDS = 1.0
"""How often, at most, a node reports how far a bundle has come, and how often the driver asks for it."""


class NodeDiskError(RecastError):
    """The disk of a node refuses to write; the bundle may succeed on another node.

    Attributes:
        node: Ray's id of the node.
    """

    def __init__(self, message: str, node: str = "") -> None:
        super().__init__(message)
        self.node = node


@dataclass(frozen=True)
class BundleOutput:
    """What a bundle leaves on its node.

    Attributes:
        files: for each trial, in the bundle's order: contents by name.
        notes: for each trial: what run.json says of how it ran.
        device_memory: of the device that trained it, in bytes.
    """

    files: list[dict[str, bytes]]
    notes: list[dict[str, Any]]
    device_memory: int


@task(name="train bundle", task_run_name="{name}", persist_result=False)
def node_bundle_task(name: str, number: int, bundle: list[Trial], parcel: Parcel, progress: Any) -> BundleOutput:
    """On a node: train one bundle, and return what it leaves.

    Args:
        name: of the task run.
        number: of the bundle's job.
        progress: the handle of a `ProgressActor`, which keeps how far the bundle has come.

    Raises:
        NodeDiskError: the disk refuses to write.
        RecastError: the node's source code is not that of the driver. Both messages name the node.
    """
    node, begun = ray.get_runtime_context().get_node_id(), time.time()
    reported_at = 0.0

    def report() -> None:
        nonlocal reported_at
        if time.monotonic() - reported_at > PROGRESS_SECONDS:
            reported_at = time.monotonic()
            epochs = sum(int(read_run_notes(trial_folder(trial)).get("epoch", 0)) for trial in bundle)
            progress.update.remote(number, BundleProgress(node, begun, epochs))

    try:
        with (
            explain_disk_errors(node_cache()),
            contextlib.chdir(unpack_parcel(parcel)),
            contextlib.ExitStack() as locks,
        ):
            for trial in bundle:
                # Another run of the same grid may be training it on this node.
                trial_folder(trial).mkdir(parents=True, exist_ok=True)
                locks.enter_context(FileLock(f"{trial_folder(trial)}.lock"))
            report()
            device = torch.device("cuda:0" if ray.get_gpu_ids() else "cpu")
            # A trial may have ended here before, without its driver having heard of it.
            train_bundle(list_missing(bundle), device, None, report)
            log_outcomes([ended for trial in bundle if (ended := read_outcome(trial))])
            return BundleOutput(
                [_read_result_files(trial) for trial in bundle],
                [_read_notes(trial) for trial in bundle],
                total_memory(device),
            )
    except torch.AcceleratorError:
        # This process cannot use the device any more; a new one tries these trials again.
        os._exit(1)
    except DiskError as error:
        raise NodeDiskError(f"node {socket.gethostname()}: {error}", node) from None
    except RecastError as error:
        raise RecastError(f"node {socket.gethostname()}: {error}") from None


def _read_result_files(trial: Trial) -> dict[str, bytes]:
    folder = trial_folder(trial)
    return {name: (folder / name).read_bytes() for name in SENT_FILES if (folder / name).exists()}


def _read_notes(trial: Trial) -> dict[str, Any]:
    return read_run_notes(trial_folder(trial)) | {"shape": cost_shape(trial)}
