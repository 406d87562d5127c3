"""Starting the project's commands.

In a session of pytest, and in `forked_session`, they are forked from a process that has loaded the libraries; see
tests/support/fork_server.py.
"""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from tests.support import fork_server
from tests.support.fork_server import Request

BIN = Path(sys.executable).parent
DVC = str(BIN / "dvc")
CAN_FORK = sys.platform == "linux"
"""Elsewhere, libraries of the system do not survive a fork."""

START_SECONDS = 120
POLL_SECONDS = 0.05


@dataclass
class Session:
    """A session of pytest, which may have several processes, or a script.

    Attributes:
        folder: of what they share; None: every command is a new process.
        process: the process that ends last.
    """

    folder: Path | None = None
    process: int = 0


SESSION = Session()


@contextmanager
def forked_session() -> Iterator[None]:
    """Have commands forked in a script, too, as in a session of pytest."""
    former = SESSION.folder, SESSION.process
    # The path of a socket has a hundred characters at most.
    with tempfile.TemporaryDirectory(prefix="recast-tests-") as folder:
        SESSION.folder, SESSION.process = Path(folder), os.getpid()
        try:
            yield
        finally:
            SESSION.folder, SESSION.process = former


def shared_folder() -> Path:
    """The folder of what all workers use. It is removed when the last has ended."""
    assert SESSION.folder
    return SESSION.folder


class Command:
    """A command that runs in a process group of its own; what it prints can be read.

    It is used like `subprocess.Popen`, which it cannot be: the process is no child of this one.
    """

    def __init__(self, request: Request) -> None:
        self._words = " ".join(request.command)
        self._connection = _connect()
        reading, writing = os.pipe()
        with Path(os.devnull).open("rb") as nothing:
            fork_server.send_request(self._connection, request, (nothing.fileno(), writing, writing))
        os.close(writing)
        self.stdout = os.fdopen(reading, encoding="utf-8", errors="replace")
        self.returncode: int | None = None
        # Without a buffer: `select` would not know of an answer in it.
        self._answers = self._connection.makefile("rb", buffering=0)
        self.pid = self._receive()["pid"]
        self._printed: list[str] = []
        self._reader: threading.Thread | None = None

    def _receive(self) -> dict[str, int]:
        line = self._answers.readline()
        assert line, f"the fork server has ended; {SESSION.folder}/fork_server.log says why"
        answer: dict[str, int] = json.loads(line)
        return answer

    def poll(self) -> int | None:
        """The exit status, as of `subprocess.Popen`; None: it has not ended."""
        if self.returncode is None and select.select([self._connection], [], [], 0)[0]:
            self.returncode = self._receive()["status"]
            self._answers.close()
            self._connection.close()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end.

        Raises:
            subprocess.TimeoutExpired: it has not ended.
        """
        if self.returncode is None:
            select.select([self._connection], [], [], timeout)
        status = self.poll()
        if status is None:
            raise subprocess.TimeoutExpired(self._words, timeout or 0)
        return status

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """What it prints until it, and all that it has started, have closed their output; then its end.

        Raises:
            subprocess.TimeoutExpired: it has not ended. This can be called again.
        """
        if self._reader is None:
            self._reader = threading.Thread(target=lambda: self._printed.append(self.stdout.read()), daemon=True)
            self._reader.start()
        self._reader.join(timeout)
        if self._reader.is_alive():
            raise subprocess.TimeoutExpired(self._words, timeout or 0)
        self.wait(timeout)
        return self._printed[0], None

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def start(
    command: list[str], folder: Path, environment: dict[str, str], new_process: bool
) -> Command | subprocess.Popen[str]:
    """Start a command.

    Args:
        new_process: do not fork it from a process that has loaded the libraries.
    """
    is_python = command[0] in (sys.executable, DVC)
    if SESSION.folder is None or not is_python or not CAN_FORK:
        return subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
    environment = environment | {"PYTEST_CURRENT_TEST": os.environ.get("PYTEST_CURRENT_TEST", "")}
    if new_process:
        return Command(Request(command, str(folder), environment, is_forked=False))
    if command[0] == DVC:
        # So that DVC finds the `python` that runs the stages by way of the server, too.
        environment["PATH"] = f"{SESSION.folder}{os.pathsep}{environment['PATH']}"
        command = [sys.executable, "-m", "dvc", *command[1:]]
    return Command(Request(command, str(folder), environment, is_forked=command[1] == "-m"))


def preloaded_python() -> str:
    """An interpreter that has loaded the libraries already, if the system can fork it. It takes `-m MODULE` alone."""
    return str(_start_fork_server().with_name("python")) if CAN_FORK else sys.executable


def _connect() -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(_start_fork_server()))
    return connection


def _start_fork_server() -> Path:
    """Start the session's fork server, unless it runs; its socket."""
    path = shared_folder() / "commands.socket"
    with FileLock(shared_folder() / "fork_server.lock"):
        if not path.exists():
            _start_server(path)
    return path


def _start_server(path: Path) -> None:
    script = Path(fork_server.__file__)
    python = path.with_name("python")
    python.write_text(
        f"#!{sys.executable} -IS\n"
        f"import sys\nsys.path.append({str(script.parent)!r})\n"
        f"import fork_server\nfork_server.run_as_python({str(path)!r})\n"
    )
    python.chmod(0o755)
    log = path.with_name("fork_server.log")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))}
    with log.open("wb") as file:
        server = subprocess.Popen(
            [sys.executable, str(script), str(path), str(SESSION.process)],
            env=inherited | {"PREFECT_HOME": str(path.parent / "prefect")},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    deadline = time.monotonic() + START_SECONDS
    pause = threading.Event()
    while not path.exists():
        assert server.poll() is None, log.read_text()
        assert time.monotonic() < deadline, f"the fork server did not start: {log.read_text()}"
        pause.wait(POLL_SECONDS)
