"""Run `recast`, and kill its process group at its n-th write.

    python -m tests.support.kill_at_write N COUNTED COMMAND...

A write is a call that opens a file of the current folder for writing, or that makes, renames, links or removes a file
or a folder there; a statement that may change a database, or the end of a transaction; or what is sent over HTTP to a
store. N = 0 kills nothing. The number of writes is noted in the file COUNTED, which is outside the current folder.
"""

import atexit
import os
import signal
import sys
from pathlib import Path
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import Engine

CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate"}
IGNORED = (".lock", ".log", ".pyc")
"""The ends of the names of files whose writes change nothing: there would be too many of them."""

READING = ("SELECT", "PRAGMA", "SHOW")


class WriteCounter:
    """Counts the writes of this process, and kills it at one of them.

    Attributes:
        kill_at: the number of the write at which it is killed, from 1.
        writes: how many there have been.
    """

    def __init__(self, kill_at: int) -> None:
        self.kill_at = kill_at
        self.writes = 0
        self._root = f"{Path.cwd()}/"

    def start(self) -> None:
        """Count from now on; it cannot be stopped."""
        sys.addaudithook(self._on_audit_event)
        event.listen(Engine, "before_cursor_execute", self._on_statement)
        event.listen(Engine, "commit", lambda _: self._count())

    def _count(self) -> None:
        self.writes += 1
        if self.writes == self.kill_at:
            os.killpg(os.getpgid(0), signal.SIGKILL)

    def _on_audit_event(self, name: str, arguments: tuple[Any, ...]) -> None:
        if name == "http.client.send":
            self._count()
            return
        if name == "open":
            path, _, flags = arguments
            if not isinstance(flags, int) or not flags & (os.O_WRONLY | os.O_RDWR):
                return
        elif name in CHANGES:
            path = arguments[0]
        else:
            return
        if not isinstance(path, str | os.PathLike):
            return
        file = str(Path(path).absolute())
        if file.startswith(self._root) and not file.endswith(IGNORED):
            self._count()

    def _on_statement(self, _connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if not statement.lstrip().upper().startswith(READING):
            self._count()


if __name__ == "__main__":
    number, counted, *command = sys.argv[1:]
    counter = WriteCounter(int(number))
    counter.start()
    atexit.register(lambda: Path(counted).write_text(str(counter.writes)))
    sys.argv = ["recast", *command]
    from flows.cli import main

    main()
