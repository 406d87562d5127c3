"""One DAG, two runners: the flow runs what `dvc repro` runs, stage for stage, and leaves the same lock file."""

import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.checkout import Checkout, write_table

STAGES = ["ingest", "normalize", "window", "train", "evaluate"]


def run_by_dvc(checkout: Checkout, new_process: bool = False) -> dict[str, set[str]]:
    """The stages that `dvc repro` runs and restores."""
    printed = checkout.dvc("repro", new_process=new_process)
    return {
        "Ran": set(re.findall(r"Running stage '(\w+)@demo'", printed)),
        "Restored": set(re.findall(r"Stage '(\w+)@demo' is cached", printed)),
    }


def run_by_flow(checkout: Checkout) -> dict[str, set[str]]:
    """The stages that the flow runs and restores."""
    printed = checkout.recast("run")
    done = dict(re.findall(r"^(Ran|Restored): (.*)$", printed, flags=re.MULTILINE))
    return {what: set(re.findall(r"(\w+)@demo", done.get(what, ""))) for what in ("Ran", "Restored")}


def append(name: str, text: str) -> Callable[[Checkout], None]:
    def change(checkout: Checkout) -> None:
        file = checkout.file(name)
        file.write_text(file.read_text() + text)

    return change


def remove(name: str) -> Callable[[Checkout], None]:
    def change(checkout: Checkout) -> None:
        file = checkout.file(name)
        shutil.rmtree(file) if file.is_dir() else file.unlink()

    return change


def there_and_back(checkout: Checkout) -> None:
    """A parameter is changed, the pipeline runs, the parameter is changed back."""
    checkout.settings(problems__demo__window__delay="12h")
    checkout.dvc("repro")
    checkout.settings(problems__demo__window__delay="24h")


def edit_source(checkout: Checkout) -> None:
    """A comment is added to a module, and to a stage a dependency that dvc.lock does not know yet."""
    append("stages/tables/windows.py", "# more\n")(checkout)
    checkout.file("stages/added.py").write_text('"""Added."""\n')
    file = checkout.file("dvc.yaml")
    file.write_text(
        file.read_text().replace("    - stages/evaluate.py\n", "    - stages/added.py\n    - stages/evaluate.py\n")
    )
    assert "stages/added.py" in file.read_text()


CHANGES: dict[str, tuple[Callable[[Checkout], None], set[str]]] = {
    "a source file, in its comments": (edit_source, {"window", "train", "evaluate"}),
    "an architecture's source": (append("architectures/dense.py", "\n_MORE = 1\n"), {"train", "evaluate"}),
    "the input": (lambda checkout: write_table(checkout.file("demo.csv"), 600, offset=1.0), set(STAGES)),
    "a deleted output": (remove("data/window/demo"), set()),
    "all trials deleted": (remove("trials/demo"), {"train"}),
    "the lock file deleted": (remove("dvc.lock"), {"train"}),
    "there and back": (there_and_back, {"train"}),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_the_flow_runs_what_dvc_runs(kind: str, finished: Checkout, tmp_path: Path) -> None:
    change, expected = CHANGES[kind]
    ours = finished.copy(tmp_path / "ours")
    change(ours)
    theirs = ours.copy(tmp_path / "theirs")
    # A dry run only looks: it stops at a stage whose dependency it would have restored.
    dry = theirs.dvc("repro", "--dry", status=None if kind == "a deleted output" else 0)
    first = set(re.findall(r"Running stage '(\w+)@demo'", dry))

    # Once as a user starts DVC, and DVC the stages.
    done, wanted = run_by_flow(ours), run_by_dvc(theirs, new_process=kind == "all trials deleted")

    assert done == wanted
    assert done["Ran"] == expected
    assert first <= done["Ran"] | done["Restored"]
    assert ours.file("dvc.lock").read_bytes() == theirs.file("dvc.lock").read_bytes()
    assert "up to date" in ours.dvc("status")


def test_what_is_up_to_date_is_left_alone(finished: Checkout, tmp_path: Path) -> None:
    checkout = finished.copy(tmp_path / "again")
    stages = [file for stage in STAGES for file in checkout.file(f"data/{stage}").rglob("*")]
    before = {file: file.stat().st_mtime_ns for file in stages}
    assert run_by_dvc(checkout) == {"Ran": set(), "Restored": set()}
    assert "Everything is up to date" in checkout.recast("run")
    assert {file: file.stat().st_mtime_ns for file in before} == before


def test_a_kill_while_dvc_records_a_stage_does_not_stop_the_next_run(finished: Checkout, tmp_path: Path) -> None:
    killed = finished.copy(tmp_path / "killed")
    lock = killed.file("dvc.lock").read_bytes()
    # DVC had begun to write the file.
    killed.file("dvc.lock").write_bytes(lock[:5])
    killed.file(".recast/dvc").mkdir(parents=True)
    killed.file(".recast/dvc/dvc.lock.former").touch()
    records = [file for file in killed.file(".dvc/cache/runs").rglob("*") if file.is_file()]
    for i, record in enumerate(records):
        # DVC has made the folder, or has begun to write the file, too.
        if i % 2:
            record.with_name(".half.tmp").write_text("cmd: python -m")
        record.unlink()
    killed.file(".dvc/tmp").mkdir(exist_ok=True)
    killed.file(".dvc/tmp/rwlock").write_text('{"write": {"/data')
    killed.recast("run")
    assert killed.file("dvc.lock").read_bytes() == lock
    assert not list(killed.root.rglob("*.tmp"))


def test_a_stage_that_fails_leaves_the_tables_from_which_the_champion_forecasts(
    finished: Checkout, tmp_path: Path
) -> None:
    checkout = finished.copy(tmp_path / "failing")
    tables = [file for stage in ("ingest", "normalize", "window") for file in checkout.file(f"data/{stage}").rglob("*")]
    before = {file: file.read_bytes() for file in tables if file.is_file()}
    checkout.file("demo.csv").write_text("no time here\n1\n")
    checkout.dvc("repro", status=None)
    assert {file: file.read_bytes() for file in before if file.exists()} == before
    checkout.recast("run", status=1)
    assert {file: file.read_bytes() for file in before if file.exists()} == before
    # Nor does code that a person has edited since the run began.
    write_table(checkout.file("demo.csv"), 600, offset=1.0)
    soon = time.time() + 3600
    os.utime(checkout.file("stages/ingest.py"), (soon, soon))
    assert "stages/ingest.py was edited after this process began" in checkout.recast("run", status=1)
    assert {file: file.read_bytes() for file in before if file.exists()} == before
