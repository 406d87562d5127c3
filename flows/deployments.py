"""Deployments: what `infra/prefect.yaml` says, filled in for each problem and sent to Prefect's server."""

import contextlib
import hashlib
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterTags, WorkPoolFilter, WorkPoolFilterName
from prefect.client.schemas.objects import ConcurrencyLimitConfig
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule
from prefect.deployments.runner import RunnerDeployment
from prefect.events import DeploymentEventTrigger, emit_event
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.utilities.templating import apply_values
from prefect.workers.process import ProcessWorker
from pydantic import ValidationError
from ruamel.yaml import YAML

from flows.prefect_internals import parameter_schema
from problems.errors import RecastError
from project.atomic import replace_file
from project.paths import PARAMS, STATE
from project.settings.operation import DeploySettings
from project.settings.sections import Settings

DEFINITIONS = Path("infra/prefect.yaml")

USED_POOLS = STATE / "pools"
"""The work pools that this checkout has deployed to, one a line.

The root that a deployment names does not show whose it is: a checkout on another machine, which has another pool, may
have the same root.
"""

TAG = "recast"
"""The tag of every deployment that Recast makes. It removes no others."""


@dataclass(frozen=True)
class PlannedDeployment:
    """A flow of a problem, as it is to be deployed.

    Attributes:
        flow: retrain, predict or monitor.
        definition: its section of infra/prefect.yaml, filled in.
    """

    flow: str
    problem: str
    cron: str | None
    definition: dict[str, Any]

    @property
    def name(self) -> str:
        """The name that Prefect uses: flow/deployment."""
        return f"{self.flow}/{self.definition['name']}"

    @property
    def events(self) -> list[str]:
        """The events that start it, besides its schedule."""
        return [event for trigger in self.definition.get("triggers", ()) for event in trigger["expect"]]


def deployment_name(problem: str, deploy: DeploySettings) -> str:
    """The name of a problem's deployments. It contains the pool where several checkouts use one server."""
    return problem if deploy.pool == DeploySettings().pool else f"{problem}-{deploy.pool}"


def new_rows_event(problem: str) -> str:
    """The event that says that a problem has new rows."""
    return f"recast.data.{problem}"


def announce_new_rows(problem: str) -> None:
    """Send Prefect the event that a problem has new rows, which starts its deployed retraining.

    Raises:
        RecastError: Prefect has not accepted the event.
    """
    event = emit_event(new_rows_event(problem), resource={"prefect.resource.id": f"recast.problem.{problem}"})
    if event is None:
        raise RecastError("Prefect has not accepted the event; does its server run? `recast status` shows it")


def plan_deployments(settings: Settings, problems: Sequence[str]) -> list[PlannedDeployment]:
    """The deployments that `recast deploy` makes.

    Raises:
        RecastError: the cron expression of a schedule is wrong.
    """
    deploy = settings.deploy
    schedules = {"retrain": deploy.retrain, "predict": deploy.predict, "monitor": deploy.monitor}
    for flow, schedule in schedules.items():
        try:
            if schedule.cron:
                CronSchedule(cron=schedule.cron, timezone=deploy.time_zone)
        except ValidationError as error:
            raise RecastError(
                f"{PARAMS}: deploy.{flow}.cron: {schedule.cron!r}: {error.errors()[0]['msg']}; write minute, hour, "
                'day, month and day of the week, such as "0 3 * * *"'
            ) from None
    definitions = YAML(typ="safe").load(DEFINITIONS.read_text(encoding="utf-8"))["deployments"]
    planned = []
    for problem in problems:
        for definition in definitions:
            flow = definition["entrypoint"].rpartition(".")[2]
            values = {
                "name": deployment_name(problem, deploy),
                "problem": problem,
                "pool": deploy.pool,
                "time_zone": deploy.time_zone,
                "cron": schedules[flow].cron or "",
                "collision_strategy": {"wait": "ENQUEUE", "skip": "CANCEL_NEW"}[deploy.on_overlap],
                # The interpreter of this environment, in the project's root.
                "command": shlex.join([sys.executable, "-m", "prefect.engine"]),
                "root": str(Path.cwd()),
            }
            filled = apply_values(definition, values)
            planned.append(PlannedDeployment(flow, problem, schedules[flow].cron, filled))
    return planned


def apply_deployments(settings: Settings, planned: Sequence[PlannedDeployment]) -> dict[str, UUID]:
    """Send Prefect those of the deployments that are new or have changed; the ids of all, by name.

    Raises:
        RecastError: another checkout has one of these names on this server.
    """
    pool = settings.deploy.pool
    ids = {}
    with get_client(sync_client=True) as client:
        with contextlib.suppress(ObjectAlreadyExists):
            template = ProcessWorker.get_default_base_job_template()
            client.create_work_pool(WorkPoolCreate(name=pool, type=ProcessWorker.type, base_job_template=template))
        with replace_file(USED_POOLS) as temporary:
            temporary.write_text("\n".join(sorted({*_used_pools(), pool})), encoding="utf-8")
        # All are read before any is written: an error leaves everything as it was.
        existing = {deployment.name: _read_deployment(client, deployment) for deployment in planned}
        for deployment in planned:
            new, old = _runner_deployment(deployment), existing[deployment.name]
            if old is not None and old.version == new.version:
                # If it was sent again, Prefect would forget which runs were missed.
                ids[deployment.name] = old.id
            else:
                identity = new.apply()
                if not isinstance(identity, UUID):
                    raise TypeError("Prefect has returned a coroutine, as an event loop runs in this thread")
                ids[deployment.name] = identity
    return ids


def _used_pools() -> list[str]:
    return USED_POOLS.read_text(encoding="utf-8").split() if USED_POOLS.exists() else []


def _read_deployment(client: SyncPrefectClient, planned: PlannedDeployment) -> DeploymentResponse | None:
    """The deployment of this name on Prefect's server; None: there is none.

    Raises:
        RecastError: it belongs to another checkout, whose folder exists. (Otherwise this checkout was moved.)
    """
    try:
        existing = client.read_deployment_by_name(planned.name)
    except ObjectNotFound:
        return None
    root = _checkout_root(existing)
    own_root = planned.definition["work_pool"]["job_variables"]["working_dir"]
    if root != own_root and (root is None or Path(root).is_dir()):
        raise RecastError(
            f"{planned.name}: this Prefect server has one of that name already, of {root}; give this checkout a name "
            f"of its own: deploy.pool in {PARAMS}"
        )
    return existing


def _checkout_root(deployment: DeploymentResponse) -> str | None:
    """The root of the checkout that a deployment belongs to."""
    return (deployment.job_variables or {}).get("working_dir")


def _runner_deployment(planned: PlannedDeployment) -> RunnerDeployment:
    """The deployment as Prefect's object. Its version is a hash of all its contents."""
    definition = planned.definition
    schedules = definition["schedules"] if planned.cron else []
    deployment = RunnerDeployment.from_entrypoint(
        definition["entrypoint"],
        name=definition["name"],
        description=definition["description"],
        tags=definition["tags"],
        parameters=definition["parameters"],
        schedules=[CronSchedule(**schedule) for schedule in schedules],
        triggers=[
            DeploymentEventTrigger(name=f"{planned.name} when there are new rows", expect=set(trigger["expect"]))
            for trigger in definition.get("triggers", ())
        ],
        concurrency_limit=ConcurrencyLimitConfig(**definition["concurrency_limit"]),
        work_pool_name=definition["work_pool"]["name"],
        job_variables=definition["work_pool"]["job_variables"],
    )
    contents = [definition, planned.cron, parameter_schema(deployment)]
    deployment.version = hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()[:12]
    return deployment


def find_obsolete_deployments(settings: Settings) -> list[DeploymentResponse]:
    """The deployments of this checkout, in its present folder, whose problem `run` no longer lists, or whose pool is
    not `deploy.pool` any more."""
    with get_client(sync_client=True) as client:
        existing = client.read_deployments(
            deployment_filter=DeploymentFilter(tags=DeploymentFilterTags(all_=[TAG])),
            work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=_used_pools())),
        )
    current = {deployment_name(problem, settings.deploy) for problem in settings.run}
    own_root = str(Path.cwd())
    return [
        deployment
        for deployment in existing
        if deployment.name not in current and _checkout_root(deployment) == own_root
    ]


def remove_deployments(deployments: Sequence[DeploymentResponse]) -> None:
    """Remove deployments, and their scheduled runs."""
    with get_client(sync_client=True) as client:
        for deployment in deployments:
            client.delete_deployment(deployment.id)
