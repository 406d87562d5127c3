"""Runner `local`: processes on this machine, as many at once as its devices hold."""

import contextlib
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

from prefect.futures import PrefectFuture
from prefect.task_runners import ThreadPoolTaskRunner

from flows.runners.bundle import bundle_task, bundle_training
from flows.runners.slot_training import train_or_exit
from flows.runners.stopping import raise_if_stopped
from flows.runners.work import (
    POLL_SECONDS,
    DispatchResult,
    OnProgress,
    Runner,
    Work,
    bundle_label,
    count_bundle_epochs,
    estimate_seconds_left,
    run_until_done,
)
from flows.runners.worker_processes import open_worker_pools, run_in_worker
from infra.devices.mps import multi_process_service
from infra.devices.packing import Device, Job, Packer
from infra.devices.slots import machine_devices
from infra.devices.status import DeviceStatus, RunningBundle, StatusFile, status_file
from stages.training.outcomes import Outcome, is_done, read_outcome
from stages.training.recurrent_loops import compile_missing_loops, list_training_loops
from stages.training.trials import Trial, read_run_notes, trial_folder

_packing_lock = threading.RLock()
"""Held while jobs are packed onto devices: grids that run side by side in this process share the devices."""


class ProcessRunner(Runner):
    """Trains in processes of this machine."""

    def run(self, work: Work) -> list[Outcome]:
        devices = machine_devices(work.settings.runner, work.settings.train.threads)
        work.device = devices[0].name.partition(":")[0]
        if work.device == "cpu":
            # Otherwise each worker would wait for the one that compiles, and nobody would know for what.
            compile_missing_loops(list_training_loops(bundle[0] for bundle in work.bundles))
        with multi_process_service(work.device == "cuda" and devices[0].slots > 1), status_file(work.title) as status:
            return run_until_done(
                work, lambda bundles, on_progress: _run_round(work, bundles, devices, status, on_progress)
            )


@dataclass
class _StartedBundle:
    """A bundle that a process was given.

    Attributes:
        begun: when, in seconds since the epoch.
    """

    job: Job
    bundle: list[Trial]
    device: Device
    pool: ProcessPoolExecutor
    future: PrefectFuture[list[Outcome]]
    begun: float


def _run_round(
    work: Work, bundles: list[list[Trial]], devices: Sequence[Device], status: StatusFile, on_progress: OnProgress
) -> DispatchResult:
    """Train bundles in processes, as many at once as the devices hold.

    An error in one bundle does not stop the others: the first error is raised when all have ended, and each is in the
    log of its Prefect task. A process that dies concerns its bundle alone.
    """
    round_began = time.time()
    result = DispatchResult()
    errors: list[Exception] = []
    completed_epochs = 0
    jobs = work.jobs(bundles)
    bundle_by_job = {job.number: bundle for job, bundle in zip(jobs, bundles, strict=True)}
    packer = Packer(jobs, devices, work.costs.peaks)
    started: dict[int, _StartedBundle] = {}
    ended_jobs: SimpleQueue[int] = SimpleQueue()
    try:
        # A thread for each process runs the Prefect task of its bundle. The threads end last: those of a round that
        # was stopped wait for processes that end before.
        with (
            ThreadPoolTaskRunner[list[Outcome]](sum(device.slots for device in devices)) as threads,
            open_worker_pools() as pools,
        ):
            while len(packer) or started:
                with _packing_lock:
                    placed_jobs = list(packer.start())
                for job, device in placed_jobs:
                    bundle, pool = bundle_by_job[job.number], pools.take(device.name)
                    begun = time.time()
                    train = partial(run_in_worker, pool, partial(train_or_exit, bundle_training(work, bundle, device)))
                    future = threads.submit(bundle_task, {"name": bundle_label(bundle), "train": train})
                    started[job.number] = _StartedBundle(job, bundle, device, pool, future, begun)
                    future.add_done_callback(partial(_report_end, ended_jobs, job.number))
                for number in _wait_for_ended(ended_jobs):
                    ended = started.pop(number)
                    with _packing_lock:
                        _update_packer(packer, ended)
                        packer.remove(number)
                    completed_epochs += count_bundle_epochs(ended.bundle)
                    work.pace.record(time.time() - ended.begun, ended.job.seconds)
                    try:
                        result.outcomes += ended.future.result()
                    except BrokenProcessPool:
                        pools.close(ended.pool)
                        _sort_trials(result, ended.bundle, round_began)
                        continue
                    except Exception as error:
                        errors.append(error)
                    pools.give_back(ended.device.name, ended.pool)
                with _packing_lock:
                    running_epochs = sum(_update_packer(packer, bundle) for bundle in started.values())
                on_progress(completed_epochs + running_epochs)
                _update_status(status, work, packer, list(started.values()))
    finally:
        with _packing_lock:
            for number in list(packer.running):
                packer.remove(number)
    if errors:
        raise errors[0]
    return result


def _report_end(ended_jobs: "SimpleQueue[int]", number: int, _: PrefectFuture[Any]) -> None:
    ended_jobs.put(number)


def _wait_for_ended(ended_jobs: "SimpleQueue[int]") -> list[int]:
    """The numbers of the jobs that have ended; waits a moment for the first.

    Raises:
        Stopped: a person has stopped the training.
    """
    # A short wait: Python acts on Ctrl-C between two waits, as the system may give the signal to another thread.
    numbers = []
    with contextlib.suppress(Empty):
        numbers.append(ended_jobs.get(timeout=POLL_SECONDS))
        while True:
            numbers.append(ended_jobs.get_nowait())
    raise_if_stopped()
    return numbers


def _update_packer(packer: Packer, started: _StartedBundle) -> int:
    """Tell the packer how much memory a bundle takes, as far as its trials have noted it; their completed epochs."""
    notes = [read_run_notes(trial_folder(trial)) for trial in started.bundle]
    peaks = [
        int(note["peak_bytes"]) for note in notes if "peak_bytes" in note and note.get("begun", 0) >= started.begun
    ]
    if peaks:
        packer.record_peak(started.job.shape, max(peaks))
    return sum(int(note.get("epoch", 0)) for note in notes)


def _sort_trials(result: DispatchResult, bundle: list[Trial], round_began: float) -> None:
    """Sort the trials of a bundle whose process died into those that had ended, had begun, and had not begun."""
    result.outcomes += [ended for trial in bundle if is_done(trial) and (ended := read_outcome(trial))]
    unfinished = [trial for trial in bundle if not is_done(trial)]
    begun = [trial for trial in unfinished if float(read_run_notes(trial_folder(trial)).get("begun", 0)) >= round_began]
    result.suspects += begun
    if others := [trial for trial in unfinished if trial not in begun]:
        result.bystanders.append(others)


def _update_status(status: StatusFile, work: Work, packer: Packer, started: Sequence[_StartedBundle]) -> None:
    """Write how far the grid has come, for `recast status`."""
    devices = [
        DeviceStatus(device.name, device.slots, device.memory, None if device.memory is None else device.used)
        for device in packer.devices
    ]
    running = [
        RunningBundle(
            bundle.device.name, bundle_label(bundle.bundle), bundle.begun, work.pace.seconds(bundle.job.seconds)
        )
        for bundle in started
    ]
    waiting_seconds = work.pace.seconds(packer.waiting_seconds)
    status.update(devices, running, len(packer), estimate_seconds_left(running, time.time(), waiting_seconds))
