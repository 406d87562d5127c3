"""Dispatch: bundles of trials, a Prefect task each, on every slot there is.

Three runners do it: `inline`, in this process; `local`, in processes of this machine; `ray`, on the nodes of a cluster
(`flows/runners/ray.py`). All take the bundles that are expected to last longest first, and none decides a result.
"""

import contextlib
import itertools
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from multiprocessing.connection import Connection
from queue import Empty, SimpleQueue
from typing import Any

import torch
from prefect import task
from prefect.logging import get_run_logger
from prefect.task_runners import ProcessPoolTaskRunner

from infra.devices.board import Board, Place, Running, board
from infra.devices.costs import Costs, Pace, shape
from infra.devices.mps import shared_gpus
from infra.devices.packing import Device, Job, Packer
from infra.devices.slots import Slot, claim, claimed, devices, keeps
from problems.errors import RecastError
from project.paths import PARAMS
from project.progress import progress
from project.settings.sections import Settings
from stages.tracking import store
from stages.training.bundle import record_lost, train_bundle
from stages.training.fit import epochs_of
from stages.training.outcomes import Outcome, is_done, outcome
from stages.training.trials import Trial, note_run, read_run, trial_folder

POLL_SECONDS = 0.3

_stopping = threading.Event()
"""A person wants every train flow of this process to end."""

_packing = threading.RLock()
"""Grids that run side by side in this process share its devices."""


class Stopped(RecastError):
    """A person has stopped the training."""


Contexts = Mapping[str | None, store.Context]
"""Of trials, by the origin of a backtest that their data are of; None: the problem's own."""


@dataclass
class Work:
    """Bundles to be trained, of one origin each.

    Attributes:
        title: of the progress bar.
        device: the kind of the devices that they are trained on, `cpu` or `cuda`; set before costs are asked for.
    """

    title: str
    groups: list[list[Trial]]
    settings: Settings
    contexts: Contexts
    device: str = "cpu"

    @cached_property
    def pace(self) -> Pace:
        """How long they take now."""
        return Pace(self.costs.known)

    @cached_property
    def costs(self) -> Costs:
        """What the trials are expected to take."""
        return Costs.of([trial for group in self.groups for trial in group], self.device)

    def jobs(self, groups: Sequence[Sequence[Trial]]) -> list[Job]:
        """The bundles as jobs to be packed."""
        return [Job(next(_numbers), shape(group[0]), self.seconds(group)) for group in groups]

    def seconds(self, group: Sequence[Trial]) -> float:
        """What a bundle is expected to take."""
        return sum(self.costs.seconds(trial) for trial in group)


_numbers = itertools.count()
"""Of jobs: those of grids that run side by side are told apart."""


@dataclass
class Round:
    """How bundles ended that were given to a pool or a cluster.

    Attributes:
        suspects: trials whose process died while they were trained; they may have killed it.
        bystanders: bundles that had not begun when a process died under them.
    """

    outcomes: list[Outcome] = field(default_factory=list)
    suspects: list[Trial] = field(default_factory=list)
    bystanders: list[list[Trial]] = field(default_factory=list)


Show = Callable[[float], None]
"""Told the epochs that are done of the bundles of a round."""


@task(name="train bundle", task_run_name="{name}", persist_result=False)
def bundle_task(
    name: str, bundle: list[Trial], choice: list[Slot], keep: bool, context: store.Context
) -> list[Outcome]:
    """Train one bundle on the first slot that is free.

    Args:
        keep: the slot is this process's for as long as it lives.
    """
    for trial in bundle:
        note_run(trial_folder(trial), shape=shape(trial))
    try:
        if keep:
            outcomes = train_bundle(bundle, claim(tuple(choice)), context, go_on)
        else:
            with claimed(choice) as device:
                outcomes = train_bundle(bundle, device, context, go_on)
                if device.type == "cuda":
                    # What is cached for the next bundle, another process may want for its own.
                    torch.cuda.empty_cache()
    except torch.AcceleratorError as error:
        if multiprocessing.parent_process() is not None:
            # The device is of no more use to this process; a new one tries these trials again.
            os._exit(1)
        raise RecastError(f"{name}: the device has failed: {error}; run again") from error
    tell(outcomes)
    return outcomes


def tell(outcomes: Sequence[Outcome]) -> None:
    """Tell Prefect's log of a task how its trials ended."""
    logger = get_run_logger()
    for each in outcomes:
        logger.info("%s: %s", each.label, each.reason or f"validation {each.measure} {each.error:.4f}")


def dispatch(title: str, groups: list[list[Trial]], settings: Settings, contexts: Contexts) -> list[Outcome]:
    """Train bundles, of one origin each, on every slot there is, a Prefect task each; how their trials ended.

    Args:
        title: of the progress bar.
    """
    work = Work(title, groups, settings, contexts)
    if not groups:
        return []
    if settings.runner.kind == "ray":
        try:
            from flows.runners.ray import on_nodes
        except ImportError as error:
            raise RecastError(
                f"{PARAMS}: runner.kind: ray needs packages that are not installed: pip install 'recast[cluster]'"
            ) from error
        return on_nodes(work)
    found = devices(settings.runner, settings.train.threads)
    work.device = found[0].name.partition(":")[0]
    if settings.runner.kind == "inline":
        return _in_turn(work, found)
    with shared_gpus(work.device == "cuda" and found[0].slots > 1), board(title) as page:
        return to_the_end(work, lambda groups, show: _in_processes(work, groups, found, page, show))


def to_the_end(work: Work, run: Callable[[list[list[Trial]], Show], Round]) -> list[Outcome]:
    """Run bundles, in rounds, until all have ended.

    The trials that were under way when a process died are tried again, each alone, and recorded as failed when their
    process dies again; those that had not begun go on in a further round.

    Raises:
        RecastError: the processes die before any trial begins.
    """
    outcomes: list[Outcome] = []
    groups = work.groups
    total = sum(epochs(group) for group in groups)
    with progress() as display:
        bar = display.add_task(work.title, total=total)

        def show(done: float) -> None:
            # Counted from what the rounds before have left.
            display.update(bar, completed=total - sum(epochs(group) for group in groups) + done)

        while groups:
            found = run(groups, show)
            outcomes += found.outcomes
            again = found.bystanders
            for trial in found.suspects:
                alone = run([[trial]], lambda done: None)
                outcomes += alone.outcomes
                again += alone.bystanders
                if alone.suspects:
                    reason = "its process died, and died again when it was tried alone; most likely for want of memory"
                    outcomes.append(record_lost(trial, reason))
            if again and not found.suspects and not found.outcomes:
                raise RecastError(
                    "the worker processes die before they begin to train; the log of this run in Prefect may say why, "
                    "or `runner: {kind: inline}`"
                )
            groups = again
        display.remove_task(bar)
    return outcomes


def _in_turn(work: Work, found: Sequence[Device]) -> list[Outcome]:
    """Train bundles one after the other in this process, where a debugger can follow."""
    outcomes: list[Outcome] = []
    with progress() as display, board(work.title) as page:
        bar = display.add_task(work.title, total=sum(epochs(group) for group in work.groups))
        waiting = sorted(work.groups, key=work.seconds, reverse=True)
        left = sum(work.seconds(group) for group in waiting)
        for i, group in enumerate(waiting):
            expected, begun = work.seconds(group), time.time()
            now = Running(found[0].name, label(group), begun, work.pace.seconds(expected))
            place, queued = Place(found[0].name, 1, None, None), len(waiting) - i - 1
            page.show([place], [now], queued, work.pace.seconds(left), at_once=True)
            outcomes += bundle_task(**_parameters(work, group, found[0]))
            work.pace.tell(time.time() - begun, expected)
            left -= expected
            display.advance(bar, epochs(group))
        display.remove_task(bar)
    return outcomes


class _Pool(ProcessPoolTaskRunner):
    """A pool of processes that may be killed at any moment, and do not keep this one from ending."""

    def __enter__(self) -> "_Pool":
        super().__enter__()
        # A process that is killed while it sends a line of its log keeps the lock of that queue for ever. This process
        # would wait for it when it ends, to send that no more is to come.
        queue: Any = self._subprocess_message_queue
        queue.cancel_join_thread()
        return self


class _Pools:
    """A pool of processes a device, made when it is first needed: a process keeps to the device it has begun on.

    Attributes:
        lifeline: a pipe whose writing end this process alone holds; the processes end when it is closed. (An event
            cannot be set any more once a process that waited for it was killed.)
    """

    def __init__(self, found: Sequence[Device]) -> None:
        self.slots = {device.name: device.slots for device in found}
        self.open: dict[str, _Pool] = {}
        self.lifeline, self.writer = multiprocessing.get_context("spawn").Pipe(duplex=False)

    def of(self, device: str) -> _Pool:
        """The device's pool."""
        if device not in self.open:
            runner = _Pool(max_workers=self.slots[device], initializer=_end_with, initargs=(self.lifeline,))
            self.open[device] = runner.__enter__()
        return self.open[device]

    def close(self, device: str, pool: _Pool) -> None:
        """End a pool, unless it was ended before; the device gets another one."""
        if self.open.get(device) is pool:
            self.open.pop(device).__exit__(None, None, None)


@contextmanager
def _pools(found: Sequence[Device]) -> Iterator[_Pools]:
    pools = _Pools(found)
    try:
        yield pools
    except BaseException:
        # Workers do not hear Ctrl-C, and the pool would wait for their trials to end. An epoch that is under way is
        # lost; the checkpoint of the one before is whole.
        pools.writer.close()
        raise
    finally:
        for device, pool in list(pools.open.items()):
            pools.close(device, pool)
        pools.writer.close()
        pools.lifeline.close()


@dataclass
class _Begun:
    """A bundle that was given to a process, and when."""

    job: Job
    group: list[Trial]
    device: Device
    pool: _Pool
    future: Any
    when: float


def _in_processes(work: Work, groups: list[list[Trial]], found: Sequence[Device], page: Board, show: Show) -> Round:
    """Train bundles in processes, as many at once as the devices hold.

    A process that dies takes the pool of its device with it, and all that ran there. An error in one bundle does not
    keep the others from ending; the first is raised when all have, and Prefect's tasks tell each.
    """
    since = time.time()
    round_ = Round()
    errors: list[Exception] = []
    ended = 0
    jobs = work.jobs(groups)
    of = {job.number: group for job, group in zip(jobs, groups, strict=True)}
    packer = Packer(jobs, found, work.costs.peaks)
    begun: dict[int, _Begun] = {}
    done: SimpleQueue[int] = SimpleQueue()
    try:
        with _pools(found) as pools:
            while len(packer) or begun:
                with _packing:
                    started = list(packer.start())
                for job, device in started:
                    group, pool = of[job.number], pools.of(device.name)
                    begun[job.number] = one = _Begun(job, group, device, pool, None, time.time())
                    one.future = pool.submit(bundle_task, _parameters(work, group, device))
                    one.future.add_done_callback(lambda _, number=job.number: done.put(number))
                for number in _some(done):
                    one = begun.pop(number)
                    with _packing:
                        _learn(packer, one)
                        packer.ended(one.job.number)
                    ended += epochs(one.group)
                    work.pace.tell(time.time() - one.when, one.job.seconds)
                    try:
                        round_.outcomes += one.future.result()
                    except BrokenProcessPool:
                        pools.close(one.device.name, one.pool)
                        _part(round_, one.group, since)
                    except Exception as error:
                        errors.append(error)
                with _packing:
                    under_way = sum(_learn(packer, one) for one in begun.values())
                show(ended + under_way)
                _show(page, work, packer, list(begun.values()))
    finally:
        with _packing:
            for number in list(packer.running):
                packer.ended(number)
    if errors:
        raise errors[0]
    return round_


def _parameters(work: Work, group: list[Trial], device: Device) -> dict[str, Any]:
    """Of `bundle_task`."""
    return {
        "name": label(group),
        "bundle": group,
        "choice": [Slot(device.name, i) for i in range(device.slots)],
        "keep": keeps(work.settings.runner),
        "context": work.contexts[group[0].origin],
    }


def _some(done: "SimpleQueue[int]") -> list[int]:
    """The jobs that have ended, waited for a moment.

    Raises:
        Stopped: a person has stopped the training.
    """
    # Only for a moment, as Ctrl-C is heard between two waits: the system may hand the signal to another thread.
    found = []
    with contextlib.suppress(Empty):
        found.append(done.get(timeout=POLL_SECONDS))
        while True:
            found.append(done.get_nowait())
    go_on()
    return found


def _learn(packer: Packer, one: _Begun) -> int:
    """Tell the packer what a bundle takes, as far as its trials have noted it; the epochs that they have done."""
    noted = [read_run(trial_folder(trial)) for trial in one.group]
    peaks = [int(each["peak_bytes"]) for each in noted if "peak_bytes" in each and each.get("begun", 0) >= one.when]
    if peaks:
        packer.measured(one.job.shape, max(peaks))
    return sum(int(each.get("epoch", 0)) for each in noted)


def _part(round_: Round, group: list[Trial], since: float) -> None:
    """Part the trials of a bundle whose process died in those that have ended, had begun, and had not."""
    round_.outcomes += [found for trial in group if is_done(trial) and (found := outcome(trial))]
    open_ = [trial for trial in group if not is_done(trial)]
    begun = [trial for trial in open_ if float(read_run(trial_folder(trial)).get("begun", 0)) >= since]
    round_.suspects += begun
    if others := [trial for trial in open_ if trial not in begun]:
        round_.bystanders.append(others)


def _show(page: Board, work: Work, packer: Packer, begun: Sequence[_Begun]) -> None:
    """Keep the page of the grid."""
    now = time.time()
    places = [
        Place(each.name, each.slots, each.memory, None if each.memory is None else each.used) for each in packer.devices
    ]
    running = [
        Running(one.device.name, label(one.group), one.when, work.pace.seconds(one.job.seconds)) for one in begun
    ]
    page.show(places, running, len(packer), time_left(running, now, work.pace.seconds(packer.waiting_seconds)))


def time_left(running: Sequence[Running], now: float, waiting: float | None) -> float | None:
    """Seconds until a grid has ended, as many bundles at once as now; None: not known.

    Args:
        waiting: seconds of those that wait.
    """
    if waiting is None or not running:
        return waiting
    return (waiting + sum(max(0.0, (each.expected or 0.0) - (now - each.begun)) for each in running)) / len(running)


def go_on() -> None:
    """
    Raises:
        Stopped: a person has stopped the training that runs in this process.
    """
    if _stopping.is_set():
        raise Stopped("stopped; what is trained is kept, and the next run goes on from there")


def stop() -> None:
    """End every train flow of this process with `Stopped`, and the processes that train for it."""
    _stopping.set()


def start() -> None:
    """Let train flows run again after a `stop`."""
    _stopping.clear()


def label(bundle: Sequence[Trial]) -> str:
    """A bundle's name for people."""
    origin = f"{bundle[0].origin} " if bundle[0].origin else ""
    rest = f" and {len(bundle) - 1} more" if len(bundle) > 1 else ""
    return origin + bundle[0].label + rest


def epochs(bundle: Sequence[Trial]) -> int:
    """The epochs that a bundle trains at most; a baseline counts as one."""
    return sum(max(1, epochs_of(trial.configuration.hyperparameters, trial.train)) for trial in bundle)


def _end_with(lifeline: Connection) -> None:
    """In a worker process: end when the process that started it lets go of the lifeline, or ends, however it ends."""

    def watch() -> None:
        lifeline.poll(None)
        os._exit(1)

    # Ctrl-C reaches the whole group; the parent decides what becomes of its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=watch, daemon=True).start()
