"""NVIDIA's Multi-Process Service (MPS): processes that share a GPU run their kernels at the same time, not in turn.

Its daemon runs while a grid is trained of which several trials share a GPU, if its program is installed. Without it,
the driver gives each process the whole GPU for slices of time. https://docs.nvidia.com/deploy/mps/
"""

import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from project.atomic import replace_file
from project.paths import STATE

CONTROL = "nvidia-cuda-mps-control"
PIPES, LOGS = "CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"
ANSWER_SECONDS = 30

FOLDER_RECORD = STATE / "mps"
"""Names the folder of the daemon, so that the next grid ends a daemon whose grid was killed."""

_lock = threading.Lock()
_users = 0
_folder: Path | None = None


@contextmanager
def multi_process_service(shares_gpus: bool) -> Iterator[bool]:
    """Run the daemon until the block ends, so that the processes that start in it share GPUs by MPS.

    A daemon that the environment names (CUDA_MPS_PIPE_DIRECTORY) is used, but neither started nor stopped.

    Args:
        shares_gpus: several trials share a GPU; else nothing is done.

    Yields:
        Whether MPS is used.
    """
    global _users
    with _lock:
        is_foreign = PIPES in os.environ and _folder is None
        is_own = shares_gpus and not is_foreign and (_users > 0 or _start_daemon())
        _users += is_own
    try:
        yield shares_gpus and (is_foreign or is_own)
    finally:
        with _lock:
            _users -= is_own
            if is_own and not _users:
                _stop_daemon()


def _start_daemon() -> bool:
    """Start the daemon, and return whether it runs."""
    global _folder
    if shutil.which(CONTROL) is None:
        return False
    if FOLDER_RECORD.exists():
        with suppress(OSError, subprocess.TimeoutExpired):
            _quit(FOLDER_RECORD.read_text(encoding="utf-8"))
    # Not below the project: the path of a socket may have no more than a hundred characters.
    folder = Path(tempfile.mkdtemp(prefix="recast-mps-"))
    with replace_file(FOLDER_RECORD) as temporary:
        temporary.write_text(str(folder), encoding="utf-8")
    environment = {PIPES: str(folder), LOGS: str(folder)}
    try:
        result = subprocess.run(
            [CONTROL, "-d"], env=os.environ | environment, capture_output=True, timeout=ANSWER_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        result = None
    if result is None or result.returncode:
        shutil.rmtree(folder, ignore_errors=True)
        return False
    os.environ |= environment
    _folder = folder
    return True


def _stop_daemon() -> None:
    global _folder
    try:
        _quit(os.environ[PIPES])
    finally:
        for name in (PIPES, LOGS):
            os.environ.pop(name, None)
        if _folder:
            shutil.rmtree(_folder, ignore_errors=True)
        _folder = None
        FOLDER_RECORD.unlink(missing_ok=True)


def _quit(folder: str) -> None:
    """End the daemon of a folder, if it runs."""
    environment = os.environ | {PIPES: folder}
    subprocess.run(
        [CONTROL], input=b"quit\n", env=environment, capture_output=True, timeout=ANSWER_SECONDS, check=False
    )
