"""What MLflow is told: an experiment a problem, a parent run a pipeline run, a child run a trial.

The store is `mlruns/mlflow.db` unless MLFLOW_TRACKING_URI names another. A run is written by one process. Whatever the
store holds can be made again from the trials that DVC tracks (`rebuild`).
"""

import hashlib
import math
import os
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

# Before mlflow is imported, as it reads them once.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")

import mlflow
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from problems.errors import RecastError
from stages import history
from stages.drawing import drawing
from stages.history import Epoch
from stages.leaderboard import Evaluation
from stages.settings import FILE, Settings
from stages.trials import Trial, note_run, read_run, read_trial, trial_folder

STORE = Path("mlruns")


class TrackingError(RecastError):
    """MLflow cannot be reached or has refused; what was trained is on disk all the same."""


@contextmanager
def reported() -> Iterator[None]:
    """Tell of what MLflow refuses, in the block, as of something a person can mend.

    Raises:
        TrackingError: MLflow, or its database, has failed.
    """
    try:
        yield
    except (MlflowException, SQLAlchemyError) as error:
        raise TrackingError(
            f"MLflow at {uri()} has failed: {_first_line(error)}. What is trained is on disk; mend or start MLflow "
            "(`recast up` starts the project's own) and run again: what is missing there is written then"
        ) from error


def uri() -> str:
    """Where MLflow's store is: MLFLOW_TRACKING_URI, else the project's own database."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{STORE / 'mlflow.db'}"


@cache
def client() -> MlflowClient:
    """A client of the store; the database is created where it does not exist.

    Raises:
        TrackingError: the store cannot be reached.
    """
    # An unreachable server should be said now, not after minutes of retries.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    STORE.mkdir(exist_ok=True)
    found = MlflowClient(uri())
    try:
        found.search_experiments(max_results=1)
    except (MlflowException, SQLAlchemyError, OSError) as error:
        raise TrackingError(
            f"MLflow at {uri()} cannot be reached: {_first_line(error)}. Start it (`recast up` starts the project's "
            "own), or unset MLFLOW_TRACKING_URI to write to mlruns/mlflow.db"
        ) from error
    mlflow.set_tracking_uri(uri())
    return found


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def experiment(problem: str) -> str:
    """The id of the problem's experiment, created where it does not exist."""
    found = client().get_experiment_by_name(problem)
    if found is not None:
        return str(found.experiment_id)
    local = uri().startswith("sqlite:")
    location = (STORE / "artifacts" / problem).absolute().as_uri() if local else None
    # The kind decides which of MLflow's pages an experiment opens with: ours is about models, not prompts.
    kind = {"mlflow.experimentKind": "custom_model_development"}
    return str(client().create_experiment(problem, artifact_location=location, tags=kind))


@dataclass(frozen=True)
class Context:
    """What every run of one pipeline run shares. It travels to the worker processes.

    Attributes:
        parent: id of the parent run.
        tags: tags of every child run.
        params: parameters of every child run beside its own.
    """

    problem: str
    experiment: str
    parent: str
    tags: dict[str, str]
    params: dict[str, str]


@reported()
def open_pipeline(
    problem: str, settings: Settings, trials: Sequence[Trial], prefect_run: str | None = None, newest: bool = False
) -> Context:
    """The parent run of a grid: a new one, or the one that an interrupted run of the same grid left open.

    Args:
        newest: the newest of the same grid, open or not, where there is one.

    Raises:
        TrackingError: the store cannot be reached.
    """
    where = experiment(problem)
    grid = hashlib.sha256(" ".join(sorted(trial.key for trial in trials)).encode()).hexdigest()[:16]
    here = f"{socket.gethostname()}:{Path.cwd()}"
    about = settings.problem(problem)
    tags = {
        "mlflow.source.git.commit": _commit(),
        "recast.problem": problem,
        "recast.data": trials[0].data,
        "recast.prefect_run": prefect_run or "",
        "recast.synthetic": str(about.source.synthetic).lower(),
        "recast.unit": about.table.unit,
    }
    params = {
        "target": about.table.target,
        "split": about.split.model_dump_json(),
        **{name: str(value) for name, value in about.window.model_dump().items()},
        **{name: str(value) for name, value in settings.train.model_dump().items()},
    }
    same = f"tags.`recast.grid` = '{grid}' and tags.`recast.checkout` = '{here}'"
    still_open = "" if newest else " and attributes.status = 'RUNNING'"
    found = client().search_runs([where], same + still_open, max_results=1)
    if found:
        return Context(problem, where, found[0].info.run_id, tags, params)
    run = client().create_run(
        where,
        run_name=time.strftime("pipeline %Y-%m-%d %H:%M:%S"),
        tags={**tags, "recast.kind": "pipeline", "recast.grid": grid, "recast.checkout": here},
    )
    client().log_batch(
        run.info.run_id, params=[Param(*pair) for pair in {**params, "trials": str(len(trials))}.items()]
    )
    client().log_text(run.info.run_id, FILE.read_text(encoding="utf-8"), FILE.name)
    return Context(problem, where, run.info.run_id, tags, params)


@reported()
def log_unlogged(context: Context, trials: Iterable[Trial]) -> int:
    """Write the runs of trials that have ended but of which the store does not have all; how many there were.

    Such are the trials of a run whose MLflow went away, and those that came by `dvc pull` or `dvc checkout`.
    """
    unlogged = [trial for trial in trials if not _is_logged(trial_folder(trial))]
    for trial in unlogged:
        folder = trial_folder(trial)
        about = read_trial(trial)
        noted = read_run(folder)
        run = TrialRun(context, folder, about, str(noted.get("device", "")))
        run.end(about, history.read(folder), noted.get("seconds"))
    return len(unlogged)


def _is_logged(folder: Path) -> bool:
    noted = read_run(folder)
    return bool(noted.get("logged")) and _exists(noted["mlflow_run_id"])


@reported()
def close_pipeline(context: Context, failed: int) -> None:
    """End the parent run; it counts as failed when a trial has failed."""
    client().log_metric(context.parent, "failed_trials", failed)
    client().set_terminated(context.parent, "FAILED" if failed else "FINISHED")


@cache
def _commit() -> str:
    """The commit that is checked out, or nothing outside a repository."""
    found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return found.stdout.strip()


class TrialRun:
    """The MLflow run of one trial, written while it trains; `run.json` in the trial's folder remembers its id.

    It may be opened again after a kill: what the store has already is not written twice.

    Every method may raise what MLflow raises; see `reported`.
    """

    def __init__(self, context: Context, folder: Path, about: dict[str, Any], device: str) -> None:
        """
        Args:
            folder: the trial's folder.
            about: what trial.json says of the trial, its result perhaps not yet.
        """
        self.folder = folder
        self.scale = about["target_scale"]
        self.monitors = _monitors()
        self.id = str(read_run(folder).get("mlflow_run_id", ""))
        if self.id and _exists(self.id):
            client().update_run(self.id, status="RUNNING")
            steps = client().get_metric_history(self.id, "validation_mae")
            self.logged = max((metric.step for metric in steps), default=0)
            return
        hyperparameters = {name: str(value) for name, value in about["hyperparameters"].items()}
        params = {
            **context.params,
            **hyperparameters,
            "architecture": about["architecture"],
            "seed": str(about["seed"]),
        }
        run = client().create_run(
            context.experiment,
            run_name=about["label"],
            tags={
                **context.tags,
                "mlflow.parentRunId": context.parent,
                "recast.kind": "trial",
                "recast.key": about["key"],
                "recast.device": device,
                "recast.configuration": about["configuration"],
            },
        )
        self.id, self.logged = str(run.info.run_id), 0
        note_run(folder, mlflow_run_id=self.id)
        client().log_batch(self.id, params=[Param(*pair) for pair in sorted(params.items())])

    def epochs(self, done: Sequence[Epoch]) -> None:
        """Write the epochs that the store does not have yet, normalised and in the target's unit."""
        now = int(time.time() * 1000)
        metrics = [
            Metric(name, value, now, epoch.epoch)
            for epoch in done
            if epoch.epoch > self.logged
            for name, value in epoch_metrics(epoch, self.scale).items()
        ]
        if metrics:
            metrics += [Metric(name, value, now, done[-1].epoch) for name, value in _sampled(self.monitors).items()]
            client().log_batch(self.id, metrics=metrics)
            self.logged = done[-1].epoch

    def end(self, about: dict[str, Any], done: Sequence[Epoch], seconds: float | None) -> None:
        """Write the result, the history, the settings, the curve and the weights, and end the run.

        Args:
            seconds: how long the trial took, where that is known.
        """
        self.epochs(done)
        failed = about["status"] == "failed"
        now = int(time.time() * 1000)
        results = {f"best_{name}": value for name, value in about["validation"].items()}
        results |= {"parameters": about["parameters"], "best_epoch": about["best_epoch"], "seconds": seconds}
        if not done:
            results |= _sampled(self.monitors)
        client().log_batch(
            self.id,
            metrics=[
                Metric(name, value, now, 0)
                for name, value in results.items()
                if value is not None and math.isfinite(value)
            ],
            tags=[RunTag("recast.reason", about["reason"])] if failed else [],
        )
        if done:
            client().log_figure(self.id, learning_curve(about["label"], done), "learning_curve.png")
        for file in ("trial.json", "history.json", "weights.safetensors"):
            if (self.folder / file).exists():
                client().log_artifact(self.id, str(self.folder / file))
        client().log_text(self.id, FILE.read_text(encoding="utf-8"), FILE.name)
        client().set_terminated(self.id, "FAILED" if failed else "FINISHED")
        note_run(self.folder, logged=True, seconds=seconds)


def epoch_metrics(epoch: Epoch, scale: float) -> dict[str, float]:
    """The metrics of an epoch by name: errors in the target's unit, and normalised."""
    return {
        "train_loss": epoch.train_loss,
        "validation_mae": epoch.validation_mae * scale,
        "validation_rmse": epoch.validation_rmse * scale,
        "validation_mae_normalized": epoch.validation_mae,
        "validation_rmse_normalized": epoch.validation_rmse,
    }


def learning_curve(label: str, done: Sequence[Epoch]) -> Figure:
    """Training loss and validation MAE by epoch, normalised. Save it within `drawing` too."""
    with drawing({"text.parse_math": False}):  # a configuration may hold a $
        figure = Figure(figsize=(6, 3.6), layout="constrained")
        axes = figure.subplots()
        epochs = [each.epoch for each in done]
        axes.plot(epochs, [each.train_loss for each in done], label="training loss", color="#888888")
        axes.plot(epochs, [each.validation_mae for each in done], label="validation MAE", color="#1f6feb")
        axes.set(title=label, xlabel="epoch", ylabel="normalised")
        axes.legend()
    return figure


def _exists(run: str) -> bool:
    try:
        return bool(client().get_run(run).info.lifecycle_stage == "active")
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise


def _monitors() -> list[Any]:
    """MLflow's own monitors of CPU, memory, disk and network, and of the GPUs where there are any."""
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    monitors = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    try:
        from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor

        monitors.append(GPUMonitor())
    except (ImportError, RuntimeError):
        # No NVIDIA management library: there is no GPU to watch.
        return monitors
    return monitors


def _sampled(monitors: list[Any]) -> dict[str, float]:
    """One reading of every monitor, under the names that MLflow's dashboard draws apart."""
    found: dict[str, float] = {}
    for monitor in monitors:
        monitor.collect_metrics()
        found |= {f"system/{name}": float(value) for name, value in monitor.aggregate_metrics().items()}
        monitor.clear_metrics()
    return {name: value for name, value in found.items() if math.isfinite(value)}


@reported()
def log_evaluation(context: Context, evaluation: Evaluation, trials: Sequence[Trial], folder: Path) -> None:
    """Write the leaderboard and the report to the grid's parent run, and test errors to the runs of the trials tested.

    Raises:
        TrackingError: MLflow cannot be reached.
    """
    parent = context.parent
    client().log_artifacts(parent, str(folder), "evaluation")
    client().log_metric(parent, "persistence_test_mae", evaluation.persistence_test_mae)
    for row in evaluation.rows:
        if row.test_mae is None or row.validation_mae is None:
            continue
        for seed, error in zip(row.finished_seeds, row.test_mae.values, strict=True):
            (trial,) = (t for t in trials if t.configuration.label == row.configuration and t.seed == seed)
            client().log_metric(read_run(trial_folder(trial))["mlflow_run_id"], "test_mae", error)
        if row.configuration == evaluation.best:
            client().set_tag(parent, "recast.best", row.configuration)
            client().log_metric(parent, "best_validation_mae", row.validation_mae.mean)
            client().log_metric(parent, "best_test_mae", row.test_mae.mean)
            if row.skill is not None:
                client().log_metric(parent, "best_skill", row.skill)
