"""The Ray cluster that trials are trained on: the connection to it, and what travels to its nodes.

No file is shared. The source of this process travels by Ray's runtime environment; tables and windows travel as parcels
through the object store, once a node, which keeps them in a folder of its own (RECAST_CACHE).
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

from infra.devices.slots import cores
from infra.servers import RAY, ray_environment, url
from problems.errors import RecastError
from project.atomic import replaced_folder
from project.settings.sections import Runner
from project.source_code import PACKAGES, ROOT

# What is read when it is imported depends on the settings.
ray: Any = lazy_import("ray")

LOCK_FILE = Path("requirements.lock")

INHERITED = (
    "DO_NOT_TRACK",
    "MLFLOW_DISABLE_TELEMETRY",
    "PREFECT_CLIENT_MAX_RETRIES",
    "PREFECT_CLIENT_RETRY_EXTRA_CODES",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL",
    "PREFECT_LOGGING_INTERNAL_LEVEL",
    "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE",
    "PREFECT_SERVER_ANALYTICS_ENABLED",
)
"""Variables that nodes need before Prefect or MLflow are imported there; none is a secret."""

REACH_SECONDS = 10

LOOPBACK = re.compile(r"(ray://)?(127\.0\.0\.1|localhost):")

UNUSED_SECONDS = 7 * 24 * 3600
"""A node forgets tables that no bundle has used for so long."""

_lock = threading.Lock()
_users = 0
_own: list[Path] = []
"""The folder of the cluster that this process has started, if it has."""


def address(runner: Runner) -> str | None:
    """Where the cluster is: RAY_ADDRESS, else what the settings say, else the project's own head where one runs.

    None: this process starts one on this machine.
    """
    named = os.environ.get("RAY_ADDRESS") or runner.address or url(RAY)
    return None if named == "local" else named


@contextlib.contextmanager
def connected(runner: Runner, threads: int, gpus: int) -> Iterator[None]:
    """Connect to the cluster, or start one on loopback; the grids that run side by side in this process share it.

    Args:
        threads: of one trial.
        gpus: of this machine that trials may use.

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


def _connect(runner: Runner, threads: int, gpus: int) -> None:
    where = address(runner)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    options: dict[str, Any] = {"namespace": "recast", "log_to_driver": False, "logging_level": logging.ERROR}
    if where is not None and where == url(RAY):
        os.environ |= ray_environment()
    if where is None or LOOPBACK.match(where):
        # Else Ray takes the address of the network's card for 127.0.0.1, and listens on all.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    if where is None:
        # Whoever connects must have the token.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        # Not below the project: the path of a socket has a hundred characters at most.
        _own.append(Path(tempfile.mkdtemp(prefix="recast-ray-")))
        options |= {
            "num_cpus": (runner.workers or max(1, cores() // threads)) * threads,
            "num_gpus": gpus,
            "include_dashboard": False,
            "_temp_dir": str(_own[0]),
        }
    try:
        _probe(where)
        with _code() as folder:
            environment: dict[str, Any] = {
                "working_dir": str(folder),
                "env_vars": {name: os.environ[name] for name in INHERITED if name in os.environ},
            }
            if runner.install:
                environment["pip"] = str(LOCK_FILE.absolute())
            ray.init(where or "local", runtime_env=environment, **options)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        _disconnect()
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RecastError(
            f"Ray at {where or 'this machine'} cannot be reached: {first}. Look at `ray status` there, at RAY_ADDRESS "
            "and runner.address, and at RAY_AUTH_TOKEN where the cluster wants a token"
        ) from error


def _disconnect() -> None:
    """Leave the cluster, and end it if it is this process's own."""
    ray.shutdown()
    for folder in _own:
        shutil.rmtree(folder, ignore_errors=True)
    _own.clear()


def _probe(where: str | None) -> None:
    """Ask whether anything listens where the cluster is to be: Ray would ask for minutes.

    Raises:
        OSError: nothing does.
        ValueError: it is no address.
    """
    if where is None or where == "auto":
        return
    parts = urlsplit(where if "://" in where else f"ray://{where}")
    if parts.hostname is None or parts.port is None:
        raise ValueError("not host:port, ray://host:port or auto")
    socket.create_connection((parts.hostname, parts.port), timeout=REACH_SECONDS).close()


@contextlib.contextmanager
def _code() -> Iterator[Path]:
    """The source of this process in a folder of its own: Ray packs it, and names it by its content."""
    with tempfile.TemporaryDirectory(prefix="recast-code-") as folder:
        for package in PACKAGES:
            ignored = shutil.ignore_patterns("__pycache__", "*.pyc", "*.tmp")
            shutil.copytree(ROOT / package, Path(folder) / package, ignore=ignored)
        yield Path(folder)


class Parcel:
    """Files for the nodes, in the object store.

    It is no dataclass: Prefect would look into it, and fetch the files for every task.

    Attributes:
        digest: of the files' names and contents.
        files: a reference to a mapping of names to bytes.
    """

    def __init__(self, digest: str, files: Any) -> None:
        self.digest, self.files = digest, files


def send(folders: Sequence[Path]) -> Parcel:
    """Put the files of some folders, below the current one, into the object store."""
    files = {}
    digest = hashlib.sha256()
    for folder in folders:
        for file in sorted(each for each in folder.rglob("*") if each.is_file()):
            # Mapped, not read: Ray copies it once, to its shared memory.
            size = file.stat().st_size
            whole: NDArray[np.uint8] = np.asarray(np.memmap(file, np.uint8, "r")) if size else np.empty(0, np.uint8)
            files[file.as_posix()] = whole
            digest.update(f"{file.as_posix()} {size}\n".encode())
            digest.update(whole.data)
    return Parcel(digest.hexdigest()[:16], ray.put(files))


def cache() -> Path:
    """A node's own folder: RECAST_CACHE, else the user's."""
    named = os.environ.get("RECAST_CACHE")
    user = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(named) if named else Path(user) / "recast"


def unpack(parcel: Parcel) -> Path:
    """On a node: the folder in which a parcel's files are, unpacked by the first process of the node that needs them.

    What trains on them keeps its trials there too.
    """
    root = cache() / parcel.digest
    cache().mkdir(parents=True, exist_ok=True)
    with FileLock(cache() / f"{parcel.digest}.lock"):
        if not root.exists():
            _forget_unused()
            with replaced_folder(root) as folder:
                for name, content in ray.get(parcel.files).items():
                    file = folder / name
                    file.parent.mkdir(parents=True, exist_ok=True)
                    # Not by NumPy: of a full disk it says no more than that it has failed.
                    file.write_bytes(content.data)
        os.utime(root)
    return root


def _forget_unused() -> None:
    """Remove what no bundle has used for long."""
    for folder in cache().iterdir():
        # Another process of the node may remove it at the same time.
        with contextlib.suppress(FileNotFoundError):
            if folder.is_dir() and folder.stat().st_mtime < time.time() - UNUSED_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)
                folder.with_name(f"{folder.name}.lock").unlink(missing_ok=True)
