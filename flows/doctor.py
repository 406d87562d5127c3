"""What is wrong on this machine and with the servers that it uses, and how to fix it: `recast doctor`.

Prefect, MLflow, DVC and PyTorch take seconds to load, and one of them may be what is broken: each check imports what it
needs.
"""

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

from packaging.requirements import Requirement
from sqlalchemy import text

from flows import REQUIREMENTS
from infra import postgres, secrets
from infra.server_process import Server, running_address, running_port
from infra.servers import POSTGRES, PREFECT, RAY, WORKER, ray_environment, servers_of_profile
from problems.errors import RecastError
from problems.passwords import hide_passwords
from project import paths, profile
from project.settings.loading import load_settings

SUPPORTED_PYTHONS = ((3, 11), (3, 13))
"""The oldest version and the newest."""

TIMEOUT_SECONDS = 10
"""How long MLflow may take to answer."""

RAY_SECONDS = 60
"""How long Ray may take to answer. Its own program asks, which takes seconds to start."""

SKEW_SECONDS = 30
"""Times from two machines are confusing if their clocks differ by more. S3 refuses requests that are 15 minutes off."""

LOW_BYTES, TOO_LOW_BYTES = 5 << 30, 1 << 30
"""With less free space than the first, a larger grid may not fit; with less than the second, almost nothing does."""

START_SERVERS = "`recast up`"


@dataclass(frozen=True)
class Finding:
    """The result of checking one thing.

    Attributes:
        subject: what was checked.
        result: what is so.
        state: well; advice: it works, but should be better; broken: something does not work until this is fixed.
        fix: what to do; empty if all is well.
    """

    subject: str
    result: str
    state: Literal["well", "advice", "broken"] = "well"
    fix: str = ""


def run_checks() -> Iterator[Finding]:
    """Check one thing after the other. A check that fails does not stop the others."""
    checks: dict[str, Callable[[], Iterator[Finding]]] = {
        "settings": _settings,
        "versions": _versions,
        "folders": _folders,
        "space": _space,
        "GPU": _gpu,
        "recurrent loops": _recurrent_loops,
        "PostgreSQL": _postgres,
        "Prefect": _prefect,
        "worker": _worker,
        "MLflow": _mlflow,
        "DVC remote": _dvc,
        "Ray": _ray,
    }
    for subject, check in checks.items():
        try:
            yield from check()
        except RecastError as error:
            yield Finding(subject, "cannot be used", "broken", str(error))
        # A check calls many libraries; whatever one of them raises is its result.
        except Exception as error:
            summary = (str(error).strip().splitlines() or [""])[0]
            fix = f"start or fix what it names ({START_SERVERS} starts the project's own)"
            yield Finding(subject, hide_passwords(f"{type(error).__name__}: {summary}"), "broken", fix)


def _settings() -> Iterator[Finding]:
    settings = load_settings()
    yield Finding("settings", f"params.yaml is valid; it runs {', '.join(settings.run)}")
    if shutil.which("git") is None:
        yield Finding("git", "is not installed", "broken", "`apt install git`")


def _versions() -> Iterator[Finding]:
    version = sys.version_info[:2]
    if not SUPPORTED_PYTHONS[0] <= version <= SUPPORTED_PYTHONS[1]:
        yield Finding("Python", platform.python_version(), "broken", "use Python 3.11 to 3.13")
    else:
        yield Finding("Python", platform.python_version())
    if not REQUIREMENTS.exists():
        yield Finding(
            "versions", f"there is no {REQUIREMENTS} to compare with", "advice", f"`git checkout {REQUIREMENTS}`"
        )
        return
    pinned = [
        Requirement(line) for line in REQUIREMENTS.read_text(encoding="utf-8").splitlines() if line[:1] not in "#"
    ]
    applicable = [requirement for requirement in pinned if requirement.marker is None or requirement.marker.evaluate()]
    different, missing = [], []
    for requirement in applicable:
        try:
            installed = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            missing.append(requirement.name)
            continue
        if not requirement.specifier.contains(installed, prereleases=True):
            expected = str(requirement.specifier).lstrip("=")
            different.append(f"{requirement.name} {installed} instead of {expected}")
    fix = f"`make setup`, or `pip install -r {REQUIREMENTS}`"
    if different:
        yield Finding("versions", "; ".join(different), "broken", fix)
    if missing:
        yield Finding("versions", f"not installed: {', '.join(missing)}", "advice", fix)
    if not different and not missing:
        yield Finding("versions", f"all {len(applicable)} are those of {REQUIREMENTS}")


def _folders() -> Iterator[Finding]:
    folders = (Path(), paths.STATE, paths.MLFLOW_STORE, Path("data"), Path("trials"), Path(".dvc"), Path(".git"))
    not_writable = [
        str(folder.absolute()) for folder in folders if folder.exists() and not os.access(folder, os.W_OK | os.X_OK)
    ]
    if not_writable:
        user = getpass.getuser()
        yield Finding(
            "folders", f"{user} may not write in {', '.join(not_writable)}", "broken", f"`chown -R {user}` them"
        )
    else:
        yield Finding("folders", "are writable")
    if not secrets.SECRETS_FOLDER.exists():
        return
    readable_by_others = [
        file.name
        for file in (secrets.SECRETS_FOLDER, *secrets.SECRETS_FOLDER.iterdir())
        if stat.S_IMODE(file.stat().st_mode) & (stat.S_IRWXG | stat.S_IRWXO)
    ]
    if readable_by_others:
        fix = f"`chmod -R go= {secrets.SECRETS_FOLDER}`"
        yield Finding("secrets", f"others may read {', '.join(readable_by_others)}", "broken", fix)
    else:
        yield Finding("secrets", "only their owner may read them")


def _space() -> Iterator[Finding]:
    """The free space of each file system, once."""
    seen = set()
    for folder in (Path(), Path(tempfile.gettempdir())):
        device = folder.stat().st_dev
        if device in seen:
            continue
        seen.add(device)
        free = shutil.disk_usage(folder).free
        result = f"{free / (1 << 30):.1f} GiB free at {folder.absolute()}"
        fix = "free some space: `recast gc` shows what can be removed without losing anything, and asks"
        state: Literal["well", "advice", "broken"] = "well"
        if free < LOW_BYTES:
            state = "broken" if free < TOO_LOW_BYTES else "advice"
        yield Finding("space", result, state, "" if state == "well" else fix)


def _gpu() -> Iterator[Finding]:
    import pynvml  # noqa: PLC0415 - saves seconds, see above
    import torch  # noqa: PLC0415 - saves seconds, see above

    try:
        pynvml.nvmlInit()
        present = int(pynvml.nvmlDeviceGetCount())
        pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        present = 0
    usable = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if usable:
        names = ", ".join(torch.cuda.get_device_name(device) for device in range(usable))
        yield Finding("GPU", f"{usable}: {names}; CUDA {torch.version.cuda}")
    elif present:
        fix = "install a CUDA build of PyTorch of the same version, or a driver that is new enough for it"
        yield Finding("GPU", f"{present}, but PyTorch {torch.__version__} cannot use any", "broken", fix)
    else:
        yield Finding("GPU", "none; the CPU trains")


def _recurrent_loops() -> Iterator[Finding]:
    """Whether compiled loops work here: the smallest is compiled unless it is kept, and called."""
    from architectures.kernels import compiled, loading  # noqa: PLC0415 - saves seconds, see above

    cost = "recurrent layers use PyTorch's loops, which take 2 to 5 times as long"
    reason = loading.find_obstacle()
    if reason is None and not loading.can_load("elman", "tanh", with_derivatives=False):
        reason = loading.find_obstacle()
    if reason is None:
        files = compiled.list_kept()
        size = sum(file.stat().st_size for file in files) / (1 << 20)
        folders = " and ".join(sorted({str(file.parent) for file in files}))
        count = f"{len(files)} {'loop is' if len(files) == 1 else 'loops are'}"
        yield Finding("recurrent loops", f"are compiled; {count} kept in {folders} ({size:.1f} MiB)")
    elif reason == loading.NO_FUSED_INSTRUCTIONS:
        yield Finding("recurrent loops", f"{cost}: {reason}", "advice", "train on a processor with AVX2 (since 2013)")
    elif reason == f"{loading.CHOICE} is pytorch":
        yield Finding("recurrent loops", f"{cost}: {reason}", "advice", f"unset {loading.CHOICE}")
    else:
        fix = "`make setup` installs the versions that work; NUMBA_CACHE_DIR names a folder that only you can write to"
        yield Finding("recurrent loops", f"{cost}: {reason}", "broken", fix)


def _own(server: Server) -> str | None:
    """The address of the project's own server of this kind; None: it uses or runs none."""
    return running_address(server) if server in servers_of_profile() else None


def _postgres() -> Iterator[Finding]:
    if POSTGRES not in servers_of_profile():
        return
    address = _own(POSTGRES)
    if address is None:
        yield Finding(POSTGRES.title, "does not run", "broken", f"{START_SERVERS}; its log is {POSTGRES.log}")
        return
    for database in postgres.DATABASES:
        engine = postgres.engine(running_port(POSTGRES), database)
        with engine.connect() as connection:
            version = connection.scalar(text("show server_version"))
            size = connection.scalar(text("select pg_size_pretty(pg_database_size(current_database()))"))
        engine.dispose()
        yield Finding(POSTGRES.title, f"{version} at {address}: database {database}, {size}")


def _prefect() -> Iterator[Finding]:
    from prefect import __version__  # noqa: PLC0415 - saves seconds, see above
    from prefect.client.orchestration import get_client  # noqa: PLC0415 - saves seconds, see above
    from prefect.settings import PREFECT_API_URL, get_current_settings, temporary_settings  # noqa: PLC0415 - saves seconds, see above

    named_address = get_current_settings().api.url
    own = _own(PREFECT)
    address = named_address or (own and f"{own}/api")
    if address is None:
        if profile.read_profile().name == "laptop":
            yield Finding("Prefect", "does not run; what needs it starts it")
        else:
            yield Finding("Prefect", "does not run", "broken", START_SERVERS)
        return
    with temporary_settings({PREFECT_API_URL: address}), get_client(sync_client=True) as client:
        error = client.api_healthcheck()
        if error is not None:
            fix = (
                f"start it, or unset PREFECT_API_URL to use the project's own ({START_SERVERS})"
                if named_address
                else START_SERVERS
            )
            yield Finding("Prefect", hide_passwords(f"{address} cannot be reached: {error}"), "broken", fix)
            return
        version = client.api_version()
        date = client.request("GET", "/health").headers.get("date")
    yield from _version("Prefect", address, version, __version__)
    yield from _clock("Prefect", date)


def _version(title: str, address: str, server: str, local: str) -> Iterator[Finding]:
    """That a server answers, and whether its version is the one of this machine."""
    result = hide_passwords(f"{server} at {address}")
    if server == local:
        yield Finding(title, result)
    else:
        fix = f"install {local} there, or restart it if it was started before {local} was installed"
        yield Finding(title, f"{result}; here it is {local}", "advice", fix)


def _clock(title: str, date: str | None) -> Iterator[Finding]:
    """How far this machine's clock is from a server's, whose answers have the time in the header `Date`."""
    if date is None:
        return
    skew = (datetime.now(UTC) - parsedate_to_datetime(date)).total_seconds()
    if abs(skew) > SKEW_SECONDS:
        result = f"{abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} {title}'s"
        yield Finding("clock", result, "broken", "set both by NTP: `timedatectl set-ntp true`")
    else:
        yield Finding("clock", f"within {SKEW_SECONDS} s of that of {title}'s machine")


def _worker() -> Iterator[Finding]:
    if running_address(WORKER):
        yield Finding("worker", f"runs; its log is {WORKER.log}")
    else:
        yield Finding("worker", "does not run, so nothing that is deployed is started", "advice", START_SERVERS)


def _mlflow() -> Iterator[Finding]:
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(TIMEOUT_SECONDS))
    import mlflow  # noqa: PLC0415 - saves seconds, see above
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository  # noqa: PLC0415 - saves seconds, see above
    from mlflow.utils.credentials import get_default_host_creds  # noqa: PLC0415 - saves seconds, see above
    from mlflow.utils.rest_utils import http_request  # noqa: PLC0415 - saves seconds, see above

    from stages.tracking import store as tracking  # noqa: PLC0415 - saves seconds, see above

    address = tracking.tracking_uri()
    client = tracking.get_client()
    if address.startswith("http"):
        # By MLflow's own client, which knows the user, the token and the certificates that the environment names.
        answer = http_request(get_default_host_creds(address), "/version", "GET", raise_on_status=False)
        if not answer.ok:
            result = hide_passwords(f"{address} answers with status {answer.status_code}")
            yield Finding("MLflow", result, "broken", "look at MLFLOW_TRACKING_URI, and at the server's log")
            return
        yield from _version("MLflow", address, answer.text, mlflow.__version__)
        yield from _clock("MLflow", answer.headers.get("date"))
    else:
        yield Finding("MLflow", hide_passwords(f"{mlflow.__version__} on {address}"))
    (first,) = client.search_experiments(max_results=1, order_by=["last_update_time DESC"])
    store = get_artifact_repository(f"{first.artifact_location}/.doctor-{uuid.uuid4().hex}", tracking_uri=address)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "written"
        file.write_text(f"{socket.gethostname()} {os.getpid()}", encoding="utf-8")
        store.log_artifact(str(file))
        read = Path(store.download_artifacts("written")).read_bytes()
        store.delete_artifacts()
        if read != file.read_bytes():
            yield Finding("artifacts", "are not read as they were written", "broken", "look at the store")
            return
    yield Finding("artifacts", hide_passwords(f"written and read below {first.artifact_location}"))


def _dvc() -> Iterator[Finding]:
    # One attempt: a person waits for the answer.
    os.environ.setdefault("AWS_MAX_ATTEMPTS", "1")
    from flows.dag import check_remote  # noqa: PLC0415 - DVC reads this variable when it is loaded

    content = b"recast"
    remote = check_remote(f".doctor-{uuid.uuid4().hex}", content)
    if remote is None:
        fix = "`dvc remote add --default NAME PLACE`, where others need the data or this disk may die"
        yield Finding("DVC remote", "none: the data are on this machine alone", "advice", fix)
        return
    address, read = remote
    if read == content:
        yield Finding("DVC remote", f"written and read at {address}")
    else:
        yield Finding("DVC remote", f"{address} returns other bytes than were written", "broken", "look at the store")


def _ray() -> Iterator[Finding]:
    from flows.runners.ray_cluster import check_listening, cluster_address  # noqa: PLC0415 - saves seconds, see above

    runner = load_settings().runner
    named_address = os.environ.get("RAY_ADDRESS") or runner.address
    if named_address is None and RAY not in servers_of_profile():
        return
    address = cluster_address(runner)
    if address is None and named_address is None:
        yield Finding("Ray", "does not run", "broken", f"{START_SERVERS}; its log is {RAY.log}")
        return
    if find_spec("ray") is None:
        fix = f"`pip install -r {REQUIREMENTS}`"
        yield Finding("Ray", f"is named ({address or named_address}), but not installed", "broken", fix)
        return
    if address is None:
        yield Finding("Ray", "starts on this machine when a grid is trained")
        return
    command = [str(Path(sys.executable).parent / "ray"), "health-check", "--address", address]
    own = ray_environment() if address == running_address(RAY) else {}
    try:
        if address.startswith("ray://"):
            # The health check asks another port, which may not be open from here.
            check_listening(address)
        else:
            subprocess.run(command, env=os.environ | own, capture_output=True, check=True, timeout=RAY_SECONDS)
    except (OSError, subprocess.CalledProcessError, subprocess.TimeoutExpired):
        fix = START_SERVERS if named_address is None else "start it, or correct RAY_ADDRESS or runner.address"
        yield Finding("Ray", f"{address} does not answer", "broken", fix)
        return
    yield Finding("Ray", f"{metadata.version('ray')}, its head at {address}")
