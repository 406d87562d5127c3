"""The flows when things go wrong or happen at once: two problems, Ctrl-C, edited code, trials that fail."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient
from safetensors.torch import load_file, save_file

from tests.flows.cli.test_commands import read_end_times
from tests.support.checkout import Checkout, write_table
from tests.support.waiting import PATIENCE_SECONDS, wait_for_file

LOCAL = {"runner__kind": "local", "runner__workers": 1}


def add_problem(checkout: Checkout, name: str, **window: str) -> None:
    """A second problem on a table of its own, run after `demo`."""
    write_table(checkout.file(f"{name}.csv"), 700, offset=2.0)
    checkout.file(f"data/raw/{name}").mkdir(parents=True)
    checkout.file(f"data/raw/{name}/{name}.csv").symlink_to(checkout.file(f"{name}.csv"))
    checkout.settings(run=["demo", name], **{f"problems__{name}": _like_demo(checkout, f"{name}.csv", window)})


def _like_demo(checkout: Checkout, path: str, window: dict[str, str]) -> dict[str, Any]:
    from ruamel.yaml import YAML

    demo: dict[str, Any] = YAML(typ="safe").load(checkout.file("params.yaml").read_text())["problems"]["demo"]
    return demo | {"source": demo["source"] | {"path": path}, "window": demo["window"] | window}


def break_architecture(checkout: Checkout, name: str, forward: str) -> None:
    """An architecture whose forward pass is this statement."""
    checkout.file(f"architectures/{name}.py").write_text(
        "import os, signal\n"
        "from architectures.network import Network, Output, TrainedAxes, register\n\n\n"
        f"@register('{name}')\n"
        "class Broken(Network):\n"
        "    source = 'a test'\n\n"
        "    def __init__(self, shape, hyperparameters):\n"
        "        super().__init__()\n"
        "        self.output = Output(shape.features, shape)\n\n"
        "    def forward(self, x_BTF):\n"
        f"        {forward}\n"
        "        return self.output(x_BTF[:, -1])\n"
    )


def test_two_problems_side_by_side_leave_the_lock_file_of_dvc_repro(fresh: Checkout, tmp_path: Path) -> None:
    add_problem(fresh, "another", delay="12h")
    fresh.settings(grid__architectures={"persistence": {}, "dense": {"units": [4]}}, grid__seeds=[0], **LOCAL)
    theirs = fresh.copy(tmp_path / "theirs")
    theirs.settings(runner__kind="inline")
    fresh.recast("run")
    theirs.dvc("repro")
    assert fresh.file("dvc.lock").read_bytes() == theirs.file("dvc.lock").read_bytes()
    assert "up to date" in fresh.dvc("status")
    for problem in ("demo", "another"):
        file = f"data/evaluate/{problem}/leaderboard.json"
        assert fresh.file(file).read_bytes() == theirs.file(file).read_bytes()


# In `test_commands` it stops training in other processes.
@pytest.mark.parametrize(
    "command", [pytest.param(("-m", "flows", "run"), marks=pytest.mark.long), ("-m", "flows.train", "demo")]
)
def test_ctrl_c_stops_training_in_this_process_too(
    command: tuple[str, ...], finished: Checkout, tmp_path: Path
) -> None:
    checkout = finished.copy(tmp_path / "inline")
    checkout.settings(train__epochs=100_000)
    process = checkout.start(sys.executable, *command, new_process=True)
    wait_for_file(checkout, "trials/*/*/checkpoint.pt", process)
    os.killpg(process.pid, signal.SIGINT)
    printed, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 130
    assert "Traceback" not in printed
    assert list(checkout.root.glob("trials/*/*/checkpoint.pt")), "what was trained is kept"


@pytest.mark.parametrize("kind", [pytest.param("inline", marks=pytest.mark.long), "local"])
def test_whatever_a_trial_raises_is_the_failure_of_that_trial(kind: str, finished: Checkout, tmp_path: Path) -> None:
    checkout = finished.copy(tmp_path / "raising")
    break_architecture(checkout, "raising", "raise IndexError('no such [row] of it')")
    architectures = {
        "raising": {},
        "gru": {"units": [200_000]},
        "lstm": {"units": [10**9]},
        "dense": {"units": [4]},
    }
    checkout.settings(grid__architectures=architectures, runner__kind=kind, runner__workers=1)
    printed = checkout.recast("run", status=3)
    assert "IndexError: no such [row] of it" in printed
    assert "out of memory: training its 120," in printed
    assert "is too large for PyTorch" in printed
    assert "Traceback" not in printed
    listed = json.loads(checkout.file("data/train/demo/trials.json").read_text())
    assert [trial["status"] for trial in listed] == ["failed"] * 6 + ["finished"] * 2
    noted = json.loads(checkout.file(f"trials/demo/{listed[0]['key']}/run.json").read_text())
    assert "raising.py" in noted["traceback"]
    assert "up to date" in checkout.dvc("status")


TRACKED = ("trial.json", "history.json", "weights.safetensors")


def test_damaged_trials_are_set_aside_and_trained_again(finished: Checkout, tmp_path: Path) -> None:
    checkout = finished.copy(tmp_path / "damaged")
    lock = checkout.file("dvc.lock").read_bytes()
    folders = sorted(file.parent for file in checkout.root.glob("trials/demo/*/weights.safetensors"))
    content = {file: file.read_bytes() for folder in folders for file in folder.iterdir() if file.name in TRACKED}
    flipped, truncated, lacking, unreadable = folders
    weights = load_file(flipped / "weights.safetensors")
    save_file({name: -value for name, value in weights.items()}, flipped / "weights.safetensors")
    (truncated / "weights.safetensors").write_bytes(content[truncated / "weights.safetensors"][:-1])
    (lacking / "history.json").unlink()
    (unreadable / "trial.json").write_bytes(content[unreadable / "trial.json"][:100])

    shown = checkout.recast("status")
    assert shown.count("damaged; the next run trains it again") == 4, shown
    printed = checkout.recast("run")
    assert printed.count("sets the trial aside and trains it again") == 4
    assert {file: file.read_bytes() for file in content} == content
    assert checkout.file("dvc.lock").read_bytes() == lock
    assert len(list(checkout.root.glob(".recast/damaged/demo/*/trial.json"))) == 4
    client = MlflowClient(f"sqlite:///{checkout.file('mlruns/mlflow.db')}")
    (experiment,) = client.search_experiments(filter_string="name = 'demo'")
    keys = [run.data.tags.get("recast.key") for run in client.search_runs([experiment.experiment_id])]
    assert len([key for key in keys if key]) == len({key for key in keys if key}) == 5, "no trial has a second run"


def test_what_failed_for_want_of_memory_is_tried_again_when_asked(finished: Checkout, tmp_path: Path) -> None:
    checkout = finished.copy(tmp_path / "memory")
    break_architecture(checkout, "hungry", "if not os.path.exists('more'): raise MemoryError('1 PiB')")
    checkout.settings(grid__architectures={"hungry": {}, "dense": {"units": [4]}})
    assert "out of memory: 1 PiB" in checkout.recast("run", status=3)
    before = read_end_times(checkout)
    checkout.file("more").touch()
    assert "out of memory" in checkout.recast("run", status=3), "it is reported every time, but not tried again"
    assert read_end_times(checkout) == before
    assert "Ran: train@demo, evaluate@demo" in checkout.recast("run", "--retry")
    after = read_end_times(checkout)
    assert sum(after[key] != before[key] for key in before) == 2
    assert "up to date" in checkout.dvc("status")
    assert "Everything is up to date" in checkout.recast("run")


DIES_WHILE_IT_ANSWERS = (
    "import gc, multiprocessing.queues; "
    "held = [queue._wlock.acquire() for queue in gc.get_objects() "
    "if isinstance(queue, multiprocessing.queues.SimpleQueue)]; "
    "os.kill(os.getpid(), signal.SIGKILL if held else signal.SIGSTOP)"
)
"""A statement that kills its process while it holds the lock of the queue of results."""


def test_a_process_that_dies_while_it_answers_is_blamed_on_no_bystander_and_the_run_ends(
    finished: Checkout, tmp_path: Path
) -> None:
    checkout = finished.copy(tmp_path / "bystanders")
    break_architecture(checkout, "deadly", DIES_WHILE_IT_ANSWERS)
    checkout.settings(
        grid__seeds=[0],
        grid__architectures={"deadly": {}, "dense": {"units": [4, 5]}},
        runner__bundle=2,
        **LOCAL | {"runner__workers": 2},
    )
    assert "its process died, and died again when it was tried alone" in checkout.recast("run", status=3)
    listed = json.loads(checkout.file("data/train/demo/trials.json").read_text())
    assert [trial["status"] for trial in listed] == ["failed", "finished", "finished"]


@pytest.mark.long
def test_ctrl_c_stops_a_run_in_which_a_process_has_died(finished: Checkout, tmp_path: Path) -> None:
    checkout = finished.copy(tmp_path / "after")
    die = "if not os.path.exists('died'): open('died', 'w').close(); os.kill(os.getpid(), signal.SIGKILL)"
    break_architecture(checkout, "once", die)
    checkout.settings(grid__architectures={"once": {}}, train__epochs=100_000, **LOCAL)
    process = checkout.start(sys.executable, "-m", "flows", "run", new_process=True)
    wait_for_file(checkout, "trials/*/*/checkpoint.pt", process)
    assert checkout.file("died").exists()
    os.killpg(process.pid, signal.SIGINT)
    printed, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 130
    assert "Traceback" not in printed


def test_code_edited_during_a_run_is_recorded_for_nothing(finished: Checkout, tmp_path: Path) -> None:
    checkout = finished.copy(tmp_path / "edited")
    checkout.settings(train__epochs=40, grid__architectures={"gru": {"units": [4]}})
    lock = checkout.file("dvc.lock").read_bytes()
    process = checkout.start(sys.executable, "-m", "flows", "run")
    wait_for_file(checkout, "trials/*/*/checkpoint.pt", process)
    with checkout.file("stages/training/fit.py").open("a") as file:
        file.write("\nMORE = 1\n")
    printed, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 1
    assert "Traceback" not in printed
    assert "stages/training changed while the stage ran" in printed
    assert "run again" in printed
    assert checkout.file("dvc.lock").read_bytes() == lock
    assert "changed" in checkout.dvc("status")


def test_a_stage_that_has_run_waits_to_be_recorded_while_another_dvc_command_runs(
    finished: Checkout, tmp_path: Path
) -> None:
    """DVC gives up on its lock after three seconds; a stage that took hours is worth more."""
    checkout = finished.copy(tmp_path / "locked")
    break_architecture(checkout, "waiting", "while not os.path.exists('locked'): signal.sigtimedwait([], 0.05)")
    checkout.settings(grid={"seeds": [0], "architectures": {"persistence": {}, "waiting": {}}})
    lock_file = checkout.file("dvc.lock").read_bytes()
    process = checkout.start(sys.executable, "-m", "flows", "run")
    wait_for_file(checkout, ".recast/running/*.json", process)
    # It holds DVC's lock until its input is closed.
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys\n"
            "from dvc.repo import Repo, lock_repo\n"
            "with Repo() as repo, lock_repo(repo):\n"
            "    open('locked', 'w').close()\n"
            "    sys.stdin.read()\n",
        ],
        cwd=checkout.root,
        env=checkout.environment,
        stdin=subprocess.PIPE,
    )
    try:
        wait_for_file(checkout, "locked", process)
        before = read_until("another DVC command runs in this checkout; waiting", process)
        assert checkout.file("data/train/demo/trials.json").exists(), "the stage has run"
        assert checkout.file("dvc.lock").read_bytes() == lock_file, "it is not recorded while the lock is held"
        assert holder.poll() is None
        assert process.poll() is None
    finally:
        holder.communicate(timeout=PATIENCE_SECONDS)
    printed, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, before + printed
    assert "Ran: train@demo" in printed
    assert checkout.file("dvc.lock").read_bytes() != lock_file


def read_until(text: str, process: subprocess.Popen[str]) -> str:
    """What a process prints up to the line with this text."""
    assert process.stdout
    printed = ""
    for line in process.stdout:
        printed += line
        if text in line:
            return printed
    raise AssertionError(f"it has ended without {text!r}:\n{printed}")


def test_workers_end_with_their_pool_alone(finished: Checkout, tmp_path: Path) -> None:
    """An error in one problem's training leaves the other's processes alive."""
    checkout = finished.copy(tmp_path / "apart")
    add_problem(checkout, "another")
    checkout.settings(grid={"seeds": [0], "architectures": {"dense": {"units": [4]}}}, train__epochs=200, **LOCAL)
    process = checkout.start(sys.executable, "-m", "flows", "run")
    wait_for_file(checkout, "trials/demo/*/checkpoint.pt", process)
    # Without its table the first problem's bundles fail at the disk.
    checkout.file("data/normalize/demo/table.json").unlink()
    printed, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 1
    assert checkout.file("data/evaluate/another/leaderboard.json").exists(), printed
    assert not [p for p in psutil.process_iter(["cwd"]) if p.info["cwd"] == str(checkout.root)]
