"""The worker: it starts the flow runs of this checkout's work pool that are due, each in a process of its own.

    python -m flows.worker <port>

is what `recast up` starts. The port answers for its health: from when Prefect has taken it in, while it asks for work.
"""

import argparse
import asyncio
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
from prefect.types._datetime import now
from prefect.utilities.processutils import setup_signal_handlers_worker
from prefect.workers.process import ProcessWorker
from prefect.workers.server import build_healthcheck_server

from flows.alerts import alert
from flows.connection import connect
from infra.servers import PREFECT, url
from problems.errors import RecastError
from project.settings.parsing import parse_settings

QUERY_SECONDS = 3
"""How often Prefect is asked for work. Its own server is on loopback."""

RETRY_SECONDS = 10

HEALTHY_SECONDS = 300
"""A worker that has not asked for so long hangs. While Prefect is away, one question takes a minute to fail."""


class Worker(ProcessWorker):
    """Prefect's worker of processes, which outlives a server that is away for minutes.

    Attributes:
        is_own: its server is the project's own.
    """

    is_own = False

    @classmethod
    def __dispatch_key__(cls) -> str:
        # Among Prefect's kinds of workers this one stands beside that of processes, not in its place.
        return "recast"

    async def get_and_submit_flow_runs(self) -> list[FlowRun]:
        try:
            return await super().get_and_submit_flow_runs()
        except httpx.TransportError as error:
            # Prefect's worker ends after some of these, and takes along what it has started.
            print(f"Prefect cannot be reached: {type(error).__name__}; asked again", flush=True)
            there = url(PREFECT)
            if there and self.is_own and f"{there}/api" != os.environ["PREFECT_API_URL"]:
                raise RuntimeError(f"the project's Prefect server is at {there} now") from error
            # It does ask: `recast up` must not take it for one that hangs.
            self._last_polled_time = now("UTC")
            return []


def main(port: int) -> None:
    """Work until a signal says otherwise.

    Args:
        port: of 127.0.0.1, for the health.

    Raises:
        RecastError: params.yaml is wrong.
    """
    os.environ |= {"PREFECT_WORKER_WEBSERVER_HOST": "127.0.0.1", "PREFECT_WORKER_WEBSERVER_PORT": str(port)}
    os.environ.setdefault("PREFECT_WORKER_QUERY_SECONDS", str(QUERY_SECONDS))
    refresh_global_settings_context()
    setup_signal_handlers_worker(os.getpid(), "the worker", print)
    pool = parse_settings().deploy.pool
    Worker.is_own = get_current_settings().api.url is None
    while True:
        try:
            if Worker.is_own:
                os.environ.pop("PREFECT_API_URL", None)
                refresh_global_settings_context()
            connect()
            with get_client(sync_client=True) as client:
                mend(client, pool)
            _work(pool)
            return
        except KeyboardInterrupt:
            return
        except RecastError as error:
            print(f"{error}; tried again in {RETRY_SECONDS} s", flush=True)
        except Exception as error:
            # A group of errors, or one; whatever they are, who waits for the next run has nothing from an end here.
            print(f"the worker has failed and begins again in {RETRY_SECONDS} s: {error!r}", flush=True)
        time.sleep(RETRY_SECONDS)


def _work(pool: str) -> None:
    """Start what is due until a signal says otherwise."""
    worker = Worker(work_pool_name=pool, name=f"recast {os.getpid()}", create_pool_if_not_found=True)
    health = build_healthcheck_server(worker, HEALTHY_SECONDS / 30)

    def say(*parts: Any) -> None:
        print(*parts, flush=True)
        # Prefect's first word comes when its server has the worker among those of the pool.
        if "started" in " ".join(map(str, parts)):
            threading.Thread(target=health.run, daemon=True).start()

    try:
        asyncio.run(worker.start(printer=say))
    finally:
        health.should_exit = True


def mend(client: SyncPrefectClient, pool: str) -> None:
    """Put right what a worker that was killed has left: its runs whose processes are gone.

    One that had begun is marked as crashed, and people are told; so is one that waits for a person, whose answer
    nothing would hear. One that had not begun is due again.
    """
    kinds = [StateType.PENDING, StateType.RUNNING, StateType.PAUSED, StateType.CANCELLING]
    left = client.read_flow_runs(
        flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=kinds))),
        work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[pool])),
    )
    for run in left:
        # One that is suspended has ended its process; it gets another.
        if run.state is None or run.state.state_details.pause_reschedule or _lives(run):
            continue
        if run.state.is_pending():
            message = "The worker ended before it had started this run."
            client.set_flow_run_state(run.id, Scheduled(message=message), force=True)
            continue
        message = "Its process is gone, and so was the worker that would have said so: killed, or the machine stopped."
        if run.state.is_paused():
            message += " Its question is void; the next run asks again."
        client.set_flow_run_state(run.id, Crashed(message=message), force=True)
        alert("failure", f"{run.name} has crashed", f"{message}\nWhat it has finished is kept; run it again.")


def _lives(run: FlowRun) -> bool:
    """Whether the process of a run is there."""
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
