"""The Prefect server that flows report to."""

import os

from prefect.client.orchestration import get_client
from prefect.context import refresh_global_settings_context
from prefect.settings import get_current_settings

from infra.servers import PREFECT, start
from problems.errors import RecastError
from stages.words import without_passwords


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
