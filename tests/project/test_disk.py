"""What happens to a process whose disk is full."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.nodes import isolate_command

WAITS = """
import threading
from pathlib import Path
from project import disk
disk.FULL_SECONDS = 0.1
disk.end_while_disk_is_full(Path({folder!r}))
print("waiting", flush=True)
threading.Event().wait({seconds})
print("has space", flush=True)
"""


@pytest.mark.parametrize("size", ["64k", "64m"])
@pytest.mark.skipif(not isolate_command([]), reason="the system lets an ordinary user make no namespaces")
def test_a_process_that_waits_for_a_server_on_a_full_disk_ends_with_the_reason(size: str, tmp_path: Path) -> None:
    mount = f'mount -t tmpfs -o size={size} none "{tmp_path}" && exec "$@"'
    code = WAITS.format(folder=str(tmp_path), seconds=60 if size == "64k" else 3)
    ended = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", mount, "sh", sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    if size == "64k":
        assert ended.returncode == 1
        reason = f"error: {tmp_path}: the disk is full: free some space and run again; nothing was left half-written"
        assert ended.stderr.strip() == reason
    else:
        assert ended.stdout.split("\n")[1] == "has space", ended.stderr
