"""Run `recast`, and kill its process group at its n-th write to the current folder.

    python -m tests.support.kill_at_write N COUNTED COMMAND...

What counts as a write is every call that opens a file for writing, or that makes, renames, links or removes a file or a
folder. N = 0 kills nothing. The number of writes is noted in the file COUNTED, which is outside the current folder.
"""

import atexit
import os
import signal
import sys
from pathlib import Path
from typing import Any

CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate"}
IGNORED = (".lock", ".log", ".pyc")
"""The ends of the names of files whose writes change nothing: there would be too many of them."""


def count_writes(kill_at: int, counted: Path) -> None:
    """Count the writes of this process from now on, and kill it at one of them."""
    root = str(Path.cwd())
    writes = 0

    def on_event(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal writes
        if event == "open":
            path, _, flags = arguments
            if not isinstance(flags, int) or not flags & (os.O_WRONLY | os.O_RDWR):
                return
        elif event in CHANGES:
            path = arguments[0]
        else:
            return
        if not isinstance(path, str | os.PathLike):
            return
        name = str(Path(path).absolute())
        if not name.startswith(f"{root}/") or name.endswith(IGNORED):
            return
        writes += 1
        if writes == kill_at:
            os.killpg(os.getpgid(0), signal.SIGKILL)

    sys.addaudithook(on_event)
    atexit.register(lambda: counted.write_text(str(writes)))


if __name__ == "__main__":
    number, file, *command = sys.argv[1:]
    count_writes(int(number), Path(file))
    sys.argv = ["recast", *command]
    from flows.cli import main

    main()
