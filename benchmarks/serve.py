"""The service around a champion: forecasts per second, latency, and swaps of the model under load.

It serves a GRU of 32 units on windows of 120 hours, and is compared with `mlflow models serve` of the same model. The
load comes over persistent connections on loopback, from this process, so client and server share the machine's cores.

Goal on two cores: 500 forecasts/s, and at 100 requests/s 99 of 100 answered within 50 ms.
"""

import asyncio
import contextlib
import json
import math
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import polars as pl
import psutil

from benchmarks.measure import measure_in_turn, round_results
from infra import server_process, servers
from lifecycle.champions import history, promotion, registry
from lifecycle.champions.history import Version
from problems.errors import RecastError
from project import paths
from project.settings.loading import load_settings
from stages.training.expansion import list_trials
from tests.support import checkout
from tests.support.checkout import BIN, Checkout

PROBLEM = "demo"
CONNECTIONS = 16
TIME_LIMIT_SECONDS = 300
"""The time limit of every load: a server that hangs must not block the benchmark."""
STATION = {
    "title": "Temperature at a simulated station, 24 hours ahead",
    "source": {"kind": "station", "rows": 20000, "cadence": "1h", "seed": 0},
    "table": {
        "features": ["p (mbar)", "T (degC)", "Tdew (degC)", "rh (%)", "wv (m/s)"],
        "target": "T (degC)",
        "unit": "°C",
        "calendar": {"year": 1, "day": 1},
        "climatology": {"year": 1, "day": 2},
    },
    "split": "half",
    "window": {"lookback": "5d", "step": "1h", "delay": "24h"},
}


@dataclass
class Load:
    """The answers to requests.

    Attributes:
        seconds: from the time at which each request was due to its answer.
        failed: the number of answers other than 200 and of broken connections.
        answers: when each answer arrived, and the model version in it, if it has one.
    """

    seconds: list[float] = field(default_factory=list)
    failed: int = 0
    answers: list[tuple[float, int | None]] = field(default_factory=list)

    def percentile(self, share: float) -> float:
        """The latency that this share of the requests does not exceed, in milliseconds."""
        return float(np.percentile(self.seconds, 100 * share)) * 1000


def run(quick: bool) -> dict[str, Any]:
    """Forecasts/s of both servers in turn; latency of Recast's at 100 requests/s, also during ten swaps."""
    requests, rounds, swaps = (100, 1, 2) if quick else (1000, 5, 10)
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        api = f"{server_process.start(servers.PREFECT)}/api"
        try:
            project = _train_models(Path(name) / "checkout", api)
        finally:
            server_process.stop(servers.PREFECT)
        with contextlib.chdir(project.root):
            return _measure(project, requests, rounds, swaps)


def _train_models(root: Path, api: str) -> Checkout:
    """A checkout with two trained models: an LSTM, and a GRU that becomes the champion."""
    project = checkout.make_checkout(root, PREFECT_API_URL=api)
    project.settings(
        problems__demo=STATION,
        train={**checkout.SETTINGS["train"], "epochs": 1},
        grid={"seeds": [0], "architectures": {"lstm": {"units": [32]}, "gru": {"units": [32]}}},
    )
    (root / "data/raw/demo/demo.csv").unlink()
    project.recast("run")
    return project


def _measure(project: Checkout, requests: int, rounds: int, swaps: int) -> dict[str, Any]:
    trials = list_trials(load_settings(), PROBLEM, paths.stage_folder("window", PROBLEM))
    versions = [registry.register_version(trial, {}) for trial in trials]
    for version in versions:
        promotion.promote(PROBLEM, version, None, by="benchmark")
    bodies = _make_bodies(registry.load_model(versions[-1]).about.window_rows)
    recast, mlflow = _free_port(), _free_port()
    commands = {
        recast: [sys.executable, "-m", "flows", "serve", PROBLEM, "--port", str(recast)],
        mlflow: f"{BIN / 'mlflow'} models serve -m {versions[-1].uri} --env-manager local --port {mlflow}".split(),
    }
    pages = {recast: "/forecast", mlflow: "/invocations"}

    cpu_ms: dict[int, list[float]] = {recast: [], mlflow: []}

    def prepare_throughput(port: int, server: psutil.Process) -> Callable[[], float]:
        def measure_throughput() -> float:
            cpu_seconds_before = _cpu_seconds(server)
            begun = time.perf_counter()
            # The peer is slow, so it gets fewer requests.
            count = requests if port == recast else requests // 5
            load = asyncio.run(send_closed_loop(port, pages[port], bodies[pages[port]], count))
            if load.failed:
                raise RecastError(f"{load.failed} of {count} requests failed")
            duration = time.perf_counter() - begun
            cpu_ms[port].append(1000 * (_cpu_seconds(server) - cpu_seconds_before) / count)
            return count / duration

        return measure_throughput

    with (
        _run_server(project, commands[recast], recast, "/ready") as ours,
        _run_server(project, commands[mlflow], mlflow, "/ping") as theirs,
    ):
        results = measure_in_turn(
            {
                "recast serve": prepare_throughput(recast, ours),
                "mlflow models serve": prepare_throughput(mlflow, theirs),
            },
            unit="forecasts/s",
            rounds=rounds,
            more_is_better=True,
        )
    with _run_server(project, commands[recast], recast, "/ready"):
        steady = asyncio.run(send_paced(recast, pages[recast], bodies["/forecast"], 100, requests))
        swapping, waits = asyncio.run(_swap_under_load(recast, bodies["/forecast"], versions, swaps))
    with _run_server(project, commands[mlflow], mlflow, "/ping"):
        peer = asyncio.run(send_paced(mlflow, pages[mlflow], bodies["/invocations"], 20, requests // 5))
    return {
        "connections": CONNECTIONS,
        "load of the machine": f"{psutil.getloadavg()[0]:.1f} on {psutil.cpu_count()} cores",
        "results": round_results(results),
        "CPU ms per forecast, server only": {
            name: {"median": round(float(np.median(cpu_ms[port][1:])), 2)}
            for name, port in (("recast serve", recast), ("mlflow models serve", mlflow))
        },
        "latency in ms": {
            name: {f"{100 * share:g} %": round(load.percentile(share), 1) for share in (0.5, 0.95, 0.99)}
            for name, load in {
                "recast serve, 100 requests/s": steady,
                "mlflow models serve, 20 requests/s": peer,
                "recast serve, 100 requests/s while the model is swapped": swapping,
            }.items()
        },
        "swaps": {
            f"{len(waits)} promotions and rollbacks in turn": {
                "requests": len(swapping.seconds) + swapping.failed,
                "failed": swapping.failed + steady.failed,
                "s to the first answer of the new version, median": round(float(np.median(waits)), 2),
                "longest": round(max(waits), 2),
            }
        },
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _make_bodies(rows: int) -> dict[str, list[bytes]]:
    """A hundred windows as request bodies, by page: each server has a format of its own."""
    frame = pl.read_parquet(f"data/ingest/{PROBLEM}/table.parquet")
    columns = STATION["table"]["features"]  # type: ignore[index]
    bodies: dict[str, list[bytes]] = {"/forecast": [], "/invocations": []}
    for begin in range(0, 100 * 24, 24):
        part = frame.slice(begin, rows)
        times = [moment.isoformat() for moment in part["time"]]
        ours = {"time": times, "columns": {name: part[name].to_list() for name in columns}}
        data = [[moment, *row] for moment, row in zip(times, part.select(columns).rows(), strict=True)]
        split = {"columns": ["time", *columns], "data": data}
        bodies["/forecast"].append(json.dumps(ours).encode())
        bodies["/invocations"].append(json.dumps({"dataframe_split": split}).encode())
    return bodies


@contextlib.contextmanager
def _run_server(project: Checkout, command: list[str], port: int, path: str) -> Iterator[psutil.Process]:
    """Run a server until the block ends; the block begins when it answers.

    Raises:
        RecastError: the server ended, or did not answer in time.
    """
    environment = project.environment | {"MLFLOW_TRACKING_URI": "sqlite:///mlruns/mlflow.db"}
    log = project.file(f"{port}.log")
    # Its log goes to a file: a server that logs every request hangs on a pipe that nobody reads.
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, cwd=project.root, env=environment, stdout=out, stderr=out, start_new_session=True
        )
    try:
        deadline = time.monotonic() + TIME_LIMIT_SECONDS
        while not _answers(f"http://127.0.0.1:{port}{path}"):
            # The pause between two attempts; it is over at once when the server ends.
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.2)
            if process.poll() is not None or time.monotonic() > deadline:
                printed = log.read_text(encoding="utf-8", errors="replace")
                raise RecastError(f"{' '.join(command)} does not answer:\n{printed}")
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=30)
        process.kill()


def _answers(address: str) -> bool:
    """Whether a server answers at this address."""
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(address).status_code == 200
    return False


def _cpu_seconds(server: psutil.Process) -> float:
    """The CPU time that a server and its workers have spent."""
    return sum(sum(process.cpu_times()[:2]) for process in (server, *server.children(recursive=True)))


class _Connection:
    """A persistent connection that sends prepared bodies, so that the client's own work is not what is measured."""

    def __init__(self, port: int, path: str) -> None:
        self.port, self.path = port, path
        self.streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, body: bytes) -> tuple[int, bytes]:
        """Send a body, and return the status and the body of the answer.

        Raises:
            OSError, EOFError: the connection has broken.
        """
        if self.streams is None:
            self.streams = await asyncio.open_connection("127.0.0.1", self.port)
        reader, writer = self.streams
        try:
            writer.write(
                f"POST {self.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(body)}\r\n\r\n".encode()
                + body
            )
            head = await reader.readuntil(b"\r\n\r\n")
            fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
            return int(head.split(b" ", 2)[1]), await reader.readexactly(int(fields[b"content-length"]))
        except (OSError, EOFError):
            self.streams = None
            raise


async def _send_request(connection: _Connection, body: bytes, due: float, load: Load) -> None:
    try:
        status, answer = await connection.post(body)
    except (OSError, EOFError):
        load.failed += 1
        return
    if status != 200:
        load.failed += 1
        return
    now = time.perf_counter()
    load.seconds.append(now - due)
    begin = answer.find(b'"model_version":')
    load.answers.append((now, int(answer[begin + 16 :].split(b",", 1)[0]) if begin >= 0 else None))


async def send_closed_loop(port: int, path: str, bodies: list[bytes], requests: int) -> Load:
    """Send requests over all connections; every connection sends its next one after the answer to the former."""
    load = Load()
    numbers = iter(range(requests))

    async def send_from_connection() -> None:
        connection = _Connection(port, path)
        for i in numbers:
            await _send_request(connection, bodies[i % len(bodies)], time.perf_counter(), load)

    async with asyncio.timeout(TIME_LIMIT_SECONDS):
        await asyncio.gather(*(send_from_connection() for _ in range(CONNECTIONS)))
    return load


async def send_paced(
    port: int, path: str, bodies: list[bytes], rate: float, requests: int, load: Load | None = None
) -> Load:
    """Send a request every 1/rate s, whether or not the former are answered; waiting for a connection counts."""
    load = load or Load()
    idle: asyncio.Queue[_Connection] = asyncio.Queue()
    for _ in range(4 * CONNECTIONS):
        idle.put_nowait(_Connection(port, path))

    async def send_when_idle(body: bytes, due: float) -> None:
        connection = await idle.get()
        await _send_request(connection, body, due, load)
        idle.put_nowait(connection)

    begun = time.perf_counter()
    async with asyncio.timeout(TIME_LIMIT_SECONDS), asyncio.TaskGroup() as group:
        for i in range(requests):
            due = begun + i / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            group.create_task(send_when_idle(bodies[i % len(bodies)], due))
    return load


async def _swap_under_load(
    port: int, bodies: list[bytes], versions: list[Version], swaps: int
) -> tuple[Load, list[float]]:
    """Send 100 requests/s while the champion is rolled back to the former one and promoted again, in turn.

    Returns:
        the load, and for each swap the seconds from the end of the command to the first answer of the new version
    """
    load = Load()
    waits: list[float] = []

    def swap() -> None:
        for i in range(swaps):
            if i % 2:
                promotion.promote(PROBLEM, versions[-1], None, by="benchmark")
            else:
                history.roll_back(PROBLEM, by="benchmark", reason="")
                promotion.reconcile(PROBLEM)
            champion = history.find_champion(PROBLEM)
            if champion is None:
                raise RecastError(f"{PROBLEM} has no champion after a swap")
            begun, first = time.perf_counter(), None
            while first is None and time.perf_counter() < begun + 10:
                time.sleep(0.02)  # noqa: TID251 - the event loop of another thread receives the answers meanwhile
                # A copy: answers may arrive during the search.
                answers = load.answers[-1000:]
                first = next(
                    (moment for moment, version in answers if moment >= begun and version == champion.version), None
                )
            waits.append(math.inf if first is None else first - begun)

    await asyncio.gather(send_paced(port, "/forecast", bodies, 100, 200 * swaps, load), asyncio.to_thread(swap))
    return load, waits
