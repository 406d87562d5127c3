"""The project's own servers, in the background, on loopback, their state below the project's root: Prefect, MLflow and
the worker, which runs what Prefect schedules; with the profile `servers` also the stores below them and Ray's head.

A server that runs is reused, whichever process started it; `recast down` stops it.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import httpx
import psutil
from filelock import FileLock
from pydantic import TypeAdapter, ValidationError

from infra import laptop, postgres, s3, secrets
from problems.errors import RecastError
from project import profile
from project.atomic import write_json
from project.paths import STATE
from project.profile import Profile

START_SECONDS = 240
"""A server that is not healthy by then will not be."""

SAME_PROCESS_SECONDS = 2
"""How far apart two readings of when a process began may be."""


@dataclass(frozen=True)
class Launch:
    """How a server's process is begun.

    Attributes:
        environment: what it needs beside the inherited one; None: a variable that it must not have.
        options: more arguments of `subprocess`.
        descriptors: what it inherits, and has alone from then on.
    """

    command: Sequence[str]
    environment: Mapping[str, str | None] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    descriptors: tuple[int, ...] = ()


def _answers(page: str) -> Callable[[int], bool]:
    """Whether a page says that all is well."""

    def asked(port: int) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{port}{page}", timeout=5, trust_env=False).is_success
        except httpx.TransportError:
            return False

    return asked


@dataclass(frozen=True)
class Server:
    """How a server is started and asked for its health.

    Attributes:
        port: taken when it is free; otherwise any that is. 0: any.
        launch: what is begun, by the port.
        healthy: whether it does its work, by the port; its own process listens there.
        prepare: what is done once it is healthy, by the port.
        scheme: of its address.
        end: the signal by which it is stopped.
    """

    name: str
    title: str
    port: int
    launch: Callable[[int], Launch]
    healthy: Callable[[int], bool]
    prepare: Callable[[int], None] | None = None
    scheme: str = "http://"
    end: signal.Signals = signal.SIGTERM

    @property
    def record(self) -> Path:
        return STATE / f"{self.name}.json"

    @property
    def log(self) -> Path:
        return STATE / f"{self.name}.log"


@dataclass(frozen=True)
class Record:
    """What is noted of a server that was started.

    Attributes:
        created: when its process began, in seconds of the system's clock.
        needs: the addresses, at that time, of the servers that it needs.
    """

    pid: int
    created: float
    port: int
    needs: tuple[str, ...] = ()


def _prefect(port: int) -> Launch:
    command = (sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port))
    environment = {
        # Without it, the pages of a Prefect server on another port would show what the one on 4200 has.
        "PREFECT_SERVER_UI_API_URL": f"http://127.0.0.1:{port}/api",
        # The state of a task that its database did not take is written again five times, one so often: by the default
        # of 5 s it is forgotten after half a minute.
        "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "15",
    }
    if profile.read().name == "servers":
        database = postgres.address(port_of(POSTGRES), "prefect", "postgresql+asyncpg")
        # The states of many tasks at once: those that came while the database was away are there a moment after it is
        # back, and not one each time.
        at_once = {"PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "100"}
        environment |= {"PREFECT_SERVER_DATABASE_CONNECTION_URL": database, **postgres.environment(), **at_once}
    return Launch(command, environment)


CONNECTIONS_OF_MLFLOW = {"MLFLOW_SQLALCHEMYSTORE_POOL_SIZE": "40", "MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW": "80"}
"""Of each of its processes to the database. It answers 40 requests at once, and a request may take a second connection
while it holds one: with SQLAlchemy's 15 in all, 64 workers that log stop one another."""


def _mlflow(port: int) -> Launch:
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    noted = profile.read()
    if noted.name == "laptop":
        database, artifacts = f"sqlite:///{laptop.DATABASES['mlflow']}", str(laptop.ARTIFACTS)
        options = ("--workers", "1", "--backend-store-uri", database, "--default-artifact-root", artifacts)
        return Launch((*command, *options), CONNECTIONS_OF_MLFLOW)
    database = postgres.address(port_of(POSTGRES), "mlflow")
    artifacts = noted.s3 or f"s3://{s3.BUCKET}"
    endpoint = None if noted.s3 else _address(S3, port_of(S3))
    options = ("--workers", "2", "--backend-store-uri", database, "--artifacts-destination", f"{artifacts}/mlflow")
    environment = {**postgres.environment(), **s3.environment(endpoint, os.environ), **CONNECTIONS_OF_MLFLOW}
    return Launch((*command, *options), environment)


def _note_mlflow(port: int) -> None:
    """Have runs written by the server from now on, where a laptop's database is not theirs."""
    noted = profile.read()
    if noted.name == "servers":
        profile.note(replace(noted, mlflow=_address(MLFLOW, port)))


def _prepare_s3(port: int) -> None:
    s3.prepare(_address(S3, port))
    s3.be_remote(f"s3://{s3.BUCKET}", _address(S3, port))


def _worker(port: int) -> Launch:
    return Launch((sys.executable, "-m", "flows.worker", str(port)))


def _postgres(port: int) -> Launch:
    postgres.create()
    folder, descriptors = postgres.opened(postgres.DATA)
    return Launch(postgres.command(port, folder), options=postgres.owner(), descriptors=descriptors)


def _s3(port: int) -> Launch:
    return Launch(s3.command(port), s3.served_as())


def _ray(port: int) -> Launch:
    address = ("--head", "--block", "--node-ip-address", "127.0.0.1", "--port", str(port))
    options = ("--include-dashboard", "false", "--disable-usage-stats")
    return Launch((str(Path(sys.executable).parent / "ray"), "start", *address, *options), ray_environment())


def ray_environment() -> dict[str, str]:
    """What Ray's head and whoever speaks with it must have in the environment; from others it takes nothing."""
    token = secrets.kept("ray", secrets.password).absolute()
    # Without the first, Ray takes the address of the network's card for 127.0.0.1, and listens on all.
    loopback = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    return loopback | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}


POSTGRES = Server(
    "postgres",
    "PostgreSQL",
    5433,
    _postgres,
    postgres.is_ready,
    postgres.prepare,
    "postgresql://",
    # At once: by any other it would wait until the last client is gone.
    signal.SIGINT,
)
# Without a key it answers that it wants one.
S3 = Server("s3", "S3", 8333, _s3, lambda port: True, _prepare_s3)
PREFECT = Server("prefect", "Prefect", 4200, _prefect, _answers("/api/health"))
MLFLOW = Server("mlflow", "MLflow", 5000, _mlflow, _answers("/health"), _note_mlflow)
# It answers for its health once Prefect's server knows it.
WORKER = Server("worker", "Worker", 0, _worker, _answers("/health"))
# Its own process listens: that is all that can be asked without becoming a part of the cluster.
RAY = Server("ray", "Ray", 6379, _ray, lambda port: True, scheme="")
SERVERS = (POSTGRES, S3, PREFECT, MLFLOW, WORKER, RAY)
"""All that there are, in the order in which they are started."""


def used() -> tuple[Server, ...]:
    """The servers of this project's profile, in the order in which they are started."""
    noted = profile.read()
    if noted.name == "laptop":
        return PREFECT, MLFLOW, WORKER
    left_out = [*([S3] if noted.s3 else []), *([] if find_spec("ray") else [RAY])]
    return tuple(server for server in SERVERS if server not in left_out)


def use(name: Literal["laptop", "servers"] | None) -> None:
    """Have this project use a profile from now on; None: the one that it has.

    Raises:
        RecastError: the servers of another one run, or something is not installed.
    """
    noted = profile.read()
    wanted = name or noted.name
    if wanted != noted.name and (running := [server.title for server in used() if url(server)]):
        raise RecastError(f"{' and '.join(running)} of the profile {noted.name} run; `recast down` first")
    STATE.mkdir(exist_ok=True)
    if wanted == "laptop":
        if noted.name == "servers":
            s3.be_remote(None)
        profile.note(Profile())
        return
    if missing := [each for each in ("psycopg2", "boto3", "dvc_s3") if find_spec(each) is None]:
        raise RecastError(f"{', '.join(missing)}: not installed; `pip install -r requirements.lock` has what it needs")
    other = s3.other() or noted.s3
    postgres.program("postgres")
    if other is None:
        s3.program()
    else:
        s3.be_remote(other)
    profile.note(Profile("servers", noted.mlflow, other))


def _needs(server: Server) -> tuple[Server, ...]:
    """What has to run before a server starts."""
    stores = {PREFECT: (POSTGRES,), MLFLOW: (POSTGRES, S3)}
    return tuple(each for each in stores.get(server, ()) if each in used())


def _address(server: Server, port: int) -> str:
    return f"{server.scheme}127.0.0.1:{port}"


def port_of(server: Server) -> int:
    """The port of a server that runs."""
    found = _noted(server)
    assert found is not None, f"{server.name} does not run"
    return found[1]


def url(server: Server) -> str | None:
    """The address of the project's own server, or None where none runs and answers."""
    found = _noted(server)
    if found is None:
        return None
    process, port = found
    try:
        return _address(server, port) if _listens(process, port) and server.healthy(port) else None
    except psutil.NoSuchProcess:
        return None


def _noted(server: Server) -> tuple[psutil.Process, int] | None:
    """The server's process, if the one that was noted lives, and its port."""
    noted = _record(server)
    if noted is None:
        return None
    try:
        process = psutil.Process(noted.pid)
    except psutil.NoSuchProcess:
        return None
    # Another process may have the number by now; the system's clock tells its age to a second or so.
    return (process, noted.port) if abs(process.create_time() - noted.created) < SAME_PROCESS_SECONDS else None


def _record(server: Server) -> Record | None:
    """What is noted of the server, or None where it was stopped or never started."""
    try:
        return TypeAdapter(Record).validate_json(server.record.read_bytes())
    except (FileNotFoundError, ValidationError):
        # A damaged one is none any more: the next start writes another.
        return None


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
        RecastError: it is not installed, or does not become healthy; the message names its log.
    """
    STATE.mkdir(exist_ok=True)
    needs = tuple(start(needed) for needed in _needs(server))
    # Two commands that need it at once start one.
    with FileLock(STATE / f"{server.name}.lock"):
        noted, address = _record(server), url(server)
        # It begins anew where a store of its own has moved: another program took the port while the store was dead.
        if address is None or noted is None or noted.needs != needs:
            address = _started(server, needs)
        if server.prepare:
            # Also where it ran already: who started it may have been killed before this.
            server.prepare(port_of(server))
    return address


def object_store() -> tuple[Any, str, str]:
    """A client of the S3 store, the bucket, and what our keys in it begin with. The project's own store is started.

    Raises:
        RecastError: it does not start.
    """
    noted = profile.read()
    bucket, _, prefix = (noted.s3 or f"s3://{s3.BUCKET}").removeprefix("s3://").partition("/")
    return s3.client(None if noted.s3 else start(S3)), bucket, f"{prefix}/" if prefix else ""


def _started(server: Server, needs: tuple[str, ...]) -> str:
    """The address of a server, begun or begun anew with what it needs at these addresses, once it is healthy."""
    # Where it was before it died: what runs still looks for it there. One that was stopped has left no record.
    last = _record(server)
    stop(server)
    # The second time on any port: the first may have been taken by another between the look and the start.
    for preferred in (last.port if last else server.port, 0):
        process = _launch(server, _free_port(preferred), needs)
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and process.poll() is None:
            address = url(server)
            if address:
                return address
            time.sleep(0.1)
        stop(server)
    tail = server.log.read_text(encoding="utf-8", errors="replace").splitlines()[-5:]
    raise RecastError(f"{server.title} did not start; its log {server.log} ends with:\n  " + "\n  ".join(tail))


def _launch(server: Server, port: int, needs: tuple[str, ...]) -> subprocess.Popen[bytes]:
    """Start the server's process, detached from this one, and note it."""
    begun = server.launch(port)
    environment = {**_environment(), **begun.environment}
    with server.log.open("ab") as log:
        process = subprocess.Popen(
            begun.command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={name: value for name, value in environment.items() if value is not None},
            pass_fds=begun.descriptors,
            **begun.options,
        )
    for descriptor in begun.descriptors:
        os.close(descriptor)
    created = psutil.Process(process.pid).create_time()
    write_json(server.record, asdict(Record(process.pid, created, port, needs)))
    return process


def stop(server: Server) -> bool:
    """Stop the project's own server and all that it started; whether there was one."""
    found = _noted(server)
    if found is None:
        server.record.unlink(missing_ok=True)
        return False
    process, _ = found
    family = [process, *process.children(recursive=True)]
    process.send_signal(server.end)
    _, alive = psutil.wait_procs(family, timeout=10)
    for each in alive:
        each.kill()
    psutil.wait_procs(alive, timeout=5)
    server.record.unlink(missing_ok=True)
    return True


def _environment() -> dict[str, str | None]:
    """The environment of a server: its state below the project's root, nothing told to its makers."""
    return {
        **os.environ,
        "PREFECT_HOME": str(STATE.absolute()),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        # What runs keeps its place in the limit of its deployment while the server begins anew.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        # Seven processes that wait for the evaluation of language models.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
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
