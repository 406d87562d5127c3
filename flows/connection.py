"""The Prefect server that flows report to."""

import os
from collections.abc import Callable
from typing import TypeVar

import httpx
from prefect.client.orchestration import get_client
from prefect.context import refresh_global_settings_context
from prefect.settings import get_current_settings
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_exponential

from infra.servers import PREFECT, start
from problems.errors import RecastError
from project.redaction import without_passwords

LONGEST_WAIT_SECONDS = 15

T = TypeVar("T")


def reached(what: Callable[[], T], seconds: float) -> T:
    """What `what` returns, called again and again while the server is out of reach, at most so long.

    Prefect's clients try again themselves once they have reached the server (`PREFECT_CLIENT_MAX_RETRIES`), and give up
    at once when they have not.

    Raises:
        httpx.TransportError: it was out of reach for longer.
    """
    retrying = Retrying(
        retry=retry_if_exception_type(httpx.TransportError),
        stop=stop_after_delay(seconds),
        wait=wait_exponential(max=LONGEST_WAIT_SECONDS),
        reraise=True,
    )
    return retrying(what)


def connect() -> None:
    """Report to the server that PREFECT_API_URL names, else to the project's own, started where it does not run.

    It holds for this process, all its threads and the processes that it starts.

    Raises:
        RecastError: the server cannot be reached.
    """
    named = get_current_settings().api.url
    if named is None:
        os.environ["PREFECT_API_URL"] = f"{start(PREFECT)}/api"
        refresh_global_settings_context()
        return
    # Prefect's own client: a server may want its key, its password or its certificate.
    with get_client(sync_client=True) as client:
        error = client.api_healthcheck()
    if error is not None:
        raise RecastError(
            without_passwords(
                f"Prefect at {named} cannot be reached: {error}. Start it (`recast up` starts the project's own), or "
                "unset PREFECT_API_URL to use the project's own"
            )
        ) from error
