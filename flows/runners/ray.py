"""Runner `ray`: bundles on the nodes of a Ray cluster, a Prefect task and a Ray task each.

What a trial leaves comes back as bytes; this process writes it to the trial's folder, and to MLflow. A trial trains in
a folder of its node: it resumes there, and begins anew where its node is lost.
"""

import contextlib
import dataclasses
import logging
import math
import os
import socket
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from filelock import FileLock
from prefect import task
from prefect.settings import temporary_settings
from prefect_ray import RayTaskRunner
from prefect_ray.context import remote_options

from flows.dispatch import POLL_SECONDS, Round, Show, Work, epochs, go_on, label, tell, time_left, to_the_end
from flows.runners.ray_cluster import Parcel, address, cache, connected, ray, send, unpack
from flows.runners.ray_progress import BundleProgress, ProgressActor
from infra.devices.board import Board, Place, Running, board
from infra.devices.costs import shape
from infra.devices.mps import shared_gpus
from infra.devices.packing import Device, Job, Packer, share
from problems.errors import RecastError
from project import git
from project.atomic import replaced_file
from project.command import DiskError, plain_errors
from project.progress import console
from stages.tracking import store
from stages.training import history
from stages.training.bundle import train_bundle
from stages.training.outcomes import Outcome, is_done, outcome
from stages.training.trials import Trial, note_run, read_run, trial_folder

FILES = (history.FILE, "weights.safetensors", "trial.json")
"""What a trial leaves, in the order in which it is written: with the last, the trial has ended."""

NODES_LOST = 5
"""A bundle whose node was lost so often is suspected to be the reason."""

TOLD_SECONDS = 1.0
"""How often a node tells how far a bundle has come, at most, and how often it is asked for here."""

NODE_ID_LABEL = "ray.io/node-id"
"""Ray's name of the label that every node has."""

ASKED_AGAIN_SECONDS = 60.0
"""MLflow, when it has refused what a trial left, is told of no other one for so long: each refusal takes seconds."""


class NodeDiskError(RecastError):
    """The disk of a node refuses; another node may do.

    Attributes:
        node: Ray's id of it.
    """

    def __init__(self, message: str, node: str = "") -> None:
        super().__init__(message)
        self.node = node


@dataclass(frozen=True)
class Brought:
    """What a bundle leaves on its node.

    Attributes:
        files: of each trial, in the bundle's order: contents by name.
        notes: of each trial: what run.json says of how it ran.
        total: bytes of memory of the device.
    """

    files: list[dict[str, bytes]]
    notes: list[dict[str, Any]]
    total: int


@task(name="train bundle", task_run_name="{name}", persist_result=False)
def node_task(name: str, number: int, bundle: list[Trial], parcel: Parcel, progress: Any) -> Brought:
    """On a node: train one bundle, and bring what it leaves.

    Args:
        progress: the handle of a `ProgressActor`, which is told how far the bundle has come.

    Raises:
        NodeDiskError: the disk refuses.
        RecastError: this node has other source than the driver. Both messages name the node.
    """
    node, begun = ray.get_runtime_context().get_node_id(), time.time()
    last = 0.0

    def told() -> None:
        nonlocal last
        if time.monotonic() - last > TOLD_SECONDS:
            last = time.monotonic()
            done = sum(int(read_run(trial_folder(trial)).get("epoch", 0)) for trial in bundle)
            progress.tell.remote(number, BundleProgress(node, begun, done))

    try:
        with plain_errors(cache()), contextlib.chdir(unpack(parcel)), contextlib.ExitStack() as locks:
            for trial in bundle:
                # Another run of the same grid may train it here.
                trial_folder(trial).mkdir(parents=True, exist_ok=True)
                locks.enter_context(FileLock(f"{trial_folder(trial)}.lock"))
            told()
            device = torch.device("cuda:0" if ray.get_gpu_ids() else "cpu")
            # What has ended here already, its driver was not told.
            train_bundle([trial for trial in bundle if not is_done(trial)], device, None, told)
            tell([ended for trial in bundle if (ended := outcome(trial))])
            return Brought([_files(trial) for trial in bundle], [_noted(trial) for trial in bundle], _total(device))
    except torch.AcceleratorError:
        # The device is of no more use to this process; a new one tries these trials again.
        os._exit(1)
    except DiskError as error:
        raise NodeDiskError(f"node {socket.gethostname()}: {error}", node) from None
    except RecastError as error:
        raise RecastError(f"node {socket.gethostname()}: {error}") from None


def _files(trial: Trial) -> dict[str, bytes]:
    folder = trial_folder(trial)
    return {name: (folder / name).read_bytes() for name in FILES if (folder / name).exists()}


def _noted(trial: Trial) -> dict[str, Any]:
    return read_run(trial_folder(trial)) | {"shape": shape(trial)}


def _total(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return psutil.virtual_memory().total


def on_nodes(work: Work) -> list[Outcome]:
    """Train bundles on the nodes of the cluster; how their trials ended.

    Raises:
        RecastError: the cluster cannot be reached, or no node of it can hold a trial.
    """
    runner, threads = work.settings.runner, work.settings.train.threads
    gpus = torch.cuda.device_count() if runner.devices == "auto" and address(runner) is None else 0
    shared = gpus > 0 and runner.slots_per_gpu != 1
    with shared_gpus(shared), connected(runner, threads, gpus), board(work.title) as page:
        grid = _Grid(work, page)
        return to_the_end(work, grid.run)


class _Grid:
    """A grid on a cluster: what was sent there, what was learnt of its memory and disks, when MLflow may be told."""

    def __init__(self, work: Work, page: Board) -> None:
        self.work, self.page = work, page
        runner = work.settings.runner
        self.on_gpus = runner.devices == "auto" and ray.cluster_resources().get("GPU", 0) > 0
        work.device = "cuda" if self.on_gpus else "cpu"
        self.packed = runner.slots_per_gpu == "auto"
        self.peaks = dict(work.costs.peaks)
        self.total: int | None = None
        self.full: set[str] = set()
        self.told_from = 0.0
        self.parcels: dict[str | None, Parcel] = {}
        # Here, rather than on a node that may be lost.
        affinity = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        here = affinity(ray.get_runtime_context().get_node_id(), soft=True)
        actor = ray.remote(num_cpus=0, max_restarts=-1, scheduling_strategy=here)(ProgressActor)
        self.progress = actor.remote()
        self.told: dict[int, BundleProgress] = {}
        self.asked = 0.0

    def run(self, groups: list[list[Trial]], show: Show) -> Round:
        """Train bundles as Ray tasks, until each has ended or has lost its process.

        A bundle whose node is lost, or has a full disk, is given to another one. An error in one bundle does not keep
        the others from ending; the first is raised when all have, and Prefect's tasks tell each.
        """
        round_ = Round()
        errors: list[Exception] = []
        lost: Counter[int] = Counter()
        jobs = self.work.jobs(groups)
        of = {job.number: group for job, group in zip(jobs, groups, strict=True)}
        cluster = Device("cluster", 1)
        packer = Packer(jobs, [cluster], self.peaks, pilots=self.packed)
        begun: dict[Any, tuple[Job, Any]] = {}
        ended = 0
        with RayTaskRunner() as runner:
            try:
                while len(packer) or begun:
                    cluster.slots = self._at_once()
                    for job, _ in packer.start():
                        future = self._submit(runner, job, of[job.number])
                        begun[future.wrapped_future] = job, future
                    done, _ = ray.wait(list(begun), timeout=POLL_SECONDS)
                    go_on()
                    for each in done:
                        job, future = begun.pop(each)
                        packer.ended(job.number)
                        group = of[job.number]
                        try:
                            brought = future.result()
                        except (ray.exceptions.NodeDiedError, ray.exceptions.ObjectLostError):
                            lost[job.number] += 1
                            if lost[job.number] < NODES_LOST:
                                packer.add(job)
                                continue
                            round_.suspects += group
                        except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError):
                            round_.suspects += group
                        except NodeDiskError as error:
                            if self._others(error):
                                packer.add(job)
                                continue
                            errors.append(error)
                        except Exception as error:
                            errors.append(_plain(error))
                        else:
                            self._learn(packer, job, brought)
                            self.work.pace.tell(sum(float(each["seconds"]) for each in brought.notes), job.seconds)
                            round_.outcomes += self._write(group, brought)
                        ended += epochs(group)
                    show(ended + self._ask(packer, begun, of))
            except BaseException:
                for each in begun:
                    ray.cancel(each, force=True)
                raise
        if errors:
            raise errors[0]
        return round_

    def _others(self, error: NodeDiskError) -> bool:
        """Whether there are nodes for what this one's disk refuses; it is given nothing more then."""
        able = {each["NodeID"] for each in self._nodes()}
        if not able - self.full - {error.node}:
            return False
        if error.node not in self.full:
            self.full.add(error.node)
            text = f"warning: {error}. What it was given goes to other nodes; it is given nothing more in this grid"
            console.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)
        return True

    def _nodes(self) -> list[dict[str, Any]]:
        """The nodes that can train."""
        return [each for each in ray.nodes() if each["Alive"] and self.unit in each["Resources"]]

    @property
    def unit(self) -> str:
        """Of what a bundle asks for a share."""
        return "GPU" if self.on_gpus else "CPU"

    def _at_once(self) -> int:
        """How many bundles the cluster is given: more than it holds, so that no node waits for this process; but not
        all, so that those that are left go in the right order to whichever nodes join.
        """
        resources = ray.cluster_resources()
        return 1 + 2 * int(resources.get(self.unit, 0) / self._least())

    def _least(self) -> float:
        """The CPUs, or the share of a GPU, that a bundle asks for at least."""
        if not self.on_gpus:
            return self.work.settings.train.threads
        if not isinstance(slots := self.work.settings.runner.slots_per_gpu, str):
            return 1 / slots
        return min([share(peak, self.total) for peak in self.peaks.values()], default=1.0) if self.total else 1.0

    def _submit(self, runner: Any, job: Job, group: list[Trial]) -> Any:
        """Give a bundle to Ray; a future of what it leaves."""
        first = group[0]
        if first.origin not in self.parcels:
            self.parcels[first.origin] = send([first.normalized, first.windowed])
        parameters = {
            "name": label(group),
            "number": job.number,
            "bundle": group,
            "parcel": self.parcels[first.origin],
            "progress": self.progress,
        }
        # The settings travel with the task. A node that cannot reach Prefect's server trains all the same.
        alone = temporary_settings({"client.server_version_check_enabled": False})
        with alone, remote_options(**self._options(job)):
            return runner.submit(node_task, parameters)

    def _options(self, job: Job) -> dict[str, Any]:
        """What a bundle asks of a node. Its retries are this process's: what a bundle has killed, it may kill again."""
        settings = self.work.settings
        options: dict[str, Any] = {
            "num_cpus": settings.train.threads,
            "max_retries": 0,
            "scheduling_strategy": "SPREAD",
        }
        if self.full:
            options["label_selector"] = {NODE_ID_LABEL: f"!in({','.join(sorted(self.full))})"}
        peak = self.peaks.get(job.shape)
        memory = settings.runner.memory_bytes
        if self.on_gpus:
            slots = settings.runner.slots_per_gpu
            if isinstance(slots, int):
                options["num_gpus"] = math.floor(1e4 / slots) / 1e4
            else:
                # A shape that nobody has measured has a GPU of its own.
                options["num_gpus"] = share(peak, self.total) if peak and self.total else 1
        elif memory is None and self.packed:
            memory = peak
        return options | ({"memory": memory} if memory else {})

    def _learn(self, packer: Packer, job: Job, brought: Brought) -> None:
        """What a bundle took, the next ones of its shape ask for."""
        self.total = min(self.total or brought.total, brought.total)
        if found := [int(each["peak_bytes"]) for each in brought.notes if "peak_bytes" in each]:
            packer.measured(job.shape, max(found))
            self.peaks[job.shape] = packer.peaks[job.shape]

    def _write(self, group: list[Trial], brought: Brought) -> list[Outcome]:
        """Write what a bundle has left on its node, and log it; how its trials ended.

        MLflow's refusals are left to the train flow, which logs what the store lacks when the grid is complete.
        """
        outcomes = []
        for trial, files, noted in zip(group, brought.files, brought.notes, strict=True):
            folder, context = trial_folder(trial), self.work.contexts[trial.origin]
            here = {"commit": git.commit(), "prefect_run": context.prefect_run, "logged": False}
            note_run(folder, **(noted | here))
            for name in FILES:
                if name in files:
                    with replaced_file(folder / name) as temporary:
                        temporary.write_bytes(files[name])
            ended = outcome(trial)
            assert ended is not None
            outcomes.append(dataclasses.replace(ended, trained=True))
            if time.monotonic() >= self.told_from:
                try:
                    store.log_unlogged(context, [trial])
                except store.TrackingError as error:
                    self.told_from = time.monotonic() + ASKED_AGAIN_SECONDS
                    logging.getLogger(__name__).warning("%s", error)
        return outcomes

    def _ask(self, packer: Packer, begun: Mapping[Any, tuple[Job, Any]], of: Mapping[int, list[Trial]]) -> int:
        """Ask how far the bundles have come, and keep the page of the grid; the epochs that they have done."""
        if time.monotonic() - self.asked < TOLD_SECONDS:
            return sum(each.epochs for each in self.told.values())
        self.asked = time.monotonic()
        numbers = [job.number for job, _ in begun.values()]
        # What was told before stands where the actor is slow, or has just been started again.
        with contextlib.suppress(ray.exceptions.RayError):
            self.told = ray.get(self.progress.read.remote(numbers), timeout=TOLD_SECONDS)
        pace = self.work.pace
        nodes = {each["NodeID"]: each for each in ray.nodes() if each["Alive"]}
        jobs = {job.number: job for job, _ in begun.values()}
        running = [
            Running(_named(nodes[told.node]), label(of[number]), told.begun, pace.seconds(jobs[number].seconds))
            for number, told in self.told.items()
            if number in jobs and told.node in nodes
        ]
        queued = len(packer) + len(begun) - len(running)
        waiting = packer.waiting_seconds + sum(job.seconds for job in jobs.values() if job.number not in self.told)
        left = time_left(running, time.time(), pace.seconds(waiting))
        places = [
            Place(_named(each), int(each["Resources"][self.unit] / self._least()), None, None)
            for each in self._nodes()
            if each["NodeID"] not in self.full
        ]
        self.page.show(places, running, queued, left)
        return sum(each.epochs for each in self.told.values())


def _named(node: dict[str, Any]) -> str:
    """A node's name for people."""
    return f"{node['NodeManagerHostname']} {node['NodeManagerAddress']}"


def _plain(error: Exception) -> Exception:
    """What a person can mend of what Ray raises, in a line; else the error as it is."""
    if isinstance(error, ray.exceptions.RuntimeEnvSetupError):
        first = str(error).strip().splitlines()[0]
        return RecastError(f"a node of the cluster cannot be given the code or the packages: {first}")
    return error
