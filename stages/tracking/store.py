"""What MLflow is told: an experiment a problem, a parent run a pipeline run, a child run a trial.

The store is `mlruns/mlflow.db` unless MLFLOW_TRACKING_URI or the profile (`recast up`) names another. A run is written
by one process. Whatever the store holds can be made again from the trials that DVC tracks (`rebuild`).
"""

import errno
import hashlib
import logging
import math
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

# Before mlflow is imported, as it reads them once.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from pynvml import NVMLError
from requests import HTTPError
from sqlalchemy.exc import SQLAlchemyError
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_delay, wait_exponential

from problems.errors import RecastError
from problems.problem import AnyProblem
from project import profile
from project.git import commit
from project.paths import MLFLOW_STORE, PARAMS
from project.redaction import without_passwords
from project.settings.sections import Settings
from stages.evaluation.leaderboard import Evaluation
from stages.evaluation.selection import INSIDE, best_trials, pictures_of
from stages.report.drawing import drawing
from stages.training import history
from stages.training.history import Epoch
from stages.training.trials import Trial, note_run, read_run, read_trial, trial_folder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# It prints with its traceback what it raises too, and what `reported` tells in a line.
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)


PATIENCE_SECONDS = 240
"""How long a server that is away is waited for, once all is trained: as long as Prefect's clients wait for theirs."""

LONGEST_WAIT_SECONDS = 15

T = TypeVar("T")


class TrackingError(RecastError):
    """MLflow cannot be reached or has refused; what was trained is on disk all the same.

    Attributes:
        lasting: it will refuse again, however often it is asked.
    """

    def __init__(self, message: str, lasting: bool = False) -> None:
        super().__init__(without_passwords(message))
        self.lasting = lasting


def awaited(what: Callable[[], T]) -> T:
    """What `what` returns, called again and again while MLflow's server refuses, four minutes at most; it says so once.

    What a user may not do is not waited for, nor a store without a server: what is wrong with a folder or a database on
    this disk does not pass.

    Args:
        what: it may be called again when a part of it was done.

    Raises:
        TrackingError: the server has refused for longer, or for good.
    """

    def say(state: RetryCallState) -> None:
        if state.attempt_number == 1 and state.outcome:
            error = str(state.outcome.exception()).partition(". What is trained")[0]
            mend = f"it is asked again for {PATIENCE_SECONDS // 60} minutes; `recast up` starts the project's own"
            print(f"warning: {error}: {mend}", file=sys.stderr)

    if not uri().startswith("http"):
        return what()
    retrying = Retrying(
        retry=retry_if_exception(lambda error: isinstance(error, TrackingError) and not error.lasting),
        stop=stop_after_delay(PATIENCE_SECONDS),
        wait=wait_exponential(max=LONGEST_WAIT_SECONDS),
        before_sleep=say,
        reraise=True,
    )
    return retrying(what)


@contextmanager
def reported() -> Iterator[None]:
    """Tell of what MLflow refuses, in the block, as of something a person can mend.

    Raises:
        TrackingError: MLflow, or its database, has failed.
    """
    try:
        yield
    except (MlflowException, SQLAlchemyError) as error:
        raise _failed(error) from error


@contextmanager
def storing() -> Iterator[None]:
    """Tell likewise of all that the writing of artifacts, in the block, may raise.

    Their store is a server, a folder or a cloud, and each fails in its own way: MLflow passes on what `requests`, the
    system or the cloud's library raises.

    Raises:
        TrackingError: the store has failed.
        OSError: the disk is full.
    """
    try:
        yield
    except Exception as error:
        # `project.command` says more of a full disk.
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise _failed(error) from error


NOT_ALLOWED = (401, 403)
"""HTTP's codes for a user who is not known, or may not do this."""


def _failed(error: Exception) -> TrackingError:
    return _failure(
        "has failed",
        error,
        "What is trained is on disk; mend or start MLflow (`recast up` starts the project's own) and run again: what "
        "is missing there is written then",
    )


def _failure(what: str, error: Exception, mend: str) -> TrackingError:
    """What MLflow's error means to a person.

    Args:
        mend: unless it answers that this is not allowed.
    """
    lasting = _http_status(error) in NOT_ALLOWED
    if lasting:
        # Also what other programs than MLflow say on its port, and MLflow itself to a host that it does not know.
        what = "refuses this"
        mend = (
            "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, to a user who may "
            "write there; or see that it is MLflow that answers there, and that it allows this host. Then run again: "
            "what is missing there is written then"
        )
    return TrackingError(f"MLflow at {uri()} {what}: {_first_line(error)}. {mend}", lasting)


def _http_status(error: Exception) -> int | None:
    """The code of a server's refusal; MLflow passes on what `requests` raises where it sends artifacts."""
    if isinstance(error, MlflowException):
        return int(error.get_http_status_code())
    return error.response.status_code if isinstance(error, HTTPError) and error.response is not None else None


def uri() -> str:
    """Where MLflow's store is: MLFLOW_TRACKING_URI, else the project's own server of real stores, else its database."""
    return os.environ.get("MLFLOW_TRACKING_URI") or profile.read().mlflow or f"sqlite:///{MLFLOW_STORE / 'mlflow.db'}"


@cache
def client() -> MlflowClient:
    """A client of the store; the database is created where it does not exist.

    Raises:
        TrackingError: the store cannot be reached.
    """
    # An unreachable server should be said now, not after minutes of retries.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    MLFLOW_STORE.mkdir(exist_ok=True)
    try:
        found = MlflowClient(uri())
        found.search_experiments(max_results=1)
    # An ImportError is the lack of the database's driver.
    except (MlflowException, SQLAlchemyError, OSError, ImportError) as error:
        raise _failure(
            "cannot be reached",
            error,
            "Start it (`recast up` starts the project's own), or unset MLFLOW_TRACKING_URI to write to "
            "mlruns/mlflow.db",
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
    location = (MLFLOW_STORE / "artifacts" / problem).absolute().as_uri() if local else None
    # The kind decides which of MLflow's pages an experiment opens with: ours is about models, not prompts.
    kind = {"mlflow.experimentKind": "custom_model_development"}
    return str(client().create_experiment(problem, artifact_location=location, tags=kind))


@dataclass(frozen=True)
class Context:
    """What every run of one pipeline run, or of one origin of a backtest, shares. It travels to the worker processes.

    Attributes:
        parent: id of the parent run.
        grid: name of the tag that every run of the grid has, whichever pipeline run trained it: a run has one parent.
        tags: tags of every child run.
        params: parameters of every child run beside its own.
        prefect_run: id of the flow run that trains, where one does.
    """

    problem: str
    experiment: str
    parent: str
    grid: str
    tags: dict[str, str]
    params: dict[str, str]
    prefect_run: str | None


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
    name = time.strftime("pipeline %Y-%m-%d %H:%M:%S")
    context, run = _open("pipeline", problem, settings, settings.problem(problem), trials, name, newest, prefect_run)
    # Else it was trained at another time, perhaps by another commit.
    if not newest:
        _describe(run, {}, {"mlflow.source.git.commit": commit(), "recast.prefect_run": prefect_run})
    return context


@reported()
def open_backtest(
    problem: str,
    settings: Settings,
    origins: Mapping[str, tuple[AnyProblem, Sequence[Trial]]],
    prefect_run: str | None,
) -> tuple[Context, dict[str | None, Context]]:
    """The run of a backtest and, below it, one of each origin, in which those of its trials stand.

    The same backtest has the same runs, however often it is run.

    Args:
        origins: the problem with each one's split, and its trials.

    Raises:
        TrackingError: the store cannot be reached.
    """
    now = {"mlflow.source.git.commit": commit(), "recast.prefect_run": prefect_run}
    everything = [trial for _, trials in origins.values() for trial in trials]
    name = time.strftime("backtest %Y-%m-%d %H:%M:%S")
    declared = settings.problem(problem)
    whole, run = _open("backtest", problem, settings, declared, everything, name, True, prefect_run)
    _describe(run, {}, now)
    found: dict[str | None, Context] = {}
    for origin, (about, trials) in origins.items():
        name = f"origin {origin}"
        found[origin], run = _open("origin", problem, settings, about, trials, name, True, prefect_run)
        _describe(run, {}, {**now, "mlflow.parentRunId": whole.parent, "recast.origin": origin})
    return whole, found


def _open(
    kind: str,
    problem: str,
    settings: Settings,
    about: AnyProblem,
    trials: Sequence[Trial],
    name: str,
    newest: bool,
    prefect_run: str | None,
) -> tuple[Context, Run]:
    """The run of a kind for these trials: a new one, one that was left open or, with `newest`, the newest."""
    where = experiment(problem)
    grid = hashlib.sha256(" ".join(sorted(trial.key for trial in trials)).encode()).hexdigest()[:16]
    tags = {
        "recast.problem": problem,
        "recast.data": trials[0].data,
        "recast.synthetic": str(about.source.synthetic).lower(),
        "recast.unit": about.unit,
        f"recast.grid.{grid}": "1",
    }
    params = {
        "target": about.target,
        "split": about.split.model_dump_json(),
        **{name: str(value) for name, value in about.window.model_dump().items()},
        **{name: str(value) for name, value in settings.train.model_dump().items()},
    }
    same = f"tags.`recast.grid` = '{grid}' and tags.`recast.checkout` = '{_here()}' and tags.`recast.kind` = '{kind}'"
    still_open = "" if newest else " and attributes.status = 'RUNNING'"
    found = client().search_runs([where], same + still_open, max_results=1)
    run = found[0] if found else None
    if run is None:
        # MLflow shows it on the run's page.
        note = f"All trials of this grid, those trained before too: filter runs by ``tags.`recast.grid.{grid}` = '1'``"
        identity = {"recast.kind": kind, "recast.grid": grid, "recast.checkout": _here()}
        run = client().create_run(where, run_name=name, tags={**tags, **identity, "mlflow.note.content": note})
    _describe(run, {**params, "trials": str(len(trials))}, tags)
    with storing():
        client().log_text(run.info.run_id, PARAMS.read_text(encoding="utf-8"), PARAMS.name)
    return Context(problem, where, run.info.run_id, f"recast.grid.{grid}", tags, params, prefect_run), run


def _describe(run: Run, params: Mapping[str, str], tags: Mapping[str, str | None]) -> None:
    """Write the parameters that a run does not have yet (MLflow lets none be changed) and the tags that are known."""
    client().log_batch(
        run.info.run_id,
        params=[Param(name, value) for name, value in sorted(params.items()) if name not in run.data.params],
        tags=[RunTag(name, value) for name, value in tags.items() if value],
    )


def _here() -> str:
    """What tells this checkout from others that write to the same store; it may stand in quotes."""
    return f"{socket.gethostname()}:{quote(str(Path.cwd()))}"


@reported()
def log_unlogged(context: Context, trials: Iterable[Trial]) -> int:
    """Write the runs of ended trials of which the store does not have all; how many there were.

    Such are the trials of a run whose MLflow went away, and those that came by `dvc pull` or `dvc checkout`. The
    others, which a former pipeline run may have trained, are marked as of this grid too.
    """
    written = 0
    for trial in trials:
        folder = trial_folder(trial)
        noted = read_run(folder)
        logged = _run(noted) if noted.get("logged") else None
        if logged is None:
            about = read_trial(trial)
            run = TrialRun(context, folder, about, str(noted.get("device", "")), live=False)
            run.end(about, history.read(folder), noted.get("seconds"))
            written += 1
        elif context.grid not in logged.data.tags:
            client().set_tag(logged.info.run_id, context.grid, "1")
    return written


@reported()
def close_pipeline(context: Context, failed: int) -> None:
    """End the parent run; it counts as failed when a trial has failed."""
    _log_metrics(context.parent, {"failed_trials": failed})
    client().set_terminated(context.parent, "FAILED" if failed else "FINISHED")


class TrialRun:
    """The MLflow run of one trial, written while it trains; `run.json` in the trial's folder remembers its id.

    It may be opened again after a kill, wherever that came: what the store has already is not written twice.

    Every method may raise what MLflow raises; see `reported`.
    """

    def __init__(self, context: Context, folder: Path, about: dict[str, Any], device: str, live: bool = True) -> None:
        """
        Args:
            folder: the trial's folder.
            about: what trial.json says of the trial, its result perhaps not yet.
            device: where it is trained, as far as that is known.
            live: it is trained now, by this process. Else it was trained at another time: of what was so then, only
                what run.json notes is told.
        """
        self.folder = folder
        self.scaled = about["scaled"]
        self.monitors = _monitors() if live else []
        noted = read_run(folder)
        if noted.get("logged"):
            # Of an earlier try. Until this one has ended too, the store does not have all.
            note_run(folder, logged=False)
        hyperparameters = {name: str(value) for name, value in about["hyperparameters"].items()}
        params = {
            **context.params,
            **hyperparameters,
            "architecture": about["architecture"],
            "seed": str(about["seed"]),
        }
        tags = {
            **context.tags,
            "mlflow.parentRunId": context.parent,
            "recast.kind": "trial",
            "recast.key": about["key"],
            "recast.checkout": _here(),
            "recast.configuration": about["configuration"],
        }
        known = {
            "mlflow.source.git.commit": commit() if live else noted.get("commit"),
            "recast.device": device,
            "recast.prefect_run": context.prefect_run if live else noted.get("prefect_run"),
        }
        run = _run(noted) or _unnoted(context, about["key"], live)
        if run is None:
            run = client().create_run(context.experiment, run_name=about["label"], tags=tags)
        else:
            client().update_run(run.info.run_id, status="RUNNING")
        self.id = str(run.info.run_id)
        self.there = dict(run.data.metrics)
        note_run(folder, mlflow_run_id=self.id)
        _describe(run, params, {**tags, **known})
        if "recast.reason" in run.data.tags:
            client().delete_tag(self.id, "recast.reason")
        steps = client().get_metric_history(self.id, "train_loss")
        self.logged = max((metric.step for metric in steps), default=0)

    def epochs(self, done: Sequence[Epoch]) -> None:
        """Write the epochs that the store does not have yet, normalised and in the target's unit."""
        now = int(time.time() * 1000)
        metrics = [
            Metric(name, value, now, epoch.epoch)
            for epoch in done
            if epoch.epoch > self.logged
            for name, value in epoch_metrics(epoch, self.scaled).items()
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
        results |= {name: about[name] for name in ("parameters", "output_parameters")}
        results |= {"best_epoch": about["best_epoch"], "seconds": seconds}
        if not done:
            results |= _sampled(self.monitors)
        client().log_batch(
            self.id,
            metrics=[
                Metric(name, value, now, 0)
                for name, value in results.items()
                # A former try, which the store of artifacts has refused, has written them.
                if value is not None and math.isfinite(value) and self.there.get(name) != value
            ],
            tags=[RunTag("recast.reason", about["reason"])] if failed else [],
        )
        files = [self.folder / name for name in ("trial.json", history.FILE, "weights.safetensors")]
        with tempfile.TemporaryDirectory() as folder:
            if done:
                files.append(Path(folder) / "learning_curve.png")
                with drawing():
                    learning_curve(about["label"], done).savefig(files[-1])
            with storing():
                for file in files:
                    if file.exists():
                        client().log_artifact(self.id, str(file))
                client().log_text(self.id, PARAMS.read_text(encoding="utf-8"), PARAMS.name)
        client().set_terminated(self.id, "FAILED" if failed else "FINISHED")
        note_run(self.folder, logged=True, seconds=seconds)


def epoch_metrics(epoch: Epoch, scaled: dict[str, float]) -> dict[str, float]:
    """The metrics of an epoch by name: errors in the target's unit, and normalised.

    Args:
        scaled: the measures that a normalised one is made of by a factor, and that factor.
    """
    found = {"train_loss": epoch.train_loss}
    for name, value in epoch.validation.items():
        found[f"validation_{name}"] = value * scaled.get(name, 1.0)
        if name in scaled:
            found[f"validation_{name}_normalized"] = value
    return found


def learning_curve(label: str, done: Sequence[Epoch]) -> "Figure":
    """Training loss, and the measure that selects on validation, by epoch. Save it within `drawing` too."""
    # Here, as in `drawing`.
    from matplotlib.figure import Figure

    with drawing({"text.parse_math": False}):  # a configuration may hold a $
        figure = Figure(figsize=(6, 3.6), layout="constrained")
        axes = figure.subplots()
        epochs = [each.epoch for each in done]
        axes.plot(epochs, [each.train_loss for each in done], label="training loss", color="#888888")
        measure = next(iter(done[0].validation))
        axes.plot(epochs, [each.validation[measure] for each in done], label=f"validation {measure}", color="#1f6feb")
        axes.set(title=label, xlabel="epoch", ylabel="errors normalised")
        axes.legend()
    return figure


def _run(noted: dict[str, Any]) -> Run | None:
    """The run that a trial's run.json notes, where it notes one that the store still has."""
    if "mlflow_run_id" not in noted:
        return None
    try:
        run = client().get_run(noted["mlflow_run_id"])
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    return run if run.info.lifecycle_stage == "active" else None


def _unnoted(context: Context, key: str, live: bool) -> Run | None:
    """The run that this checkout has created for a trial though no run.json notes it: a kill came, or it is lost."""
    same = f"tags.`recast.key` = '{key}' and tags.`recast.kind` = 'trial' and tags.`recast.checkout` = '{_here()}'"
    # What trains now is no run that has ended: that one was of a former training, which may differ in its last bits.
    still_open = " and attributes.status = 'RUNNING'" if live else ""
    found = client().search_runs([context.experiment], same + still_open, max_results=1)
    return found[0] if found else None


def _monitors() -> list[Any]:
    """MLflow's own monitors of CPU, memory, disk and network, and of the GPUs where there are any."""
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    monitors = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    try:
        from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor

        monitors.append(GPUMonitor())
    except (RuntimeError, NVMLError):
        # No driver, or none that answers: there is no GPU to watch.
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

    The pictures of the best trial of each architecture go to its own run too.

    A parent run that is still open is ended: it was opened for this evaluation.

    Raises:
        TrackingError: MLflow cannot be reached.
    """
    parent = context.parent
    with storing():
        client().log_artifacts(parent, str(folder), "evaluation")
    selects = evaluation.measure.name
    of_grid: dict[str, float] = {}
    if evaluation.persistence_test is not None:
        of_grid[f"persistence_test_{selects}"] = evaluation.persistence_test
    for row in evaluation.rows:
        if not row.selected:
            continue
        for place, seed in enumerate(row.finished_seeds):
            (trial,) = (t for t in trials if t.configuration.label == row.configuration and t.seed == seed)
            of_trial = {f"test_{each.name}": row.test[each.name].values[place] for each in evaluation.measures}
            for interval in row.intervals:
                of_trial[f"coverage_of_{interval.level:g}"] = interval.coverage.values[place]
                of_trial[f"width_of_{interval.level:g}"] = interval.width.values[place]
            _log_metrics(read_run(trial_folder(trial))["mlflow_run_id"], of_trial)
        if row.configuration == evaluation.best:
            client().set_tag(parent, "recast.best", row.configuration)
            of_grid[f"best_validation_{selects}"] = row.validation[selects].mean
            of_grid[f"best_test_{selects}"] = row.test[selects].mean
            if row.skill is not None:
                of_grid["best_skill"] = row.skill
    _log_metrics(parent, of_grid)
    for _, trial in best_trials(evaluation.rows, trials):
        pictures = pictures_of(folder, trial)
        if pictures.exists():
            with storing():
                client().log_artifacts(read_run(trial_folder(trial))["mlflow_run_id"], str(pictures), INSIDE)
    if client().get_run(parent).info.status == "RUNNING":
        close_pipeline(context, sum(len(row.failed) for row in evaluation.rows))


def _log_metrics(run: str, values: Mapping[str, float]) -> None:
    """Write those that the run does not have with one call: each costs a transaction of the store, and an answer."""
    now, there = int(time.time() * 1000), client().get_run(run).data.metrics
    new = [Metric(name, value, now, 0) for name, value in values.items() if there.get(name) != value]
    client().log_batch(run, metrics=new)
