"""The Prefect server that flows report to."""

import os

from prefect.client.orchestration import get_client
from prefect.context import refresh_global_settings_context
from prefect.settings import get_current_settings

from infra.server_process import start
from infra.servers import PREFECT
from problems.errors import RecastError
from project.redaction import hide_passwords


def connect() -> None:
    """Connect to the server that PREFECT_API_URL names, else to the project's own, which is started if it does not run.

    This is so for all threads of this process, and for the processes that it starts.

    Raises:
        RecastError: the server cannot be reached.
    """
    address = get_current_settings().api.url
    if address is None:
        os.environ["PREFECT_API_URL"] = f"{start(PREFECT)}/api"
        refresh_global_settings_context()
        return
    # Asked by Prefect's own client, as a server may want a key, a password or a certificate.
    with get_client(sync_client=True) as client:
        error = client.api_healthcheck()
    if error is not None:
        raise RecastError(
            hide_passwords(
                f"Prefect at {address} cannot be reached: {error}. Start it (`recast up` starts the project's own), or "
                "unset PREFECT_API_URL to use the project's own"
            )
        ) from error
