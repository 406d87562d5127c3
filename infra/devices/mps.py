"""NVIDIA's Multi-Process Service: processes that share a GPU run their kernels at the same time, not in turn.

Its daemon is started where its program is there and several trials share a GPU, and is stopped with the grid. Without
it, the driver gives each process the whole GPU for slices of time. https://docs.nvidia.com/deploy/mps/
"""

import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CONTROL = "nvidia-cuda-mps-control"
PIPES, LOGS = "CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"
ANSWER_SECONDS = 30

_lock = threading.Lock()
_users = 0
_folder: Path | None = None


@contextmanager
def shared_gpus(wanted: bool) -> Iterator[bool]:
    """Let the processes that start in the block share GPUs by MPS where that can be had; whether they do.

    A daemon that the environment names (CUDA_MPS_PIPE_DIRECTORY) is used, and left alone.

    Args:
        wanted: several trials share a GPU.
    """
    global _users
    with _lock:
        others = PIPES in os.environ and _folder is None
        own = wanted and not others and (_users > 0 or _start())
        _users += own
    try:
        yield wanted and (others or own)
    finally:
        with _lock:
            _users -= own
            if own and not _users:
                _stop()


def _start() -> bool:
    """Start the daemon; whether it runs."""
    global _folder
    if shutil.which(CONTROL) is None:
        return False
    # Not below the project: the path of a socket has a hundred characters at most.
    folder = Path(tempfile.mkdtemp(prefix="recast-mps-"))
    environment = {PIPES: str(folder), LOGS: str(folder)}
    try:
        ended = subprocess.run(
            [CONTROL, "-d"], env=os.environ | environment, capture_output=True, timeout=ANSWER_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        ended = None
    if ended is None or ended.returncode:
        shutil.rmtree(folder, ignore_errors=True)
        return False
    os.environ |= environment
    _folder = folder
    return True


def _stop() -> None:
    global _folder
    try:
        subprocess.run([CONTROL], input=b"quit\n", capture_output=True, timeout=ANSWER_SECONDS, check=False)
    finally:
        for name in (PIPES, LOGS):
            os.environ.pop(name, None)
        if _folder:
            shutil.rmtree(_folder, ignore_errors=True)
        _folder = None
