"""The service around a champion: forecasts a second, how long one takes, and swaps of the model under load.

A GRU of 32 units on windows of 120 hours, against `mlflow models serve` of the same model. Load comes over kept
connections on loopback, from this process, so that client and server share the machine's cores.

Aim on two cores: 500 forecasts/s, and at 100 requests/s 99 of 100 answered within 50 ms.
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

from benchmarks.measure import alternate, table
from infra import server_process, servers
from tests.support import checkout
from tests.support.checkout import BIN, Checkout

PROBLEM = "demo"
CONNECTIONS = 16
MOST_SECONDS = 300
"""Of any load: a server that hangs must not hold the benchmark."""
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
    """What came of requests.

    Attributes:
        seconds: from when each was due to its answer.
        failed: answers other than 200, and connections that broke.
        answered: when each answer came, and the model version in it, where it has one.
    """

    seconds: list[float] = field(default_factory=list)
    failed: int = 0
    answered: list[tuple[float, int | None]] = field(default_factory=list)

    def percentile(self, share: float) -> float:
        """In milliseconds."""
        return float(np.percentile(self.seconds, 100 * share)) * 1000


def run(quick: bool) -> dict[str, Any]:
    """Forecasts/s of both servers in turn; of Recast's, latency at 100 requests/s, and what ten swaps cost."""
    requests, rounds, swaps = (100, 1, 2) if quick else (1000, 5, 10)
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        api = f"{server_process.start(servers.PREFECT)}/api"
        try:
            made = _trained(Path(name) / "checkout", api)
        finally:
            server_process.stop(servers.PREFECT)
        with contextlib.chdir(made.root):
            return _measured(made, requests, rounds, swaps)


def _trained(root: Path, api: str) -> Checkout:
    """A checkout with two trained models, an LSTM and, the champion to be, a GRU."""
    made = checkout.make_checkout(root, PREFECT_API_URL=api)
    made.settings(
        problems__demo=STATION,
        train={**checkout.SETTINGS["train"], "epochs": 1},
        grid={"seeds": [0], "architectures": {"lstm": {"units": [32]}, "gru": {"units": [32]}}},
    )
    (root / "data/raw/demo/demo.csv").unlink()
    made.recast("run")
    return made


def _measured(made: Checkout, requests: int, rounds: int, swaps: int) -> dict[str, Any]:
    from lifecycle.champions import promotion, registry
    from project import paths as places
    from project.settings.loading import load_settings
    from stages.training.expansion import list_trials

    trials = list_trials(load_settings(), PROBLEM, places.stage_folder("window", PROBLEM))
    versions = [registry.register_version(trial, {}) for trial in trials]
    for version in versions:
        promotion.promote(PROBLEM, version, None, by="benchmark")
    bodies = _bodies(registry.load_model(versions[-1]).about.window_rows)
    recast, mlflow = _free_port(), _free_port()
    commands = {
        recast: [sys.executable, "-m", "flows", "serve", PROBLEM, "--port", str(recast)],
        mlflow: f"{BIN / 'mlflow'} models serve -m {versions[-1].uri} --env-manager local --port {mlflow}".split(),
    }
    paths = {recast: "/forecast", mlflow: "/invocations"}

    cpu: dict[int, list[float]] = {recast: [], mlflow: []}

    def throughput(port: int, server: psutil.Process) -> Callable[[], float]:
        def forecasts_a_second() -> float:
            spent = _cpu_seconds(server)
            begun = time.perf_counter()
            # The peer is slow, and is asked for less.
            wanted = requests if port == recast else requests // 5
            load_ = asyncio.run(closed(port, paths[port], bodies[paths[port]], wanted))
            assert not load_.failed, f"{load_.failed} requests have failed"
            taken = time.perf_counter() - begun
            cpu[port].append(1000 * (_cpu_seconds(server) - spent) / wanted)
            return wanted / taken

        return forecasts_a_second

    with (
        _served(made, commands[recast], recast, "/ready") as ours,
        _served(made, commands[mlflow], mlflow, "/ping") as theirs,
    ):
        found = alternate(
            {"recast serve": throughput(recast, ours), "mlflow models serve": throughput(mlflow, theirs)},
            unit="forecasts/s",
            rounds=rounds,
            more_is_better=True,
        )
    with _served(made, commands[recast], recast, "/ready"):
        steady = asyncio.run(paced(recast, paths[recast], bodies["/forecast"], 100, requests))
        swapping, waits = asyncio.run(_swapped(recast, bodies["/forecast"], versions, swaps))
    with _served(made, commands[mlflow], mlflow, "/ping"):
        peer = asyncio.run(paced(mlflow, paths[mlflow], bodies["/invocations"], 20, requests // 5))
    return {
        "connections": CONNECTIONS,
        "load of the machine, of its cores": f"{psutil.getloadavg()[0]:.1f} of {psutil.cpu_count()}",
        "results": table(found),
        "ms of a core a forecast, by the server alone": {
            name: {"median": round(float(np.median(cpu[port][1:])), 2)}
            for name, port in (("recast serve", recast), ("mlflow models serve", mlflow))
        },
        "latency in ms": {
            name: {f"{100 * share:g} %": round(each.percentile(share), 1) for share in (0.5, 0.95, 0.99)}
            for name, each in {
                "recast serve, 100 requests/s": steady,
                "mlflow models serve, 20 requests/s": peer,
                "recast serve, 100 requests/s while the model is swapped": swapping,
            }.items()
        },
        "swaps": {
            f"{len(waits)} promotions and rollbacks in turn": {
                "requests": len(swapping.seconds) + swapping.failed,
                "failed": swapping.failed + steady.failed,
                "s to the first answer of the other version, median": round(float(np.median(waits)), 2),
                "most": round(max(waits), 2),
            }
        },
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _bodies(rows: int) -> dict[str, list[bytes]]:
    """Some hundred windows in the form that each server takes."""
    frame = pl.read_parquet(f"data/ingest/{PROBLEM}/table.parquet")
    columns = STATION["table"]["features"]  # type: ignore[index]
    bodies: dict[str, list[bytes]] = {"/forecast": [], "/invocations": []}
    for begin in range(0, 100 * 24, 24):
        part = frame.slice(begin, rows)
        time_ = [moment.isoformat() for moment in part["time"]]
        ours = {"time": time_, "columns": {name: part[name].to_list() for name in columns}}
        data = [[moment, *row] for moment, row in zip(time_, part.select(columns).rows(), strict=True)]
        split = {"columns": ["time", *columns], "data": data}
        bodies["/forecast"].append(json.dumps(ours).encode())
        bodies["/invocations"].append(json.dumps({"dataframe_split": split}).encode())
    return bodies


@contextlib.contextmanager
def _served(made: Checkout, command: list[str], port: int, path: str) -> Iterator[psutil.Process]:
    """A server, once it answers, until the block ends."""
    environment = made.environment | {"MLFLOW_TRACKING_URI": "sqlite:///mlruns/mlflow.db"}
    log = made.file(f"{port}.log")
    # To a file: a server that logs each request hangs on a pipe that nobody reads.
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, cwd=made.root, env=environment, stdout=out, stderr=out, start_new_session=True
        )
    try:
        until = time.monotonic() + MOST_SECONDS
        while time.monotonic() < until:
            assert process.poll() is None, log.read_text(encoding="utf-8", errors="replace")
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"http://127.0.0.1:{port}{path}").status_code == 200:
                    break
            time.sleep(0.2)
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=30)
        process.kill()


def _cpu_seconds(server: psutil.Process) -> float:
    """That a server and its workers have spent."""
    return sum(sum(each.cpu_times()[:2]) for each in (server, *server.children(recursive=True)))


class _Connection:
    """A kept connection that sends what is ready made: a client's own work should not be what is measured."""

    def __init__(self, port: int, path: str) -> None:
        self.port, self.path = port, path
        self.streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, body: bytes) -> tuple[int, bytes]:
        """Status and body of the answer.

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


async def _ask(connection: _Connection, body: bytes, due: float, load: Load) -> None:
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
    load.answered.append((now, int(answer[begin + 16 :].split(b",", 1)[0]) if begin >= 0 else None))


async def closed(port: int, path: str, bodies: list[bytes], requests: int) -> Load:
    """So many requests, each connection's one after the other."""
    load = Load()
    left = iter(range(requests))

    async def client() -> None:
        connection = _Connection(port, path)
        for i in left:
            await _ask(connection, bodies[i % len(bodies)], time.perf_counter(), load)

    async with asyncio.timeout(MOST_SECONDS):
        await asyncio.gather(*(client() for _ in range(CONNECTIONS)))
    return load


async def paced(
    port: int, path: str, bodies: list[bytes], rate: float, requests: int, load: Load | None = None
) -> Load:
    """So many requests, one every 1/rate s whatever becomes of those before; waiting for a connection counts."""
    load = load or Load()
    free: asyncio.Queue[_Connection] = asyncio.Queue()
    for _ in range(4 * CONNECTIONS):
        free.put_nowait(_Connection(port, path))

    async def one(body: bytes, due: float) -> None:
        connection = await free.get()
        await _ask(connection, body, due, load)
        free.put_nowait(connection)

    begun = time.perf_counter()
    async with asyncio.timeout(MOST_SECONDS), asyncio.TaskGroup() as group:
        for i in range(requests):
            due = begun + i / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            group.create_task(one(bodies[i % len(bodies)], due))
    return load


async def _swapped(port: int, bodies: list[bytes], versions: list[Any], swaps: int) -> tuple[Load, list[float]]:
    """Load at 100 requests/s, while the former champion is brought back, and promoted again, in turn.

    Returns:
        the load, and for each swap the seconds from the command's end to the first answer of the other version
    """

    from lifecycle.champions import history, promotion

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
            assert champion is not None
            moment, first = time.perf_counter(), None
            while first is None and time.perf_counter() < moment + 10:
                time.sleep(0.02)
                # What was answered may grow while it is looked through.
                answered = load.answered[-1000:]
                first = next((at for at, by in answered if at >= moment and by == champion.version), None)
            waits.append(math.inf if first is None else first - moment)

    await asyncio.gather(paced(port, "/forecast", bodies, 100, 200 * swaps, load), asyncio.to_thread(swap))
    return load, waits
