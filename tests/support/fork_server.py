"""A process that has loaded the libraries and forks one process for each command that the tests start.

    python fork_server.py SOCKET SESSION

Loading PyTorch, MLflow and Prefect takes a command seconds, which the tests would pay a hundred times. A forked process
has the libraries, but nothing of this project: it imports that from its own folder, as any process there does, because
tests edit the sources. Only the standard library is imported here before the libraries themselves.

A client connects to SOCKET, sends a `Request` and the command's input, output and errors, and receives one line when
the command has started and one when it has ended. What each command of a test took is noted in SOCKET's folder. The
server ends with the process SESSION.

pytest's own workers are forked here, too.
"""

import atexit
import faulthandler
import fcntl
import gc
import importlib
import json
import multiprocessing.process
import multiprocessing.util
import os
import runpy
import signal
import socket
import sys
import threading
import time
import traceback
import types
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

LIBRARIES = (
    "torch._dynamo",
    "torch._inductor.config",
    "numba",
    "mlflow.pyfunc",
    "mlflow.store.artifact.local_artifact_repo",
    "mlflow.store.db_migrations",
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.tracing.fluent",
    "prefect.client.orchestration",
    "prefect.flow_engine",
    "prefect.input.run_input",
    "prefect.task_engine",
    "prefect.task_runners",
    "dvc.cli.parser",
    "dvc.data_cloud",
    "dvc.lock",
    "dvc.repo.experiments",
    "dvc.repo.graph",
    "dvc.repo.index",
    "dvc.repo.metrics.show",
    "dvc.repo.plots",
    "dvc.repo.reproduce",
    "dvc.scm",
    "dvc.stage.cache",
    "alembic",
    "filelock",
    "git",
    "graphviz",
    "jinja2",
    "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_svg",
    "matplotlib.figure",
    "networkx",
    "pydantic.networks",
    "rich.progress",
    "rich.table",
    "ruamel.yaml",
    "safetensors.torch",
    "scipy.stats",
    "tenacity",
    "typer",
)
"""What takes time to load. None of it may start a thread of Python's or use an accelerator."""

# As `flows` and `stages.tracking` set it before the same imports.
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
}

DURATIONS = "durations.jsonl"
POLL_SECONDS = 1


@dataclass(frozen=True)
class Request:
    """A command to start.

    Attributes:
        command: its words; a forked one is `PYTHON -m MODULE ARGUMENT...` or `PYTHON -u -c CODE`.
        folder: in which it runs.
        environment: all its variables.
        is_forked: whether it has the libraries already; otherwise a new process is made of it, as by a shell.
    """

    command: list[str]
    folder: str
    environment: dict[str, str]
    is_forked: bool


@dataclass(frozen=True)
class Duration:
    """What a command has taken.

    Attributes:
        file: of the test that started it.
        seconds: of the wall clock.
        cpu_seconds: of itself and of all that it has started and waited for.
    """

    file: str
    command: str
    seconds: float
    cpu_seconds: float


def add_duration(folder: Path, duration: Duration) -> None:
    """Note what a command has taken."""
    # One write to the end of a file is never mixed with that of another process.
    with (folder / DURATIONS).open("ab", buffering=0) as file:
        file.write(json.dumps(asdict(duration)).encode() + b"\n")


def send_request(connection: socket.socket, request: Request, descriptors: Sequence[int]) -> None:
    """Ask the server to start a command with these descriptors as its input, its output and its errors."""
    socket.send_fds(connection, [b"\n"], descriptors)
    connection.sendall(json.dumps(asdict(request)).encode() + b"\n")


def load_libraries() -> None:
    """Import the libraries.

    Raises:
        RuntimeError: one of them has started a thread, which a forked process would not have.
    """
    gc.disable()
    os.environ.update(ENVIRONMENT)
    for library in LIBRARIES:
        importlib.import_module(library)
    # As `architectures.kernels.compiled` does for forked workers.
    target = importlib.import_module("numba.core.registry").cpu_target
    target.typing_context.refresh()
    target.target_context.refresh()
    gc.enable()
    if threading.active_count() > 1:
        raise RuntimeError(f"fork_server.py loads a library that starts threads: {threading.enumerate()}")
    # The collector would write to every object that it examines, and so copy the memory that the processes share.
    gc.freeze()


def serve(listener: socket.socket, session: int) -> Request:
    """Fork for each request. Returns in the forked processes only, in which the command has yet to be run."""
    # The system forgets a forked process that has ended: nobody waits for it.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    listener.settimeout(POLL_SECONDS)
    while True:
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            try:
                os.kill(session, 0)
            except ProcessLookupError:
                sys.exit()
            continue
        if os.fork() == 0:
            listener.close()
            return start_command(connection)
        connection.close()


def start_command(connection: socket.socket) -> Request:
    """Fork once more, and report to the client when the command begins and ends. Returns in the command's process."""
    began = time.monotonic()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _, descriptors, _, _ = socket.recv_fds(connection, 1, 3)
    with connection.makefile("rb") as incoming:
        request = Request(**json.loads(incoming.readline()))
    pid = os.fork()
    if pid == 0:
        connection.close()
        os.setsid()
        for number, descriptor in enumerate(descriptors):
            os.dup2(descriptor, number)
            os.close(descriptor)
        return request
    for descriptor in descriptors:
        os.close(descriptor)
    # The client may be gone: what it has started goes on all the same.
    with suppress(BrokenPipeError):
        connection.sendall(json.dumps({"pid": pid}).encode() + b"\n")
    _, status, usage = os.wait4(pid, 0)
    test = request.environment.get("PYTEST_CURRENT_TEST", "").partition("::")[0]
    words = " ".join(request.command[1:] if request.is_forked else request.command)
    cpu_seconds = usage.ru_utime + usage.ru_stime
    # A worker of pytest is not the command of a test.
    if test:
        add_duration(Path(sys.argv[1]).parent, Duration(test, words, time.monotonic() - began, cpu_seconds))
    with suppress(BrokenPipeError):
        connection.sendall(json.dumps({"status": os.waitstatus_to_exitcode(status)}).encode() + b"\n")
    os._exit(0)


def become(request: Request) -> None:
    """Make this process what a new one of the command would be after it has loaded the libraries."""
    os.chdir(request.folder)
    # A shell that starts the tests in the background has this ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if not request.is_forked:
        os.execvpe(request.command[0], request.command, request.environment)
    os.environ.clear()
    os.environ.update(request.environment)
    if os.environ.get("PYTHONFAULTHANDLER"):
        faulthandler.enable()
    _, option, *words = request.command
    module = words[0] if option == "-m" else ""
    sys.argv = words if module else ["-c"]
    sys.path[0] = request.folder
    if places := os.environ.get("PYTHONPATH"):
        sys.path[1:1] = places.split(os.pathsep)
    multiprocessing.process.ORIGINAL_DIR = request.folder
    # All processes would draw the same numbers; the module `random` sees to that itself.
    importlib.import_module("numpy").random.seed()
    if module.partition(".")[0] == "flows" or module in ("tests.support.kill_at_write", "tests.support.retrain_killed"):
        fork_worker_server()
        # It sets what Prefect reads when it is imported, which has happened here before.
        importlib.import_module("flows")
        importlib.import_module("prefect.context").refresh_global_settings_context()
        importlib.import_module("prefect.logging.configuration").setup_logging()


@dataclass(frozen=True)
class WorkerServer:
    """What becomes of the process that a command has in reserve.

    Attributes:
        code: of Python, which runs the server.
        descriptors: the numbers that the code knows its descriptors by.
        folder: in which it runs.
        environment: all its variables, of which PYTHONPATH is all of its import path.
        blocked: the numbers of the signals that it does not receive.
    """

    code: str
    descriptors: list[int]
    folder: str
    environment: dict[str, str]
    blocked: list[int]


def fork_worker_server() -> None:
    """Fork the process that a command may later need to fork its workers from: it, too, would load PyTorch and MLflow.

    It has to be a child of the command's process, and is forked before that has threads. It waits until
    `multiprocessing` starts such a process, or the command ends.
    """
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        become_worker_server(theirs)
    theirs.close()
    start_process = multiprocessing.util.spawnv_passfds

    def start(path: bytes, arguments: Sequence[Any], descriptors: Sequence[int]) -> int:
        code = str(arguments[-1])
        if "multiprocessing.forkserver" not in code:
            return start_process(path, arguments, descriptors)
        multiprocessing.util.spawnv_passfds = start_process
        blocked = [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, [])]
        server = WorkerServer(code, list(descriptors), str(Path.cwd()), dict(os.environ), blocked)
        socket.send_fds(ours, [b"\n"], descriptors)
        ours.sendall(json.dumps(asdict(server)).encode() + b"\n")
        ours.close()
        return pid

    multiprocessing.util.spawnv_passfds = start


def become_worker_server(connection: socket.socket) -> NoReturn:
    """Wait until the command needs this process, and be the server of its workers until that ends."""
    _, received, _, _ = socket.recv_fds(connection, 1, 8)
    if not received:
        os._exit(0)
    with connection.makefile("rb") as incoming:
        server = WorkerServer(**json.loads(incoming.readline()))
    connection.close()
    # First to numbers that nothing has, so that none is closed while it is yet to be moved.
    beyond = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 512) for descriptor in received]
    for descriptor in received:
        os.close(descriptor)
    for descriptor, number in zip(beyond, server.descriptors, strict=True):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(server.folder)
    os.environ.clear()
    os.environ.update(server.environment)
    sys.path[:] = server.environment["PYTHONPATH"].split(os.pathsep)
    signal.pthread_sigmask(signal.SIG_SETMASK, server.blocked)
    try:
        exec(server.code, {"__name__": "__main__"})
    except SystemExit:
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    os._exit(1)


ENDING: list[int] = []
"""The exit status of the command of this process, once it is known."""


def skip_cleanup() -> None:
    """End this process without freeing its memory, if its command has ended with a status.

    That would copy most of what it shares with the server, which takes longer than a small command.
    """
    if ENDING:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(ENDING[0] & 0xFF)


def listen(path: str) -> socket.socket:
    """Take connections at a path, which exists from then on. They wait until the libraries are loaded."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{path}.new")
    listener.listen(64)
    Path(f"{path}.new").rename(path)
    return listener


def run_as_python(path: str) -> None:
    """Be the `python` of a forked command, or of pytest: have what it runs forked, too, and end as that does."""
    words = [sys.executable, *sys.argv[1:]]
    if words[1:2] != ["-m"] and words[1:3] != ["-u", "-c"]:
        os.execv(words[0], words)
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    send_request(connection, Request(words, str(Path.cwd()), dict(os.environ), True), (0, 1, 2))
    answers = connection.makefile("rb")
    pid = int(json.loads(answers.readline())["pid"])
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: os.kill(pid, number))
    status = int(json.loads(answers.readline())["status"])
    if status < 0:
        # Nobody can handle SIGKILL.
        with suppress(OSError):
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    sys.exit(status)


if __name__ == "__main__":
    # What is registered first runs last.
    atexit.register(skip_cleanup)
    listener = listen(sys.argv[1])
    load_libraries()
    request = serve(listener, int(sys.argv[2]))
    become(request)
    try:
        if request.command[1] == "-m":
            runpy.run_module(request.command[2], run_name="__main__", alter_sys=True)
        else:
            sys.modules["__main__"] = types.ModuleType("__main__")
            exec(request.command[-1], vars(sys.modules["__main__"]))
    except SystemExit as ending:
        if ending.code is None or isinstance(ending.code, int):
            ENDING.append(ending.code or 0)
        raise
    ENDING.append(0)
