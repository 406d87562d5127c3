"""The processes that train: forked from one process that has imported what they need.

Importing PyTorch and MLflow takes seconds, and a fork takes milliseconds. The process to fork from is started as soon
as it is known that there is something to train, and imports while this process does other things.
"""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeVar

PRELOADED_MODULE = "flows.runners.preloaded"

Answer = TypeVar("Answer")

_CAN_FORK = "forkserver" in multiprocessing.get_all_start_methods()
_context = multiprocessing.get_context("forkserver" if _CAN_FORK else "spawn")


def start_fork_server() -> None:
    """Start the process that workers are forked from, unless it runs; on systems that cannot fork, do nothing."""
    if not _CAN_FORK:
        return
    from multiprocessing import forkserver  # noqa: PLC0415 - not every system has it

    forkserver.set_forkserver_preload([PRELOADED_MODULE])
    with _same_import_path(), _without_ctrl_c():
        forkserver.ensure_running()


@contextmanager
def _same_import_path() -> Iterator[None]:
    """Let the processes that are started in the block import from where this one does.

    Python passes the path to a worker, but until 3.13 not to the process that it is forked from.
    """
    changed = {"PYTHONPATH": os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path), "PYTHONSAFEPATH": "1"}
    former = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    try:
        yield
    finally:
        for name, value in former.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """Keep Ctrl-C from the processes that are started in the block: their parent decides what becomes of them."""
    former = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


class WorkerPools:
    """Pools of one process each, so that the death of a process concerns no other bundle.

    A process stays on its first device.

    Attributes:
        lifeline: a pipe whose writing end only this process holds. The processes end when it is closed. (An event
            would not do: it cannot be set any more once a process that waited for it was killed.)
    """

    def __init__(self) -> None:
        self.pools: set[ProcessPoolExecutor] = set()
        self.idle: dict[str, list[ProcessPoolExecutor]] = {}
        self.lifeline, self.writer = _context.Pipe(duplex=False)

    def take(self, device: str) -> ProcessPoolExecutor:
        """A pool whose process is idle. Give it back, or close it."""
        idle = self.idle.setdefault(device, [])
        if idle:
            return idle.pop()
        start_fork_server()
        pool = ProcessPoolExecutor(1, _context, _begin_worker, (self.lifeline, dict(os.environ)))
        self.pools.add(pool)
        return pool

    def give_back(self, device: str, pool: ProcessPoolExecutor) -> None:
        """Let others take a pool."""
        self.idle[device].append(pool)

    def close(self, pool: ProcessPoolExecutor) -> None:
        """End a pool."""
        self.pools.discard(pool)
        pool.shutdown(cancel_futures=True)


def run_in_worker(pool: ProcessPoolExecutor, work: Callable[[], Answer]) -> Answer:
    """Call `work` in the process of a pool.

    Raises:
        BrokenProcessPool: the process has died.
    """
    # The pool notices the death of a process only after its first answer: `submit` wakes the thread that watches the
    # processes before it starts a new one.
    pool.submit(os.getpid).result()
    return pool.submit(work).result()


@contextmanager
def open_worker_pools() -> Iterator[WorkerPools]:
    """Pools that end with the block; after an error in it, at once."""
    pools = WorkerPools()
    try:
        yield pools
    except BaseException:
        # Workers ignore Ctrl-C, and the pool would wait until their trials have ended. This loses the epoch that is
        # under way; the checkpoint of the epoch before is whole.
        pools.writer.close()
        raise
    finally:
        for pool in list(pools.pools):
            pools.close(pool)
        pools.writer.close()
        pools.lifeline.close()


def _begin_worker(lifeline: Connection, environment: Mapping[str, str]) -> None:
    """In a worker process: take on the environment, and end when the process that started it closes the lifeline, or
    ends, for whatever reason.

    Args:
        environment: of the process that started it; it was forked from one that may have begun with another.
    """

    def watch() -> None:
        lifeline.poll(None)
        os._exit(1)

    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment)
    # Ctrl-C reaches the whole process group; the parent decides what becomes of its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=watch, daemon=True).start()
