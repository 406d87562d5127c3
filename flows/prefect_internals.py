"""Everything that Recast uses of Prefect's inside, which Prefect may change with any version.

tests/flows/test_internals.py fails when another version of Prefect is installed than these functions were checked with.
"""

from contextlib import AbstractContextManager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from prefect import flow_engine
from prefect.concurrency._leases import maintain_concurrency_lease

if TYPE_CHECKING:
    from prefect.deployments.runner import RunnerDeployment
    from prefect.workers.base import BaseWorker
    from sqlalchemy import MetaData

CHECKED_VERSION = "3.8.8"
"""The version of Prefect that these functions were checked with."""


def keep_runs_without_lease() -> None:
    """Have Prefect's engine go on with a flow run whose place in its deployment's concurrency limit is lost.

    Otherwise it ends such a run, up to four minutes later. A pause for a person's answer always loses the place, and a
    restart of the server may.
    """
    # Its attribute is what the engine calls, as the module imports the function by its name.
    flow_engine.maintain_concurrency_lease = _renew_lease  # type: ignore[attr-defined, assignment]


def _renew_lease(lease_id: UUID, lease_duration: float, **_: Any) -> AbstractContextManager[None]:
    """Renew a run's place in the limit while the block runs. If Prefect has given the place away, the run continues."""
    return maintain_concurrency_lease(lease_id, lease_duration)


def parameter_schema(deployment: "RunnerDeployment") -> dict[str, Any]:
    """The JSON schema of a deployment's parameters, from which Prefect's page makes its form."""
    schema: dict[str, Any] = deployment._parameter_openapi_schema.model_dump(mode="json")  # noqa: SLF001 - nothing else has it
    return schema


def mark_as_polling(worker: "BaseWorker[Any, Any, Any]") -> None:
    """Have a worker's health check count a question that failed like one that was answered."""
    worker._last_polled_time = datetime.now(UTC)  # noqa: SLF001 - the health check reads nothing else


def server_tables() -> "MetaData":
    """The tables of the database of Prefect's server."""
    from prefect.server.database.orm_models import Base  # noqa: PLC0415 - saves other commands loading the server

    return Base.metadata
