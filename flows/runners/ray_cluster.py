"""The Ray cluster that trains trials: the connection to it, and what is sent to its nodes.

The nodes share no file. The source code of this process travels in Ray's runtime environment. Tables and windows travel
as parcels through the object store, once to each node, which keeps them in a folder of its own (RECAST_CACHE).
"""

import contextlib
import hashlib
import logging
import os
import re
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from prefect.utilities.importtools import lazy_import

from flows import REQUIREMENTS
from infra.devices.slots import usable_cores
from infra.server_process import running_address
from infra.servers import RAY, ray_environment
from problems.errors import RecastError
from project.atomic import replace_folder
from project.settings.operation import RunnerSettings
from project.source_code import PACKAGES, ROOT

# Imported at its first use: Ray reads environment variables then, and `_connect` sets some of them.
ray: Any = lazy_import("ray")

INHERITED_VARIABLES = (
    "DO_NOT_TRACK",
    "MLFLOW_DISABLE_TELEMETRY",
    "PREFECT_CLIENT_MAX_RETRIES",
    "PREFECT_CLIENT_RETRY_EXTRA_CODES",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL",
    "PREFECT_LOGGING_INTERNAL_LEVEL",
    "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE",
    "PREFECT_SERVER_ANALYTICS_ENABLED",
)
"""Environment variables that nodes need before they import Prefect or MLflow. None is a secret."""

CONNECT_SECONDS = 10
"""How long to wait for the cluster's port to answer."""

LOOPBACK_ADDRESS = re.compile(r"(ray://)?(127\.0\.0\.1|localhost):")

KEEP_UNUSED_SECONDS = 7 * 24 * 3600
"""How long a node keeps tables that no bundle uses."""

_lock = threading.Lock()
_users = 0
_own_folders: list[Path] = []
"""The folder of the cluster that this process has started, if it has started one."""


def cluster_address(runner: RunnerSettings) -> str | None:
    """Where the cluster is: RAY_ADDRESS, else what the settings say, else the project's own head where one runs.

    None: there is none yet; this process starts one on this machine.
    """
    named = os.environ.get("RAY_ADDRESS") or runner.address or running_address(RAY)
    return None if named == "local" else named


@contextlib.contextmanager
def connect_cluster(runner: RunnerSettings, threads: int, gpus: int) -> Iterator[None]:
    """Connect to the cluster, or start one on loopback. Grids that run side by side in this process share it.

    Args:
        threads: that one trial uses.
        gpus: how many GPUs of this machine trials may use.

    Raises:
        RecastError: the cluster cannot be reached.
    """
    global _users
    with _lock:
        if not _users:
            _connect(runner, threads, gpus)
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users:
                _disconnect()


def _connect(runner: RunnerSettings, threads: int, gpus: int) -> None:
    address = cluster_address(runner)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    options: dict[str, Any] = {"namespace": "recast", "log_to_driver": False, "logging_level": logging.ERROR}
    if address is not None and address == running_address(RAY):
        os.environ |= ray_environment()
    if address is None or LOOPBACK_ADDRESS.match(address):
        # Otherwise Ray replaces 127.0.0.1 by the address of the network card, and listens on all addresses.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    if address is None:
        # Whoever connects needs the token.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        # Not below the project: the path of a socket must not be longer than about a hundred characters.
        _own_folders.append(Path(tempfile.mkdtemp(prefix="recast-ray-")))
        options |= {
            "num_cpus": (runner.workers or max(1, usable_cores() // threads)) * threads,
            "num_gpus": gpus,
            "include_dashboard": False,
            "_temp_dir": str(_own_folders[0]),
        }
    try:
        check_listening(address)
        with _copy_code() as folder:
            environment: dict[str, Any] = {
                "working_dir": str(folder),
                "env_vars": {name: os.environ[name] for name in INHERITED_VARIABLES if name in os.environ},
            }
            if runner.install:
                environment["pip"] = str(REQUIREMENTS.absolute())
            ray.init(address or "local", runtime_env=environment, **options)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        _disconnect()
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RecastError(
            f"Ray at {address or 'this machine'} cannot be reached: {first}. Look at `ray status` there, at "
            "RAY_ADDRESS and runner.address, and at RAY_AUTH_TOKEN where the cluster wants a token"
        ) from error


def _disconnect() -> None:
    """Disconnect from the cluster, and end it if this process has started it."""
    ray.shutdown()
    for folder in _own_folders:
        shutil.rmtree(folder, ignore_errors=True)
    _own_folders.clear()


def check_listening(address: str | None) -> None:
    """Check that something listens at an address: Ray itself would try for minutes.

    Raises:
        OSError: nothing listens there.
        ValueError: it is not an address.
    """
    if address is None or address == "auto":
        return
    parts = urlsplit(address if "://" in address else f"ray://{address}")
    if parts.hostname is None or parts.port is None:
        raise ValueError("not host:port, ray://host:port or auto")
    socket.create_connection((parts.hostname, parts.port), timeout=CONNECT_SECONDS).close()


@contextlib.contextmanager
def _copy_code() -> Iterator[Path]:
    """A temporary copy of the source code of this process: Ray packs it, and names the package by its content."""
    with tempfile.TemporaryDirectory(prefix="recast-code-") as folder:
        for package in PACKAGES:
            ignored = shutil.ignore_patterns("__pycache__", "*.pyc", "*.tmp")
            shutil.copytree(ROOT / package, Path(folder) / package, ignore=ignored)
        yield Path(folder)


class Parcel:
    """Files for the nodes, in the object store.

    Not a dataclass: Prefect would look into it, and fetch the files for every task.

    Attributes:
        digest: a hash of the files' names and contents.
        files: a reference to a mapping of names to bytes.
    """

    def __init__(self, digest: str, files: Any) -> None:
        self.digest, self.files = digest, files


def send_parcel(folders: Sequence[Path]) -> Parcel:
    """Put the files of some folders, below the current one, into the object store."""
    files = {}
    digest = hashlib.sha256()
    for folder in folders:
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            # Mapped into memory, not read: Ray copies it only once, to its shared memory.
            size = file.stat().st_size
            content: NDArray[np.uint8] = np.asarray(np.memmap(file, np.uint8, "r")) if size else np.empty(0, np.uint8)
            files[file.as_posix()] = content
            digest.update(f"{file.as_posix()} {size}\n".encode())
            digest.update(content.data)
    return Parcel(digest.hexdigest()[:16], ray.put(files))


def node_cache() -> Path:
    """The folder in which this node keeps what it was sent: RECAST_CACHE, else in the user's cache folder."""
    named = os.environ.get("RECAST_CACHE")
    user = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(named) if named else Path(user) / "recast"


def unpack_parcel(parcel: Parcel) -> Path:
    """On a node: the folder with a parcel's files. The first process of the node that needs them unpacks them.

    Trials that train on these files have their folders there too.
    """
    root = node_cache() / parcel.digest
    node_cache().mkdir(parents=True, exist_ok=True)
    with FileLock(node_cache() / f"{parcel.digest}.lock"):
        if not root.exists():
            _remove_unused()
            with replace_folder(root) as folder:
                for name, content in ray.get(parcel.files).items():
                    file = folder / name
                    file.parent.mkdir(parents=True, exist_ok=True)
                    # Not by NumPy, whose error does not say that the disk is full.
                    file.write_bytes(content.data)
        os.utime(root)
    return root


def _remove_unused() -> None:
    """Remove the files that no bundle has used for a long time."""
    for folder in node_cache().iterdir():
        # Another process of this node may remove it at the same time.
        with contextlib.suppress(FileNotFoundError):
            if folder.is_dir() and folder.stat().st_mtime < time.time() - KEEP_UNUSED_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)
                folder.with_name(f"{folder.name}.lock").unlink(missing_ok=True)
