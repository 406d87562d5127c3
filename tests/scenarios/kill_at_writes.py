"""Kill commands at their writes, and check that the next attempt ends as if nothing had happened.

    python -m tests.scenarios.kill_at_writes --times 10 [COMMAND...]

Each command runs once undisturbed, and its writes are counted. Then it is killed at writes chosen at random, each time
in a copy of the same checkout, and run again. The files of the results, the champions and the registry, and after a
migration every row and object of the servers, must be the same as after the undisturbed run, no run in MLflow may be
left RUNNING, no temporary file may be left, and `recast doctor` must find nothing broken (servers that have been
stopped, as after a migration, are what it would find).
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from contextlib import chdir, closing
from dataclasses import dataclass
from pathlib import Path
from sqlite3 import connect
from typing import Any

from sqlalchemy import MetaData, select

from infra import postgres, server_process, servers
from infra.laptop import DATABASES
from infra.s3 import DATA as OBJECTS
from tests.support import checkout, commands
from tests.support.checkout import Checkout, copy_database, write_table

RESULTS = (
    "params.yaml",
    "dvc.lock",
    "data/raw/demo/**/*.csv",
    "data/raw/demo/*.dvc",
    "data/evaluate/*/leaderboard.json",
    "trials/demo/*/trial.json",
    "trials/demo/*/weights.safetensors",
    "mlruns/artifacts/restored",
)
"""Files that are the same after every run, bit for bit."""


@dataclass(frozen=True)
class Attack:
    """A command that is killed.

    Attributes:
        arguments: of `recast`.
        prepare: brings a finished checkout into the state in which the command starts.
        is_repeatable: it may be run again when it has done all of its work.
        has_servers: the project's own servers have data, and run after the command.
    """

    arguments: tuple[str, ...]
    prepare: Callable[[Checkout], None]
    is_repeatable: bool = True
    has_servers: bool = False


def _empty(project: Checkout) -> None:
    """A project in which nothing has run."""
    for name in ("mlruns", "data/ingest", "data/normalize", "data/window", "data/train", "data/evaluate", "trials"):
        shutil.rmtree(project.file(name))
    project.file("dvc.lock").unlink()
    shutil.rmtree(project.file(".dvc/cache"))


def make_growing(project: Checkout) -> None:
    """A problem that grows, with new rows, and a champion that a new grid beats."""
    project.file("incoming").mkdir()
    project.settings(
        problems__demo__window={"lookback": "3d", "step": "1h", "delay": "12h"},
        # The rows are old, and none of what is killed here is about that.
        problems__demo__fresh={"kind": "folder", "path": "incoming", "max_age": "10000d"},
        retrain={"windows": 50, "slice_windows": 10, "patience": "5m"},
        grid={"seeds": [0], "architectures": {"seasonal_naive": {"days": [3]}}},
    )
    project.run("git", "init", "--quiet")
    project.run("git", "add", "params.yaml", "dvc.yaml", "stages", ".gitignore", ".dvc")
    project.run("git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "-m", "begin")
    project.recast("retrain", "demo")
    project.settings(grid={"seeds": [0], "architectures": {"seasonal_naive": {"days": [1]}}})
    write_table(project.file("incoming/demo.csv"), 672)


def _make_growing_and_retrain(project: Checkout) -> None:
    make_growing(project)
    project.recast("retrain", "demo")


def _back_up(project: Checkout) -> None:
    """A backup, and a project that has changed since."""
    restored = project.file("mlruns/artifacts/restored")
    restored.write_text("then")
    project.recast("backup", "then.tar")
    restored.write_text("now")


def _add_file(project: Checkout) -> None:
    write_table(project.file("other.csv"), 700)


def _make_laptop_and_servers(project: Checkout) -> None:
    """A project with empty servers, and a copy of it as on a laptop, from where its stores are migrated."""
    laptop = project.copy(project.root.parent / "laptop")
    for name, file in DATABASES.items():
        laptop.file(file.parent.name).mkdir(exist_ok=True)
        copy_database(Path(file) if name == "prefect" else project.file(str(file)), laptop.file(str(file)))
    # A project's own servers: not the one that the other commands use.
    del project.environment["PREFECT_API_URL"]
    project.recast("up", "--profile", "servers")
    project.recast("down")


ATTACKS = {
    "run": Attack(("run",), _empty),
    "refresh": Attack(("refresh", "demo"), make_growing),
    "retrain": Attack(("retrain", "demo"), make_growing),
    "promote": Attack(("promote", "demo", "1"), _make_growing_and_retrain),
    "restore": Attack(("restore", "then.tar", "--replace"), _back_up),
    "migrate": Attack(("migrate", "../laptop"), _make_laptop_and_servers, has_servers=True),
    "new": Attack(("new", "other.csv", "--name", "other", "--target", "T (degC)"), _add_file, is_repeatable=False),
}


def main(names: list[str], times: int, seed: int) -> None:
    """Attack commands.

    Args:
        times: how often each is killed.

    Raises:
        AssertionError: a command that was run again did not end as the undisturbed one.
    """
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder, commands.forked_session():
        os.chdir(folder)
        api = f"{server_process.start(servers.PREFECT)}/api"
        try:
            finished = checkout.make_checkout(Path(folder) / "finished", PREFECT_API_URL=api)
            finished.recast("run")
            for name in names:
                _attack(name, ATTACKS[name], finished, Path(folder), times, chance)
        finally:
            server_process.stop(servers.PREFECT)


def _attack(name: str, attack: Attack, finished: Checkout, folder: Path, times: int, chance: random.Random) -> None:
    base = finished.copy(folder / name / "base")
    attack.prepare(base)
    undisturbed = base.copy(folder / name / "undisturbed", with_servers=attack.has_servers)
    writes = _run_killed(undisturbed, attack, 0)
    expected = _read_state(undisturbed, attack)
    print(f"{name}: {writes} writes", flush=True)
    for number in sorted(chance.sample(range(1, writes + 1), min(times, writes))):
        killed = base.copy(folder / name / f"killed at {number}", with_servers=attack.has_servers)
        _run_killed(killed, attack, number)
        if attack.is_repeatable or _read_state(killed, attack) != expected:
            killed.recast(*attack.arguments)
        state = _read_state(killed, attack)
        different = [key for key in expected.keys() | state.keys() if state.get(key) != expected.get(key)]
        assert not different, f"{name} killed at write {number}: {different} differ"
        # What DVC has left in its cache is removed by `recast gc`.
        left = [str(file) for file in killed.root.rglob("*.tmp") if ".dvc" not in file.parts]
        assert not left, f"{name} killed at write {number}: {left} are left"
        if not attack.has_servers:
            shown = killed.run(sys.executable, "-m", "flows", "doctor", status=None)
            assert "broken" not in shown, f"{name} killed at write {number}:\n{shown}"
        print(f"  killed at write {number}: the same as undisturbed", flush=True)
        shutil.rmtree(killed.root)


def _run_killed(project: Checkout, attack: Attack, number: int) -> int:
    """Run a command that is killed at its n-th write, or not at all; the number of writes if it ended."""
    counted = project.root.parent / f"{project.root.name}.count"
    words = (sys.executable, "-m", "tests.support.kill_at_write", str(number), str(counted), *attack.arguments)
    project.run(*words, status=-signal.SIGKILL if number else 0, PYTHONPATH=f"{project.root}:{checkout.ROOT}")
    return int(counted.read_text()) if not number else 0


def _read_state(project: Checkout, attack: Attack) -> dict[str, Any]:
    """What must be the same, however the command came to its end."""
    files = {file for pattern in RESULTS for file in project.root.glob(pattern)}
    state: dict[str, Any] = {str(file.relative_to(project.root)): file.read_bytes() for file in files}
    history = project.file("data/champion/demo/history.json")
    if history.exists():
        entries = json.loads(history.read_text())
        state["history"] = [(entry["kind"], entry["version"]) for entry in entries]
    database = project.file("mlruns/mlflow.db")
    if database.exists():
        with closing(connect(database)) as connection:
            state["runs"] = sorted(connection.execute("select name, status from runs where name not like 'pipeline%'"))
            state["parents"] = sorted(connection.execute("select status from runs where name like 'pipeline%'"))[-1:]
            state["aliases"] = sorted(connection.execute("select alias, version from registered_model_aliases"))
            (running,) = connection.execute("select count(*) from runs where status = 'RUNNING'").fetchone()
            state["running"] = running
    if attack.has_servers:
        with chdir(project.root):
            state |= _read_servers()
        project.recast("down")
    return state


def _read_servers() -> dict[str, Any]:
    """The rows of the databases and the objects of the store of the project in the current folder."""
    port = int(server_process.start(servers.POSTGRES).rpartition(":")[2])
    state: dict[str, Any] = {}
    for database in postgres.DATABASES:
        engine = postgres.engine(port, database)
        tables = MetaData()
        tables.reflect(engine)
        with engine.connect() as connection:
            for name, table in tables.tables.items():
                state[f"{database}.{name}"] = sorted(map(repr, connection.execute(select(table))))
        engine.dispose()
    return state | {str(file): file.read_bytes() for file in OBJECTS.rglob("*") if file.is_file()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("commands", nargs="*", default=[], help=f"of {', '.join(ATTACKS)}; left out: all")
    parser.add_argument("--times", type=int, default=10, help="how often each command is killed")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    main(chosen.commands or list(ATTACKS), chosen.times, chosen.seed)
