"""The worker: it starts the due flow runs of this checkout's work pool, each in a process of its own.

    python -m flows.worker <port>

is what `recast up` starts. The port answers whether the worker is healthy: whether it belongs to the pool, and still
asks Prefect for work.
"""

import argparse
import asyncio
import math
import os
import sys
import threading
import time
from typing import Any

import httpx
import psutil
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.context import refresh_global_settings_context
from prefect.settings import get_current_settings
from prefect.states import Crashed, Scheduled
from prefect.utilities.processutils import setup_signal_handlers_worker
from prefect.workers.process import ProcessWorker
from prefect.workers.server import build_healthcheck_server

from flows.alerts import alert
from flows.connection import connect
from flows.prefect_internals import mark_as_polling
from infra.server_process import MARK, running_address
from infra.servers import PREFECT, WORKER
from problems.errors import RecastError
from problems.passwords import hide_passwords
from project.settings.parsing import parse_settings

QUERY_SECONDS = 3
"""How often Prefect is asked for work. The project's own server is on loopback, so asking costs little."""

RETRY_SECONDS = 10
"""How long the worker waits after an error before it begins again."""

FAILURES_BEFORE_ALERT = 5
"""So many failures mean that the worker does not recover by itself: a restart of the server causes one or two."""

FORGET_FAILURES_SECONDS = 3600

HEALTHY_SECONDS = 300
"""A worker that has not asked for work for so long hangs. While Prefect is away, asking takes a minute to fail."""


class Worker(ProcessWorker):
    """Prefect's worker of processes, which survives minutes without a server.

    Attributes:
        is_own: it works for the project's own server.
    """

    is_own = False

    @classmethod
    def __dispatch_key__(cls) -> str:
        # Prefect lists its kinds of workers by this key: this one must not replace that of processes.
        return "recast"

    async def get_and_submit_flow_runs(self) -> list[FlowRun]:
        try:
            return await super().get_and_submit_flow_runs()
        except httpx.TransportError as error:
            # Prefect's worker would end after some of these errors, and end the runs that it has started.
            print(f"Prefect cannot be reached: {type(error).__name__}; trying again", flush=True)
            address = running_address(PREFECT)
            if address and self.is_own and f"{address}/api" != os.environ["PREFECT_API_URL"]:
                raise RuntimeError(f"the project's Prefect server is at {address} now") from error
            # It does poll: `recast up` must not think that it hangs.
            mark_as_polling(self)
            return []


def main(port: int) -> None:
    """Start flow runs that are due until a signal ends this.

    After an error it begins again: whoever waits for the next run gains nothing from a worker that has ended. People
    have an alert when that happens again and again.

    Args:
        port: of 127.0.0.1, which answers whether the worker is healthy.

    Raises:
        RecastError: params.yaml is wrong.
    """
    os.environ |= {"PREFECT_WORKER_WEBSERVER_HOST": "127.0.0.1", "PREFECT_WORKER_WEBSERVER_PORT": str(port)}
    os.environ.setdefault("PREFECT_WORKER_QUERY_SECONDS", str(QUERY_SECONDS))
    # Flow runs outlive a worker that is killed, and are not stopped when it is started again.
    os.environ.pop(MARK, None)
    refresh_global_settings_context()
    setup_signal_handlers_worker(os.getpid(), "the worker", print)
    pool = parse_settings().deploy.pool
    Worker.is_own = get_current_settings().api.url is None
    failures = FailureAlert()
    pause = threading.Event()
    while True:
        try:
            if Worker.is_own:
                os.environ.pop("PREFECT_API_URL", None)
                refresh_global_settings_context()
            connect(ends_on_full_disk=False)
            with get_client(sync_client=True) as client:
                close_orphaned_runs(client, pool)
            _run_worker(pool)
            return
        except KeyboardInterrupt:
            return
        except RecastError as error:
            print(f"{error}; trying again in {RETRY_SECONDS} s", flush=True)
            failures.add(str(error))
        except Exception as error:
            print(f"the worker has failed and begins again in {RETRY_SECONDS} s: {error!r}", flush=True)
            failures.add(repr(error))
        pause.wait(RETRY_SECONDS)


class FailureAlert:
    """Alerts people, once, when the worker fails again and again."""

    def __init__(self) -> None:
        self.count = 0
        self.last = -math.inf

    def add(self, reason: str) -> None:
        """Count a failure. Failures before an hour without any are forgotten.

        Args:
            reason: what has happened, for people.
        """
        now = time.monotonic()
        self.count = 1 if now - self.last > FORGET_FAILURES_SECONDS else self.count + 1
        self.last = now
        if self.count == FAILURES_BEFORE_ALERT:
            text = (
                f"It has failed {self.count} times, and begins again each time; meanwhile nothing that is deployed may "
                f"run. The last reason: {hide_passwords(reason)}\nIts log says more: {WORKER.log}"
            )
            alert("failure", "the worker fails again and again", text)


def _run_worker(pool: str) -> None:
    """Start what is due until a signal ends this."""
    worker = Worker(work_pool_name=pool, name=f"recast {os.getpid()}", create_pool_if_not_found=True)
    health = build_healthcheck_server(worker, HEALTHY_SECONDS / 30)

    def print_and_watch(*parts: Any) -> None:
        print(*parts, flush=True)
        # Prefect prints this once its server has added the worker to the pool.
        if "started" in " ".join(map(str, parts)):
            threading.Thread(target=health.run, daemon=True).start()

    try:
        asyncio.run(worker.start(printer=print_and_watch))
    finally:
        health.should_exit = True


def close_orphaned_runs(client: SyncPrefectClient, pool: str) -> None:
    """Close the runs of a worker that was killed: those whose processes are gone.

    A run that had begun is marked as crashed, and people have an alert. So is one that waits for a person's answer, as
    no process would receive it. A run that had not begun is scheduled again.
    """
    open_states = [StateType.PENDING, StateType.RUNNING, StateType.PAUSED, StateType.CANCELLING]
    open_runs = client.read_flow_runs(
        flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=open_states))),
        work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[pool])),
    )
    for run in open_runs:
        # A suspended run has no process by design; it gets another one when it goes on.
        if run.state is None or run.state.state_details.pause_reschedule or _is_running(run):
            continue
        if run.state.is_pending():
            message = "The worker ended before it had started this run."
            client.set_flow_run_state(run.id, Scheduled(message=message), force=True)
            continue
        message = "Its process is gone, and so is the worker that would have said so: killed, or the machine stopped."
        if run.state.is_paused():
            message += " Nobody can answer its question any more; the next run asks again."
        client.set_flow_run_state(run.id, Crashed(message=message), force=True)
        alert("failure", f"{run.name} has crashed", f"{message}\nWhat it has finished is kept; run it again.")


def _is_running(run: FlowRun) -> bool:
    """Whether the process of a run is alive."""
    if not (run.infrastructure_pid or "").isdigit():
        return False
    try:
        return psutil.Process(int(run.infrastructure_pid or 0)).environ().get("PREFECT__FLOW_RUN_ID") == str(run.id)
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(main.__doc__ or "").partition("\n")[0])
    parser.add_argument("port", type=int)
    try:
        main(parser.parse_args().port)
    except RecastError as error:
        sys.exit(f"error: {error}")
