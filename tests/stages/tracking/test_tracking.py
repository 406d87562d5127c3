"""MLflow's store after a run: enough to compare, to reproduce and to serve; and written again from what DVC tracks."""

import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import mlflow
import polars as pl
import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.protos import databricks_pb2

from architectures import REGISTRY, WindowShape
from problems.errors import RecastError
from problems.problem import Problem
from project import paths
from project.git import describe_commit
from project.lock import hold_pipeline_lock
from project.retry import retry_while_unreachable
from project.settings.loading import load_settings
from project.settings.sections import TrainSettings
from project.source_code import PACKAGES
from stages.evaluation import leaderboard
from stages.report.pictures import PICTURES_FOLDER, picture_folder
from stages.tables.table import Table
from stages.tables.windows import TableWindows
from stages.tracking import full_report, packaging, trial_run
from stages.tracking import rebuild as rebuild_module
from stages.tracking import store as tracking
from stages.tracking.evaluation import log_evaluation
from stages.tracking.packaging import CONTENT_TAG, store_best_models
from stages.tracking.params import describe_shared, describe_trial_params
from stages.tracking.rebuild import rebuild
from stages.tracking.runs import RunContext, end_pipeline_run, open_pipeline_run
from stages.tracking.served_model import hash_content
from stages.tracking.store import TrackingError
from stages.tracking.trial_run import TrialRun
from stages.training import history, table_batches
from stages.training.expansion import list_trials
from stages.training.networks import load_network
from stages.training.trials import Trial, add_run_notes, read_run_notes, read_trial, trial_folder
from tests.support.checkout import ROOT, Checkout
from tests.support.nodes import free_port, listens
from tests.support.waiting import wait_until


def runs(checkout: Checkout) -> tuple[MlflowClient, Run, dict[str, Run]]:
    """A client, the newest parent run and the trials' runs by name."""
    client = MlflowClient(f"sqlite:///{checkout.file('mlruns/mlflow.db')}")
    experiment = client.get_experiment_by_name("demo")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id])
    parents = [run for run in found if run.data.tags["recast.kind"] == "pipeline"]
    trials = {run.info.run_name: run for run in found if run.data.tags["recast.kind"] == "trial"}
    return client, parents[0], trials


def test_a_parent_run_and_a_child_run_a_trial(finished: Checkout) -> None:
    client, parent, trials = runs(finished)
    assert sorted(trials) == [
        "dense units=4 seed=0",
        "dense units=4 seed=1",
        "gru units=4 seed=0",
        "gru units=4 seed=1",
        "persistence seed=0",
    ]
    for run in trials.values():
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.info.status == "FINISHED"
        for tag in ("recast.key", "recast.data", "recast.device", "recast.prefect_run"):
            assert tag in run.data.tags, tag
    assert trials["gru units=4 seed=0"].data.tags["recast.recurrent_loops"] == "compiled"
    assert "recast.recurrent_loops" not in trials["dense units=4 seed=0"].data.tags
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["best_test_mae"] > 0
    names = {artifact.path for artifact in client.list_artifacts(parent.info.run_id, "evaluation")}
    assert {"evaluation/report.html", "evaluation/leaderboard.json", "evaluation/metrics.json"} <= names


def test_parameters_are_the_values_in_effect(make_problem: Callable[..., Problem]) -> None:
    train = TrainSettings(loss="pinball", epochs=9, clip=1.0)
    windows = TableWindows(6, 2, 2, 1, {}, {}, {}, "", WindowShape(3, 3, 1, 2, 12))
    shared = describe_shared(make_problem(), train, windows)
    assert shared.of_grid["quantiles"] == str(train.quantiles)
    assert shared.of_grid["clip"] == "1.0"
    own = REGISTRY["gru"].Hyperparameters(epochs=3, lookback=2).model_dump(mode="json")
    params = describe_trial_params(shared, {"hyperparameters": own, "architecture": "gru", "seed": 0})
    assert (params["epochs"], params["lookback"], params["loss"]) == ("3", "4h", "pinball")
    baseline = describe_trial_params(
        shared, {"hyperparameters": {"days": 3}, "architecture": "seasonal_naive", "seed": 0}
    )
    assert baseline["quantiles"] == str(train.quantiles), "they decide what it forecasts"
    assert baseline["days"] == "3"
    assert not {"epochs", "clip", "batch_size"} & baseline.keys()


def test_parameters_are_flat_and_metrics_come_by_epoch_in_both_units(finished: Checkout) -> None:
    client, _, trials = runs(finished)
    run = trials["gru units=4 seed=1"]
    wanted = {"architecture": "gru", "units": "4", "learning_rate": "0.001", "optimizer": "rmsprop", "seed": "1"}
    assert wanted.items() <= run.data.params.items()
    effective = {
        "epochs": "2",
        "batch_size": "32",
        "lookback": "2d",
        "delay": "1d",
        "loss": "mae",
        "target": "T (degC)",
    }
    assert effective.items() <= run.data.params.items()
    assert not {"quantiles", "patience", "clip", "first", "embedding"} & run.data.params.keys()
    assert "None" not in run.data.params.values()
    baseline = trials["persistence seed=0"].data.params
    assert {"lookback": "2d", "architecture": "persistence"}.items() <= baseline.items()
    assert not {"epochs", "batch_size", "loss", "quantiles", "threads"} & baseline.keys()
    trial = json.loads(finished.file(f"trials/demo/{run.data.tags['recast.key']}/trial.json").read_text())
    for name in ("validation_mae", "validation_rmse", "train_loss"):
        assert [metric.step for metric in client.get_metric_history(run.info.run_id, name)] == [1, 2]
    normalized = client.get_metric_history(run.info.run_id, "validation_mae_normalized")
    real = client.get_metric_history(run.info.run_id, "validation_mae")
    assert [m.value for m in real] == pytest.approx([m.value * trial["scaled"]["mae"] for m in normalized])
    assert run.data.metrics["best_mae"] == pytest.approx(min(m.value for m in real))
    assert any(name.startswith("system/") for name in run.data.metrics)
    assert run.data.metrics["test_mae"] > 0
    assert 0.5 < run.data.metrics["coverage_of_0.8"] <= 1
    assert run.data.metrics["width_of_0.8"] > 0
    artifacts = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
    assert {"trial.json", "history.json", "weights.safetensors", "learning_curve.png", "params.yaml"} <= artifacts


def test_the_packaged_models_forecast_in_real_units(finished: Checkout, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each packaged model gives, for a user's rows, what its trial's network gives for the normalised test windows."""
    _, _, runs_by_name = runs(finished)
    monkeypatch.chdir(finished.root)
    mlflow.set_tracking_uri(f"sqlite:///{finished.file('mlruns/mlflow.db')}")
    normalized, windowed = paths.stage_folder("normalize", "demo"), paths.stage_folder("window", "demo")
    table, windowing = Table.read(normalized), TableWindows.read(windowed)
    data = table_batches.read_table_batches(normalized, windowed, windowing, torch.device("cpu"))["test"]
    row, x_BTF = data.find_rows(torch.arange(7)).tolist(), data.select(torch.arange(7)).x_BTF
    rows = pl.read_parquet(finished.file("data/ingest/demo/table.parquet")).drop("series")
    assert rows.columns == ["time", "T (degC)", "p (mbar)"]
    packaged = 0
    for trial in list_trials(load_settings(), "demo", windowed):
        uri = runs_by_name[trial.label].data.tags.get("recast.model")
        if uri is None:
            continue
        packaged += 1
        model = mlflow.pyfunc.load_model(uri)
        assert model.metadata.signature is not None
        assert model.predict(model.input_example).notna().all(axis=None)
        with torch.inference_mode():
            expected_B = load_network(trial, windowing)(x_BTF)[:, 0, 0].double().numpy()
        center, scale = table.preparation.target_scaling
        # A window is named by the row after its inputs.
        found = model.predict(rows.head(row[-1]).to_pandas(), params={"all_windows": True}).tail(7)
        assert found["forecast"].to_numpy() == pytest.approx(expected_B * scale + center, abs=1e-5)
        assert found["origin"].tolist() == rows["time"][[each - 1 for each in row]].to_list()
        assert found["target_time"].tolist() == rows["time"][[each + windowing.delay for each in row]].to_list()
        assert model.predict(rows.head(row[0]).to_pandas())["forecast"].tolist() == pytest.approx(
            expected_B[:1] * scale + center, abs=1e-5
        )
        with pytest.raises(RecastError, match="40 rows are too few; a window takes 48 rows"):
            model.predict(rows.head(40).to_pandas())
    assert packaged == 3, "one for each architecture"
    files = [path.name for path in Path("mlruns").rglob("*") if path.is_file()]
    assert not [file for file in files if file.endswith((".pkl", ".pickle"))], "nothing is pickled"


def test_an_empty_store_is_made_again_from_what_dvc_tracks(finished: Checkout, tmp_path: Path) -> None:
    checkout = finished.copy(tmp_path / "rebuilt")
    _, before_parent, before = runs(checkout)
    shutil.rmtree(checkout.file("mlruns"))
    # As after `dvc checkout` in another clone: what is not tracked is not there.
    for file in checkout.root.glob("trials/*/*/run.json"):
        file.unlink()
    assert "5 trials written" in checkout.recast("rebuild-mlflow")
    _, parent, after = runs(checkout)
    assert after.keys() == before.keys()
    for name, run in after.items():
        same = [key for key in before[name].data.metrics if not key.startswith("system/") and key != "seconds"]
        assert {k: run.data.metrics[k] for k in same} == {k: before[name].data.metrics[k] for k in same}
        assert run.data.params == before[name].data.params
    assert parent.data.metrics == before_parent.data.metrics
    assert sum("recast.model" in run.data.tags for run in after.values()) == 3
    assert "0 trials written" in checkout.recast("rebuild-mlflow"), "again changes nothing"
    assert len(runs(checkout)[2]) == 5


def test_what_could_not_be_logged_is_logged_by_the_next_run(finished: Checkout, tmp_path: Path) -> None:
    checkout = finished.copy(tmp_path / "unlogged")
    _, _, before = runs(checkout)
    key = before["gru units=4 seed=0"].data.tags["recast.key"]
    checkout.file(f"trials/demo/{key}/run.json").unlink()
    checkout.run(sys.executable, "-m", "flows.train", "demo")
    client, _, _ = runs(checkout)
    noted = json.loads(checkout.file(f"trials/demo/{key}/run.json").read_text())
    assert noted["logged"]
    assert client.get_run(noted["mlflow_run_id"]).info.status == "FINISHED"


@pytest.fixture
def ended(
    finished: Checkout, servers: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[list[Trial]]:
    """The ended trials of a checkout in which this process works. Its store is empty, and no run.json is there."""
    checkout = finished.copy(tmp_path / "checkout")
    shutil.rmtree(checkout.file("mlruns"))
    checkout.file("mlruns").mkdir()
    shutil.copy(servers["mlflow_db"], checkout.file("mlruns/mlflow.db"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{checkout.file('mlruns/mlflow.db')}")
    enter(checkout.root, monkeypatch)
    tracking.get_client.cache_clear()
    trials = list_trials(load_settings(), "demo", paths.stage_folder("window", "demo"))
    for trial in trials:
        (trial_folder(trial) / "run.json").unlink()
    yield trials
    tracking.get_client.cache_clear()
    describe_commit.cache_clear()


def enter(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in another checkout, as another process would."""
    monkeypatch.chdir(folder)
    describe_commit.cache_clear()


def opened(trials: list[Trial], newest: bool = False, prefect_run: str | None = "flow") -> RunContext:
    return open_pipeline_run("demo", load_settings(), trials, prefect_run, newest)


def train(context: RunContext, trial: Trial) -> None:
    """Write the run of a trial as its training does."""
    folder = trial_folder(trial)
    done = history.read_history(folder)
    run = TrialRun(context, folder, read_trial(trial), "cpu")
    run.log_epochs(done[:1])
    run.finish(read_trial(trial), done, 1.0)


def in_store(filtered: str = "", kind: str = "trial") -> list[Run]:
    client = tracking.get_client()
    experiment = client.get_experiment_by_name("demo")
    found = client.search_runs([experiment.experiment_id], filtered) if experiment else []
    return [run for run in found if run.data.tags["recast.kind"] == kind]


def run_of(trial: Trial) -> Run:
    return tracking.get_client().get_run(read_run_notes(trial_folder(trial))["mlflow_run_id"])


class Killed(BaseException):
    """As a kill, nothing of the project catches it."""


def kill_after(write: int, patch: pytest.MonkeyPatch) -> None:
    """Kill this process after so many writes to MLflow."""
    left = write

    def killed(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            nonlocal left
            found = method(*args, **named)
            left -= 1
            if not left:
                raise Killed
            return found

        return call

    for name in ("create_run", "update_run", "log_batch", "log_metric", "log_artifact", "log_text", "set_terminated"):
        patch.setattr(MlflowClient, name, killed(getattr(MlflowClient, name)))


@pytest.mark.parametrize("again", ["trained", pytest.param("logged afterwards", marks=pytest.mark.long)])
def test_wherever_a_kill_comes_one_whole_run_is_left(
    ended: list[Trial], again: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gru = ended[-1]

    def write(resumed: bool) -> None:
        add_run_notes(trial_folder(gru), device="cpu", prefect_run="flow")
        context = opened([gru])
        if resumed and again == "logged afterwards":
            trial_run.log_missing_runs(context, [gru])
        else:
            train(context, gru)
        end_pipeline_run(context, 0)

    def left() -> list[Any]:
        client = tracking.get_client()
        found = []
        for run in in_store() + in_store(kind="pipeline"):
            tags = {k: v for k, v in run.data.tags.items() if not k.startswith("mlflow.")}
            metrics = {k: v for k, v in run.data.metrics.items() if not k.startswith("system/") and k != "seconds"}
            steps = [metric.step for metric in client.get_metric_history(run.info.run_id, "validation_mae")]
            once = len(client.get_metric_history(run.info.run_id, "best_mae"))
            files = sorted(file.path for file in client.list_artifacts(run.info.run_id))
            found.append((run.info.status, run.data.params, tags, metrics, steps, once, files))
            client.delete_run(run.info.run_id)
        (trial_folder(gru) / "run.json").unlink()
        return found

    write(resumed=False)
    undisturbed = left()
    assert len(undisturbed) == 2
    assert all(params for _, params, *_ in undisturbed)
    kills = 0
    while True:
        with monkeypatch.context() as patch:
            kill_after(kills + 1, patch)
            try:
                write(resumed=False)
            except Killed:
                kills += 1
            else:
                break
        if in_store(kind="pipeline")[0].info.status == "RUNNING":
            write(resumed=True)
        assert left() == undisturbed, f"killed after write {kills}"
    assert kills > 8


def test_another_checkouts_run_of_a_shared_store_is_left_alone(
    ended: list[Trial], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gru = ended[-1]
    other = tmp_path / 'o\'neil "and" sons'
    shutil.copytree(Path.cwd(), other)
    ids = []
    for folder in (Path.cwd(), other):
        enter(folder, monkeypatch)
        context = opened([gru])
        ids += [context.parent, TrialRun(context, trial_folder(gru), read_trial(gru), "cpu").id]
    assert len(set(ids)) == 4
    assert opened([gru]).parent == ids[2], "its own is found again"
    (trial_folder(gru) / "run.json").unlink()
    assert TrialRun(context, trial_folder(gru), read_trial(gru), "cpu").id == ids[3]
    add_run_notes(trial_folder(gru), mlflow_run_id=ids[1])
    assert TrialRun(context, trial_folder(gru), read_trial(gru), "cpu").id == ids[1], "noted here, it is this trial's"


def test_what_was_killed_is_ended_when_another_grid_is_trained(ended: list[Trial], tmp_path: Path) -> None:
    *others, gru = ended
    killed = opened(ended)
    TrialRun(killed, trial_folder(gru), read_trial(gru), "cpu")
    assert opened(ended).parent == killed.parent, "the same grid continues it"
    assert {run.info.status for run in (*in_store(), *in_store(kind="pipeline"))} == {"RUNNING"}
    context = opened(others)
    statuses = {run.info.run_id: run.info.status for run in in_store(kind="pipeline")}
    assert statuses == {killed.parent: "KILLED", context.parent: "RUNNING"}
    assert run_of(gru).info.status == "KILLED"
    opened(ended)
    TrialRun(context, trial_folder(gru), read_trial(gru), "cpu").finish(read_trial(gru), [], 1.0)
    assert run_of(gru).info.status == "FINISHED", "it can be continued later"


def test_a_lost_note_gives_no_second_run(ended: list[Trial]) -> None:
    context = opened(ended, newest=True)
    for _ in range(2):
        assert trial_run.log_missing_runs(context, ended) == 5
        for trial in ended:
            (trial_folder(trial) / "run.json").unlink()
    assert len(in_store()) == 5


def test_evaluating_over_an_empty_store_leaves_no_run_open_and_logs_nothing_of_today(
    finished: Checkout, servers: dict[str, Any], tmp_path: Path
) -> None:
    checkout = finished.copy(tmp_path / "evaluated")
    checkout.run("git", "add", "params.yaml")
    checkout.run("git", "-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "--quiet", "--message", "settings")
    shutil.rmtree(checkout.file("mlruns"))
    checkout.file("mlruns").mkdir()
    shutil.copy(servers["mlflow_db"], checkout.file("mlruns/mlflow.db"))
    for file in checkout.root.glob("trials/*/*/run.json"):
        file.unlink()
    checkout.run(sys.executable, "-m", "stages.evaluate", "demo")
    _, parent, trials = runs(checkout)
    assert len(trials) == 5
    assert {run.info.status for run in [parent, *trials.values()]} == {"FINISHED"}
    assert parent.data.metrics["failed_trials"] == 0
    assert "mlflow.source.git.commit" not in parent.data.tags
    for run in trials.values():
        assert not [name for name in run.data.metrics if name.startswith("system/")]
        assert not {"mlflow.source.git.commit", "recast.device", "recast.prefect_run"} & run.data.tags.keys()
        assert run.data.metrics["best_mae"] > 0


def test_a_run_written_afterwards_has_what_was_noted_when_it_was_trained(ended: list[Trial]) -> None:
    add_run_notes(trial_folder(ended[0]), device="cuda:3", commit="0123-dirty", seconds=7.0)
    trial_run.log_missing_runs(opened(ended), ended)
    tags = run_of(ended[0]).data.tags
    assert (tags["recast.device"], tags["mlflow.source.git.commit"]) == ("cuda:3", "0123-dirty")
    assert run_of(ended[0]).data.metrics["seconds"] == 7
    assert "recast.prefect_run" not in tags


def test_the_commit_is_described_with_what_is_not_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        return subprocess.run(["git", *identity, *arguments], check=True, capture_output=True, text=True).stdout.strip()

    def described() -> str:
        describe_commit.cache_clear()
        return describe_commit()

    monkeypatch.chdir(tmp_path)
    # A repository around the folder of the tests is none of theirs.
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert described() == "", "no repository"
    git("init", "--quiet")
    assert described() == "", "no commit"
    for name in ("code.py", "dvc.lock"):
        Path(name).write_text("first")
    git("add", "--all")
    git("commit", "--quiet", "--message", "first")
    assert described() == git("rev-parse", "HEAD")
    Path("new.py").write_text("not tracked")
    Path("dvc.lock").write_text("written by the pipeline")
    Path("code.py").touch()
    assert described() == git("rev-parse", "HEAD")
    Path("code.py").write_text("second")
    assert described() == git("rev-parse", "HEAD") + "-dirty"
    git("add", "code.py")
    assert described() == git("rev-parse", "HEAD") + "-dirty"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert described() == "", "no git"
    describe_commit.cache_clear()


def test_one_filter_shows_the_whole_of_a_grid_that_grew(ended: list[Trial]) -> None:
    """The description of a pipeline run names it."""
    filters = []
    for grid in (ended[:3], ended):
        context = opened(grid)
        for trial in grid:
            if not (trial_folder(trial) / "run.json").exists():
                train(context, trial)
        trial_run.log_missing_runs(context, grid)
        end_pipeline_run(context, 0)
        described = tracking.get_client().get_run(context.parent).data.tags["mlflow.note.content"]
        found = re.search("``(.*)``", described)
        assert found
        filters.append(found[1])
    assert len(in_store()) == 5, "none is written twice"
    for filtered, grid in zip(filters, (ended[:3], ended), strict=True):
        assert {run.info.run_name for run in in_store(filtered)} == {trial.label for trial in grid}
        assert len(in_store(filtered, "pipeline")) == 1


def test_a_trial_that_is_tried_again_is_logged_again(ended: list[Trial]) -> None:
    gru = ended[-1]
    folder = trial_folder(gru)
    context = opened([gru])
    failed = read_trial(gru) | {"status": "failed", "reason": "out of memory", "validation": {}, "best_epoch": 0}
    TrialRun(context, folder, failed, "cpu").finish(failed, [], 1.0)
    assert run_of(gru).data.tags["recast.reason"] == "out of memory"
    assert run_of(gru).info.status == "FAILED"
    TrialRun(context, folder, read_trial(gru), "cpu")
    # As when MLflow goes away now: what the first try logged is not the trial's result.
    assert trial_run.log_missing_runs(context, [gru]) == 1
    assert "recast.reason" not in run_of(gru).data.tags
    assert run_of(gru).info.status == "FINISHED"
    assert len(in_store()) == 1


def test_the_metrics_of_the_system_are_those_of_the_training(
    ended: list[Trial], caplog: pytest.LogCaptureFixture
) -> None:
    """Those of a GPU are among them where there is one, and their lack is nothing to speak of where there is none."""
    with caplog.at_level(logging.INFO):
        train(opened(ended), ended[-1])
    metrics = run_of(ended[-1]).data.metrics
    assert metrics["system/cpu_utilization_percentage"] >= 0
    assert ("system/gpu_0_memory_usage_megabytes" in metrics) == torch.cuda.is_available()
    assert not [record for record in caplog.records if "metrics" in record.name]
    assert re.search(r"^nvidia-ml-py==", (ROOT / "requirements.lock").read_text(), re.MULTILINE)


def test_packaging_leaves_the_imports_of_the_process_and_the_times_of_the_runs_alone(ended: list[Trial]) -> None:
    context = opened(ended, newest=True)
    trial_run.log_missing_runs(context, ended)
    evaluation = leaderboard.read_leaderboard(paths.stage_folder("evaluate", "demo"))
    assert evaluation is not None
    log_evaluation(context, evaluation, ended, paths.stage_folder("evaluate", "demo"))
    path, modules = list(sys.path), dict(sys.modules)
    times = {run.info.run_id: run.info.end_time for run in in_store()}
    first = store_best_models(evaluation, ended)
    assert len(first) == 3
    assert store_best_models(evaluation, ended) == []
    (run,) = (run for run in in_store() if run.data.tags.get("recast.model") == first[0])
    tracking.get_client().delete_tag(run.info.run_id, CONTENT_TAG)
    (again,) = store_best_models(evaluation, ended)
    assert again != first[0], "a model without a hash of its content is stored again"
    interval = next(row.intervals[0] for row in evaluation.rows if row.intervals)
    levels = [replace(interval, level=0.5)]
    other = replace(evaluation, rows=[replace(row, intervals=levels) for row in evaluation.rows])
    assert len(store_best_models(other, ended)) == 3, "and so is one whose intervals have other levels"
    assert store_best_models(other, ended) == []
    assert sys.path == path
    assert {name: module for name, module in sys.modules.items() if name in modules} == modules
    assert {run.info.run_id: run.info.end_time for run in in_store()} == times
    assert {run.info.status for run in in_store() + in_store(kind="pipeline")} == {"FINISHED"}


def test_a_model_is_stored_again_without_training_when_the_code_that_it_runs_changes(
    ended: list[Trial], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = opened(ended, newest=True)
    trial_run.log_missing_runs(context, ended)
    evaluation = leaderboard.read_leaderboard(paths.stage_folder("evaluate", "demo"))
    assert evaluation is not None
    log_evaluation(context, evaluation, ended, paths.stage_folder("evaluate", "demo"))
    first = store_best_models(evaluation, ended)
    files = {file: file.stat().st_mtime_ns for file in Path("trials").rglob("*") if file.is_file()}
    changed = tmp_path / "changed"
    for package in PACKAGES:
        shutil.copytree(ROOT / package, changed / package, ignore=shutil.ignore_patterns("__pycache__"))
    file = changed / "forecasting/filling.py"
    text = file.read_text(encoding="utf-8")
    file.write_text(f"{text}\n\nLIMIT = 1\n", encoding="utf-8")
    monkeypatch.setattr(packaging, "hash_content", partial(hash_content, root=changed))
    again = store_best_models(evaluation, ended)
    assert len(again) == len(first) == 3
    assert not set(again) & set(first)
    assert store_best_models(evaluation, ended) == []
    assert {file: file.stat().st_mtime_ns for file in Path("trials").rglob("*") if file.is_file()} == files


def test_artifacts_that_cannot_be_stored_are_reported_as_any_other_failure_of_mlflow(ended: list[Trial]) -> None:
    Path("mlruns/artifacts").write_text("in the way")
    with pytest.raises(TrackingError, match=r"MLflow at sqlite.* has failed: .*mlruns/artifacts"):
        opened(ended)


ADMIN, READER = ("admin", "of the administrators"), ("reader", "of somebody who reads")


@contextmanager
def server_with_users(folder: Path, empty: Path) -> Iterator[str]:
    """The address of an MLflow server that asks who one is; READER may read what ADMIN has made.

    Args:
        empty: a database of MLflow's to copy, which saves the seconds of its creation.
    """
    folder.mkdir()
    shutil.copy(empty, folder / "runs.db")
    (folder / "users.ini").write_text(
        f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{folder}/users.db\n"
        f"admin_username = {ADMIN[0]}\nadmin_password = {ADMIN[1]}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    store = ("--backend-store-uri", f"sqlite:///{folder}/runs.db", "--artifacts-destination", str(folder / "artifacts"))
    command = (sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1", *store)
    settings = {
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "users.ini"),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "of the tests",
        # Six processes that wait for the evaluation of language models.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--app-name", "basic-auth"],
            env=os.environ | settings,
            stdout=log,
            stderr=log,
            text=True,
            start_new_session=True,
        )
    try:
        wait_until(lambda: listens("127.0.0.1", port), f"MLflow's server, see {folder / 'log'}", process)
        user = {"username": READER[0], "password": READER[1]}
        httpx.post(f"{address}/api/2.0/mlflow/users/create", json=user, auth=ADMIN, timeout=60).raise_for_status()
        yield address
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


def test_what_a_user_may_not_do_is_reported_at_once_with_the_fix(
    ended: list[Trial], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def become(name: str, password: str) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", name)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
        tracking.get_client.cache_clear()

    def refused(code: int) -> Any:
        return pytest.raises(TrackingError, match=rf"refuses this: .*{code}.*Set MLFLOW_TRACKING_USERNAME")

    with server_with_users(tmp_path / "users", Path("mlruns/mlflow.db")) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        become(READER[0], "no longer")
        with refused(401) as refusal:
            retry_while_unreachable(lambda: opened(ended), 240, "MLflow")
        assert refusal.value.lasting
        become(*ADMIN)
        run = opened(ended).parent
        become(*READER)
        with refused(403) as refusal:
            retry_while_unreachable(lambda: opened(ended), 240, "MLflow")
        assert refusal.value.lasting
        with refused(403) as refusal, tracking.translate_artifact_errors():
            tracking.get_client().log_text(run, "what the store of artifacts refuses", "text.txt")
        assert refusal.value.lasting


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is always full")
def test_a_full_disk_is_not_reported_as_a_failure_of_mlflow() -> None:
    with (
        pytest.raises(OSError, match="No space left"),
        tracking.translate_errors(),
        tracking.translate_artifact_errors(),
    ):
        Path("/dev/full").write_text("more")


@pytest.mark.parametrize(("refusal", "calls"), [("TEMPORARILY_UNAVAILABLE", 2), ("PERMISSION_DENIED", 1)])
def test_a_server_is_tried_again_unless_its_refusal_is_lasting(
    refusal: str, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    asked = []

    def refused_once() -> None:
        asked.append(refusal)
        with tracking.translate_errors():
            if len(asked) == 1:
                raise MlflowException("no", error_code=getattr(databricks_pb2, refusal))

    with pytest.raises(TrackingError, match="no") if calls == 1 else nullcontext():
        retry_while_unreachable(refused_once, 240, "MLflow")
    assert len(asked) == calls


def test_a_database_without_its_driver_is_out_of_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql+psycopg2cffi://127.0.0.1:9/none")
    tracking.get_client.cache_clear()
    with pytest.raises(TrackingError, match="cannot be reached: No module named"):
        tracking.get_client()


def test_nothing_is_rebuilt_while_a_pipeline_writes(ended: list[Trial]) -> None:
    with hold_pipeline_lock(), pytest.raises(RecastError, match="another command holds this checkout"):
        rebuild(load_settings(), "demo")
    assert rebuild(load_settings(), "demo") == 5


def test_a_leaderboard_of_another_grid_is_refused(ended: list[Trial], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rebuild_module, "list_trials", lambda *_: ended[:-1])
    with pytest.raises(RecastError, match=r"the leaderboard is of another grid than .*: recast run demo"):
        rebuild(load_settings(), "demo")


def test_a_full_report_of_trials_that_came_without_runs_is_logged(
    ended: list[Trial], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Pictures:
        def write(self, folder: Path) -> None:
            for trial in ended:
                picture_folder(folder, trial).mkdir(parents=True, exist_ok=True)
                (picture_folder(folder, trial) / "1.png").write_bytes(b"")

    monkeypatch.setattr(full_report, "inspect_networks", lambda *_: Pictures())
    monkeypatch.setattr(full_report, "render_report", lambda *_: "")
    full_report.write_full_report("demo", load_settings())
    client = tracking.get_client()
    assert any(client.list_artifacts(run.info.run_id, PICTURES_FOLDER) for run in in_store())


def test_an_experiment_that_somebody_deleted_is_restored(ended: list[Trial]) -> None:
    experiment = opened(ended).experiment
    tracking.get_client().delete_experiment(experiment)
    assert opened(ended).experiment == experiment
    assert in_store(kind="pipeline")


def test_no_run_has_a_password_that_a_comment_in_the_settings_has(ended: list[Trial]) -> None:
    with paths.PARAMS.open("a") as file:
        file.write("# postgresql://ann:hunter2@host/rows\n")
    gru = ended[-1]
    train(opened(ended), gru)
    for run in (run_of(gru), *in_store(kind="pipeline")):
        text = mlflow.artifacts.load_text(f"runs:/{run.info.run_id}/params.yaml")
        assert "host/rows" in text
        assert "hunter2" not in text
