"""A plugin of pytest: what the processes of a session share, and a list of what took the most CPU time."""

import json
import os
import resource
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra import server_process, servers
from tests.support.commands import SESSION, preloaded_python, shared_folder
from tests.support.fork_server import DURATIONS, Duration, add_duration

FOLDER = "RECAST_TESTS_FOLDER"
"""The variable by which the workers find the folder that they share."""

SHOWN = 30


def is_worker(config: pytest.Config) -> bool:
    """Whether this is one of several processes that run tests, and not the one that started them."""
    return hasattr(config, "workerinput")


def pytest_configure(config: pytest.Config) -> None:
    if is_worker(config):
        SESSION.folder, SESSION.process = Path(os.environ[FOLDER]), os.getppid()
    else:
        # The path of a socket has a hundred characters at most.
        SESSION.folder, SESSION.process = Path(tempfile.mkdtemp(prefix="recast-tests-")), os.getpid()
        os.environ[FOLDER] = str(SESSION.folder)
        # The workers would load the libraries once more each; see tests/support/fork_server.py.
        if config.option.tx:
            config.option.tx = [f"popen//python={preloaded_python()}"] * len(config.option.tx)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop the server that the workers shared, and remove their folder."""
    if is_worker(config):
        return
    if (shared_folder() / "servers").exists():
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(shared_folder() / "servers")
            server_process.stop(servers.PREFECT)
    shutil.rmtree(shared_folder())


def _own_cpu_seconds() -> float:
    """Of this process, and of what it has started without the fork server."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + usage.ru_utime + usage.ru_stime


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    began, cpu_seconds = time.monotonic(), _own_cpu_seconds()
    result = yield
    file = item.nodeid.partition("::")[0]
    seconds, cpu_seconds = time.monotonic() - began, _own_cpu_seconds() - cpu_seconds
    add_duration(shared_folder(), Duration(file, "", seconds, cpu_seconds))
    return result


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show where the CPU time went: the commands, and the files of tests with all that they have started."""
    file = shared_folder() / DURATIONS
    if not file.exists():
        return
    durations = [Duration(**json.loads(line)) for line in file.read_text().splitlines()]
    commands = sorted(
        (duration for duration in durations if duration.command), key=lambda duration: -duration.cpu_seconds
    )
    total = sum(duration.cpu_seconds for duration in durations)
    terminalreporter.section(f"{total:.0f} s of CPU time, of which {len(commands)} commands took")
    for command in commands[:SHOWN]:
        line = f"{command.cpu_seconds:6.1f} s CPU {command.seconds:6.1f} s {command.file}: {command.command}"
        terminalreporter.write_line(line[:160].replace("\n", " "))
    by_file: Counter[str] = Counter()
    for duration in durations:
        by_file[duration.file] += duration.cpu_seconds
    terminalreporter.section("CPU time by file, with its commands")
    for test_file, seconds in by_file.most_common(SHOWN):
        terminalreporter.write_line(f"{seconds:6.1f} s {test_file}")
