"""The Prefect server that flows report to."""

import os

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.context import refresh_global_settings_context
from prefect.settings import get_current_settings

from infra.server_process import start
from infra.servers import PREFECT
from problems.errors import RecastError
from project.disk import end_while_disk_is_full


def connect(ends_on_full_disk: bool = True) -> None:
    """Connect to the server that PREFECT_API_URL names, else to the project's own, which is started if it does not run.

    This is so for all threads of this process, and for the processes that it starts.

    Args:
        ends_on_full_disk: end this process when the disk is full, as its server may be unable to write then.

    Raises:
        RecastError: the server cannot be reached.
    """
    if ends_on_full_disk:
        end_while_disk_is_full()
    address = get_current_settings().api.url
    if address is None:
        os.environ["PREFECT_API_URL"] = f"{start(PREFECT)}/api"
        refresh_global_settings_context()
        return
    # Asked by Prefect's own client, as a server may want a key, a password or a certificate.
    with get_client(sync_client=True) as client:
        error = client.api_healthcheck() or _find_fault(client)
    if error is not None:
        raise RecastError(
            f"Prefect at {address} cannot be reached: {error}. Start it (`recast up` starts the project's own), or "
            "unset PREFECT_API_URL to use the project's own"
        ) from error


def _find_fault(client: SyncPrefectClient) -> Exception | None:
    """What shows that another program answers at Prefect's address, whatever it is asked; None: nothing does."""
    try:
        version: object = client.api_version()
    except (ValueError, httpx.HTTPError) as error:
        version = error
    return None if isinstance(version, str) else ValueError(f"something else than Prefect answers there ({version})")
