"""What a command loads before it answers, and where its time goes."""

import re
import sys
from pathlib import Path

from tests.support.checkout import Checkout

SLOW_TO_LOAD = "torch mlflow prefect matplotlib polars numpy pandas sqlalchemy scipy httpx"

ANSWERS = """
import sys
from typer.testing import CliRunner
from flows.cli import app

for arguments in {commands!r}:
    answer = CliRunner().invoke(app, arguments)
    assert answer.exit_code == 0, (answer.output, answer.exception)
    loaded = set({slow!r}.split()) & set(sys.modules)
    assert not loaded, (arguments, loaded)
"""


def test_commands_that_only_show_something_load_no_library_that_takes_long(finished: Checkout) -> None:
    commands = [["--help"], ["leaderboard"], ["status"]]
    finished.run(sys.executable, "-c", ANSWERS.format(commands=commands, slow=SLOW_TO_LOAD))


def test_a_run_with_nothing_to_do_loads_no_library_that_takes_long(finished: Checkout, tmp_path: Path) -> None:
    checkout = finished.copy(tmp_path / "idle")
    checkout.run(sys.executable, "-c", ANSWERS.format(commands=[["run"]], slow=SLOW_TO_LOAD))


def read_timings(printed: str) -> dict[str, tuple[float, float, float | None]]:
    """The rows of the table of timings by phase: when it began, how long it took, and the processor's time."""
    row = re.compile(r"│\s*(\S.*?)\s*│\s*([\d.]+)\s*│\s*([\d.]+)\s*│\s*([\d.]*)\s*│")
    found = (row.fullmatch(line.strip()) for line in printed.partition("Timings")[2].splitlines())
    return {m[1]: (float(m[2]), float(m[3]), float(m[4]) if m[4] else None) for m in found if m}


def test_timings_tell_where_the_time_of_a_run_went(finished: Checkout, tmp_path: Path) -> None:
    checkout = finished.copy(tmp_path / "timed")
    assert "Timings" not in checkout.recast("run")
    assert list(read_timings(checkout.recast("run", "--timings"))) == ["import", "plan", "all"]
    checkout.settings(grid__seeds=[0, 1, 2], runner__kind="local")
    timings = read_timings(checkout.recast("run", "--timings"))
    in_order = ["import", "plan", "start", "train@demo", "train@demo: until the first trial begins"]
    assert [name for name in timings if name in in_order] == in_order
    assert {"record", "evaluate@demo", "train@demo: trials (2)"} <= timings.keys()
    begun, seconds, cpu_seconds = timings["all"]
    assert begun == 0
    assert cpu_seconds
    assert all(start + length <= seconds + 0.1 for start, length, _ in timings.values())
    train, trials = timings["train@demo"], timings["train@demo: trials (2)"]
    assert train[0] < trials[0]
    assert trials[1] < train[1]
