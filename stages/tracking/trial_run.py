"""The MLflow run of a trial: written while the trial is trained, or afterwards from its files."""

import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow.entities import Metric, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor
from pynvml import NVMLError

from learning.measures import normalized_name
from project.git import describe_commit
from stages.report.drawing import use_matplotlib
from stages.tracking.params import describe_trial_params
from stages.tracking.runs import RunContext, add_params_and_tags, identify_checkout, log_settings, read_runs
from stages.tracking.store import get_client, translate_artifact_errors, translate_errors
from stages.training import history
from stages.training.history import Epoch
from stages.training.trials import (
    RESULT_FILES,
    TRIAL_FILE,
    Trial,
    add_run_notes,
    read_run_notes,
    read_trial,
    trial_folder,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@translate_errors()
def log_missing_runs(context: RunContext, trials: Sequence[Trial]) -> int:
    """Write the runs of ended trials that the store does not have completely, and return how many these were.

    The store may lack trials because MLflow went away while they were trained, or because they came by `dvc pull` or
    `dvc checkout`. The other runs, perhaps of an earlier pipeline run, get the tag of this grid.

    Raises:
        TrackingError: MLflow has failed.
    """
    count = 0
    notes_by_key = {trial.key: read_run_notes(trial_folder(trial)) for trial in trials}
    logged = [notes["mlflow_run_id"] for notes in notes_by_key.values() if notes.get("logged")]
    runs = read_runs(context.experiment, logged)
    for trial in trials:
        folder = trial_folder(trial)
        notes = notes_by_key[trial.key]
        run = runs.get(notes.get("mlflow_run_id", "")) if notes.get("logged") else None
        if run is None:
            record = read_trial(trial)
            trial_run = TrialRun(context, folder, record, str(notes.get("device", "")), live=False)
            trial_run.finish(record, history.read_history(folder), notes.get("seconds"))
            count += 1
        elif context.grid not in run.data.tags:
            get_client().set_tag(run.info.run_id, context.grid, "1")
    return count


class TrialRun:
    """The MLflow run of one trial. `run.json` in the trial's folder remembers its id.

    After a kill at any moment it can be opened again: nothing is written twice.

    Every method may raise what MLflow raises; see `translate_errors`.
    """

    def __init__(
        self, context: RunContext, folder: Path, record: dict[str, Any], device: str, live: bool = True
    ) -> None:
        """
        Args:
            folder: the trial's folder.
            record: the content of trial.json, perhaps without the result yet.
            device: where it is trained; "" where that is not known.
            live: it is trained now, by this process. Otherwise it was trained at another time, and what run.json notes
                of the circumstances is all that is logged of them.
        """
        self.folder = folder
        self.scaled = record["scaled"]
        self.monitors = _create_monitors() if live else []
        notes = read_run_notes(folder)
        if notes.get("logged"):
            # That was an earlier attempt. Until this one has ended too, the store does not have everything.
            add_run_notes(folder, logged=False)
        params = describe_trial_params(context.params, record)
        tags = {
            **context.tags,
            "mlflow.parentRunId": context.parent,
            "recast.kind": "trial",
            "recast.key": record["key"],
            "recast.checkout": identify_checkout(),
            "recast.configuration": record["configuration"],
        }
        circumstances = {
            "mlflow.source.git.commit": describe_commit() if live else notes.get("commit"),
            "recast.device": device,
            "recast.prefect_run": context.prefect_run if live else notes.get("prefect_run"),
        }
        run = _find_noted_run(notes) or _find_unnoted_run(context, record["key"], live)
        if run is None:
            run = get_client().create_run(context.experiment, run_name=record["label"], tags=tags)
        else:
            get_client().update_run(run.info.run_id, status="RUNNING")
        self.id = str(run.info.run_id)
        self.logged_metrics = dict(run.data.metrics)
        add_run_notes(folder, mlflow_run_id=self.id)
        add_params_and_tags(run, params, {**tags, **circumstances})
        if "recast.reason" in run.data.tags:
            get_client().delete_tag(self.id, "recast.reason")
        steps = get_client().get_metric_history(self.id, "train_loss")
        self.logged_epochs = max((metric.step for metric in steps), default=0)

    def log_epochs(self, epochs: Sequence[Epoch]) -> None:
        """Write the epochs that the store does not have yet: errors in the target's unit, and normalised.

        Args:
            epochs: all that are completed.
        """
        now = int(time.time() * 1000)
        metrics = [
            Metric(name, value, now, epoch.epoch)
            for epoch in epochs
            if epoch.epoch > self.logged_epochs
            for name, value in name_epoch_metrics(epoch, self.scaled).items()
        ]
        if metrics:
            metrics += [Metric(name, value, now, epochs[-1].epoch) for name, value in _sample(self.monitors).items()]
            get_client().log_batch(self.id, metrics=metrics)
            self.logged_epochs = epochs[-1].epoch

    def finish(self, record: dict[str, Any], epochs: Sequence[Epoch], seconds: float | None) -> None:
        """Write the result, the history, the settings, the learning curve and the weights, and end the run.

        Args:
            record: the content of trial.json.
            seconds: how long the trial took; None where that is not known.
        """
        self.log_epochs(epochs)
        failed = record["status"] == "failed"
        tags = [RunTag("recast.reason", record["reason"])] if failed else []
        if loops := record.get("recurrent_loops"):
            tags.append(RunTag("recast.recurrent_loops", loops))
        now = int(time.time() * 1000)
        results = {f"best_{name}": value for name, value in record["validation"].items()}
        results |= {name: record[name] for name in ("parameters", "output_parameters")}
        results |= {"best_epoch": record["best_epoch"], "seconds": seconds}
        if not epochs:
            results |= _sample(self.monitors)
        get_client().log_batch(
            self.id,
            metrics=[
                Metric(name, value, now, 0)
                for name, value in results.items()
                # An earlier attempt may have written them, before it failed at the artifacts.
                if value is not None and math.isfinite(value) and self.logged_metrics.get(name) != value
            ],
            tags=tags,
        )
        files = [self.folder / name for name in (TRIAL_FILE, *RESULT_FILES)]
        with tempfile.TemporaryDirectory() as folder:
            if epochs:
                files.append(Path(folder) / "learning_curve.png")
                with use_matplotlib():
                    draw_learning_curve(record["label"], epochs).savefig(files[-1])
            with translate_artifact_errors():
                for file in files:
                    if file.exists():
                        get_client().log_artifact(self.id, str(file))
            log_settings(self.id)
        get_client().set_terminated(self.id, "FAILED" if failed else "FINISHED")
        add_run_notes(self.folder, logged=True, seconds=seconds)


def name_epoch_metrics(epoch: Epoch, scaled: dict[str, float]) -> dict[str, float]:
    """The metrics of an epoch by name: errors in the target's unit, and normalised.

    Args:
        scaled: for each measure that is in the target's unit, the factor between its normalised value and that unit.
    """
    metrics = {"train_loss": epoch.train_loss}
    for name, value in epoch.validation.items():
        metrics[f"validation_{name}"] = value * scaled.get(name, 1.0)
        if name in scaled:
            metrics[f"validation_{normalized_name(name)}"] = value
    return metrics


def draw_learning_curve(label: str, epochs: Sequence[Epoch]) -> "Figure":
    """A chart of the training loss and of the selection measure on validation. Save it within `use_matplotlib` too."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - saves most processes the second that matplotlib takes

    with use_matplotlib({"text.parse_math": False}):  # a configuration may contain a $
        figure = Figure(figsize=(6, 3.6))
        # Fixed margins: a layout that Matplotlib computes takes as long again as the picture, for every trial.
        axes = figure.subplots(gridspec_kw={"left": 0.12, "right": 0.97, "top": 0.9, "bottom": 0.14})
        measure = next(iter(epochs[0].validation))
        numbers = [epoch.epoch for epoch in epochs]
        errors = [epoch.validation[measure] for epoch in epochs]
        axes.plot(numbers, [epoch.train_loss for epoch in epochs], label="training loss", color="#888888")
        axes.plot(numbers, errors, label=f"validation {measure}", color="#1f6feb")
        axes.set(title=label, xlabel="epoch", ylabel="errors normalised")
        axes.legend(loc="upper right")
    return figure


def _find_noted_run(notes: dict[str, Any]) -> Run | None:
    """The run that a trial's run.json names, if the store still has it."""
    if "mlflow_run_id" not in notes:
        return None
    try:
        run = get_client().get_run(notes["mlflow_run_id"])
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    return run if run.info.lifecycle_stage == "active" else None


def _find_unnoted_run(context: RunContext, key: str, live: bool) -> Run | None:
    """A run of the trial that this checkout has created but no run.json names: after a kill, or if the file is lost."""
    checkout = identify_checkout()
    same = f"tags.`recast.key` = '{key}' and tags.`recast.kind` = 'trial' and tags.`recast.checkout` = '{checkout}'"
    # A run that has ended is not the one of this training: it is of an earlier one, whose last bits may differ.
    still_open = " and attributes.status = 'RUNNING'" if live else ""
    runs = get_client().search_runs([context.experiment], same + still_open, max_results=1)
    return runs[0] if runs else None


def _create_monitors() -> list[Any]:
    """MLflow's own monitors of CPU, memory, disk and network, and of the GPUs if there are any."""
    monitors = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    try:
        monitors.append(GPUMonitor())
    except (RuntimeError, NVMLError):
        # There is no driver, or it does not answer: there is no GPU to watch.
        return monitors
    return monitors


def _sample(monitors: list[Any]) -> dict[str, float]:
    """One reading of every monitor, with the prefix by which MLflow shows them apart from the other metrics."""
    readings: dict[str, float] = {}
    for monitor in monitors:
        monitor.collect_metrics()
        readings |= {f"system/{name}": float(value) for name, value in monitor.aggregate_metrics().items()}
        monitor.clear_metrics()
    return {name: value for name, value in readings.items() if math.isfinite(value)}
