"""The project's own servers: Prefect, MLflow, and the worker, which runs what Prefect schedules; with the profile
`servers` also their stores and Ray's head.

They run in the background and listen on loopback; their state is below the project's root. A server that runs is
reused, whichever process has started it; `recast down` stops it.
"""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from infra import laptop, postgres, s3, secrets
from infra.server_process import (
    Launch,
    Server,
    address_at,
    http_health_check,
    reserve_port,
    running_address,
    running_port,
    start,
)
from problems.errors import RecastError
from problems.passwords import hide_passwords
from project import profile
from project.paths import STATE
from project.profile import Profile


def _launch_prefect(port: int) -> Launch:
    command = (sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port))
    environment = {
        # Without it, the pages of a Prefect server on another port would show the content of the one on port 4200.
        "PREFECT_SERVER_UI_API_URL": f"http://127.0.0.1:{port}/api",
        # States of tasks that the database does not accept are written again five times, at this interval in seconds.
        # With the default of 5 s they are lost after half a minute.
        "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "15",
    }
    if profile.read_profile().name == "servers":
        database = postgres.address(running_port(POSTGRES), "prefect", "postgresql+asyncpg")
        # The states of many tasks are written at once. So those that came while the database was away are written soon
        # after it is back, instead of one at each interval.
        batches = {"PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "100"}
        environment |= {"PREFECT_SERVER_DATABASE_CONNECTION_URL": database, **postgres.client_environment(), **batches}
    return Launch(command, environment)


MLFLOW_CONNECTIONS = {"MLFLOW_SQLALCHEMYSTORE_POOL_SIZE": "40", "MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW": "80"}
"""The connections of each of MLflow's processes to its database.

A process answers 40 requests at the same time, and a request may take a second connection while it has one. With
SQLAlchemy's default of 15 connections, 64 workers that log block one another.
"""


def _launch_mlflow(port: int) -> Launch:
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    current = profile.read_profile()
    if current.name == "laptop":
        from stages.tracking import store  # noqa: PLC0415 - saves seconds: MLflow is loaded only where it is started

        # The server creates the tables one by one: if it were killed meanwhile, the database would be of no use.
        store.prepare_own_database()
        database, artifacts = f"sqlite:///{laptop.DATABASES['mlflow']}", str(laptop.ARTIFACTS)
        command += ["--workers", "1", "--backend-store-uri", database, "--default-artifact-root", artifacts]
        return Launch(command, MLFLOW_CONNECTIONS)
    database = postgres.address(running_port(POSTGRES), "mlflow")
    artifacts = current.s3 or f"s3://{s3.BUCKET}"
    endpoint = None if current.s3 else address_at(S3, running_port(S3))
    command += ["--backend-store-uri", database, "--artifacts-destination", f"{artifacts}/{s3.MLFLOW_FOLDER}"]
    environment = {
        "MLFLOW_WORKERS": os.environ.get("MLFLOW_WORKERS", "2"),
        **postgres.client_environment(),
        **s3.client_environment(endpoint, os.environ),
        **MLFLOW_CONNECTIONS,
    }
    return Launch(command, environment)


def _record_mlflow_address(port: int) -> None:
    """With the profile `servers`, have runs written through MLflow's server from now on."""
    current = profile.read_profile()
    if current.name == "servers":
        profile.save_profile(replace(current, mlflow=address_at(MLFLOW, port)))


def _prepare_object_store(port: int) -> None:
    """Create the bucket, and make it DVC's remote."""
    s3.create_bucket(address_at(S3, port))
    s3.configure_dvc_remote(f"s3://{s3.BUCKET}", address_at(S3, port))


def _launch_worker(port: int) -> Launch:
    return Launch((sys.executable, "-m", "flows.worker", str(port)))


def _launch_postgres(port: int) -> Launch:
    postgres.create_cluster()
    folder, descriptors = postgres.accessible_folder(postgres.DATA)
    return Launch(postgres.command(port, folder), options=postgres.process_user(), descriptors=descriptors)


def _launch_s3(port: int) -> Launch:
    return Launch(s3.command(port), s3.server_environment())


def _launch_ray(port: int) -> Launch:
    address = ("--head", "--block", "--node-ip-address", "127.0.0.1", "--port", str(port))
    options = ("--include-dashboard", "false", "--disable-usage-stats")
    return Launch((str(Path(sys.executable).parent / "ray"), "start", *address, *options), ray_environment())


def ray_environment() -> dict[str, str]:
    """The environment variables of Ray's head and of its clients. It accepts nothing from clients without them."""
    token = secrets.load_or_create_secret("ray", secrets.new_password).absolute()
    # Otherwise Ray replaces 127.0.0.1 by the address of the network card, and listens on all addresses.
    loopback = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    return loopback | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}


POSTGRES = Server(
    "postgres",
    "PostgreSQL",
    5433,
    _launch_postgres,
    postgres.is_ready,
    postgres.create_databases,
    "postgresql://",
    # Stop at once: with SIGTERM it would wait until the last client is gone.
    signal.SIGINT,
)
# That it listens is enough: a request without a key is refused.
S3 = Server("s3", "S3", 8333, _launch_s3, lambda port: True, _prepare_object_store)
PREFECT = Server(
    "prefect",
    "Prefect",
    4200,
    _launch_prefect,
    http_health_check("/api/health"),
    needs=lambda: _stores_in_use(POSTGRES),
)
MLFLOW = Server(
    "mlflow",
    "MLflow",
    5000,
    _launch_mlflow,
    http_health_check("/health"),
    _record_mlflow_address,
    needs=lambda: _stores_in_use(POSTGRES, S3),
)
# Its health check succeeds once Prefect's server knows it.
WORKER = Server("worker", "Worker", 0, _launch_worker, http_health_check("/health"))
# That it listens is all that can be checked without joining the cluster.
RAY = Server("ray", "Ray", 6379, _launch_ray, lambda port: True, scheme="")
SERVERS = (POSTGRES, S3, PREFECT, MLFLOW, WORKER, RAY)
"""All servers, in the order in which they are started."""


def servers_of_profile() -> tuple[Server, ...]:
    """The servers of this project's profile, in the order in which they are started."""
    current = profile.read_profile()
    if current.name == "laptop":
        return PREFECT, MLFLOW, WORKER
    left_out = [*([S3] if current.s3 else []), *([] if find_spec("ray") else [RAY])]
    return tuple(server for server in SERVERS if server not in left_out)


def switch_profile(name: Literal["laptop", "servers"] | None) -> None:
    """Use a profile in this project from now on.

    Args:
        name: of the profile; None: the one that the project has.

    Raises:
        RecastError: the servers of another profile run, or something is not installed.
    """
    current = profile.read_profile()
    name = name or current.name
    if name != current.name and (
        running := [server.title for server in servers_of_profile() if running_address(server)]
    ):
        raise RecastError(f"{' and '.join(running)} of the profile {current.name} run; `recast down` first")
    STATE.mkdir(exist_ok=True)
    if name == "laptop":
        if current.name == "servers":
            s3.configure_dvc_remote(None)
        # The external store is still the one of the profile `servers`.
        profile.save_profile(Profile(s3=current.s3))
        return
    if missing := [package for package in ("psycopg2", "boto3", "dvc_s3") if find_spec(package) is None]:
        raise RecastError(
            f"{', '.join(missing)}: not installed; `pip install -r requirements.lock` installs what the profile needs"
        )
    external = s3.external_store() or current.s3
    postgres.program("postgres")
    if external is None:
        s3.program()
    else:
        s3.configure_dvc_remote(external)
    profile.save_profile(Profile("servers", current.mlflow, external))


def _stores_in_use(*stores: Server) -> tuple[Server, ...]:
    """Those of the stores that the project's profile uses."""
    return tuple(store for store in stores if store in servers_of_profile())


def mlflow_page(path: str) -> str:
    """The address of one of MLflow's pages, on the server to which runs are written, or else on the project's own.

    It stays the same while the project's own server is down, because that keeps its port.

    Args:
        path: of the page, as MLflow writes it after the #.
    """
    named = os.environ.get("MLFLOW_TRACKING_URI") or profile.read_profile().mlflow or ""
    server = hide_passwords(named) if named.startswith("http") else address_at(MLFLOW, reserve_port(MLFLOW))
    return f"{server.rstrip('/')}/#{path}"


@contextmanager
def connect_object_store() -> Iterator[tuple[Any, str, str]]:
    """A client of the S3 store, the bucket, and the prefix of the project's keys. The project's own store is started.

    Raises:
        RecastError: it does not start, or a request of the client fails.
    """
    current = profile.read_profile()
    bucket, _, prefix = (current.s3 or f"s3://{s3.BUCKET}").removeprefix("s3://").partition("/")
    with s3.explain_errors(current.s3):
        yield s3.client(None if current.s3 else start(S3)), bucket, f"{prefix}/" if prefix else ""
