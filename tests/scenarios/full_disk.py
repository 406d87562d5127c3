"""Run commands on a disk that is nearly full, and check that each ends with one line and can be run again.

    python -m tests.scenarios.full_disk --sizes 20 [COMMAND...]

Each command starts on a disk with between 100 KiB and 20 MiB of free space, on which the project's servers write too.
It must end within a minute, without a traceback. Once there is space again, the same command must succeed, and leave
nothing half-written. Then there is new work for it, and less or more space; the project and its servers stay the same.
Only root may mount the disk, which is in memory.
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.scenarios.kill_at_writes import make_growing
from tests.support import checkout, commands
from tests.support.checkout import Checkout, write_table

SMALLEST_BYTES, LARGEST_BYTES = 100 << 10, 20 << 20
DISK_BYTES = 600 << 20


@dataclass(frozen=True)
class Work:
    """A command, and what there is to do for it.

    Attributes:
        arguments: of `recast`.
        prepare: brings a finished checkout into the state in which the command has something to do.
        add: gives it more to do, each time something else.
    """

    arguments: tuple[str, ...]
    prepare: Callable[[Checkout], None]
    add: Callable[[Checkout, int], None]


def _add_trials(project: Checkout, number: int) -> None:
    project.settings(grid__seeds=[2 + number])


def _add_rows(project: Checkout, number: int) -> None:
    write_table(project.file("incoming/demo.csv"), 672 + 24 * number)


COMMANDS = {
    "run": Work(("run",), lambda _: None, _add_trials),
    "retrain": Work(("retrain", "demo"), make_growing, _add_rows),
    "predict": Work(("predict", "demo"), make_growing, _add_rows),
}


def main(names: list[str], sizes: int, seconds: float, skipped: int = 0) -> None:
    """Run commands on a disk with little space.

    Args:
        sizes: how many amounts of free space are tried, from the smallest to the largest.
        seconds: how long a command may take.
        skipped: how many of the smallest amounts are left out.

    Raises:
        AssertionError: a command took too long, printed a traceback, or could not be run again.
    """
    ratio = LARGEST_BYTES / SMALLEST_BYTES
    amounts = [round(SMALLEST_BYTES * ratio ** (i / max(1, sizes - 1))) for i in range(sizes)]
    with tempfile.TemporaryDirectory() as folder, commands.forked_session():
        finished = checkout.make_checkout(Path(folder) / "finished")
        try:
            finished.recast("run")
        finally:
            finished.recast("down")
        for name in names:
            work = COMMANDS[name]
            with _mount(Path(folder) / "disk") as disk:
                project = finished.copy(disk / "checkout")
                try:
                    work.prepare(project)
                    for number, free in enumerate(amounts[skipped:]):
                        work.add(project, number)
                        _run_on_full_disk(project, work.arguments, free, seconds)
                finally:
                    project.recast("down", "--force")


@contextmanager
def _mount(folder: Path) -> Iterator[Path]:
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "none", str(folder)], check=True)
    try:
        yield folder
    finally:
        # A server that has just been stopped may take a moment to be gone.
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _run_on_full_disk(project: Checkout, arguments: tuple[str, ...], free: int, limit: float) -> None:
    """Run a command with this much space, and again with enough."""
    title = f"{arguments[0]} with {free >> 10:,} KiB"
    project.recast("up")
    filler = _leave_free(project.root, free)
    began = time.monotonic()
    status, printed = _run_with_limit(project, arguments, limit)
    seconds = time.monotonic() - began
    assert status is not None, f"{title}: it did not end within {limit:.0f} s:\n{printed}"
    assert "Traceback" not in printed, f"{title}:\n{printed}"
    last = printed.strip().splitlines()[-1][:110] if printed.strip() else ""
    print(f"{title}: status {status} after {seconds:.0f} s: {last}", flush=True)
    filler.unlink()
    project.recast("up")
    project.recast(*arguments)
    # What DVC has left in its cache is removed by `recast gc`.
    left = [str(file) for file in project.root.rglob("*.tmp") if ".dvc" not in file.parts]
    assert not left, f"{title}: {left} are left"


def _leave_free(folder: Path, free: int) -> Path:
    """A file that takes all space of the disk but this."""
    file = folder / "filler"
    status = os.statvfs(folder)
    with file.open("wb", buffering=0) as filler, contextlib.suppress(OSError):
        for _ in range((status.f_bavail * status.f_frsize - free) >> 12):
            filler.write(bytes(1 << 12))
    return file


def _run_with_limit(project: Checkout, arguments: tuple[str, ...], limit: float) -> tuple[int | None, str]:
    """The status of a command and what it has printed; the status is None if it did not end in time."""
    process = subprocess.Popen(
        [sys.executable, "-m", "flows", *arguments],
        cwd=project.root,
        env=project.environment | {"PYTHONFAULTHANDLER": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        printed, _ = process.communicate(timeout=limit)
        return process.returncode, printed
    except subprocess.TimeoutExpired:
        # It prints where each of its threads is.
        process.send_signal(signal.SIGABRT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        return None, process.communicate()[0]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("commands", nargs="*", default=[], help=f"of {', '.join(COMMANDS)}; left out: all")
    parser.add_argument("--sizes", type=int, default=20, help="how many amounts of free space are tried")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long a command may take")
    parser.add_argument("--skip", type=int, default=0, help="how many of the smallest amounts are left out")
    chosen = parser.parse_args()
    main(chosen.commands or list(COMMANDS), chosen.sizes, chosen.seconds, chosen.skip)
