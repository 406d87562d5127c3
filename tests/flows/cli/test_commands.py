"""The command line as a user meets it: what it says, what it leaves, and what it does when things go wrong."""

import json
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient
from typer.testing import CliRunner

from flows.cli import app
from project.lock import hold_pipeline_lock
from tests.support.checkout import ROOT, Checkout
from tests.support.waiting import PATIENCE_SECONDS, wait_for_file, wait_until

LONG = {"train__epochs": 100_000, "runner__kind": "local", "runner__workers": 1}


def read_end_times(checkout: Checkout) -> dict[str, int]:
    """When each trial ended, by key."""
    return {file.parent.name: file.stat().st_mtime_ns for file in checkout.file("trials").glob("*/*/trial.json")}


def test_every_command_has_help(finished: Checkout) -> None:
    printed = finished.recast("--help", new_process=True)
    commands = [
        str(command.name or (command.callback and command.callback.__name__)) for command in app.registered_commands
    ]
    for command in (name.replace("_", "-") for name in commands):
        assert f" {command} " in printed
        assert f"Usage: root {command}" in CliRunner().invoke(app, [command, "--help"]).output


@pytest.mark.parametrize(
    "stage", ["stages.ingest", "stages.normalize", "stages.window", "flows.train", "stages.evaluate"]
)
@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_every_stage_has_help(stage: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", [stage, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(stage, run_name="__main__", alter_sys=True)
    assert not ended.value.code
    assert "usage" in capsys.readouterr().out


def test_what_trains_nothing_loads_no_library_for_it(finished: Checkout, tmp_path: Path) -> None:
    """PyTorch and MLflow take seconds to load, a stage over a small table a fraction of one; status needs the first."""
    checkout = finished.copy(tmp_path / "light")
    checkout.run(
        sys.executable,
        "-c",
        "import sys\n"
        "from stages import ingest, normalize, window\n"
        "for stage in (ingest, normalize, window):\n"
        "    stage.main('demo')\n"
        "loaded = {'torch', 'mlflow', 'matplotlib', 'prefect'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
        "from typer.testing import CliRunner\n"
        "from flows.cli import app\n"
        "assert 'demo' in CliRunner().invoke(app, ['status']).output\n"
        "assert not {'mlflow', 'matplotlib', 'prefect'} & set(sys.modules), 'of status'\n",
    )


def test_the_leaderboard_and_where_to_look_next(finished: Checkout) -> None:
    printed = finished.recast("leaderboard", new_process=True)
    for part in ("persistence", "dense units=4", "gru units=4", "validation MAE °C", "report.html", "Prefect"):
        assert part in printed


def test_status_tells_what_is_stale_and_what_is_trained(finished: Checkout, tmp_path: Path) -> None:
    checkout = finished.copy(tmp_path / "status")
    assert "5 of 5 done" in checkout.recast("status", new_process=True)
    checkout.settings(grid__architectures__dense={"units": [4, 5]})
    printed = checkout.recast("status")
    assert "train" in printed
    assert "5 of 7 done" in printed


def test_a_message_may_hold_brackets(fresh: Checkout) -> None:
    """The console takes [bold] for a style and [/] for its end, unless it is told not to."""
    fresh.settings(grid__architectures={"gru": {"units": ["[/] [bold]"]}})
    printed = fresh.recast("run", status=1)
    assert "[/] [bold]" in printed
    assert "Traceback" not in printed


def test_a_mistake_in_the_grid_is_told_before_a_download(fresh: Checkout) -> None:
    fresh.file("data/raw/demo/demo.csv").unlink()
    fresh.file("demo.csv").unlink()
    assert "demo.csv" in fresh.recast("run", status=1)
    fresh.settings(grid__architectures__gru={"unit": [4]})
    printed = fresh.recast("run", status=1)
    assert "grid.architectures.gru.unit" in printed
    assert "units" in printed
    assert "demo.csv" not in printed
    assert "Traceback" not in printed
    assert not fresh.file("data/ingest").exists()


@pytest.mark.parametrize(
    "command", [("flows", "run"), ("flows", "status"), ("flows", "up"), ("flows", "down"), ("stages.ingest", "demo")]
)
def test_outside_the_project_a_command_makes_nothing(command: tuple[str, ...], tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert "run this in the project's root" in ended.stderr.replace("\n", " ")
    assert "Traceback" not in ended.stderr
    assert not list(tmp_path.iterdir())


def test_servers_that_are_named_are_shown(finished: Checkout) -> None:
    printed = finished.recast(
        "leaderboard", MLFLOW_TRACKING_URI="http://me:secret@mlflow.example", PREFECT_API_URL="https://p/api"
    )
    assert "secret" not in printed
    assert "MLflow: http://mlflow.example" in printed
    assert "Prefect: https://p\n" in printed


def test_a_problem_that_is_not_run_is_refused(finished: Checkout) -> None:
    printed = finished.recast("run", "jena", status=1)
    assert "no problem 'jena'" in printed
    assert "demo" in printed


def test_a_larger_grid_trains_exactly_the_new_trials(finished: Checkout, tmp_path: Path) -> None:
    checkout = finished.copy(tmp_path / "larger")
    before = read_end_times(checkout)
    checkout.settings(grid__architectures__gru={"units": [4], "learning_rate": [0.001, 0.01]})
    assert "Ran: train@demo, evaluate@demo\n" in checkout.recast("run")
    after = read_end_times(checkout)
    assert {key: after[key] for key in before} == before
    assert len(after) == len(before) + 2
    assert "up to date" in checkout.dvc("status")


def test_a_second_pipeline_in_one_checkout_is_refused(
    finished: Checkout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout = finished.copy(tmp_path / "two")
    checkout.settings(evaluate__bootstrap__resamples=150)
    monkeypatch.chdir(checkout.root)
    with hold_pipeline_lock():
        for printed in (checkout.recast("run", status=1), checkout.dvc("repro", status=255)):
            assert "another command holds this checkout" in printed
            assert "--wait" in printed
        assert "another command holds this checkout" in checkout.recast("fetch", status=1, new_process=True)
        assert "another command holds this checkout" in checkout.recast("rebuild-mlflow", status=1)
        assert "recast down --force" in checkout.recast("down", status=1)
        assert "A pipeline runs in this checkout" in checkout.recast("status")
        waiting = checkout.start(sys.executable, "-m", "flows", "run", "--wait")
    printed, _ = waiting.communicate(timeout=PATIENCE_SECONDS)
    assert waiting.returncode == 0
    assert "Ran: evaluate@demo" in printed


def press_ctrl_c(checkout: Checkout, *command: str) -> None:
    """Start a command that trains in processes, and press Ctrl-C once they do; nothing may be left of it."""
    process = checkout.start(sys.executable, *command, new_process=True)
    wait_for_file(checkout, "trials/*/*/checkpoint.pt", process)
    workers = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)
    printed, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 130
    assert "Traceback" not in printed
    _, alive = psutil.wait_procs(workers, timeout=PATIENCE_SECONDS)
    assert not alive


@pytest.mark.long
def test_ctrl_c_leaves_no_process_of_a_stage(finished: Checkout, tmp_path: Path) -> None:
    checkout = finished.copy(tmp_path / "stage")
    checkout.settings(**LONG)
    press_ctrl_c(checkout, "-m", "flows.train", "demo")


def test_ctrl_c_leaves_no_process_and_the_next_run_resumes(finished: Checkout, tmp_path: Path) -> None:
    checkout = finished.copy(tmp_path / "stopped")
    # As many trials as workers: which of more come first, is left to the pool.
    checkout.settings(**LONG, grid__seeds=[0], grid__architectures={"gru": {"units": [4]}})
    press_ctrl_c(checkout, "-m", "flows", "run")
    assert "epochs kept" in checkout.recast("status")
    (checkpoint,) = checkout.root.glob("trials/*/*/checkpoint.pt")
    run = checkpoint.parent / "run.json"
    before = json.loads(run.read_text())

    again = checkout.start(sys.executable, "-m", "flows", "run")
    try:
        wait_until(
            lambda: json.loads(run.read_text()).get("epoch", 0) > before.get("epoch", 0), "a further epoch", again
        )
        after = json.loads(run.read_text())
    finally:
        os.killpg(again.pid, signal.SIGINT)
        again.communicate(timeout=PATIENCE_SECONDS)
    assert after["mlflow_run_id"] == before["mlflow_run_id"]
    client = MlflowClient(f"sqlite:///{checkout.file('mlruns/mlflow.db')}")
    steps = [metric.step for metric in client.get_metric_history(after["mlflow_run_id"], "validation_mae")]
    assert steps == sorted(set(steps)), "an epoch was logged twice"


def test_a_driver_that_is_killed_takes_its_workers_along(finished: Checkout, tmp_path: Path) -> None:
    checkout = finished.copy(tmp_path / "killed")
    checkout.settings(**LONG)
    process = checkout.start(sys.executable, "-m", "flows", "run", new_process=True)
    wait_for_file(checkout, "trials/*/*/checkpoint.pt", process)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate(timeout=PATIENCE_SECONDS)
    _, alive = psutil.wait_procs(workers, timeout=PATIENCE_SECONDS)
    assert not alive


def test_a_trial_that_diverges_is_told_and_the_rest_is_complete(finished: Checkout, tmp_path: Path) -> None:
    checkout = finished.copy(tmp_path / "diverging")
    dense: dict[str, Any] = {"units": [4], "learning_rate": [0.001, 10.0], "optimizer": ["sgd"]}
    checkout.settings(train__loss="mse", train__epochs=4, grid__architectures={"persistence": {}, "dense": dense})
    printed = checkout.recast("run", status=3)
    assert "trials have failed" in printed
    assert "diverged in epoch" in printed
    assert "learning_rate=10" in printed
    assert "up to date" in checkout.dvc("status")
    board = json.loads(checkout.file("data/evaluate/demo/leaderboard.json").read_text())
    assert [bool(row["failed"]) for row in board["rows"]] == [False, False, True]
    assert "diverged" in checkout.file("data/evaluate/demo/report.html").read_text()
    assert "diverged" in checkout.recast("run", status=3), "it is reported every time"


@pytest.mark.parametrize(
    ("variable", "name"),
    [("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9"), ("PREFECT_API_URL", "http://127.0.0.1:9/api")],
)
def test_a_server_out_of_reach_is_named_with_the_mend(
    variable: str, name: str, finished: Checkout, tmp_path: Path
) -> None:
    checkout = finished.copy(tmp_path / "unreachable")
    checkout.settings(train__epochs=3)
    before = read_end_times(checkout)
    printed = checkout.recast("run", status=1, **{variable: name})
    assert f"{name.replace('me:secret@', '')} cannot be reached" in printed.replace("\n", " ")
    assert "secret" not in printed
    assert "recast up" in printed
    assert f"unset {variable}" in printed.replace("\n", " ")
    assert "Traceback" not in printed
    assert read_end_times(checkout) == before


def test_the_fallback_is_told_in_plain_words(finished: Checkout, tmp_path: Path) -> None:
    checkout = finished.copy(tmp_path / "fallback")
    checkout.file("data/evaluate/demo/report.html").unlink()
    demo = checkout.file("params.yaml").read_text()
    checkout.settings(run=["gone", "demo"])
    text = checkout.file("params.yaml").read_text()
    gone = (
        "problems:\n  gone:\n    title: Gone\n"
        "    source: {kind: jena, mirrors: ['http://127.0.0.1:9/jena.zip']}\n"
        "    table: {features: ['T (degC)'], target: 'T (degC)', unit: °C}\n"
        "    split: half\n    window: {lookback: 2d, step: 1h, delay: 24h}\n"
    )
    checkout.file("params.yaml").write_text(text.replace("problems:\n", gone, 1))
    assert demo != text
    assert "http://127.0.0.1:9/jena.zip" in checkout.recast("run", status=1, JENA_ARCHIVE="")
    printed = checkout.recast("run", "--fallback", "demo", JENA_ARCHIVE="")
    assert "Running demo instead" in printed
    assert "Not run: gone. `recast run gone` does it" in printed
    assert checkout.file("data/evaluate/demo/report.html").exists()
    assert not checkout.file("data/evaluate/gone").exists()
    assert "failed to reproduce 'ingest@gone'" in checkout.dvc("repro", status=255, JENA_ARCHIVE="")
