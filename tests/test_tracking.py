"""What MLflow holds after a run: enough to compare, to reproduce and to serve; and made again from what DVC tracks."""

import json
import shutil
import sys
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Run

from stages import batches, places
from stages.normalize import Table
from stages.settings import load
from stages.train import load_network
from stages.trials import expand
from stages.window import Windowing
from tests.checkout import Checkout


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
        for tag in ("recast.key", "recast.data", "recast.device", "recast.prefect_run", "mlflow.source.git.commit"):
            assert tag in run.data.tags, tag
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["best_test_mae"] > 0
    names = {artifact.path for artifact in client.list_artifacts(parent.info.run_id, "evaluation")}
    assert {"evaluation/report.html", "evaluation/leaderboard.json", "evaluation/metrics.json"} <= names


def test_parameters_are_flat_and_metrics_come_by_epoch_in_both_units(finished: Checkout) -> None:
    client, _, trials = runs(finished)
    run = trials["gru units=4 seed=1"]
    wanted = {"architecture": "gru", "units": "4", "learning_rate": "0.001", "optimizer": "rmsprop", "seed": "1"}
    assert wanted.items() <= run.data.params.items()
    assert {"epochs", "batch_size", "lookback", "delay", "split", "target"} <= run.data.params.keys()
    trial = json.loads(finished.file(f"trials/demo/{run.data.tags['recast.key']}/trial.json").read_text())
    for name in ("validation_mae", "validation_rmse", "train_loss"):
        assert [metric.step for metric in client.get_metric_history(run.info.run_id, name)] == [1, 2]
    normalized = client.get_metric_history(run.info.run_id, "validation_mae_normalized")
    real = client.get_metric_history(run.info.run_id, "validation_mae")
    assert [m.value for m in real] == pytest.approx([m.value * trial["target_scale"] for m in normalized])
    assert run.data.metrics["best_mae"] == pytest.approx(min(m.value for m in real))
    assert any(name.startswith("system/") for name in run.data.metrics)
    assert run.data.metrics["test_mae"] > 0
    artifacts = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
    assert {"trial.json", "history.json", "weights.safetensors", "learning_curve.png", "params.yaml"} <= artifacts


def test_the_packaged_models_forecast_in_real_units(finished: Checkout, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each packaged model gives, for raw test windows, what its trial's network gives for the normalised ones."""
    _, _, runs_by_name = runs(finished)
    monkeypatch.chdir(finished.root)
    mlflow.set_tracking_uri(f"sqlite:///{finished.file('mlruns/mlflow.db')}")
    normalized, windowed = places.stage("normalize", "demo"), places.stage("window", "demo")
    table, windowing = Table.read(normalized), Windowing.read(windowed)
    data = batches.read(normalized, windowed, torch.device("cpu"))["test"]
    x_BTF, _ = data.at(torch.arange(7))
    raw_BTF = (x_BTF.double().numpy() * table.scale + table.center).astype(np.float32)
    packaged = 0
    for trial in expand(load(), "demo", windowed):
        uri = runs_by_name[trial.label].data.tags.get("recast.model")
        if uri is None:
            continue
        packaged += 1
        model = mlflow.pyfunc.load_model(uri)
        assert model.metadata.signature is not None and model.input_example is not None
        with torch.inference_mode():
            expected_B = load_network(trial, windowing, table)(x_BTF).double().numpy()
        expected_B = expected_B * table.scale[table.target] + table.center[table.target]
        assert model.predict(raw_BTF) == pytest.approx(expected_B, abs=1e-3)
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
    assert noted["logged"] and client.get_run(noted["mlflow_run_id"]).info.status == "FINISHED"
