"""The processes that train: what they are forked from, what they take on, and when they end."""

import os
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

import psutil
import pytest

from flows.runners import worker_processes
from flows.runners.worker_processes import open_worker_pools, run_in_worker
from tests.support.checkout import ROOT
from tests.support.waiting import PATIENCE_SECONDS, wait_until

IN_A_PRELOADED_PROCESS = """
import os, sys, threading
import flows.runners.preloaded
import matplotlib.figure, mlflow, numpy, polars, torch

loaded = {"prefect", "dvc"} & set(sys.modules)
assert not loaded, loaded
assert threading.enumerate() == [threading.main_thread()]
assert not torch.cuda.is_initialized()
modules = set(sys.modules)
child = os.fork()
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
torch.set_num_threads(2)
torch.use_deterministic_algorithms(True)
network = torch.nn.GRU(3, 4)
optimizer = torch.optim.Adam(network.parameters())
network(torch.ones(200, 64, 3))[0].sum().backward()
optimizer.step()
assert numpy.linalg.norm(numpy.ones((300, 300)) @ numpy.ones((300, 300))) > 0
assert polars.LazyFrame({"a": range(100_000)}).sort("a", descending=True).collect(engine="streaming")["a"][0] == 99_999
late = set(sys.modules) - modules
assert len(late) < 5, late
"""
"""What a worker does first, in a process forked as workers are: all of it works, and next to nothing is imported."""


def tell_environment(name: str) -> tuple[str | None, str | None, str]:
    """In a worker: a variable, Python's path in the environment, and the file that workers are imported from."""
    return os.environ.get(name), os.environ.get("PYTHONPATH"), worker_processes.__file__


def die() -> None:
    """In a worker: end as if the system had killed it."""
    os.abort()


def run_python(script: str) -> None:
    """Run a script in a new process, which must succeed."""
    ended = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        timeout=PATIENCE_SECONDS,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr


def test_workers_are_forked_from_a_process_without_threads_and_locks_that_has_imported_all() -> None:
    run_python(IN_A_PRELOADED_PROCESS)


@pytest.fixture
def preload_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fork workers from a process that has not loaded PyTorch: these tests train nothing."""
    monkeypatch.setattr(worker_processes, "PRELOADED_MODULE", "tests.flows.runners.test_worker_processes")


def test_a_worker_has_the_environment_and_the_code_of_the_process_that_trains(
    monkeypatch: pytest.MonkeyPatch, preload_little: None
) -> None:
    worker_processes.start_fork_server()
    monkeypatch.setenv("SET_AFTER_THE_START", "yes")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    with open_worker_pools() as pools:
        told = run_in_worker(pools.take("cpu"), partial(tell_environment, "SET_AFTER_THE_START"))
    assert told == ("yes", None, worker_processes.__file__)
    assert "PYTHONSAFEPATH" not in os.environ


def test_a_worker_serves_one_bundle_after_another_on_its_device(preload_little: None) -> None:
    with open_worker_pools() as pools:
        first = pools.take("cuda:0")
        second = pools.take("cuda:0")
        assert run_in_worker(first, os.getpid) != run_in_worker(second, os.getpid)
        pools.give_back("cuda:0", first)
        assert pools.take("cuda:1") not in (first, second)
        assert pools.take("cuda:0") is first


def test_the_death_of_a_worker_concerns_no_other(preload_little: None) -> None:
    with open_worker_pools() as pools:
        dying, other = pools.take("cpu"), pools.take("cpu")
        worker = run_in_worker(other, os.getpid)
        with pytest.raises(BrokenProcessPool):
            run_in_worker(dying, die)
        pools.close(dying)
        assert run_in_worker(other, os.getpid) == worker
        assert run_in_worker(pools.take("cpu"), os.getpid) not in (worker, os.getpid())


def test_workers_end_when_an_error_ends_the_grid(preload_little: None) -> None:
    workers: list[psutil.Process] = []

    def run_grid() -> None:
        with open_worker_pools() as pools:
            workers.append(psutil.Process(run_in_worker(pools.take("cpu"), os.getpid)))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_grid()
    assert workers
    wait_until(lambda: not any(worker.is_running() for worker in workers), "the workers have ended")


def test_a_runner_is_prepared_without_loading_what_takes_long(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from flows.runners.preparation import prepare_runner\n"
        "prepare_runner('local')\n"
        "from multiprocessing import forkserver\n"
        "assert forkserver._forkserver._forkserver_pid\n"
        "loaded = {'torch', 'mlflow', 'prefect'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    run_python(script)
