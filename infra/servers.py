"""The project's own servers: Prefect and MLflow, in the background, on loopback, their state below the project's root;
and the worker, which runs what Prefect schedules.

A server that runs is reused, whichever process started it; `recast down` stops it.
"""

import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
from filelock import FileLock

from problems.errors import RecastError
from stages.atomic import write_json
from stages.places import MLFLOW_STORE, STATE

START_SECONDS = 240
"""A server that is not healthy by then will not be."""

SAME_PROCESS_SECONDS = 2
"""How far apart two readings of when a process began may be."""


@dataclass(frozen=True)
class Server:
    """How a server is started and asked for its health.

    Attributes:
        port: taken when it is free; otherwise any that is. 0: any.
        command: arguments of Python, with {port} for the port.
        page: where its health is.
        interface: what a person opens.
    """

    name: str
    title: str
    port: int
    command: tuple[str, ...]
    page: str
    interface: str = "/"

    @property
    def record(self) -> Path:
        return STATE / f"{self.name}.json"

    @property
    def log(self) -> Path:
        return STATE / f"{self.name}.log"


PREFECT = Server(
    "prefect",
    "Prefect",
    4200,
    ("-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", "{port}"),
    "/api/health",
)
MLFLOW = Server(
    "mlflow",
    "MLflow",
    5000,
    (
        *("-m", "mlflow", "server", "--host", "127.0.0.1", "--port", "{port}", "--workers", "1"),
        *("--backend-store-uri", f"sqlite:///{MLFLOW_STORE / 'mlflow.db'}"),
        *("--default-artifact-root", str(MLFLOW_STORE / "artifacts")),
    ),
    "/health",
)
# It answers for its health once Prefect's server knows it.
WORKER = Server("worker", "Worker", 0, ("-m", "flows.worker", "{port}"), "/health")
SERVERS = (PREFECT, MLFLOW, WORKER)
"""In the order in which they are started."""


def url(server: Server) -> str | None:
    """The address of the project's own server, or None where none runs and answers."""
    found = _noted(server)
    if found is None:
        return None
    process, port = found
    try:
        if not _listens(process, port):
            return None
        address = f"http://127.0.0.1:{port}"
        return address if httpx.get(address + server.page, timeout=5, trust_env=False).is_success else None
    except (psutil.NoSuchProcess, httpx.TransportError):
        return None


def _noted(server: Server) -> tuple[psutil.Process, int] | None:
    """The server's process, if the one that was noted lives, and its port."""
    try:
        noted = json.loads(server.record.read_text(encoding="utf-8"))
        process, created, port = psutil.Process(int(noted["pid"])), float(noted["created"]), int(noted["port"])
    except (FileNotFoundError, psutil.NoSuchProcess):
        return None
    except (ValueError, KeyError, TypeError):
        # No record any more: the next start writes another.
        return None
    # Another process may have the number by now; the system's clock tells its age to a second or so.
    return (process, port) if abs(process.create_time() - created) < SAME_PROCESS_SECONDS else None


def _listens(process: psutil.Process, port: int) -> bool:
    """Whether it is this process, or one that it started, that answers on the port; not another checkout's server."""
    return any(
        connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
        for each in (process, *process.children(recursive=True))
        for connection in each.net_connections(kind="tcp")
    )


def start(server: Server) -> str:
    """The address of the project's own server, started where it does not run.

    Raises:
        RecastError: it does not become healthy; the message names its log.
    """
    STATE.mkdir(exist_ok=True)
    # Two commands that need it at once start one.
    with FileLock(STATE / f"{server.name}.lock"):
        running = url(server)
        if running:
            return running
        # Where it was before it died: what runs still looks for it there.
        last = _last_port(server)
        stop(server)
        # The second time on any port: the first may have been taken by another between the look and the start.
        for preferred in (last or server.port, 0):
            process = _launch(server, _free_port(preferred))
            deadline = time.monotonic() + START_SECONDS
            while time.monotonic() < deadline and process.poll() is None:
                address = url(server)
                if address:
                    return address
                time.sleep(0.1)
            stop(server)
    tail = server.log.read_text(encoding="utf-8", errors="replace").splitlines()[-5:]
    raise RecastError(f"{server.title} did not start; its log {server.log} ends with:\n  " + "\n  ".join(tail))


def _last_port(server: Server) -> int | None:
    """The port of the record that a server which has died leaves; one that was stopped leaves none."""
    try:
        return int(json.loads(server.record.read_text(encoding="utf-8"))["port"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _launch(server: Server, port: int) -> subprocess.Popen[bytes]:
    """Start the server's process, detached from this one, and note it."""
    command = [sys.executable, *(part.format(port=port) for part in server.command)]
    # Without it, the pages of a Prefect server on another port would show what the one on 4200 has.
    pages = {"PREFECT_SERVER_UI_API_URL": f"http://127.0.0.1:{port}/api"} if server is PREFECT else {}
    with server.log.open("ab") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=_environment() | pages,
        )
    created = psutil.Process(process.pid).create_time()
    write_json(server.record, {"pid": process.pid, "created": created, "port": port})
    return process


def stop(server: Server) -> bool:
    """Stop the project's own server and all that it started; whether there was one."""
    found = _noted(server)
    if found is None:
        server.record.unlink(missing_ok=True)
        return False
    process, _ = found
    family = [process, *process.children(recursive=True)]
    process.terminate()
    _, alive = psutil.wait_procs(family, timeout=10)
    for each in alive:
        each.kill()
    psutil.wait_procs(alive, timeout=5)
    server.record.unlink(missing_ok=True)
    return True


def _environment() -> dict[str, str]:
    """The environment of a server: its state below the project's root, nothing told to its makers."""
    return {
        **os.environ,
        "PREFECT_HOME": str(STATE.absolute()),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        # What runs keeps its place in the limit of its deployment while the server begins anew.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "1",
    }


def _free_port(preferred: int) -> int:
    """The preferred port where nothing listens there, else one that the system picks."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            # What a dead server's connections have left there is in nobody's way.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise RecastError("no port of 127.0.0.1 is free")
