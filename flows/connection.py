"""The Prefect server that flows report to."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from prefect.settings import PREFECT_API_URL, get_current_settings, temporary_settings

from infra.servers import PREFECT, start
from problems.errors import RecastError


@contextmanager
def connected() -> Iterator[None]:
    """Run flows against the server that PREFECT_API_URL names, else the project's own, started where it does not run.

    Without a server each process would start one of its own, take seconds for it and lose its last events.

    Raises:
        RecastError: the server cannot be reached.
    """
    named = get_current_settings().api.url
    if named:
        try:
            httpx.get(f"{named}/health", timeout=10).raise_for_status()
        except httpx.HTTPError as error:
            raise RecastError(
                f"Prefect at {named} cannot be reached: {error}. Start it (`recast up` starts the project's own), or "
                "unset PREFECT_API_URL to use the project's own"
            ) from error
        yield
        return
    api = f"{start(PREFECT)}/api"
    with temporary_settings({PREFECT_API_URL: api}):
        yield


def interface() -> str:
    """The address of Prefect's pages, for a person to open."""
    return (get_current_settings().ui_url or os.environ.get("PREFECT_UI_URL") or "").rstrip("/")
