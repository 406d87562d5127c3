"""Runner `ray`: bundles on the nodes of a Ray cluster, each as a Prefect task and a Ray task.

A trial is trained in a folder of its node. It resumes there, and starts again where its node is lost. What it leaves
comes back as bytes; this process writes it to the trial's folder and to MLflow.
"""

import contextlib
import dataclasses
import logging
import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from prefect.settings import temporary_settings
from prefect_ray import RayTaskRunner
from prefect_ray.context import remote_options

from flows.runners.ray_cluster import (
    Parcel,
    cluster_address,
    connect_cluster,
    ray,
    send_parcel,
)
from flows.runners.ray_node import PROGRESS_SECONDS, SENT_FILES, BundleOutput, NodeDiskError, node_bundle_task
from flows.runners.ray_progress import BundleProgress, ProgressActor
from flows.runners.stopping import raise_if_stopped
from flows.runners.work import (
    POLL_SECONDS,
    DispatchResult,
    OnProgress,
    Runner,
    Work,
    bundle_label,
    count_bundle_epochs,
    estimate_seconds_left,
    run_until_done,
)
from infra.devices.mps import multi_process_service
from infra.devices.packing import Device, Job, Packer, gpu_share
from infra.devices.status import DeviceStatus, RunningBundle, StatusFile, status_file
from problems.errors import RecastError
from project import git
from project.atomic import replace_file
from project.progress import console
from stages.tracking import store, trial_run
from stages.training.outcomes import Outcome, read_outcome
from stages.training.trials import TRIAL_FILE, Trial, add_run_notes, trial_folder

MAX_NODES_LOST = 5
"""A bundle that has lost its node so often is suspected to be the reason."""

NODE_ID_LABEL = "ray.io/node-id"
"""The label that Ray gives to every node."""

LOGGING_PAUSE_SECONDS = 60.0
"""After MLflow has refused a trial, no other is logged for so long: each refusal takes seconds."""


class RayRunner(Runner):
    """Trains on the nodes of a cluster, or on this machine where the settings name no cluster."""

    def run(self, work: Work) -> list[Outcome]:
        settings, threads = work.settings.runner, work.settings.train.threads
        gpus = torch.cuda.device_count() if settings.devices == "auto" and cluster_address(settings) is None else 0
        shared = gpus > 0 and settings.slots_per_gpu != 1
        with multi_process_service(shared), connect_cluster(settings, threads, gpus), status_file(work.title) as status:
            return run_until_done(work, _RayGrid(work, status).run_round)


@dataclass(frozen=True)
class _SentBundle:
    """A bundle that Ray was given."""

    job: Job
    bundle: list[Trial]
    future: Any


class _RayGrid:
    """A grid on a cluster.

    Attributes:
        on_gpus: bundles are trained on GPUs.
        packed: bundles share a GPU by the memory that they take.
        peaks: the most memory that a bundle has taken, by shape, in bytes.
        device_memory: bytes of memory of the smallest device that was seen; None: none yet.
        full_nodes: ids of nodes whose disk is full.
        progress: of the bundles that are being trained, by the number of their job, as the cluster knew it last.
    """

    def __init__(self, work: Work, status: StatusFile) -> None:
        self.work, self.status = work, status
        settings = work.settings.runner
        self.on_gpus = settings.devices == "auto" and ray.cluster_resources().get("GPU", 0) > 0
        work.device = "cuda" if self.on_gpus else "cpu"
        self.packed = settings.slots_per_gpu == "auto"
        self.peaks = dict(work.costs.peaks)
        self.device_memory: int | None = None
        self.full_nodes: set[str] = set()
        self.log_again_at = 0.0
        self.parcels: dict[str | None, Parcel] = {}
        # On the node of this process, as any other may be lost.
        affinity = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        this_node = affinity(ray.get_runtime_context().get_node_id(), soft=True)
        actor = ray.remote(num_cpus=0, max_restarts=-1, scheduling_strategy=this_node)(ProgressActor)
        self.progress_actor = actor.remote()
        self.progress: dict[int, BundleProgress] = {}
        self.progress_read_at = 0.0

    def run_round(self, bundles: list[list[Trial]], on_progress: OnProgress) -> DispatchResult:
        """Train bundles as Ray tasks, until each has ended or has lost its process.

        A bundle whose node is lost, or has a full disk, is given to another node. An error in one bundle does not stop
        the others: the first error is raised when all have ended, and each is in the log of its Prefect task.
        """
        result = DispatchResult()
        errors: list[Exception] = []
        nodes_lost: Counter[int] = Counter()
        jobs = self.work.jobs(bundles)
        bundle_by_job = {job.number: bundle for job, bundle in zip(jobs, bundles, strict=True)}
        cluster = Device("cluster", 1)
        packer = Packer(jobs, [cluster], self.peaks, pilots=self.packed)
        sent: dict[Any, _SentBundle] = {}
        completed_epochs = 0
        with RayTaskRunner() as task_runner:
            try:
                while len(packer) or sent:
                    cluster.slots = self._count_slots()
                    for job, _ in packer.start():
                        bundle = bundle_by_job[job.number]
                        future = self._submit(task_runner, job, bundle)
                        sent[future.wrapped_future] = _SentBundle(job, bundle, future)
                    ready, _ = ray.wait(list(sent), timeout=POLL_SECONDS)
                    raise_if_stopped()
                    for reference in ready:
                        ended = sent.pop(reference)
                        job = ended.job
                        packer.remove(job.number)
                        try:
                            output = ended.future.result()
                        except (ray.exceptions.NodeDiedError, ray.exceptions.ObjectLostError):
                            nodes_lost[job.number] += 1
                            if nodes_lost[job.number] < MAX_NODES_LOST:
                                packer.add(job)
                                continue
                            result.suspects += ended.bundle
                        except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError):
                            result.suspects += ended.bundle
                        except NodeDiskError as error:
                            if self._avoid_node(error):
                                packer.add(job)
                                continue
                            errors.append(error)
                        except Exception as error:
                            errors.append(_explain_error(error))
                        else:
                            self._learn_memory(packer, job, output)
                            self.work.pace.record(sum(float(notes["seconds"]) for notes in output.notes), job.seconds)
                            result.outcomes += self._store_output(ended.bundle, output)
                        completed_epochs += count_bundle_epochs(ended.bundle)
                    on_progress(completed_epochs + self._update_progress(packer, list(sent.values())))
            except BaseException:
                for reference in sent:
                    ray.cancel(reference, force=True)
                raise
        if errors:
            raise errors[0]
        return result

    def _avoid_node(self, error: NodeDiskError) -> bool:
        """Give nothing more to a node whose disk refuses; False: it is the last one that can train."""
        able = {node["NodeID"] for node in self._training_nodes()}
        if not able - self.full_nodes - {error.node}:
            return False
        if error.node not in self.full_nodes:
            self.full_nodes.add(error.node)
            text = f"warning: {error}. What it was given goes to other nodes; it is given nothing more in this grid"
            console.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)
        return True

    def _training_nodes(self) -> list[dict[str, Any]]:
        """The nodes that can train."""
        return [node for node in ray.nodes() if node["Alive"] and self.resource in node["Resources"]]

    @property
    def resource(self) -> str:
        """The resource of which a bundle asks for a share."""
        return "GPU" if self.on_gpus else "CPU"

    def _count_slots(self) -> int:
        """How many bundles Ray is given at once.

        More than the cluster holds, so that no node waits for this process; but not all, so that the rest goes to
        nodes that join later, in the right order.
        """
        resources = ray.cluster_resources()
        return 1 + 2 * int(resources.get(self.resource, 0) / self._smallest_share())

    def _smallest_share(self) -> float:
        """The CPUs, or the share of a GPU, that a bundle asks for at least."""
        if not self.on_gpus:
            return self.work.settings.train.threads
        if not isinstance(slots := self.work.settings.runner.slots_per_gpu, str):
            return 1 / slots
        if not self.device_memory:
            return 1.0
        return min([gpu_share(peak, self.device_memory) for peak in self.peaks.values()], default=1.0)

    def _submit(self, task_runner: Any, job: Job, bundle: list[Trial]) -> Any:
        """Give a bundle to Ray; the future of its `BundleOutput`."""
        first = bundle[0]
        if first.origin not in self.parcels:
            self.parcels[first.origin] = send_parcel([first.normalized, first.windowed])
        parameters = {
            "name": bundle_label(bundle),
            "number": job.number,
            "bundle": bundle,
            "parcel": self.parcels[first.origin],
            "progress": self.progress_actor,
        }
        # The settings travel with the task. A node that cannot reach Prefect's server trains all the same.
        without_version_check = temporary_settings({"client.server_version_check_enabled": False})
        with without_version_check, remote_options(**self._task_options(job)):
            return task_runner.submit(node_bundle_task, parameters)

    def _task_options(self, job: Job) -> dict[str, Any]:
        """What a bundle asks of a node.

        Ray itself never tries a bundle again, as a bundle that has killed one process may kill the next; this process
        decides that.
        """
        settings = self.work.settings
        options: dict[str, Any] = {
            "num_cpus": settings.train.threads,
            "max_retries": 0,
            "scheduling_strategy": "SPREAD",
        }
        if self.full_nodes:
            options["label_selector"] = {NODE_ID_LABEL: f"!in({','.join(sorted(self.full_nodes))})"}
        peak = self.peaks.get(job.shape)
        memory = settings.runner.memory_bytes
        if self.on_gpus:
            slots = settings.runner.slots_per_gpu
            if isinstance(slots, int):
                options["num_gpus"] = math.floor(1e4 / slots) / 1e4
            else:
                # A shape that was never measured gets a GPU of its own.
                options["num_gpus"] = gpu_share(peak, self.device_memory) if peak and self.device_memory else 1
        elif memory is None and self.packed:
            memory = peak
        return options | ({"memory": memory} if memory else {})

    def _learn_memory(self, packer: Packer, job: Job, output: BundleOutput) -> None:
        """Have the next bundles of this shape ask for the memory that this one took."""
        self.device_memory = min(self.device_memory or output.device_memory, output.device_memory)
        if peaks := [int(notes["peak_bytes"]) for notes in output.notes if "peak_bytes" in notes]:
            packer.record_peak(job.shape, max(peaks))
            self.peaks[job.shape] = packer.peaks[job.shape]

    def _store_output(self, bundle: list[Trial], output: BundleOutput) -> list[Outcome]:
        """Write what a bundle has left on its node to this machine and to MLflow; how its trials ended.

        What MLflow refuses, the train flow logs when the grid is complete.

        Raises:
            RecastError: a trial has not ended.
        """
        outcomes = []
        for trial, files, notes in zip(bundle, output.files, output.notes, strict=True):
            folder, context = trial_folder(trial), self.work.contexts[trial.origin]
            driver_notes = {"commit": git.describe_commit(), "prefect_run": context.prefect_run, "logged": False}
            add_run_notes(folder, **(notes | driver_notes))
            # Of a failed attempt. With the files of this one it would count as damaged.
            (folder / TRIAL_FILE).unlink(missing_ok=True)
            for name in SENT_FILES:
                if name in files:
                    with replace_file(folder / name) as temporary:
                        temporary.write_bytes(files[name])
            outcome = read_outcome(trial)
            if outcome is None:
                raise RecastError(f"{trial.label}: its node sent no trial.json, so it has not ended; run again")
            outcomes.append(dataclasses.replace(outcome, trained=True))
            if time.monotonic() >= self.log_again_at:
                try:
                    trial_run.log_missing_runs(context, [trial])
                except store.TrackingError as error:
                    self.log_again_at = time.monotonic() + LOGGING_PAUSE_SECONDS
                    logging.getLogger(__name__).warning("%s", error)
        return outcomes

    def _update_progress(self, packer: Packer, sent: Sequence[_SentBundle]) -> int:
        """Ask how far the bundles have come, and write it for `recast status`; their completed epochs."""
        if time.monotonic() - self.progress_read_at < PROGRESS_SECONDS:
            return self._running_epochs()
        self.progress_read_at = time.monotonic()
        bundles = {bundle.job.number: bundle for bundle in sent}
        # The last answer stays where the actor is slow, or has just been started again.
        with contextlib.suppress(ray.exceptions.RayError):
            self.progress = ray.get(self.progress_actor.read.remote(list(bundles)), timeout=PROGRESS_SECONDS)
        pace = self.work.pace
        nodes = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
        running = [
            RunningBundle(
                _node_label(nodes[progress.node]),
                bundle_label(bundles[number].bundle),
                progress.begun,
                pace.seconds(bundles[number].job.seconds),
            )
            for number, progress in self.progress.items()
            if number in bundles and progress.node in nodes
        ]
        waiting = len(packer) + len(bundles) - len(running)
        waiting_seconds = packer.waiting_seconds + sum(
            bundle.job.seconds for number, bundle in bundles.items() if number not in self.progress
        )
        seconds_left = estimate_seconds_left(running, time.time(), pace.seconds(waiting_seconds))
        devices = [
            DeviceStatus(_node_label(node), int(node["Resources"][self.resource] / self._smallest_share()), None, None)
            for node in self._training_nodes()
            if node["NodeID"] not in self.full_nodes
        ]
        self.status.update(devices, running, waiting, seconds_left)
        return self._running_epochs()

    def _running_epochs(self) -> int:
        return sum(progress.epochs for progress in self.progress.values())


def _node_label(node: dict[str, Any]) -> str:
    """A node's name for people."""
    return f"{node['NodeManagerHostname']} {node['NodeManagerAddress']}"


def _explain_error(error: Exception) -> Exception:
    """An error that says in a line what a person can fix; else the error as Ray raised it."""
    if isinstance(error, ray.exceptions.RuntimeEnvSetupError):
        first = str(error).strip().splitlines()[0]
        return RecastError(f"a node of the cluster cannot be given the code or the packages: {first}")
    return error
