"""The flows as deployments run them: one run at a time, with retries, a time limit, and an alert after a failure. A run
that was missed is caught up for once.

`infra/prefect.yaml` names these flows. `flows.retrain`, `flows.predict` and `flows.monitor` are the plain ones.
"""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import wraps
from typing import Any

from filelock import FileLock, Timeout
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
from prefect.flows import Flow
from prefect.logging import get_run_logger
from prefect.logging.loggers import flow_run_logger
from prefect.runtime import flow_run as this_run
from prefect.states import Cancelled

from flows.alerts import alert, alert_of_end
from flows.monitor import monitor as monitor_flow
from flows.predict import predict as predict_flow
from flows.prefect_internals import keep_runs_without_lease
from flows.retrain import retrain as retrain_flow
from problems.errors import RecastError
from project import paths
from project.settings.operation import DeploySettings, FlowSchedule
from project.settings.parsing import parse_settings

SKIPPED = "Skipped"
"""The state of a run that does nothing: another one has caught up for it, or was under way when it began."""


# A run that waits for a person's answer has always lost its place in the limit of its deployment. `one_run_at_a_time`
# keeps two from running at once.
keep_runs_without_lease()


def prepare_run(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """A hook for the start of a run: set the delay of the next retry, and skip runs that this one catches up for."""
    deploy = parse_settings().deploy
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(flow_run.id)
        policy = run.empirical_policy
        # Prefect has one delay for all retries of a flow, but reads it again before each.
        policy.retry_delay = round(deploy.retry_delay.total_seconds() * 2 ** max(0, run.run_count - 1))
        client.update_flow_run(run.id, empirical_policy=policy)
        for skipped in skip_missed(client, run, deploy.missed):
            due = skipped.expected_start_time
            flow_run_logger(flow_run, flow).info("catches up for %s, which was due at %s", skipped.name, due)


def skip_missed(client: SyncPrefectClient, run: FlowRun, missed: timedelta) -> list[FlowRun]:
    """Skip the other runs of a deployment that are overdue, and return them.

    They were missed while no worker ran, the machine slept, or this flow took longer than its period. The run that
    begins now does what they would do. Runs that a person has asked for stay as they are.

    Args:
        run: the run that begins now.
        missed: a run that is later than this was missed.
    """
    if run.deployment_id is None:
        return []
    overdue = client.read_flow_runs(
        deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[run.deployment_id])),
        flow_run_filter=FlowRunFilter(
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED])),
            expected_start_time=FlowRunFilterExpectedStartTime(before_=datetime.now(UTC) - missed),
        ),
    )
    skipped = []
    for other in overdue:
        is_manual = not (other.auto_scheduled or (other.created_by and other.created_by.type == "AUTOMATION"))
        # A run that has begun before waits for its retry; it was not missed.
        if other.id == run.id or other.run_count or is_manual:
            continue
        message = f"It was missed; {run.name} catches up for it."
        client.set_flow_run_state(other.id, Cancelled(name=SKIPPED, message=message), force=True)
        skipped.append(other)
    return skipped


def one_run_at_a_time(flow: Flow[..., Any], deploy: DeploySettings) -> Callable[..., Any]:
    """The function of a flow, with a lock: it waits or is skipped while another run of the deployment goes on.

    Prefect's own limit prevents most such runs, but not while the first run waits for a person's answer.
    """

    @wraps(flow.fn)
    def run(*args: Any, **kwargs: Any) -> Any:
        paths.STATE.mkdir(exist_ok=True)
        # The operating system releases the lock, however its holder ends.
        lock = FileLock(paths.STATE / f"deployed-{flow.name}-{this_run.parameters['problem']}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            message = "another run of this deployment is under way, or waits for a person's answer"
            if deploy.on_overlap == "skip":
                return Cancelled(name=SKIPPED, message=f"{message[0].upper()}{message[1:]}.")
            get_run_logger().info("%s; waiting for its end", message)
            lock.acquire()
        try:
            return flow.fn(*args, **kwargs)
        finally:
            lock.release()

    return run


def as_deployed(flow: Flow[..., Any], schedule: FlowSchedule, deploy: DeploySettings) -> Flow[..., Any]:
    """A flow with the retries, time limit and hooks that `deploy` in params.yaml asks for."""
    deployed_flow = flow.with_options(
        retries=deploy.retries,
        retry_delay_seconds=round(deploy.retry_delay.total_seconds()),
        timeout_seconds=schedule.time_limit.total_seconds(),
        on_running=[*flow.on_running_hooks, prepare_run],
        on_failure=[*flow.on_failure_hooks, alert_of_end],
        on_crashed=[*flow.on_crashed_hooks, alert_of_end],
    )
    deployed_flow.fn = one_run_at_a_time(flow, deploy)
    return deployed_flow


try:
    _settings = parse_settings()
except RecastError as error:
    # Without settings there are no flows, so none of their hooks can send this alert.
    alert("failure", "what is deployed cannot run", str(error))
    raise
_deploy = _settings.deploy
# A person's time for an answer does not count: neither to this run's question nor to that of the run it waits for.
_limit = _deploy.retrain.time_limit + 2 * (_settings.retrain.approval or timedelta(0))
retrain = as_deployed(retrain_flow, _deploy.retrain.model_copy(update={"time_limit": _limit}), _deploy)
predict = as_deployed(predict_flow, _deploy.predict, _deploy)
monitor = as_deployed(monitor_flow, _deploy.monitor, _deploy)
