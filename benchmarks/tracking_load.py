"""Workers that log to MLflow at once, each a trial of its own: points a second, how long a call takes, what is lost.

Each worker is a process that logs as a trial does, by `stages.tracking`, but trains nothing: it begins a run, writes
epoch after epoch as fast as it is let, and ends the run with its artifacts. All wait for one another before each of
the three. `PostgreSQL` is the profile `servers`: MLflow's server, artifacts by way of it to S3. `SQLite` is the profile
`laptop`, where workers write straight to the file; `SQLite, by a server` is the same file behind MLflow's server.

A point is one value of a metric at one epoch. Lost is a point whose call has succeeded and that the database does not
have once all have ended; a trial writes no more to its run once a call has failed, as when it is trained, and
`log_unlogged` writes the rest afterwards, as when a grid is complete. Clients and servers share the machine's cores.
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
MOST_SECONDS = 600
"""Of any of the three parts: a worker that hangs must not hold the benchmark."""

IMPORTED = (
    "benchmarks.tracking_load",
    "matplotlib.figure",
    "mlflow.store.tracking.rest_store",
    "mlflow.store.tracking.sqlalchemy_store",
)
"""What a worker has imported before it begins; once, for all of them."""


@dataclass(frozen=True)
class Store:
    """A checkout and where its runs are written.

    Attributes:
        uri: of MLflow's server, where workers do not find it by the profile.
        records: of the servers that take part, by what they are called in the results.
    """

    root: Path
    uri: str | None
    records: dict[str, Path]

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """This process works in the checkout, and writes to its store."""
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

    def database(self) -> Engine:
        """SQLAlchemy's way into MLflow's database, in the checkout."""
        if servers.POSTGRES.record in self.records.values():
            return postgres.engine(server_process.running_port(servers.POSTGRES), "mlflow")
        return create_engine(f"sqlite:///{laptop.DATABASES['mlflow']}")

    def spent(self) -> dict[str, float]:
        """Seconds of a core that each of the servers has spent."""
        found = {}
        for name, record in self.records.items():
            process = psutil.Process(json.loads(record.read_bytes())["pid"])
            times = [process.cpu_times()]
            for each in process.children(recursive=True):
                # One that has ended meanwhile is among those below.
                with contextlib.suppress(psutil.NoSuchProcess):
                    times.append(each.cpu_times())
            # With those of PostgreSQL's processes that have ended: each serves a connection.
            found[name] = sum(each.user + each.system for each in times) + sum(times[0][2:4])
        return found


@dataclass
class Report:
    """What a worker did.

    Attributes:
        seconds: of its calls that have succeeded, by what they do.
        failed: what the call said that failed.
        cpu: seconds of a core that its epochs took.
    """

    trial: Trial
    seconds: dict[str, list[float]] = field(
        default_factory=lambda: {"connect": [], "begin": [], "epoch": [], "end": []}
    )
    failed: str | None = None
    cpu: float = 0.0

    def call(self, what: str, action: Callable[[], object]) -> None:
        """Do what a trial does: once a call has failed, it writes nothing more to its run."""
        if self.failed:
            return
        begun = time.perf_counter()
        try:
            with tracking.translate_errors():
                action()
        except TrackingError as error:
            self.failed = f"{what}: {_short(str(error))}"
        else:
            self.seconds[what].append(time.perf_counter() - begun)


def _short(said: str) -> str:
    """What MLflow says, without what differs from one call to the next; of its server, the request and the cause."""
    request = re.search(r"mlflow/([a-z/-]+) failed with .*Caused by (\w+)", said)
    return f"{request[1]}, {request[2]}" if request else said.partition(". What is")[0]


@dataclass
class Cell:
    """A number of workers on a store, over the rounds.

    Attributes:
        rates: points a second while epochs were written, a round each.
        busy: cores that each part of it kept busy meanwhile.
        sent: points whose calls have succeeded.
        lost: those of them that the database does not have.
        unsent: points of calls that have failed, and of those after them in the same run.
        missing: points of the measures that the database does not have after `log_unlogged`.
        incomplete: runs that have not ended then, or lack a parameter or an artifact.
    """

    reports: list[Report] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    busy: dict[str, list[float]] = field(default_factory=dict)
    sent: int = 0
    lost: int = 0
    unsent: int = 0
    missing: int = 0
    incomplete: int = 0

    def figures(self) -> dict[str, Any]:
        """The row of a table."""

        def milliseconds(what: str, share: float) -> float | str:
            values = [each for report in self.reports for each in report.seconds[what]]
            return float(f"{np.quantile(values, share) * 1000:.3g}") if values else ""

        return {
            "points/s": round(statistics.median(self.rates)),
            "an epoch, ms: 50 %": milliseconds("epoch", 0.5),
            "95 %": milliseconds("epoch", 0.95),
            "most": milliseconds("epoch", 1),
            "to begin, ms: 95 %": milliseconds("begin", 0.95),
            "to end, ms: 95 %": milliseconds("end", 0.95),
            "points sent": self.sent,
            "lost": self.lost,
            "calls failed": sum(report.failed is not None for report in self.reports),
            "points not sent": self.unsent,
            "missing at the end": self.missing,
            "runs incomplete": self.incomplete,
            **{f"cores: {name}": round(statistics.median(each), 2) for name, each in self.busy.items()},
        }


def run(quick: bool) -> dict[str, Any]:
    """Each number of workers on each store in turn, in each of the rounds."""
    rounds, epochs = (1, 64) if quick else (1, 256)
    cells: dict[str, dict[int, Cell]] = {}
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(list(IMPORTED))
    with tempfile.TemporaryDirectory() as name, _stores(Path(name), rounds) as stores:
        first = 0
        for _ in range(rounds):
            for workers in WORKERS:
                for title, store in stores.items():
                    cell = cells.setdefault(title, {}).setdefault(workers, Cell())
                    with store.entered():
                        trials = list_trials(load_settings(), PROBLEM, paths.stage_folder("window", PROBLEM))[
                            first : first + workers
                        ]
                        _measure(cell, store, trials, max(1, epochs // workers), processes)
                first += workers
    failed = Counter(
        f"{title}, {workers} workers: {report.failed}"
        for title, by_workers in cells.items()
        for workers, cell in by_workers.items()
        for report in cell.reports
        if report.failed
    )
    return {
        "rounds": rounds,
        "epochs of a round, all workers together": epochs,
        "load of the machine at the end, ours included": f"{psutil.getloadavg()[0]:.1f} on {psutil.cpu_count()} cores",
        "calls that failed": "; ".join(f"{number} x {said}" for said, number in failed.items()) or "none",
        **{
            title: {f"{workers} worker{'s' if workers > 1 else ''}": cell.figures() for workers, cell in found.items()}
            for title, found in cells.items()
        },
    }


@contextlib.contextmanager
def _stores(root: Path, rounds: int) -> Iterator[dict[str, Store]]:
    """The stores, by their title, each with a checkout of its own; their servers run."""
    made = checkout.make_checkout(root / "windowed", RECAST_CACHE=str(root / "cache"))
    made.settings(grid={"seeds": list(range(rounds * sum(WORKERS))), "architectures": {"dense": {"units": [4]}}})
    for stage in ("ingest", "normalize", "window"):
        made.run(sys.executable, "-m", f"stages.{stage}", PROBLEM)
    real, straight, served = (made.copy(root / name).root for name in ("servers", "straight", "served"))
    mlflow = {"MLflow's server": servers.MLFLOW.record}
    try:
        with contextlib.chdir(real):
            servers.switch_profile("servers")
            server_process.start(servers.MLFLOW)
        with contextlib.chdir(served):
            uri = server_process.start(servers.MLFLOW)
        yield {
            "PostgreSQL": Store(real, None, {**mlflow, "PostgreSQL": servers.POSTGRES.record}),
            "SQLite": Store(straight, None, {}),
            "SQLite, by a server": Store(served, uri, mlflow),
        }
    finally:
        for there in (served, real):
            with contextlib.chdir(there):
                for server in (servers.MLFLOW, servers.S3, servers.POSTGRES):
                    server_process.stop(server)


def _measure(cell: Cell, store: Store, trials: Sequence[Trial], epochs: int, processes: ForkServerContext) -> None:
    """Have a worker log each of some trials, all at once, and count what the store has then."""
    objective = choose_objective(read_windows(trials[0].windowed), trials[0].train)
    done = {trial: _ended(trial, objective, epochs) for trial in trials}
    context = runs.open_pipeline_run(PROBLEM, load_settings(), trials)
    barrier, reports = processes.Barrier(len(trials) + 1), processes.Queue()
    workers = [
        processes.Process(target=_work, args=(store, context, trial, done[trial], barrier, reports)) for trial in trials
    ]
    for worker in workers:
        worker.start()
    # All are connected; all have begun.
    for _ in range(2):
        barrier.wait(MOST_SECONDS)
    before, begun = store.spent(), time.perf_counter()
    barrier.wait(MOST_SECONDS)
    wall = time.perf_counter() - begun
    busy = {name: spent - before[name] for name, spent in store.spent().items()}
    found: list[Report] = [reports.get(timeout=MOST_SECONDS) for _ in workers]
    for worker in workers:
        worker.join(MOST_SECONDS)
    busy["workers"] = sum(report.cpu for report in found)
    for name, spent in busy.items():
        cell.busy.setdefault(name, []).append(spent / wall)
    there = _points(store, trials)
    sent, lost, unsent = (sum(each) for each in zip(*(_sent(report, done, there) for report in found), strict=True))
    cell.reports += found
    cell.rates.append((sent - lost) / wall)
    cell.sent, cell.lost, cell.unsent = cell.sent + sent, cell.lost + lost, cell.unsent + unsent
    # A server still does what its clients no longer wait for: it is waited for as at the end of a grid.
    retry_while_unreachable(
        lambda: (trial_run.log_missing_runs(context, trials), runs.end_pipeline_run(context, 0)),
        tracking.PATIENCE_SECONDS,
        "MLflow",
    )
    there = _points(store, trials)
    cell.missing += sum(len(_measured(trial, done[trial]).items() - there[trial.key].items()) for trial in trials)
    cell.incomplete += sum(not _is_complete(trial, context) for trial in trials)


def _ended(trial: Trial, objective: Objective, epochs: int) -> list[Epoch]:
    """Leave in a trial's folder what its training would; no two values of a measure in its history are the same."""
    done = [
        Epoch(i, trial.seed + 1 / i, {each.name: trial.seed + k / i for k, each in enumerate(objective.measures, 2)})
        for i in range(1, epochs + 1)
    ]
    configuration = trial.configuration
    shape = choose_shape(read_windows(trial.windowed), trial.train)
    network = fit.initialize_network(configuration.architecture, configuration.hyperparameters, shape, trial.seed)
    folder = trial_folder(trial)
    folder.mkdir(parents=True)
    history.write_history(folder, done)
    (folder / "weights.safetensors").write_bytes(save(network.state_dict()))
    about = describe_trial(trial) | {"scaled": {each.name: 2.0 for each in objective.measures if each.scaled}}
    write_json(folder / "trial.json", about | describe_result(network, epochs, done[-1].validation))
    add_run_notes(folder, device="cpu")
    return done


def _work(
    store: Store, context: RunContext, trial: Trial, done: list[Epoch], barrier: Barrier, reports: "Queue[Report]"
) -> None:
    """A worker: log a trial, each part once all the others are ready for it."""
    report, opened = Report(trial), list[TrialRun]()
    with store.entered():
        about, folder = read_trial(trial), trial_folder(trial)
        report.call("connect", tracking.get_client)
        barrier.wait(MOST_SECONDS)
        report.call("begin", lambda: opened.append(TrialRun(context, folder, about, "cpu")))
        barrier.wait(MOST_SECONDS)
        begun = time.process_time()
        for i in range(1, len(done) + 1):
            report.call("epoch", lambda: opened[0].log_epochs(done[:i]))  # noqa: B023 - it is called at once
        report.cpu = time.process_time() - begun
        barrier.wait(MOST_SECONDS)
        report.call("end", lambda: opened[0].finish(about, done, 1.0))
    reports.put(report)


Points = dict[tuple[str, int], float]
"""Values by metric and epoch."""


def _points(store: Store, trials: Sequence[Trial]) -> dict[str, Points]:
    """What the database has of the epochs of trials, by their key; counted there, not asked of MLflow."""
    query = text(
        "select tags.value, metrics.key, metrics.step, metrics.value from metrics "
        "join tags on tags.run_uuid = metrics.run_uuid and tags.key = 'recast.key' "
        "where metrics.step > 0 and tags.value in :keys"
    ).bindparams(bindparam("keys", expanding=True))
    found: dict[str, Points] = {trial.key: {} for trial in trials}
    database = store.database()
    with database.connect() as connection:
        for key, metric, step, value in connection.execute(query, {"keys": list(found)}):
            assert (metric, step) not in found[key], f"{key}: {metric} of epoch {step} is there twice"
            found[key][metric, step] = value
    database.dispose()
    return found


def _measured(trial: Trial, done: Sequence[Epoch]) -> Points:
    """The points that epochs are logged as, beside readings of the machine."""
    scaled = read_trial(trial)["scaled"]
    return {
        (name, epoch.epoch): value
        for epoch in done
        for name, value in trial_run.name_epoch_metrics(epoch, scaled).items()
    }


def _sent(report: Report, done: dict[Trial, list[Epoch]], there: dict[str, Points]) -> tuple[int, int, int]:
    """How many points a worker has sent, how many of them are lost, and how many it has not sent."""
    epochs = done[report.trial]
    sent = epochs[: len(report.seconds["epoch"])]
    # Of the machine's readings the values are not known beforehand; each epoch of each trial has all of them.
    readings = {metric for points in there.values() for metric, _ in points if metric.startswith("system/")}
    measured = _measured(report.trial, sent)
    found = there[report.trial.key]
    lost = len(measured.items() - found.items())
    lost += sum((reading, epoch.epoch) not in found for reading in readings for epoch in sent)
    number = len(measured) + len(readings) * len(sent)
    return number, lost, len(_measured(report.trial, epochs)) + len(readings) * len(epochs) - number


def _is_complete(trial: Trial, context: RunContext) -> bool:
    """Whether MLflow, when asked, has a trial's run with all that it is to hold."""
    about = read_trial(trial)
    params = context.params | {name: str(value) for name, value in about["hyperparameters"].items()}
    run = tracking.get_client().get_run(read_run_notes(trial_folder(trial))["mlflow_run_id"])
    artifacts = {each.path for each in tracking.get_client().list_artifacts(run.info.run_id)}
    files = {"trial.json", history.HISTORY_FILE, "weights.safetensors", "learning_curve.png", PARAMS.name}
    return run.info.status == "FINISHED" and params.items() <= run.data.params.items() and files <= artifacts
