"""Kill a grid again and again, and check that nothing is lost: a script that anyone can run.

    python -m tests.scenarios.kill_repeatedly --times 10

It trains a grid once undisturbed. Then, in another checkout, it starts the same pipeline, kills its whole process group
with SIGKILL at a random moment, and starts it again, until one is not killed. As long as kills remain, it begins anew
in an empty checkout. Each time the leaderboard must be the same, bit for bit, no finished trial may have been trained
again, and no run in MLflow may be left RUNNING.
"""

import argparse
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

from infra import server_process, servers
from tests.support import checkout, commands
from tests.support.checkout import Checkout

GRID = {
    "seeds": [0, 1],
    "architectures": {
        "persistence": {},
        "dense": {"units": [4, 8]},
        "gru": {"units": [4], "dropout": [0.0, 0.2]},
        "lstm": {"units": [4], "layers": [2]},
    },
}


def main(times: int, epochs: int, longest: float, seed: int) -> None:
    """Kill a grid so many times.

    Args:
        epochs: of each trial; more of them make the grid, and the time in which it can be hit, longer.
        longest: seconds after which a run is killed at the latest.

    Raises:
        AssertionError: something was lost or trained twice, or the leaderboard differs.
    """
    with tempfile.TemporaryDirectory() as folder, commands.forked_session():
        os.chdir(folder)
        api = f"{server_process.start(servers.PREFECT)}/api"
        try:
            _compare(Path(folder), api, times, epochs, longest, random.Random(seed))
        finally:
            server_process.stop(servers.PREFECT)


def _compare(folder: Path, api: str, times: int, epochs: int, longest: float, chance: random.Random) -> None:
    new = checkout.make_checkout(folder / "new", PREFECT_API_URL=api)
    new.settings(grid=GRID, train__epochs=epochs, runner__kind="local")
    undisturbed = new.copy(folder / "undisturbed")
    began = time.monotonic()
    undisturbed.recast("run")
    print(f"undisturbed: {len(_finished(undisturbed))} trials in {time.monotonic() - began:.0f} s", flush=True)

    kills = 0
    while kills < times:
        # From an empty store on: half of what can be lost is made in the first seconds.
        killed = new.copy(folder / f"killed {kills} times")
        done: dict[str, tuple[int, int]] = {}
        while kills < times:
            delay = chance.uniform(0.5, longest)
            process = killed.start(sys.executable, "-m", "flows", "run")
            try:
                printed, _ = process.communicate(timeout=delay)
                assert process.returncode == 0, printed
                break
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
            kills += 1
            done = _unchanged(done, _finished(killed))
            open_ = len(list(killed.file("trials").glob("*/*/checkpoint.pt")))
            print(f"kill {kills:3} after {delay:5.1f} s: {len(done)} trials finished, {open_} under way", flush=True)
        killed.recast("run")
        _unchanged(done, _finished(killed))
        _check_whole(killed, undisturbed)
        shutil.rmtree(killed.root)


def _check_whole(killed: Checkout, undisturbed: Checkout) -> None:
    """Check that a checkout looks as if its commands had never been killed."""
    board = "data/evaluate/demo/leaderboard.json"
    assert killed.file(board).read_bytes() == undisturbed.file(board).read_bytes(), "the leaderboards differ"
    assert "up to date" in killed.dvc("status")
    with closing(sqlite3.connect(killed.file("mlruns/mlflow.db"))) as database:
        (running,) = database.execute("select count(*) from runs where status = 'RUNNING'").fetchone()
    assert not running, f"{running} runs are RUNNING"
    # What DVC has left in its cache is removed by `recast gc`.
    left = [str(file) for file in killed.root.rglob("*.tmp") if ".dvc" not in file.parts]
    assert not left, f"{left} are left"
    shown = killed.run(sys.executable, "-m", "flows", "doctor", status=None)
    assert "broken" not in shown, shown
    print("whole: the same leaderboard, bit for bit; no finished trial trained again; no run RUNNING", flush=True)


def _finished(where: Checkout) -> dict[str, tuple[int, int]]:
    """The finished trials by key, with inode and time of the file that says so: a trial trained again has a new one."""
    files = where.file("trials").glob("*/*/trial.json")
    return {file.parent.name: (file.stat().st_ino, file.stat().st_mtime_ns) for file in files}


def _unchanged(before: dict[str, tuple[int, int]], now: dict[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    for key, identity in before.items():
        assert now.get(key) == identity, f"trial {key} was finished, and was trained again or lost"
    return now


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=250)
    parser.add_argument("--longest", type=float, default=25.0, help="seconds")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    main(chosen.times, chosen.epochs, chosen.longest, chosen.seed)
