"""What is wrong on this machine and with what it is connected to, and how to mend it: `recast doctor`."""

import getpass
import os
import platform
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import httpx
from packaging.requirements import Requirement
from sqlalchemy import text

from infra import postgres, secrets
from infra.servers import MLFLOW, POSTGRES, PREFECT, RAY, WORKER, Server, port_of, ray_environment, url, used
from problems.errors import RecastError
from project import paths, profile
from project.redaction import without_passwords
from project.settings.loading import load_settings

LOCK = Path("requirements.lock")
PYTHONS = ((3, 11), (3, 13))

TIMEOUT_SECONDS = 10
RAY_SECONDS = 60
"""Ray's own program is asked, which takes seconds to begin."""

SKEW_SECONDS = 30
"""Clocks that differ by more confuse who reads times of two machines; S3 refuses what is a quarter of an hour off."""

LOW_BYTES, TOO_LOW_BYTES = 5 << 30, 1 << 30
"""With less free space a larger grid may not fit; with less than the second, next to nothing will."""

UP = "`recast up`"


@dataclass(frozen=True)
class Finding:
    """What was found out about one thing.

    Attributes:
        state: well; advice: it works, but should be better; broken: something does not work until it is mended.
        mend: what to do; nothing when it is well.
    """

    what: str
    found: str
    state: Literal["well", "advice", "broken"] = "well"
    mend: str = ""


def examine() -> Iterator[Finding]:
    """Look at everything, one thing after the other; nothing that is out of order keeps it from the rest."""
    checks: dict[str, Callable[[], Iterator[Finding]]] = {
        "settings": _settings,
        "versions": _versions,
        "folders": _folders,
        "space": _space,
        "GPU": _gpu,
        "PostgreSQL": _postgres,
        "Prefect": _prefect,
        "worker": _worker,
        "MLflow": _mlflow,
        "DVC remote": _dvc,
        "Ray": _ray,
    }
    for what, check in checks.items():
        try:
            yield from check()
        except RecastError as error:
            yield Finding(what, "cannot be used", "broken", str(error))
        # A check asks libraries of many makers; whatever one of them raises is what was found.
        except Exception as error:
            said = (str(error).strip().splitlines() or [""])[0]
            mend = f"start or mend what it names ({UP} starts the project's own)"
            yield Finding(what, without_passwords(f"{type(error).__name__}: {said}"), "broken", mend)


def _settings() -> Iterator[Finding]:
    settings = load_settings()
    yield Finding("settings", f"params.yaml is right; it runs {', '.join(settings.run)}")
    if shutil.which("git") is None:
        yield Finding("git", "is not installed", "broken", "`apt install git`")


def _versions() -> Iterator[Finding]:
    ours = sys.version_info[:2]
    if not PYTHONS[0] <= ours <= PYTHONS[1]:
        yield Finding("Python", platform.python_version(), "broken", "use Python 3.11 to 3.13")
    else:
        yield Finding("Python", platform.python_version())
    if not LOCK.exists():
        yield Finding("versions", f"there is no {LOCK} here to compare with", "advice", f"`git checkout {LOCK}`")
        return
    pinned = [Requirement(line) for line in LOCK.read_text(encoding="utf-8").splitlines() if line[:1] not in "#"]
    wanted = [each for each in pinned if each.marker is None or each.marker.evaluate()]
    others, missing = [], []
    for requirement in wanted:
        try:
            found = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            missing.append(requirement.name)
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            others.append(f"{requirement.name} {found} instead of {str(requirement.specifier).lstrip('=')}")
    mend = f"`make setup`, or `pip install -r {LOCK}`"
    if others:
        yield Finding("versions", "; ".join(others), "broken", mend)
    if missing:
        yield Finding("versions", f"not installed: {', '.join(missing)}", "advice", mend)
    if not others and not missing:
        yield Finding("versions", f"all {len(wanted)} are those of {LOCK}")


def _folders() -> Iterator[Finding]:
    folders = (Path(), paths.STATE, paths.MLFLOW_STORE, Path("data"), Path("trials"), Path(".dvc"), Path(".git"))
    closed = [
        str(folder.absolute()) for folder in folders if folder.exists() and not os.access(folder, os.W_OK | os.X_OK)
    ]
    if closed:
        me = getpass.getuser()
        yield Finding("folders", f"{me} may not write in {', '.join(closed)}", "broken", f"`chown -R {me}` them")
    else:
        yield Finding("folders", "can be written")
    if not secrets.FOLDER.exists():
        return
    open_to_others = [
        each.name
        for each in (secrets.FOLDER, *secrets.FOLDER.iterdir())
        if stat.S_IMODE(each.stat().st_mode) & (stat.S_IRWXG | stat.S_IRWXO)
    ]
    if open_to_others:
        mend = f"`chmod -R go= {secrets.FOLDER}`"
        yield Finding("secrets", f"others may read {', '.join(open_to_others)}", "broken", mend)
    else:
        yield Finding("secrets", "only their owner reads them")


def _space() -> Iterator[Finding]:
    """Of each file system once."""
    seen = set()
    for folder in (Path(), Path(tempfile.gettempdir())):
        device = folder.stat().st_dev
        if device in seen:
            continue
        seen.add(device)
        free = shutil.disk_usage(folder).free
        found = f"{free / (1 << 30):.1f} GiB free at {folder.absolute()}"
        mend = "free some: `dvc gc --workspace` drops data that nothing here names"
        state: Literal["well", "advice", "broken"] = "well"
        if free < LOW_BYTES:
            state = "broken" if free < TOO_LOW_BYTES else "advice"
        yield Finding("space", found, state, "" if state == "well" else mend)


def _gpu() -> Iterator[Finding]:
    import pynvml
    import torch

    try:
        pynvml.nvmlInit()
        there = int(pynvml.nvmlDeviceGetCount())
        pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        there = 0
    used_ = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if used_:
        names = ", ".join(torch.cuda.get_device_name(device) for device in range(used_))
        yield Finding("GPU", f"{used_}: {names}; CUDA {torch.version.cuda}")
    elif there:
        mend = "install a CUDA build of PyTorch of the same version, or a driver that is new enough for it"
        yield Finding("GPU", f"{there} of which PyTorch {torch.__version__} uses none", "broken", mend)
    else:
        yield Finding("GPU", "none; the CPU trains")


def _own(server: Server) -> str | None:
    """The address of a server of the project's own, if it uses and runs one."""
    return url(server) if server in used() else None


def _postgres() -> Iterator[Finding]:
    if POSTGRES not in used():
        return
    address = _own(POSTGRES)
    if address is None:
        yield Finding(POSTGRES.title, "does not run", "broken", f"{UP}; its log is {POSTGRES.log}")
        return
    for database in postgres.DATABASES:
        engine = postgres.engine(port_of(POSTGRES), database)
        with engine.connect() as connection:
            version = connection.scalar(text("show server_version"))
            size = connection.scalar(text("select pg_size_pretty(pg_database_size(current_database()))"))
        engine.dispose()
        yield Finding(POSTGRES.title, f"{version} at {address}: database {database}, {size}")


def _prefect() -> Iterator[Finding]:
    from prefect import __version__
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, get_current_settings, temporary_settings

    named = get_current_settings().api.url
    own = _own(PREFECT)
    address = named or (own and f"{own}/api")
    if address is None:
        if profile.read().name == "laptop":
            yield Finding("Prefect", "does not run; what needs it starts it")
        else:
            yield Finding("Prefect", "does not run", "broken", UP)
        return
    with temporary_settings({PREFECT_API_URL: address}), get_client(sync_client=True) as client:
        error = client.api_healthcheck()
        if error is not None:
            mend = f"start it, or unset PREFECT_API_URL to use the project's own ({UP})" if named else UP
            yield Finding("Prefect", without_passwords(f"{address} cannot be reached: {error}"), "broken", mend)
            return
        theirs = client.api_version()
        date = client._client.get("/health").headers.get("date")
    yield from _served("Prefect", address, theirs, __version__)
    yield from _clock("Prefect", date)


def _served(title: str, address: str, theirs: str, ours: str) -> Iterator[Finding]:
    """That a server answers, and whether its version is this machine's."""
    found = without_passwords(f"{theirs} at {address}")
    if theirs == ours:
        yield Finding(title, found)
    else:
        mend = f"install {ours} there, or begin it again if it is older than what is installed here"
        yield Finding(title, f"{found}; here it is {ours}", "advice", mend)


def _clock(title: str, date: str | None) -> Iterator[Finding]:
    """How far this machine's clock is from a server's, by the header `Date` of an answer."""
    if date is None:
        return
    skew = (datetime.now(UTC) - parsedate_to_datetime(date)).total_seconds()
    if abs(skew) > SKEW_SECONDS:
        found = f"{abs(skew):.0f} s {'before' if skew > 0 else 'behind'} {title}'s"
        yield Finding("clock", found, "broken", "set both by NTP: `timedatectl set-ntp true`")
    else:
        yield Finding("clock", f"that of {title}'s machine to {SKEW_SECONDS} s")


def _worker() -> Iterator[Finding]:
    if url(WORKER):
        yield Finding("worker", f"runs; its log is {WORKER.log}")
    else:
        yield Finding("worker", "does not run: nothing that is deployed is started", "advice", UP)


def _mlflow() -> Iterator[Finding]:
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(TIMEOUT_SECONDS))
    import mlflow
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    from stages.tracking import store as tracking

    address = tracking.uri()
    client = tracking.client()
    if address.startswith("http"):
        answer = httpx.get(f"{address}/version", timeout=TIMEOUT_SECONDS, trust_env=address != url(MLFLOW))
        yield from _served("MLflow", address, answer.text, mlflow.__version__)
        yield from _clock("MLflow", answer.headers.get("date"))
    else:
        yield Finding("MLflow", without_passwords(f"{mlflow.__version__} on {address}"))
    (first,) = client.search_experiments(max_results=1, order_by=["last_update_time DESC"])
    store = get_artifact_repository(f"{first.artifact_location}/.doctor-{uuid.uuid4().hex}", tracking_uri=address)
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "written"
        written.write_text(f"{socket.gethostname()} {os.getpid()}", encoding="utf-8")
        store.log_artifact(str(written))
        read = Path(store.download_artifacts("written")).read_bytes()
        store.delete_artifacts()
        if read != written.read_bytes():
            yield Finding("artifacts", "come back otherwise than they were written", "broken", "look at the store")
            return
    yield Finding("artifacts", without_passwords(f"written and read below {first.artifact_location}"))


def _dvc() -> Iterator[Finding]:
    # Asked once: a person waits for the answer.
    os.environ.setdefault("AWS_MAX_ATTEMPTS", "1")
    from dvc.config import NoRemoteError
    from dvc.repo import Repo

    with Repo() as repo:
        try:
            store = repo.cloud.get_remote_odb()
        except NoRemoteError:
            mend = "`dvc remote add --default NAME PLACE`, where others need the data or this disk may die"
            yield Finding("DVC remote", "none: the data are on this machine alone", "advice", mend)
            return
        place = store.fs.join(store.path, f".doctor-{uuid.uuid4().hex}")
        store.fs.makedirs(store.path, exist_ok=True)
        store.fs.pipe_file(place, b"recast")
        read = store.fs.cat_file(place)
        store.fs.rm_file(place)
        address = store.fs.unstrip_protocol(store.path)
    if read == b"recast":
        yield Finding("DVC remote", f"written and read at {address}")
    else:
        yield Finding("DVC remote", f"{address} gives back other than what was written", "broken", "look at the store")


def _ray() -> Iterator[Finding]:
    named = os.environ.get("RAY_ADDRESS")
    if named is None and RAY not in used():
        return
    address = named or _own(RAY)
    if address is None:
        yield Finding("Ray", "does not run", "broken", f"{UP}; its log is {RAY.log}")
        return
    if find_spec("ray") is None:
        yield Finding("Ray", f"is named, {address}, and not installed", "broken", f"`pip install -r {LOCK}`")
        return
    asked = [str(Path(sys.executable).parent / "ray"), "health-check", "--address", address.removeprefix("ray://")]
    own = {} if named else ray_environment()
    try:
        subprocess.run(asked, env=os.environ | own, capture_output=True, check=True, timeout=RAY_SECONDS)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        mend = UP if named is None else "start it, or unset RAY_ADDRESS"
        yield Finding("Ray", f"{address} does not answer", "broken", mend)
        return
    yield Finding("Ray", f"{metadata.version('ray')}, its head at {address}")
