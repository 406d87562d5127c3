"""Workers that log to MLflow at once, each a trial of its own: points per second, duration of calls, lost points.

Each worker is a process that logs as a trial does, with `stages.tracking`, but trains nothing: it begins a run, writes
epoch after epoch as fast as it can, and ends the run with its artifacts. All workers wait for each other before each of
these three parts. `PostgreSQL` is the profile `servers`: MLflow's server, through which the artifacts go to S3.
`SQLite` is the profile `laptop`, where workers write directly to the file; `SQLite behind a server` is the same file
behind MLflow's server.

A point is one value of a metric at one epoch. A point is lost if its call succeeded but the database does not have it
once all workers have ended. Once a call has failed, a trial writes no more to its run, as in training;
`log_missing_runs` writes the rest afterwards, as at the end of a grid. Clients and servers share the machine's cores.
"""

import contextlib
import json
import multiprocessing
import os
import re
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerContext
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from safetensors.torch import save
from sqlalchemy import Engine, bindparam, create_engine, text

from infra import laptop, postgres, server_process, servers
from learning.objectives import Objective
from problems.errors import RecastError
from project import paths
from project.atomic import write_json
from project.paths import PARAMS
from project.retry import retry_while_unreachable
from project.settings.loading import load_settings
from stages.tables.windows import read_windows
from stages.tracking import runs, trial_run
from stages.tracking import store as tracking
from stages.tracking.runs import RunContext
from stages.tracking.store import TrackingError
from stages.tracking.trial_run import TrialRun
from stages.training import fit, history
from stages.training.expansion import list_trials
from stages.training.history import Epoch
from stages.training.objectives import choose_objective, choose_shape
from stages.training.results import describe_result, describe_trial
from stages.training.trials import Trial, add_run_notes, read_run_notes, read_trial, trial_folder
from tests.support import checkout

PROBLEM = "demo"
WORKERS = (1, 4, 16, 64)
TIME_LIMIT_SECONDS = 600
"""The time limit of each of the three parts: a worker that hangs must not block the benchmark."""

PRELOADED_MODULES = (
    "benchmarks.tracking_load",
    "matplotlib.figure",
    "mlflow.store.tracking.rest_store",
    "mlflow.store.tracking.sqlalchemy_store",
)
"""The modules that are imported once, for all workers, before a worker begins."""


@dataclass(frozen=True)
class Store:
    """A checkout, and the tracking store of its runs.

    Attributes:
        uri: the address of MLflow's server, where the profile does not give it to the workers.
        records: the record files of the servers that take part, by their name in the results.
    """

    root: Path
    uri: str | None
    records: dict[str, Path]

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Let this process work in the checkout and write to its store."""
        with contextlib.chdir(self.root):
            before = os.environ.pop("MLFLOW_TRACKING_URI", None)
            if self.uri:
                os.environ["MLFLOW_TRACKING_URI"] = self.uri
            tracking.get_client.cache_clear()
            try:
                yield
            finally:
                os.environ.pop("MLFLOW_TRACKING_URI", None)
                if before:
                    os.environ["MLFLOW_TRACKING_URI"] = before
                tracking.get_client.cache_clear()

    def open_database(self) -> Engine:
        """SQLAlchemy's engine for MLflow's database; call it in the checkout."""
        if servers.POSTGRES.record in self.records.values():
            return postgres.engine(server_process.running_port(servers.POSTGRES), "mlflow")
        return create_engine(f"sqlite:///{laptop.DATABASES['mlflow']}")

    def cpu_seconds(self) -> dict[str, float]:
        """The CPU time that each server has spent, by its name in the results."""
        seconds = {}
        for name, record in self.records.items():
            process = psutil.Process(json.loads(record.read_bytes())["pid"])
            times = [process.cpu_times()]
            for child in process.children(recursive=True):
                # The times of a child that has ended meanwhile are added below.
                with contextlib.suppress(psutil.NoSuchProcess):
                    times.append(child.cpu_times())
            # Children that have ended count: PostgreSQL serves every connection with a process of its own.
            seconds[name] = sum(cpu.user + cpu.system for cpu in times) + sum(times[0][2:4])
        return seconds


@dataclass
class Report:
    """The report of a worker on the calls of its trial.

    Attributes:
        seconds: the duration of every call that succeeded, by the part of the trial.
        failure: the message of the call that failed, if one did.
        cpu: the CPU seconds that logging the epochs took.
    """

    trial: Trial
    seconds: dict[str, list[float]] = field(
        default_factory=lambda: {"connect": [], "begin": [], "epoch": [], "end": []}
    )
    failure: str | None = None
    cpu: float = 0.0

    def call(self, part: str, action: Callable[[], object]) -> None:
        """Make a call as a trial does: once a call has failed, the trial writes nothing more to its run."""
        if self.failure:
            return
        begun = time.perf_counter()
        try:
            with tracking.translate_errors():
                action()
        except TrackingError as error:
            self.failure = f"{part}: {_shorten_message(str(error))}"
        else:
            self.seconds[part].append(time.perf_counter() - begun)


def _shorten_message(message: str) -> str:
    """MLflow's message without the parts that differ from call to call: of a server's, the request and the cause."""
    request = re.search(r"mlflow/([a-z/-]+) failed with .*Caused by (\w+)", message)
    return f"{request[1]}, {request[2]}" if request else message.partition(". What is")[0]


@dataclass
class WorkerLoad:
    """The figures of a number of workers on a store, over the rounds.

    Attributes:
        rates: points per second while epochs were written, by round.
        busy: the number of cores that each server and the workers kept busy meanwhile, by round.
        sent: the number of points whose calls succeeded.
        lost: how many of them the database does not have.
        unsent: the number of points of calls that failed, and of later calls of the same run.
        missing: the number of points of the measures that the database does not have after `log_missing_runs`.
        incomplete: the number of runs that have not ended then, or lack a parameter or an artifact.
    """

    reports: list[Report] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    busy: dict[str, list[float]] = field(default_factory=dict)
    sent: int = 0
    lost: int = 0
    unsent: int = 0
    missing: int = 0
    incomplete: int = 0

    def tabulate(self) -> dict[str, Any]:
        """The row of a table."""

        def milliseconds(part: str, share: float) -> float | str:
            values = [seconds for report in self.reports for seconds in report.seconds[part]]
            return float(f"{np.quantile(values, share) * 1000:.3g}") if values else ""

        return {
            "points/s": round(statistics.median(self.rates)),
            "ms per epoch, 50 %": milliseconds("epoch", 0.5),
            "ms per epoch, 95 %": milliseconds("epoch", 0.95),
            "ms per epoch, longest": milliseconds("epoch", 1),
            "ms to begin, 95 %": milliseconds("begin", 0.95),
            "ms to end, 95 %": milliseconds("end", 0.95),
            "points sent": self.sent,
            "points lost": self.lost,
            "failed calls": sum(report.failure is not None for report in self.reports),
            "points not sent": self.unsent,
            "points missing at the end": self.missing,
            "incomplete runs": self.incomplete,
            **{f"cores: {name}": round(statistics.median(cores), 2) for name, cores in self.busy.items()},
        }


def run(quick: bool) -> dict[str, Any]:
    """In every round, measure every number of workers on every store in turn."""
    rounds, epochs = (1, 64) if quick else (1, 256)
    loads: dict[str, dict[int, WorkerLoad]] = {}
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(list(PRELOADED_MODULES))
    with tempfile.TemporaryDirectory() as name, _run_stores(Path(name), rounds) as stores:
        first = 0
        for _ in range(rounds):
            for workers in WORKERS:
                for title, store in stores.items():
                    load = loads.setdefault(title, {}).setdefault(workers, WorkerLoad())
                    with store.entered():
                        trials = list_trials(load_settings(), PROBLEM, paths.stage_folder("window", PROBLEM))[
                            first : first + workers
                        ]
                        _measure(load, store, trials, max(1, epochs // workers), processes)
                first += workers
    failures = Counter(
        f"{title}, {workers} workers: {report.failure}"
        for title, by_workers in loads.items()
        for workers, load in by_workers.items()
        for report in load.reports
        if report.failure
    )
    load_of_machine = f"{psutil.getloadavg()[0]:.1f} on {psutil.cpu_count()} cores"
    return {
        "rounds": rounds,
        "epochs per round, all workers together": epochs,
        "load of the machine at the end, with this benchmark": load_of_machine,
        "failed calls": "; ".join(f"{count} x {message}" for message, count in failures.items()) or "none",
        **{
            title: {
                f"{workers} worker{'s' if workers > 1 else ''}": load.tabulate() for workers, load in by_workers.items()
            }
            for title, by_workers in loads.items()
        },
    }


@contextlib.contextmanager
def _run_stores(root: Path, rounds: int) -> Iterator[dict[str, Store]]:
    """Run the servers until the block ends, and yield the stores by title, each with a checkout of its own."""
    windowed = checkout.make_checkout(root / "windowed", RECAST_CACHE=str(root / "cache"))
    windowed.settings(grid={"seeds": list(range(rounds * sum(WORKERS))), "architectures": {"dense": {"units": [4]}}})
    for stage in ("ingest", "normalize", "window"):
        windowed.run(sys.executable, "-m", f"stages.{stage}", PROBLEM)
    with_servers, direct, behind_server = (
        windowed.copy(root / name).root for name in ("servers", "direct", "behind-server")
    )
    mlflow = {"MLflow's server": servers.MLFLOW.record}
    try:
        with contextlib.chdir(with_servers):
            servers.switch_profile("servers")
            server_process.start(servers.MLFLOW)
        with contextlib.chdir(behind_server):
            uri = server_process.start(servers.MLFLOW)
        yield {
            "PostgreSQL": Store(with_servers, None, {**mlflow, "PostgreSQL": servers.POSTGRES.record}),
            "SQLite": Store(direct, None, {}),
            "SQLite behind a server": Store(behind_server, uri, mlflow),
        }
    finally:
        for root_of_servers in (behind_server, with_servers):
            with contextlib.chdir(root_of_servers):
                for server in (servers.MLFLOW, servers.S3, servers.POSTGRES):
                    server_process.stop(server)


def _measure(
    load: WorkerLoad, store: Store, trials: Sequence[Trial], epochs: int, processes: ForkServerContext
) -> None:
    """Let one worker per trial log it, all at once, and count the points that the store has then."""
    objective = choose_objective(read_windows(trials[0].windowed), trials[0].train)
    histories = {trial: _pretend_training(trial, objective, epochs) for trial in trials}
    context = runs.open_pipeline_run(PROBLEM, load_settings(), trials)
    barrier, reports = processes.Barrier(len(trials) + 1), processes.Queue()
    workers = [
        processes.Process(target=_work, args=(store, context, trial, histories[trial], barrier, reports))
        for trial in trials
    ]
    for worker in workers:
        worker.start()
    # Once when all are connected, once when all have begun.
    for _ in range(2):
        barrier.wait(TIME_LIMIT_SECONDS)
    cpu_before, begun = store.cpu_seconds(), time.perf_counter()
    barrier.wait(TIME_LIMIT_SECONDS)
    duration = time.perf_counter() - begun
    cpu = {name: seconds - cpu_before[name] for name, seconds in store.cpu_seconds().items()}
    received: list[Report] = [reports.get(timeout=TIME_LIMIT_SECONDS) for _ in workers]
    for worker in workers:
        worker.join(TIME_LIMIT_SECONDS)
    cpu["workers"] = sum(report.cpu for report in received)
    for name, seconds in cpu.items():
        load.busy.setdefault(name, []).append(seconds / duration)
    stored = _read_points(store, trials)
    counts = [_count_points(report, histories, stored) for report in received]
    sent, lost, unsent = (sum(column) for column in zip(*counts, strict=True))
    load.reports += received
    load.rates.append((sent - lost) / duration)
    load.sent, load.lost, load.unsent = load.sent + sent, load.lost + lost, load.unsent + unsent
    # A server may still do the work for which its clients no longer wait; wait for it as at the end of a grid.
    retry_while_unreachable(
        lambda: (trial_run.log_missing_runs(context, trials), runs.end_pipeline_run(context, 0)),
        tracking.PATIENCE_SECONDS,
        "MLflow",
    )
    stored = _read_points(store, trials)
    load.missing += sum(
        len(_expected_points(trial, histories[trial]).items() - stored[trial.key].items()) for trial in trials
    )
    load.incomplete += sum(not _is_complete(trial, context) for trial in trials)


def _pretend_training(trial: Trial, objective: Objective, epochs: int) -> list[Epoch]:
    """Write the files that training would leave in a trial's folder; no two values of a measure are the same.

    Returns:
        the history: its epochs
    """
    epoch_history = [
        Epoch(
            i, trial.seed + 1 / i, {measure.name: trial.seed + k / i for k, measure in enumerate(objective.measures, 2)}
        )
        for i in range(1, epochs + 1)
    ]
    configuration = trial.configuration
    shape = choose_shape(read_windows(trial.windowed), trial.train)
    network = fit.initialize_network(configuration.architecture, configuration.hyperparameters, shape, trial.seed)
    folder = trial_folder(trial)
    folder.mkdir(parents=True)
    history.write_history(folder, epoch_history)
    (folder / "weights.safetensors").write_bytes(save(network.state_dict()))
    record = describe_trial(trial) | {"scaled": {measure.name: 2.0 for measure in objective.measures if measure.scaled}}
    write_json(folder / "trial.json", record | describe_result(network, epochs, epoch_history[-1].validation))
    add_run_notes(folder, device="cpu")
    return epoch_history


def _work(
    store: Store, context: RunContext, trial: Trial, epochs: list[Epoch], barrier: Barrier, reports: "Queue[Report]"
) -> None:
    """A worker: log a trial, and begin each part when all other workers are ready for it."""
    report, trial_runs = Report(trial), list[TrialRun]()
    with store.entered():
        record, folder = read_trial(trial), trial_folder(trial)
        report.call("connect", tracking.get_client)
        barrier.wait(TIME_LIMIT_SECONDS)
        report.call("begin", lambda: trial_runs.append(TrialRun(context, folder, record, "cpu")))
        barrier.wait(TIME_LIMIT_SECONDS)
        begun = time.process_time()
        for i in range(1, len(epochs) + 1):
            report.call("epoch", lambda: trial_runs[0].log_epochs(epochs[:i]))  # noqa: B023 - it is called at once
        report.cpu = time.process_time() - begun
        barrier.wait(TIME_LIMIT_SECONDS)
        report.call("end", lambda: trial_runs[0].finish(record, epochs, 1.0))
    reports.put(report)


Points = dict[tuple[str, int], float]
"""Values by metric and epoch."""


def _read_points(store: Store, trials: Sequence[Trial]) -> dict[str, Points]:
    """The points of trials by their key, read from the database itself and not through MLflow."""
    query = text(
        "select tags.value, metrics.key, metrics.step, metrics.value from metrics "
        "join tags on tags.run_uuid = metrics.run_uuid and tags.key = 'recast.key' "
        "where metrics.step > 0 and tags.value in :keys"
    ).bindparams(bindparam("keys", expanding=True))
    points: dict[str, Points] = {trial.key: {} for trial in trials}
    database = store.open_database()
    with database.connect() as connection:
        for key, metric, step, value in connection.execute(query, {"keys": list(points)}):
            if (metric, step) in points[key]:
                raise RecastError(f"{key}: the database has {metric} of epoch {step} twice")
            points[key][metric, step] = value
    database.dispose()
    return points


def _expected_points(trial: Trial, epochs: Sequence[Epoch]) -> Points:
    """The points that logging these epochs writes, without the readings of the machine."""
    scaled = read_trial(trial)["scaled"]
    return {
        (name, epoch.epoch): value
        for epoch in epochs
        for name, value in trial_run.name_epoch_metrics(epoch, scaled).items()
    }


def _count_points(
    report: Report, histories: dict[Trial, list[Epoch]], stored: dict[str, Points]
) -> tuple[int, int, int]:
    """How many points a worker has sent, how many of them are lost, and how many it has not sent."""
    epochs = histories[report.trial]
    sent_epochs = epochs[: len(report.seconds["epoch"])]
    # The values of the machine's readings are not known in advance, but every epoch of every trial has all of them.
    readings = {metric for points in stored.values() for metric, _ in points if metric.startswith("system/")}
    expected = _expected_points(report.trial, sent_epochs)
    points = stored[report.trial.key]
    lost = len(expected.items() - points.items())
    lost += sum((reading, epoch.epoch) not in points for reading in readings for epoch in sent_epochs)
    sent = len(expected) + len(readings) * len(sent_epochs)
    total = len(_expected_points(report.trial, epochs)) + len(readings) * len(epochs)
    return sent, lost, total - sent


def _is_complete(trial: Trial, context: RunContext) -> bool:
    """Whether MLflow returns the trial's run with everything that it should have."""
    record = read_trial(trial)
    params = context.params | {name: str(value) for name, value in record["hyperparameters"].items()}
    run = tracking.get_client().get_run(read_run_notes(trial_folder(trial))["mlflow_run_id"])
    artifacts = {artifact.path for artifact in tracking.get_client().list_artifacts(run.info.run_id)}
    files = {"trial.json", history.HISTORY_FILE, "weights.safetensors", "learning_curve.png", PARAMS.name}
    return run.info.status == "FINISHED" and params.items() <= run.data.params.items() and files <= artifacts
