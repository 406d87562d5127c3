"""What `recast deploy` schedules, with a real Prefect server and a real worker, but small flows."""

import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import pytest
from filelock import FileLock
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import SetStateStatus
from prefect.deployments import run_deployment
from prefect.flow_engine import run_flow
from prefect.flows import Flow, load_flow_from_entrypoint
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Paused, Pending, Running
from ruamel.yaml import YAML

from flows import deployments

# Imported here, where it reads the project's own params.yaml.
from flows.deployed import as_deployed
from infra import server_process, servers
from problems.errors import RecastError
from project.settings.operation import FlowSchedule
from project.settings.parsing import parse_settings
from tests.support import checkout
from tests.support.checkout import ROOT, Checkout
from tests.support.waiting import PATIENCE_SECONDS, wait_until

FLOW = '''"""A small flow instead of the real one."""

import os
import time

from prefect import flow


@flow(name="{name}", flow_run_name="{name} {{problem}}")
def {name}(problem: str, seconds: float = 0.0, fail: bool = False) -> None:
    """Sleep and note it.

    Args:
        problem: a problem of params.yaml
        seconds: of sleep
    """
    with open("ran.txt", "a") as file:
        file.write(f"{name} {{problem}} {{os.path.realpath(os.getcwd())}} {{os.getpid()}}\\n")
    time.sleep(seconds)
    if fail:
        raise ValueError("as it was asked for")
'''

DEPLOY = {
    "pool": "tests",
    "time_zone": "Europe/Berlin",
    "missed": "0.1s",
    "retries": 1,
    "retry_delay": "0.6s",
    "retrain": {"cron": "0 3 * * *", "time_limit": "1h"},
    "predict": {"cron": None, "time_limit": "2s"},
}

OWN_POOL = WorkPoolFilter(name=WorkPoolFilterName(any_=[str(DEPLOY["pool"])]))

WORKER = "import sys; from infra.server_process import start, stop; from infra.servers import WORKER; {}(WORKER)"


@pytest.fixture(scope="module")
def deployed(servers: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    """A checkout whose small flows are deployed, and a worker that runs them."""
    root = tmp_path_factory.mktemp("deployed") / "checkout"
    project = checkout.make_checkout(root, servers["mlflow_db"], PREFECT_API_URL=servers["api"])
    shutil.copy(ROOT / "infra/prefect.yaml", root / "infra/prefect.yaml")
    for name in ("retrain", "predict", "monitor"):
        project.file(f"flows/{name}.py").write_text(FLOW.format(name=name))
    project.settings(deploy=DEPLOY)
    project.recast("deploy", new_process=True)
    project.run(sys.executable, "-c", WORKER.format("start"))
    try:
        yield project
    finally:
        project.run(sys.executable, "-c", WORKER.format("stop"))


@pytest.fixture
def client(servers: dict[str, Any]) -> Iterator[SyncPrefectClient]:
    """Of the tests' Prefect server, which is this process's meanwhile."""
    with temporary_settings({PREFECT_API_URL: servers["api"]}), get_client(sync_client=True) as sync_client:
        yield sync_client


def wait_for_run(client: SyncPrefectClient, run: FlowRun, condition: Callable[[FlowRun], bool]) -> FlowRun:
    """The run, once a condition is true of it."""

    def read_matching() -> FlowRun | None:
        present = client.read_flow_run(run.id)
        return present if condition(present) else None

    present = wait_until(read_matching, f"a state of {run.name}")
    assert present
    return present


def wait_for_end(client: SyncPrefectClient, run: FlowRun) -> FlowRun:
    return wait_for_run(client, run, lambda now: now.state is not None and now.state.is_final())


def wait_for_start(client: SyncPrefectClient, run: FlowRun) -> FlowRun:
    """The run, once its process runs the flow."""
    return wait_for_run(client, run, lambda now: now.state is not None and now.state.is_running())


def request_run(deployment: str, **parameters: Any) -> FlowRun:
    """Ask for a run, as a person does on Prefect's page."""
    run = run_deployment(f"{deployment}/demo-tests", parameters=parameters, timeout=0, as_subflow=False)
    assert isinstance(run, FlowRun)
    return run


def wait_for_alert(project: Checkout, text: str) -> str:
    """The rest of the log of alerts after a text, once it is there: a run's state changes before its alert is sent."""
    file = project.file(".recast/alerts.log")
    wait_until(lambda: file.exists() and text in file.read_text(), f"the alert {text!r}")
    return file.read_text().partition(text)[2]


def read_runs(client: SyncPrefectClient) -> list[FlowRun]:
    """The runs of what this file has deployed; other tests use the same server."""
    return client.read_flow_runs(work_pool_filter=OWN_POOL)


def wait_for_new_runs(client: SyncPrefectClient, known: set[Any], count: int) -> list[FlowRun]:
    """The runs that are not known and that no schedule has asked for, once there are `count` of them."""

    def read_new() -> list[FlowRun] | None:
        new = [run for run in read_runs(client) if run.id not in known and not run.auto_scheduled]
        return new if len(new) >= count else None

    new = wait_until(read_new, f"{count} new runs")
    assert new
    return new


def test_what_is_deployed_is_what_params_yaml_says(deployed: Checkout, client: SyncPrefectClient) -> None:
    by_flow = {flow: client.read_deployment_by_name(f"{flow}/demo-tests") for flow in ("retrain", "predict", "monitor")}
    schedules = {
        flow: [entry.schedule.model_dump() for entry in deployment.schedules] for flow, deployment in by_flow.items()
    }
    assert [schedule["cron"] for schedule in schedules["retrain"]] == ["0 3 * * *"]
    assert [schedule["timezone"] for schedule in schedules["monitor"]] == ["Europe/Berlin"]
    assert schedules["predict"] == []
    retrain = by_flow["retrain"]
    assert retrain.tags == ["recast", "retrain", "demo"]
    assert retrain.parameters == {"problem": "demo"}
    assert retrain.global_concurrency_limit
    assert retrain.global_concurrency_limit.limit == 1
    form = retrain.parameter_openapi_schema
    assert form["required"] == ["problem"]
    assert form["properties"]["problem"]["description"] == "a problem of params.yaml"
    assert form["properties"]["seconds"]["type"] == "number"
    # The scheduler of the server has run.
    wait_for_schedule(client, retrain.id)


def wait_for_schedule(client: SyncPrefectClient, identity: Any) -> None:
    of_deployment = DeploymentFilter(id=DeploymentFilterId(any_=[identity]))
    wait_until(
        lambda: any(run.auto_scheduled for run in client.read_flow_runs(deployment_filter=of_deployment)),
        "runs of the schedule",
    )


def test_deploying_again_changes_nothing_and_what_is_gone_is_removed(
    deployed: Checkout, client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {(each.id, each.updated) for each in client.read_deployments(work_pool_filter=OWN_POOL)}
    flow = client.create_flow_from_name("retrain")

    def create(name: str, root: Path, tags: list[str]) -> UUID:
        variables = {"working_dir": str(root)}
        return client.create_deployment(flow, name, work_pool_name="tests", tags=tags, job_variables=variables)

    stranger = create("gone-tests", deployed.root, ["recast"])
    theirs = create("theirs", deployed.root, [])
    elsewhere = create("elsewhere-tests", deployed.root.parent, ["recast"])
    printed = deployed.recast("deploy")
    assert "gone-tests is removed" in printed
    after = {(each.id, each.updated) for each in client.read_deployments(work_pool_filter=OWN_POOL)}
    assert before <= after, "Prefect forgets the missed runs of a deployment that it is sent again"
    assert stranger not in dict(after)
    assert {theirs, elsewhere} <= set(dict(after))
    assert f"retrain/demo-tests: {str(client.api_url).removesuffix('/api/')}/deployments/deployment/" in printed
    client.delete_deployment(theirs)
    client.delete_deployment(elsewhere)


def test_another_pool_leaves_no_deployments_in_the_former_one(
    deployed: Checkout, client: SyncPrefectClient, tmp_path: Path
) -> None:
    moved = deployed.copy(tmp_path / "moved")
    moved.settings(deploy__pool="former")
    moved.recast("deploy")
    # Of a checkout on another machine, whose folder has the same path.
    client.create_work_pool(WorkPoolCreate(name="theirs", type="process"))
    flow, variables = client.create_flow_from_name("retrain"), {"working_dir": str(moved.root)}
    theirs = client.create_deployment(
        flow, "demo-theirs", work_pool_name="theirs", tags=["recast"], job_variables=variables
    )
    moved.settings(deploy__pool="later")
    assert "demo-former is removed" in moved.recast("deploy")
    left = [
        deployment
        for deployment in client.read_deployments()
        if (deployment.job_variables or {}).get("working_dir") == str(moved.root)
    ]
    assert sorted(deployment.name for deployment in left) == ["demo-later"] * 3 + ["demo-theirs"]
    assert theirs in [deployment.id for deployment in left]
    for deployment in left:
        client.delete_deployment(deployment.id)


def test_a_dry_run_deploys_nothing(deployed: Checkout) -> None:
    printed = deployed.recast("deploy", "--dry-run", PREFECT_API_URL="http://127.0.0.1:9/api")
    assert "Nothing was deployed" in printed
    assert "recast.data.demo" in printed
    assert "0 3 * * * Europe/Berlin" in printed
    assert "when it is asked for" in printed


def test_another_checkouts_deployments_are_not_taken(
    deployed: Checkout, client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.copy(deployed.file("params.yaml"), tmp_path / "params.yaml")
    shutil.copytree(deployed.file("infra"), tmp_path / "infra")
    monkeypatch.chdir(tmp_path)
    settings = parse_settings()
    with pytest.raises(RecastError, match=r"this Prefect server has one of that name already.*deploy\.pool"):
        deployments.apply_deployments(settings, deployments.plan_deployments(settings, ["demo"]))


def test_a_checkout_that_was_moved_takes_its_deployments_along(
    deployed: Checkout, client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(deployed.root)
    settings = parse_settings()
    (wanted, *_) = deployments.plan_deployments(settings, ["moved"])
    wanted.definition["work_pool"]["job_variables"]["working_dir"] = str(tmp_path / "gone")
    identity = deployments.apply_deployments(settings, [wanted])[wanted.name]
    again = deployments.apply_deployments(settings, deployments.plan_deployments(settings, ["moved"])[:1])
    assert again == {wanted.name: identity}
    assert (client.read_deployment(identity).job_variables or {})["working_dir"] == str(deployed.root)
    client.delete_deployment(identity)


def test_the_flows_that_are_deployed_are_the_real_ones_with_what_params_yaml_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    settings = parse_settings()
    for planned in deployments.plan_deployments(settings, ["jena"]):
        flow = load_flow_from_entrypoint(planned.definition["entrypoint"])
        schedule: FlowSchedule = getattr(settings.deploy, planned.flow)
        assert flow.name == planned.flow
        assert flow.retries == settings.deploy.retries
        assert flow.timeout_seconds == schedule.time_limit.total_seconds()
        assert "problem" in flow.parameters.properties
        assert set(planned.definition["parameters"]) <= set(flow.parameters.properties)


@pytest.mark.parametrize("cron", ["0 25 * * *", "a b c d e"])
def test_a_wrong_schedule_is_refused(cron: str, deployed: Checkout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(deployed.root)
    settings = parse_settings()
    schedule = settings.deploy.retrain.model_copy(update={"cron": cron})
    wrong = settings.model_copy(update={"deploy": settings.deploy.model_copy(update={"retrain": schedule})})
    with pytest.raises(RecastError, match=r"deploy\.retrain\.cron"):
        deployments.plan_deployments(wrong, ["demo"])


def test_an_event_starts_the_flow_in_the_projects_root(deployed: Checkout, client: SyncPrefectClient) -> None:
    known = {run.id for run in read_runs(client)}
    deployed.recast("arrived", "demo", new_process=True)
    (new,) = wait_for_new_runs(client, known, 1)
    run = wait_for_end(client, new)
    assert run.state
    assert run.state.is_completed()
    assert run.name == "retrain demo"
    ran = deployed.file("ran.txt").read_text().splitlines()[-1]
    assert ran.split()[:3] == ["retrain", "demo", str(deployed.root.resolve())]


def test_a_run_that_is_killed_is_told_and_the_one_that_waits_goes_on(
    deployed: Checkout, client: SyncPrefectClient
) -> None:
    first = wait_for_start(client, request_run("retrain", problem="demo", seconds=600))
    second = wait_for_run(
        client, request_run("retrain", problem="demo"), lambda now: now.state_name == "AwaitingConcurrencySlot"
    )
    assert first.infrastructure_pid
    os.kill(int(first.infrastructure_pid), signal.SIGKILL)
    assert wait_for_end(client, first).state_name == "Crashed"
    assert wait_for_end(client, second).state_name == "Completed"
    assert str(first.id) in wait_for_alert(deployed, "failure: retrain of demo has crashed\n"), (
        "with a link to its page"
    )


def test_a_run_that_fails_is_tried_again_and_one_that_takes_too_long_is_ended(
    deployed: Checkout, client: SyncPrefectClient
) -> None:
    failing = request_run("monitor", problem="demo", fail=True)
    long = request_run("predict", problem="demo", seconds=600)
    failed = wait_for_end(client, failing)
    assert failed.state_name == "Failed"
    assert failed.run_count == 2
    assert failed.empirical_policy.retry_delay == 1, "0.6 s before the first, twice that before the second"
    text = wait_for_alert(deployed, "failure: monitor of demo has failed\n")
    assert text.startswith("    Flow run encountered an exception: ValueError: as it was asked for\n")
    assert wait_for_run(client, long, lambda now: now.run_count >= 1 and now.state_name != "Running").state_name in (
        "AwaitingRetry",
        "TimedOut",
    )


def test_what_was_missed_is_caught_up_once_and_what_was_killed_is_told(
    deployed: Checkout, client: SyncPrefectClient
) -> None:
    """The worker is killed together with the flow that it runs; events come while it is away."""
    lost = wait_for_start(client, request_run("monitor", problem="demo", seconds=600))
    worker = psutil.Process(json.loads(deployed.file(".recast/worker.json").read_text())["pid"])
    family = [worker, *worker.children(recursive=True)]
    for process in family:
        process.kill()
    psutil.wait_procs(family, timeout=PATIENCE_SECONDS)
    known = {run.id for run in read_runs(client)}
    for count in (1, 2, 3):
        deployed.recast("arrived", "demo")
        missed = wait_for_new_runs(client, known, count)
    deployed.run(sys.executable, "-c", WORKER.format("start"))
    assert wait_for_end(client, lost).state_name == "Crashed"
    wait_for_alert(deployed, "failure: monitor demo has crashed\n")
    states = [state for run in missed if (state := wait_for_end(client, run).state)]
    assert sorted(str(state.name) for state in states) == ["Completed", "Skipped", "Skipped"]
    (reason,) = {state.message for state in states if state.name == "Skipped"}
    assert reason == "It was missed; retrain demo catches up for it."


def test_where_overlap_is_skipped_the_second_run_is(deployed: Checkout, client: SyncPrefectClient) -> None:
    deployed.settings(deploy=DEPLOY | {"on_overlap": "skip"})
    deployed.recast("deploy")
    first = wait_for_start(client, request_run("retrain", problem="demo", seconds=600))
    second = wait_for_end(client, request_run("retrain", problem="demo"))
    assert second.state_name == "Cancelled"
    assert second.state
    assert "concurrency" in str(second.state.message)
    assert first.infrastructure_pid
    os.kill(int(first.infrastructure_pid), signal.SIGKILL)
    assert wait_for_end(client, first).state_name == "Crashed"


@pytest.fixture
def limited(
    client: SyncPrefectClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[Callable[..., Any], str], tuple[Any, FlowRun]]]:
    """Makes a flow of a function as it is deployed, and a run of it that has the one place of its deployment."""
    monkeypatch.chdir(tmp_path)
    with Path("params.yaml").open("w") as file:
        YAML().dump(checkout.SETTINGS, file)
    identities: list[UUID] = []

    def make(function: Callable[..., Any], on_overlap: str) -> tuple[Any, FlowRun]:
        settings = parse_settings().deploy.model_copy(update={"on_overlap": on_overlap, "retries": 0})
        whole = as_deployed(Flow(function, name="limited"), settings.monitor, settings)
        identities.append(client.create_deployment(client.create_flow(whole), tmp_path.name, concurrency_limit=1))
        run = client.create_flow_run_from_deployment(identities[-1], parameters={"problem": "demo"})
        assert client.set_flow_run_state(run.id, Pending()).status == SetStateStatus.ACCEPT
        return whole, client.read_flow_run(run.id)

    yield make
    for identity in identities:
        client.delete_deployment(identity)


def test_a_run_outlives_the_loss_of_its_place_in_the_limit(
    client: SyncPrefectClient, limited: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pause for a person's answer gives it away, and Prefect's engine then fails to renew it."""
    monkeypatch.setattr("prefect.concurrency._leases._RENEWAL_FRACTION", 0.001)
    monkeypatch.setattr("prefect.concurrency._leases._RENEWAL_MAX_ATTEMPTS", 1)

    def asking(problem: str) -> None:
        (renewal,) = [thread for thread in threading.enumerate() if thread.name.startswith("concurrency-lease-renewal")]
        client.set_flow_run_state(flow_run.id, Paused(timeout_seconds=600))
        client.set_flow_run_state(flow_run.id, Running(), force=True)
        renewal.join(60)
        assert not renewal.is_alive()

    flow, run = limited(asking, "wait")
    state = run_flow(flow, flow_run=run, return_type="state")
    assert state.is_completed(), state


@pytest.mark.parametrize(("on_overlap", "end"), [("wait", "Completed"), ("skip", "Skipped")])
def test_a_run_waits_or_is_skipped_while_another_that_has_lost_its_place_is_under_way(
    on_overlap: str, end: str, client: SyncPrefectClient, limited: Any
) -> None:
    begun = threading.Event()

    def second(problem: str) -> None:
        begun.set()

    flow, run = limited(second, on_overlap)
    Path(".recast").mkdir()
    held = threading.Event()
    early = []

    def be_first() -> None:
        with FileLock(".recast/deployed-limited-demo.lock"):
            held.set()
            wait_for_start(client, run) if on_overlap == "wait" else wait_for_end(client, run)
            early.append(begun.is_set())

    other = threading.Thread(target=be_first)
    other.start()
    assert held.wait(PATIENCE_SECONDS)
    state = run_flow(flow, flow_run=run, return_type="state")
    other.join()
    assert (state.name, early, begun.is_set()) == (end, [False], on_overlap == "wait")


def test_a_question_that_no_process_would_hear_the_answer_to_is_ended_and_told(
    client: SyncPrefectClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.worker import close_orphaned_runs

    monkeypatch.chdir(tmp_path)
    client.create_work_pool(WorkPoolCreate(name="asked", type="process"))
    deployment = client.create_deployment(client.create_flow_from_name("retrain"), "asked", work_pool_name="asked")
    asked = client.create_flow_run_from_deployment(deployment)
    client.set_flow_run_state(asked.id, Paused(timeout_seconds=600), force=True)
    close_orphaned_runs(client, "asked")
    state = client.read_flow_run(asked.id).state
    assert state
    assert state.is_crashed()
    assert "the next run asks again" in str(state.message)
    assert "the next run asks again" in Path(".recast/alerts.log").read_text()
    client.delete_deployment(deployment)
    client.delete_work_pool("asked")


def test_the_worker_is_shown_and_stopped_with_all_that_it_has_started(
    deployed: Checkout, client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "Worker: runs" in deployed.recast("status")
    wait_for_start(client, request_run("monitor", problem="demo", seconds=600))
    worker = psutil.Process(json.loads(deployed.file(".recast/worker.json").read_text())["pid"])
    family = [worker, *worker.children(recursive=True)]
    assert len(family) > 1
    deployed.run(sys.executable, "-c", WORKER.format("stop"))
    _, alive = psutil.wait_procs(family, timeout=PATIENCE_SECONDS)
    assert not alive
    monkeypatch.chdir(deployed.root)
    assert server_process.running_address(servers.WORKER) is None
