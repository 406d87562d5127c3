"""Deployments: `infra/prefect.yaml`, filled in for each problem, as Prefect's server knows it."""

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

from problems.errors import RecastError
from project.paths import PARAMS
from project.settings.sections import Deploy, Settings

DEFINITIONS = Path("infra/prefect.yaml")

TAG = "recast"
"""What every deployment of ours has; without it none is removed."""


@dataclass(frozen=True)
class Deployment:
    """A flow of a problem, as it is deployed.

    Attributes:
        flow: retrain, predict or monitor.
        definition: as infra/prefect.yaml has it, filled in.
    """

    flow: str
    problem: str
    cron: str | None
    definition: dict[str, Any]

    @property
    def name(self) -> str:
        """As Prefect names it: flow/deployment."""
        return f"{self.flow}/{self.definition['name']}"

    @property
    def events(self) -> list[str]:
        """What starts it, beside its schedule."""
        return [event for trigger in self.definition.get("triggers", ()) for event in trigger["expect"]]


def name(problem: str, deploy: Deploy) -> str:
    """The name of a problem's deployments; where a server has several checkouts, the pool tells them apart."""
    return problem if deploy.pool == Deploy().pool else f"{problem}-{deploy.pool}"


def arrival_event(problem: str) -> str:
    """The event that says that new rows are there."""
    return f"recast.data.{problem}"


def announce(problem: str) -> None:
    """Tell Prefect that new rows of a problem are there; what is deployed to retrain then, does."""
    event = emit_event(arrival_event(problem), resource={"prefect.resource.id": f"recast.problem.{problem}"})
    if event is None:
        raise RecastError("Prefect has not taken the event; is its server there? `recast status` shows it")


def planned(settings: Settings, problems: Sequence[str]) -> list[Deployment]:
    """What `recast deploy` deploys.

    Raises:
        RecastError: a schedule is none.
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
    found = []
    for problem in problems:
        for definition in definitions:
            flow = definition["entrypoint"].rpartition(".")[2]
            values = {
                "name": name(problem, deploy),
                "problem": problem,
                "pool": deploy.pool,
                "time_zone": deploy.time_zone,
                "cron": schedules[flow].cron or "",
                "collision_strategy": {"wait": "ENQUEUE", "skip": "CANCEL_NEW"}[deploy.on_overlap],
                # The project's own interpreter, in the project's root.
                "command": shlex.join([sys.executable, "-m", "prefect.engine"]),
                "root": str(Path.cwd()),
            }
            filled = apply_values(definition, values)
            found.append(Deployment(flow, problem, schedules[flow].cron, filled))
    return found


def deploy(settings: Settings, wanted: Sequence[Deployment]) -> dict[str, UUID]:
    """Tell Prefect of these deployments, and only of what is new or different; their ids by name.

    Raises:
        RecastError: another checkout has one of these names on this server.
    """
    pool = settings.deploy.pool
    ids = {}
    with get_client(sync_client=True) as client:
        with contextlib.suppress(ObjectAlreadyExists):
            template = ProcessWorker.get_default_base_job_template()
            client.create_work_pool(WorkPoolCreate(name=pool, type=ProcessWorker.type, base_job_template=template))
        there = {each.name: _known(client, each) for each in wanted}
        for each in wanted:
            new = _runner_deployment(each)
            known = there[each.name]
            if known is not None and known.version == new.version:
                # Told again, Prefect would forget which runs were missed.
                ids[each.name] = known.id
                continue
            identity = new.apply()
            assert isinstance(identity, UUID)
            ids[each.name] = identity
    return ids


def _known(client: SyncPrefectClient, wanted: Deployment) -> DeploymentResponse | None:
    """The deployment of that name which Prefect has.

    Raises:
        RecastError: it is another checkout's; not where the folder of that one is gone: this one was moved.
    """
    try:
        there = client.read_deployment_by_name(wanted.name)
    except ObjectNotFound:
        return None
    root = _root(there)
    if root != wanted.definition["work_pool"]["job_variables"]["working_dir"] and (root is None or Path(root).is_dir()):
        raise RecastError(
            f"{wanted.name}: this Prefect server has one of that name already, of {root}; give this checkout a name of "
            f"its own: deploy.pool in {PARAMS}"
        )
    return there


def _root(deployment: DeploymentResponse) -> str | None:
    """The root of the checkout whose deployment it is."""
    return (deployment.job_variables or {}).get("working_dir")


def _runner_deployment(wanted: Deployment) -> RunnerDeployment:
    """As Prefect takes it; its version is a hash of all that it is."""
    definition = wanted.definition
    schedules = definition["schedules"] if wanted.cron else []
    made = RunnerDeployment.from_entrypoint(
        definition["entrypoint"],
        name=definition["name"],
        description=definition["description"],
        tags=definition["tags"],
        parameters=definition["parameters"],
        schedules=[CronSchedule(**each) for each in schedules],
        triggers=[
            DeploymentEventTrigger(name=f"{wanted.name} when there are new rows", expect=set(each["expect"]))
            for each in definition.get("triggers", ())
        ],
        concurrency_limit=ConcurrencyLimitConfig(**definition["concurrency_limit"]),
        work_pool_name=definition["work_pool"]["name"],
        job_variables=definition["work_pool"]["job_variables"],
    )
    whole = [definition, wanted.cron, made._parameter_openapi_schema.model_dump(mode="json")]
    made.version = hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:12]
    return made


def gone(settings: Settings) -> list[DeploymentResponse]:
    """The deployments of this checkout, in its present folder, whose problem `run` does not list any more."""
    with get_client(sync_client=True) as client:
        there = client.read_deployments(
            deployment_filter=DeploymentFilter(tags=DeploymentFilterTags(all_=[TAG])),
            work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[settings.deploy.pool])),
        )
    kept = {name(problem, settings.deploy) for problem in settings.run}
    return [each for each in there if each.name not in kept and _root(each) == str(Path.cwd())]


def remove(deployments: Sequence[DeploymentResponse]) -> None:
    """Remove deployments, with what they have scheduled."""
    with get_client(sync_client=True) as client:
        for each in deployments:
            client.delete_deployment(each.id)
