"""Servers in the background: start one as a process, find it again, check its health, and stop it.

A file below `.recast` records the process of each server, so that every command finds the servers that another one has
started.
"""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock

from infra.processes import creation_time, find_process
from problems.errors import RecastError
from problems.lazy_modules import httpx
from project.atomic import replace_file, write_json
from project.paths import STATE
from project.records import read_disposable_record

MAX_START_SECONDS = 240
"""A server that is not healthy after this time never will be."""
POLL_SECONDS = 0.1
CONNECT_SECONDS = 5

MARK = "RECAST_SERVER"
"""The variable by which the processes of a server can be found without its record: the path of that file."""


@dataclass(frozen=True)
class Launch:
    """How the process of a server is started.

    Attributes:
        environment: the variables that it needs beside the inherited ones; None: a variable that it must not have.
        options: more arguments of `subprocess.Popen`.
        descriptors: the file descriptors that it inherits; this process closes them after the start.
    """

    command: Sequence[str]
    environment: Mapping[str, str | None] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    descriptors: tuple[int, ...] = ()


def http_health_check(page: str) -> Callable[[int], bool]:
    """A health check, by the port, that succeeds if this page answers with success."""

    def is_healthy(port: int) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{port}{page}", timeout=5, trust_env=False).is_success
        # Whatever it is that listens there: it may not even speak HTTP.
        except httpx.HTTPError:
            return False

    return is_healthy


@dataclass(frozen=True)
class Server:
    """How a server is started, checked and stopped.

    Attributes:
        port: the port that it gets the first time, if it is free; else it gets any free port. 0: any.
        launch: how its process is started, by the port.
        is_healthy: whether it works, by the port. It is called once the process listens on the port.
        prepare: called with the port each time that the server was started or found healthy.
        scheme: the beginning of its address.
        stop_signal: the signal that stops it.
        needs: returns the servers that it needs in the project's profile; they are started first.
    """

    name: str
    title: str
    port: int
    launch: Callable[[int], Launch]
    is_healthy: Callable[[int], bool]
    prepare: Callable[[int], None] | None = None
    scheme: str = "http://"
    stop_signal: signal.Signals = signal.SIGTERM
    needs: "Callable[[], tuple[Server, ...]]" = tuple

    @property
    def record(self) -> Path:
        return STATE / f"{self.name}.json"

    @property
    def log(self) -> Path:
        return STATE / f"{self.name}.log"

    @property
    def port_file(self) -> Path:
        """Where its port is noted, see `reserve_port`."""
        return STATE / f"{self.name}.port"


@dataclass(frozen=True)
class ServerRecord:
    """What the record of a server says.

    Attributes:
        pid, created: the id of its process, and when that process began; see `infra.processes`.
        needs: the addresses of the servers that it needs, as they were when it was started.
    """

    pid: int
    created: float
    port: int
    needs: tuple[str, ...] = ()


def address_at(server: Server, port: int) -> str:
    """The address of a server that listens on this port."""
    return f"{server.scheme}127.0.0.1:{port}"


def reserve_port(server: Server) -> int:
    """The port that the server has in this checkout, or will have once it is started.

    It is chosen once, so that links to its pages hold however often it is stopped and started. It changes only if
    another program has taken it when the server is started.
    """
    if record := _read_record(server):
        return record.port
    port = _read_noted_port(server)
    if port is None:
        port = _free_port((server.port, 0))
        _note_port(server, port)
    return port


def _read_noted_port(server: Server) -> int | None:
    """The port in the server's port file; None: there is none, or the file is damaged."""
    try:
        port = int(server.port_file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return port if 0 < port < 1 << 16 else None


def _note_port(server: Server, port: int) -> None:
    STATE.mkdir(exist_ok=True)
    # One command may make a link while another one starts the server.
    with FileLock(STATE / f"{server.name}.port.lock"), replace_file(server.port_file) as temporary:
        temporary.write_text(f"{port}\n", encoding="utf-8")


def running_port(server: Server) -> int:
    """The port of a server that runs.

    Raises:
        RecastError: it does not run.
    """
    running = _find_server(server)
    if running is None:
        raise RecastError(f"{server.title} is not running; `recast up` starts it. Its log is {server.log}")
    return running[1]


def running_address(server: Server) -> str | None:
    """The address of the project's own server, or None if it does not run or is not healthy."""
    running = _find_server(server)
    if running is None:
        return None
    process, port = running
    try:
        # In this order: the second question reads the connections of every process, which takes a start's time if asked
        # again and again; and only the server of this checkout is sent what the third one may send.
        if _is_open(port) and _listens_on(process, port) and server.is_healthy(port):
            return address_at(server, port)
    # It has ended, or it is another user's, who is the only one to see its connections.
    except psutil.Error:
        pass
    return None


def _find_server(server: Server) -> tuple[psutil.Process, int] | None:
    """The process of the server and its port; None: the recorded process has ended, or there is no record."""
    record = _read_record(server)
    process = find_process(record.pid, record.created) if record else None
    return (process, record.port) if record and process else None


def _read_record(server: Server) -> ServerRecord | None:
    """The record of the server; None: it was stopped or never started, or the record is damaged."""
    return read_disposable_record(server.record, ServerRecord)


def _is_open(port: int) -> bool:
    """Whether anything takes connections at the port."""
    with socket.socket() as connection:
        connection.settimeout(CONNECT_SECONDS)
        return connection.connect_ex(("127.0.0.1", port)) == 0


def _listens_on(process: psutil.Process, port: int) -> bool:
    """Whether this process, or one that it has started, listens on the port, and not the server of another checkout."""
    return any(
        connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
        for member in (process, *process.children(recursive=True))
        for connection in member.net_connections(kind="tcp")
    )


def start(server: Server) -> str:
    """Start the project's own server, unless it runs already.

    Returns:
        Its address.

    Raises:
        RecastError: it is not installed, or does not become healthy; the message names its log.
    """
    STATE.mkdir(exist_ok=True)
    needs = tuple(start(needed) for needed in server.needs())
    # Two commands that need it at the same time start it once.
    with FileLock(STATE / f"{server.name}.lock"):
        record, address = _read_record(server), running_address(server)
        # It is started again if a server that it needs has moved, because another program took the port of that server
        # while it was dead.
        if address is None or record is None or record.needs != needs:
            address = _start_until_healthy(server, needs)
        # Also if it ran already: whoever started it may have been killed before this.
        port = running_port(server)
        if _read_noted_port(server) != port:
            _note_port(server, port)
        if server.prepare:
            server.prepare(port)
    return address


def _start_until_healthy(server: Server, needs: tuple[str, ...]) -> str:
    """Start a server, or start it again, and wait until it is healthy.

    Args:
        needs: the addresses of the servers that it needs.

    Returns:
        Its address.
    """
    reserved = reserve_port(server)
    stop(server)
    # The second attempt is on any port: another program may have taken the first one between the check and the start.
    for ports in ((reserved, server.port, 0), (0,)):
        process = _launch_process(server, _free_port(ports), needs)
        deadline = time.monotonic() + MAX_START_SECONDS
        while time.monotonic() < deadline and process.poll() is None:
            address = running_address(server)
            if address:
                return address
            with suppress(subprocess.TimeoutExpired):
                process.wait(POLL_SECONDS)
        stop(server)
    tail = server.log.read_text(encoding="utf-8", errors="replace").splitlines()[-5:]
    raise RecastError(f"{server.title} did not start; its log {server.log} ends with:\n  " + "\n  ".join(tail))


def _launch_process(server: Server, port: int, needs: tuple[str, ...]) -> subprocess.Popen[bytes]:
    """Start the process of a server, detached from this one, and record it."""
    launch = server.launch(port)
    environment = {**_server_environment(), MARK: _mark(server), **launch.environment}
    with server.log.open("ab") as log:
        process = subprocess.Popen(
            launch.command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={name: value for name, value in environment.items() if value is not None},
            pass_fds=launch.descriptors,
            **launch.options,
        )
    for descriptor in launch.descriptors:
        os.close(descriptor)
    write_json(server.record, asdict(ServerRecord(process.pid, creation_time(process.pid), port, needs)))
    return process


def stop(server: Server) -> bool:
    """Stop the project's own server and all processes that it has started.

    Returns:
        Whether it ran.

    Raises:
        RecastError: another user has started it.
    """
    running = _find_server(server)
    if running:
        process, _ = running
        leaders, family = [process], [process, *process.children(recursive=True)]
    else:
        leaders = family = _find_marked_processes(server)
    for leader in leaders:
        try:
            leader.send_signal(server.stop_signal)
        except psutil.NoSuchProcess:
            pass
        except psutil.AccessDenied:
            raise RecastError(
                f"{server.title} is a process of another user, {leader.pid}: stop it as that user"
            ) from None
    _, alive = psutil.wait_procs(family, timeout=10)
    for survivor in alive:
        with suppress(psutil.NoSuchProcess):
            survivor.kill()
    psutil.wait_procs(alive, timeout=5)
    server.record.unlink(missing_ok=True)
    return bool(family)


def _mark(server: Server) -> str:
    return str(server.record.absolute())


def _find_marked_processes(server: Server) -> list[psutil.Process]:
    """The processes of a server whose record does not exist or names a process that has ended.

    Whoever starts a server may be killed before the record is written. That server must not run on beside a second one.
    """
    marked = []
    for process in psutil.process_iter():
        # A process of another user, or one that has just ended.
        with suppress(psutil.AccessDenied, psutil.NoSuchProcess):
            if process.environ().get(MARK) == _mark(server):
                marked.append(process)
    return marked


def _server_environment() -> dict[str, str | None]:
    """The environment of a server: its state is below the project's root, and it reports nothing to its makers."""
    return {
        **os.environ,
        "PREFECT_HOME": str(STATE.absolute()),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        # Flow runs keep their place in the limit of their deployment while the server is restarted.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        # This would start seven processes for the evaluation of language models.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "DO_NOT_TRACK": "1",
    }


def _free_port(ports: Sequence[int]) -> int:
    """The first of these ports that is free; for 0, the system picks one."""
    for port in ports:
        with socket.socket() as probe:
            # Closed connections of a dead server on this port do not matter.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise RecastError("no port of 127.0.0.1 is free")
