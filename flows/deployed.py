"""The flows as deployments run them: one at a time, tried again when they fail, limited in time, caught up once when
they were missed, and with an alert when they end badly.

`infra/prefect.yaml` names these; called from elsewhere, `flows.retrain` and its like are plain flows.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import timedelta
from functools import wraps
from typing import Any
from uuid import UUID

from filelock import FileLock, Timeout
from prefect import flow_engine
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.concurrency._leases import maintain_concurrency_lease
from prefect.flows import Flow
from prefect.logging import get_run_logger
from prefect.logging.loggers import flow_run_logger
from prefect.runtime import flow_run as this_run
from prefect.states import Cancelled
from prefect.types._datetime import now

from flows.alerts import alert, alert_of_end
from flows.monitor import monitor as monitor_flow
from flows.predict import predict as predict_flow
from flows.retrain import retrain as retrain_flow
from problems.errors import RecastError
from project import paths
from project.settings.parsing import parse_settings
from project.settings.sections import Deploy, Schedule

SKIPPED = "Skipped"
"""The state of a run that was missed, and that another one has caught up for; or that another one was in the way of."""


def _keep_lease(lease_id: UUID, lease_duration: float, **_: Any) -> AbstractContextManager[None]:
    """Renew a run's place in its deployment's limit, and go on without where Prefect has given it away."""
    return maintain_concurrency_lease(lease_id, lease_duration)


# Prefect's engine ends a run whose place is lost, up to four minutes later. A pause for a person's answer loses it
# always, and a restart of the server may. That no two run at once, `alone` sees to.
flow_engine.maintain_concurrency_lease = _keep_lease  # type: ignore[attr-defined, assignment]


def begin(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """A hook of flows that begin to run: set how long the next retry waits, and skip what this run catches up for."""
    deploy = parse_settings().deploy
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(flow_run.id)
        policy = run.empirical_policy
        # Prefect waits equally long before each retry of a flow, but asks anew how long.
        policy.retry_delay = round(deploy.retry_delay.total_seconds() * 2 ** max(0, run.run_count - 1))
        client.update_flow_run(run.id, empirical_policy=policy)
        for skipped in skip_missed(client, run, deploy.missed):
            due = skipped.expected_start_time
            flow_run_logger(flow_run, flow).info("catches up for %s, which was due at %s", skipped.name, due)


def skip_missed(client: SyncPrefectClient, run: FlowRun, missed: timedelta) -> list[FlowRun]:
    """Skip the other runs of a deployment that were due long ago, and return these.

    They were missed while no worker ran, the machine slept, or this flow took longer than its period. What one of them
    would do, the run that begins now does. Runs that a person has asked for are not touched.

    Args:
        run: the one that begins now.
        missed: a run later than this was missed.
    """
    if run.deployment_id is None:
        return []
    late = client.read_flow_runs(
        deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[run.deployment_id])),
        flow_run_filter=FlowRunFilter(
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED])),
            expected_start_time=FlowRunFilterExpectedStartTime(before_=now("UTC") - missed),
        ),
    )
    skipped = []
    for other in late:
        asked_for = not (other.auto_scheduled or (other.created_by and other.created_by.type == "AUTOMATION"))
        # One that was tried already waits for its retry; it was not missed.
        if other.id == run.id or other.run_count or asked_for:
            continue
        message = f"It was missed; {run.name} catches up for it."
        client.set_flow_run_state(other.id, Cancelled(name=SKIPPED, message=message), force=True)
        skipped.append(other)
    return skipped


def alone(flow: Flow[..., Any], deploy: Deploy) -> Callable[..., Any]:
    """The function of a flow, which waits while another run of the same deployment is under way, or is skipped.

    Prefect's limit keeps most from being started at all, but not while the first waits for a person's answer.
    """

    @wraps(flow.fn)
    def run(*args: Any, **kwargs: Any) -> Any:
        paths.STATE.mkdir(exist_ok=True)
        # The system frees it, however its holder ends.
        lock = FileLock(paths.STATE / f"deployed-{flow.name}-{this_run.parameters['problem']}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            message = "another run of this deployment is under way, or waits for a person's answer"
            if deploy.on_overlap == "skip":
                return Cancelled(name=SKIPPED, message=f"{message[0].upper()}{message[1:]}.")
            get_run_logger().info("%s; waits for its end", message)
            lock.acquire()
        try:
            return flow.fn(*args, **kwargs)
        finally:
            lock.release()

    return run


def deployed(flow: Flow[..., Any], schedule: Schedule, deploy: Deploy) -> Flow[..., Any]:
    """A flow with what `deploy` in params.yaml says of it."""
    made = flow.with_options(
        retries=deploy.retries,
        retry_delay_seconds=round(deploy.retry_delay.total_seconds()),
        timeout_seconds=schedule.time_limit.total_seconds(),
        on_running=[*flow.on_running_hooks, begin],
        on_failure=[*flow.on_failure_hooks, alert_of_end],
        on_crashed=[*flow.on_crashed_hooks, alert_of_end],
    )
    made.fn = alone(flow, deploy)
    return made


try:
    _settings = parse_settings()
except RecastError as error:
    # The flow's hooks, which would tell of it, are not there without them.
    alert("failure", "what is deployed cannot run", str(error))
    raise
_deploy = _settings.deploy
# The time that a person has for an answer is not the flow's: to its own question, and to that of the run it waits for.
_limit = _deploy.retrain.time_limit + 2 * (_settings.retrain.approval or timedelta(0))
retrain = deployed(retrain_flow, _deploy.retrain.model_copy(update={"time_limit": _limit}), _deploy)
predict = deployed(predict_flow, _deploy.predict, _deploy)
monitor = deployed(monitor_flow, _deploy.monitor, _deploy)
