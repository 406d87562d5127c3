"""Take a store or a disk away from a running grid, give it back, and check that nothing is lost: a script for anyone.

    python -m tests.scenarios.outages [postgres|store|disk] --runner local --seconds 60

It trains a grid on the profile `servers` undisturbed. Then, in another checkout with servers of its own, once some
trials have ended, it ends PostgreSQL as a loss of power would, or the S3 store, for so long, and starts it by
`recast up`; or (for root, on Linux) it fills a disk: with the runner `ray` that of one of two nodes, else that of the
project, where the servers have their data too. What there is at the end must be the same: the leaderboard bit for bit,
each point of each metric in MLflow, artifacts with their checksums, the states of Prefect's runs.
"""

import argparse
import contextlib
import hashlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from mlflow.artifacts import download_artifacts
from ruamel.yaml import YAML

import stages.tracking.store  # noqa: F401 - it tells MLflow to draw no bars
from infra import servers
from tests.flows.runners.test_cluster import read_running_bundles
from tests.infra.test_servers import query, read_record
from tests.support import checkout
from tests.support.checkout import ROOT, Checkout
from tests.support.nodes import HEAD, Cluster, listens
from tests.support.waiting import wait_until

PROBLEM = "nyc"
GRID = {
    "seeds": [0, 1],
    "architectures": {
        "persistence": {},
        "dense": {"units": [8, 16]},
        "gru": {"units": [4, 8], "dropout": [0.0, 0.2]},
        "lstm": {"units": [8]},
    },
}
TRIALS_BEFORE = 4
"""Trials that have ended when the outage begins."""

FILES = ("trial.json", "history.json", "weights.safetensors")
OTHER_ARTIFACTS = ("learning_curve.png", "params.yaml")

DISK_BYTES = 1 << 30

STATES_SECONDS = 120
"""Prefect tries again every 15 seconds to write the states of tasks that its database did not take."""


SECOND_LOG = "again.log"
"""What a second run has printed, where the first has ended with an error: Prefect has the flows of both then."""

TASKS = "select state_type from task_run"
ALL_TASKS = 21
"""Of the grid's flows: 15 trials, five stages, and the flow that trains."""
END_STATES = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
"""States of tasks."""


@dataclass(frozen=True)
class StoreContents:
    """What a grid has left in the stores.

    Attributes:
        board: the leaderboard's bytes.
        runs: of MLflow, by kind and status.
        points: of the metrics of trials: key of the trial, name, step, value; each as often as it is there.
        artifacts: of trials that were read back whole: key of the trial and name.
        flows: of Prefect, by name and state.
        tasks: of Prefect, by state.
    """

    board: bytes
    runs: Counter[str]
    points: Counter[str]
    artifacts: Counter[str]
    flows: Counter[str]
    tasks: Counter[str]


def main(outages: list[str], runners: list[str], away: float, epochs: int) -> int:
    """The exit status: 1 when something was lost.

    Args:
        away: seconds for which a store is gone.
    """
    lost = 0
    # The path of a socket has a hundred characters at most.
    with tempfile.TemporaryDirectory(prefix="recast-") as name:
        folder = Path(name)
        with _project_with_servers(folder / "undisturbed", "local", epochs) as undisturbed:
            began = time.monotonic()
            undisturbed.recast("run")
            assert _wait_for_task_states(undisturbed), "Prefect lacks the last states of the undisturbed grid's tasks"
            expected = _read_stores(undisturbed)
            _report_differences("undisturbed", time.monotonic() - began, expected, expected)
        for outage in outages:
            for runner in runners:
                root = folder / f"{outage}-{runner}"
                with (
                    _own_disk(root, (outage, runner) == ("disk", "local")),
                    _project_with_servers(root, runner, epochs) as disturbed,
                ):
                    began = time.monotonic()
                    OUTAGES[outage](disturbed, away)
                    seconds = time.monotonic() - began
                    again = disturbed.file(SECOND_LOG).exists()
                    if not again:
                        _wait_for_task_states(disturbed)
                    lost += _report_differences(
                        f"{outage}, {runner}", seconds, _read_stores(disturbed), expected, again
                    )
    return min(lost, 1)


@contextmanager
def _project_with_servers(root: Path, runner: str, epochs: int) -> Iterator[Checkout]:
    """A checkout with the grid, whose servers run."""
    project = checkout.make_checkout(root)
    problem = YAML(typ="safe").load((ROOT / "params.yaml").read_text())["problems"][PROBLEM]
    project.settings(
        run=[PROBLEM],
        problems={PROBLEM: problem},
        grid=GRID,
        train__epochs=epochs,
        train__steps_per_epoch=20,
        window__stride=6,
        evaluate__bootstrap__block="7d",
        runner__kind=runner,
    )
    try:
        with ExitStack() as held:
            # The usual ports are taken, so the servers get others, which nobody else takes while they are gone.
            for server in (servers.POSTGRES, servers.S3):
                if not listens("127.0.0.1", server.port):
                    held.enter_context(socket.create_server(("127.0.0.1", server.port)))
            project.recast("up", "--profile", "servers")
        yield project
    finally:
        project.recast("down", "--force")


def _postgres(grid: Checkout, seconds: float) -> None:
    # What `pg_ctl stop -m immediate` sends.
    _run_without_server(grid, "postgres", signal.SIGQUIT, seconds)


def _store(grid: Checkout, seconds: float) -> None:
    _run_without_server(grid, "s3", signal.SIGTERM, seconds)


def _run_without_server(grid: Checkout, server: str, end: signal.Signals, seconds: float) -> None:
    """Run the grid, and be without a server for a while in the middle."""
    with _grid_process(grid) as process:
        wait_until(lambda: _count_ended(grid) >= TRIALS_BEFORE, "the first trials", process)
        store = psutil.Process(read_record(grid, server)["pid"])
        store.send_signal(end)
        store.wait(30)
        gone = time.monotonic()
        before = _count_ended(grid)
        wait_until(lambda: time.monotonic() - gone > seconds or process.poll() is not None, "the end of the outage")
        during, running = _count_ended(grid), process.poll() is None
        print(grid.recast("up"), flush=True)
        print(f"{server} was gone for {time.monotonic() - gone:.0f} s: {before} trials had ended, then {during}")
        if not running:
            print("the grid ended meanwhile")


@contextmanager
def _own_disk(folder: Path, wanted: bool = True) -> Iterator[None]:
    if not wanted:
        yield
        return
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "none", str(folder)], check=True)
    try:
        yield
    finally:
        # What ran there may take a moment to be gone.
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _fill(folder: Path) -> Path:
    """The file that takes all that is left on the disk of a folder."""
    file = folder / "full"
    with file.open("wb", buffering=0) as full, contextlib.suppress(OSError):
        while True:
            full.write(bytes(1 << 20))
    return file


def _disk(grid: Checkout, seconds: float) -> None:
    """Run the grid, and fill a disk in the middle: with Ray that of one of two nodes, else the project's own."""
    kind = YAML(typ="safe").load(grid.file("params.yaml").read_text())["runner"]["kind"]
    (_fill_node_disk if kind == "ray" else _fill_project_disk)(grid, seconds)


def _fill_project_disk(grid: Checkout, seconds: float) -> None:
    """The trials, both databases and the S3 store find no room for a while."""
    with _grid_process(grid) as process:
        wait_until(lambda: _count_ended(grid) >= TRIALS_BEFORE, "the first trials", process)
        file, full = _fill(grid.root), time.monotonic()
        wait_until(lambda: time.monotonic() - full > seconds or process.poll() is not None, "the end of the outage")
        print(f"the disk was full for {time.monotonic() - full:.0f} s; the grid's status then: {process.poll()}")
        file.unlink()
        print(grid.recast("up"), flush=True)


def _fill_node_disk(grid: Checkout, seconds: float) -> None:
    """Nobody makes room on it until the grid has ended."""
    with tempfile.TemporaryDirectory(prefix="recast-") as name:
        cluster = Cluster(Path(name), [grid.root.parent])
        disk = Path(name) / "one"
        with _own_disk(disk):
            try:
                cluster.head()
                wait_until(lambda: listens(HEAD, cluster.port), "the head")
                cluster.node("one")
                cluster.node("two")
                with _grid_process(grid, **cluster.environment) as process:
                    wait_until(lambda: _count_ended(grid) >= TRIALS_BEFORE, "the first trials", process)
                    wait_until(
                        lambda: len(set(read_running_bundles(grid).values())) == 2, "both nodes under way", process
                    )
                    _fill(disk)
                    print(f"the disk of one node is full; under way: {read_running_bundles(grid)}", flush=True)
            finally:
                cluster.stop()


@contextmanager
def _grid_process(grid: Checkout, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """The grid while it runs; at the end it is waited for, and run again where the message said so."""
    log = grid.file("run.log")
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "flows", "run"],
            cwd=grid.root,
            env=grid.environment | environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            yield process
            status = process.wait(timeout=1200)
        finally:
            process.kill()
    print(log.read_text(), flush=True)
    if status:
        print(f"it ended with status {status}; run again:", flush=True)
        grid.file(SECOND_LOG).write_text(grid.recast("run", **environment))
        print(grid.file(SECOND_LOG).read_text(), flush=True)


def _count_ended(grid: Checkout) -> int:
    return len(list(grid.root.glob(f"trials/{PROBLEM}/*/trial.json")))


def _read_stores(grid: Checkout) -> StoreContents:
    """What is in the stores; the artifacts are read by way of MLflow, and compared with the folders of the trials."""
    of_trials = "join tags k on k.run_uuid = r.run_uuid and k.key = 'recast.key'"
    tagged = "join tags t on t.run_uuid = r.run_uuid and t.key = 'recast.kind'"
    points = (
        f"select k.value, m.key, m.step, m.value from metrics m join runs r on r.run_uuid = m.run_uuid {of_trials} "
        "where m.key not like 'system/%' and m.key <> 'seconds'"
    )
    flow_runs = "select f.name, r.state_type from flow_run r join flow f on f.id = r.flow_id"
    return StoreContents(
        grid.file(f"data/evaluate/{PROBLEM}/leaderboard.json").read_bytes(),
        _rows(grid, "mlflow", f"select t.value, r.status from runs r {tagged}"),
        _rows(grid, "mlflow", points),
        _artifacts(grid, _rows(grid, "mlflow", f"select r.run_uuid, k.value from runs r {of_trials}")),
        _rows(grid, "prefect", flow_runs),
        _rows(grid, "prefect", TASKS),
    )


def _wait_for_task_states(grid: Checkout) -> bool:
    """Wait for the last states of all tasks in Prefect; whether they came in time."""
    pause = threading.Event()
    began = time.monotonic()
    while time.monotonic() - began < STATES_SECONDS:
        tasks = _rows(grid, "prefect", TASKS)
        if tasks.total() >= ALL_TASKS and set(tasks) <= END_STATES:
            print(f"Prefect had the last state of a task {time.monotonic() - began:.0f} s after the end", flush=True)
            return True
        pause.wait(1)
    return False


def _rows(grid: Checkout, database: str, asked: str) -> Counter[str]:
    return Counter(query(grid, database, asked).stdout.splitlines())


def _artifacts(grid: Checkout, runs: Counter[str]) -> Counter[str]:
    artifacts: Counter[str] = Counter()
    address = f"http://127.0.0.1:{read_record(grid, 'mlflow')['port']}"
    for run, key in (line.split("|") for line in runs):
        with tempfile.TemporaryDirectory() as folder:
            downloaded = Path(download_artifacts(run_id=run, dst_path=folder, tracking_uri=address))
            artifacts += Counter(f"{key}|{name}" for name in OTHER_ARTIFACTS if (downloaded / name).exists())
            for file in grid.file(f"trials/{PROBLEM}/{key}").iterdir():
                copy = downloaded / file.name
                same = file.name in FILES and copy.exists() and _digest(copy) == _digest(file)
                artifacts += Counter({f"{key}|{file.name}": int(same)})
    return artifacts


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _report_differences(
    title: str, seconds: float, contents: StoreContents, expected: StoreContents, again: bool = False
) -> bool:
    """Print what was counted; whether anything differs from what is expected.

    Args:
        again: Prefect has the flows of two runs, so they are not compared.
    """
    print(f"{title}: {seconds:.0f} s")
    print(f"  leaderboard   {'the same, bit for bit' if contents.board == expected.board else 'DIFFERENT'}")
    wrong = contents.board != expected.board
    for name in ("runs", "points", "artifacts", *(() if again else ("flows", "tasks"))):
        counts, expected_counts = getattr(contents, name), getattr(expected, name)
        # A task that a node's disk has refused stays failed in Prefect, beside the one that did its work elsewhere.
        refused = Counter({key: count for key, count in counts.items() if name == "tasks" and key == "FAILED"})
        missing, more = expected_counts - counts, counts - expected_counts - refused
        line = f"{counts.total():6}"
        if counts.total() < 20 or name == "tasks":
            line += "  " + ", ".join(f"{count} {key.replace('|', ' ')}" for key, count in sorted(counts.items()))
        print(f"  {name:12} {line}")
        if missing or more:
            wrong = True
            print(f"    MISSING {missing.total()}, MORE {more.total()}: {list(missing)[:3]} {list(more)[:3]}")
    sys.stdout.flush()
    return wrong


OUTAGES: dict[str, Callable[[Checkout, float], None]] = {"postgres": _postgres, "store": _store, "disk": _disk}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("outages", nargs="*", choices=[*OUTAGES], default=[*OUTAGES])
    parser.add_argument("--runner", choices=["local", "ray"], help="both, where it is not named")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long a store is gone")
    parser.add_argument("--epochs", type=int, default=40)
    chosen = parser.parse_args()
    if "disk" in chosen.outages and os.geteuid():
        sys.exit("error: only root may give a node a disk of its own")
    runners = [chosen.runner] if chosen.runner else ["local", "ray"]
    sys.exit(main(chosen.outages, runners, chosen.seconds, chosen.epochs))
