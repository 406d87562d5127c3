"""A laptop's runs, models, artifacts and Prefect's state, brought to the stores of the profile `servers`.

The databases are copied row by row, ids and all, so that whatever names a run, a version or a deployment goes on to
name it; each in one transaction, which ends only when every table has been read back and found to be the same.
Artifacts that are there already, with the same bytes, are not sent again: what was killed is begun again and goes on.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from sqlalchemy import Connection, Engine, Integer, MetaData, Table, create_engine, func, inspect, select, text
from sqlalchemy.exc import SQLAlchemyError

from infra import postgres
from infra.laptop import ARTIFACTS, DATABASES, LOCATIONS
from infra.servers import MLFLOW, POSTGRES, PREFECT, WORKER, object_store, port_of, start, url
from problems.errors import RecastError
from project import profile

ROWS = 1000
"""Written at once."""


@dataclass(frozen=True)
class Migrated:
    """What was brought over.

    Attributes:
        rows: by database and table, those that have any.
        artifacts: how many files there are, and how many of them had to be sent.
        left: artifacts' locations that are not below this project's `mlruns/artifacts`, and stay where they are.
    """

    rows: dict[str, dict[str, int]]
    artifacts: tuple[int, int]
    left: tuple[str, ...]


def migrate(laptop: Path, replace: bool) -> Migrated:
    """Bring over what a laptop's project has; its own files stay as they are.

    Args:
        laptop: the project's root.
        replace: also where the servers have runs that the laptop has not; these are gone then.

    Raises:
        RecastError: the servers run, or are of another version, or have runs of their own; or the copy is not the same.
    """
    if profile.read().name != "servers":
        raise RecastError("this project uses a laptop's stores: `recast up --profile servers`, `recast down` first")
    if running := [each.title for each in (PREFECT, MLFLOW, WORKER) if url(each)]:
        raise RecastError(f"{', '.join(running)} would write meanwhile: `recast down` first")
    sources = {name: laptop / database for name, database in DATABASES.items()}
    if not any(file.exists() for file in sources.values()):
        raise RecastError(f"{laptop}: neither {' nor '.join(map(str, DATABASES.values()))} there")
    start(POSTGRES)
    artifacts = _send_artifacts(laptop / ARTIFACTS)
    rows: dict[str, dict[str, int]] = {}
    left: set[str] = set()
    for name, file in sources.items():
        if not file.exists():
            continue
        from_ = create_engine(f"sqlite:///file:{file.absolute()}?mode=ro&uri=true")
        # Only it may put rows in before those that they refer to.
        to = postgres.engine(port_of(POSTGRES), name, postgres.ADMIN)
        try:
            rows[name] = _copied(name, from_, to, replace, left)
        except SQLAlchemyError as error:
            said = str(error).strip().splitlines()[0]
            raise RecastError(f"{file} could not be brought to PostgreSQL, which is as it was: {said}") from error
        finally:
            from_.dispose()
            to.dispose()
    return Migrated(rows, artifacts, tuple(sorted(left)))


def _tables(name: str) -> MetaData:
    """The tables of MLflow's or of Prefect's database, with the types of both SQLite and PostgreSQL."""
    if name == "mlflow":
        from mlflow.store.model_registry.dbmodels import models as registry  # noqa: F401
        from mlflow.store.tracking.dbmodels import models as tracking

        found: MetaData = tracking.Base.metadata
        return found
    from prefect.server.database.orm_models import Base

    return Base.metadata


def _copied(name: str, from_: Engine, to: Engine, replace: bool, left: set[str]) -> dict[str, int]:
    """Copy a database, and read it back.

    Raises:
        RecastError: the two are of different versions, the copy would delete runs, or is not the same.
    """
    tables = _tables(name).sorted_tables
    for engine, whose in ((from_, "laptop's"), (to, "servers'")):
        _require_current(name, engine, whose, tables)
    with from_.connect() as source, to.begin() as target:
        if not replace:
            _refuse_to_delete(name, source, target)
        target.execute(text("set local session_replication_role = replica"))
        target.execute(text(f"truncate {', '.join(table.name for table in tables)} cascade"))
        counts = {}
        for table in tables:
            sent = _Sum()
            for rows in _blocks(source, table):
                moved = [_moved(table, row, left) for row in rows] if name == "mlflow" else rows
                sent.add(moved)
                target.execute(table.insert(), moved)
            arrived = _Sum()
            for rows in _blocks(target, table):
                arrived.add(rows)
            if (sent.count, sent.total) != (arrived.count, arrived.total):
                raise RecastError(f"{name}: {table.name} did not arrive as it was sent; the servers are as they were")
            if sent.count:
                counts[table.name] = sent.count
            _continue_numbers(target, table)
    return counts


def _require_current(name: str, engine: Engine, whose: str, tables: list[Table]) -> None:
    """
    Raises:
        RecastError: the database has not the tables and columns that the version installed here works with.
    """
    # Prefect numbers the versions of its two kinds of database apart; their columns are the same.
    there = inspect(engine).get_multi_columns()
    for table in tables:
        columns = {column["name"] for column in there.get((None, table.name), ())}
        if {column.name for column in table.columns} - columns:
            raise RecastError(
                f"{name}: the {whose} database has no {table.name} as the version that is installed here: `recast up` "
                "and `recast down` with each profile once bring both up to date, then migrate"
            )


def _refuse_to_delete(name: str, source: Connection, target: Connection) -> None:
    """
    Raises:
        RecastError: the servers have runs that the laptop does not have.
    """
    table, column = {"mlflow": ("runs", "run_uuid"), "prefect": ("flow_run", "id")}[name]
    key = _tables(name).tables[table].c[column]
    theirs = set(target.scalars(select(key))) - set(source.scalars(select(key)))
    if theirs:
        raise RecastError(
            f"{name}: the servers have {len(theirs)} runs that the laptop has not, and would lose them; migrate to new "
            "servers, or `--replace`"
        )


def _blocks(connection: Connection, table: Table) -> Iterator[list[dict[str, Any]]]:
    streamed = connection.execute(select(table), execution_options={"stream_results": True})
    for block in streamed.mappings().partitions(ROWS):
        yield [dict(row) for row in block]


class _Sum:
    """The count and the checksum of rows, in whatever order they come."""

    def __init__(self) -> None:
        self.count = self.total = 0

    def add(self, rows: list[dict[str, Any]]) -> None:
        for row in rows:
            # PostgreSQL keeps what JSON says: not in which order, nor how a number is written (1e+23, -0.0).
            said = json.loads(json.dumps(row, default=_plain), parse_float=_number)
            digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).digest()
            self.total = (self.total + int.from_bytes(digest, "big")) % (1 << 256)
        self.count += len(rows)


def _number(written: str) -> int | float:
    """The number, an integer where what is written is one."""
    value = Decimal(written)
    return int(value) if value == value.to_integral_value() else float(written)


def _plain(value: Any) -> Any:
    """A value that JSON does not know, the same for the same value."""
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else repr(value)


def _moved(table: Table, row: dict[str, Any], left: set[str]) -> dict[str, Any]:
    """A row whose artifacts are where MLflow's server hands them on from."""
    for column in LOCATIONS.get(table.name, ()):
        value = row.get(column)
        if not isinstance(value, str) or not value.startswith(("file:", "/")):
            continue
        _, found, below = value.partition(f"/{ARTIFACTS}/")
        place = Path(value.removeprefix("file://"))
        if found:
            row[column] = f"mlflow-artifacts:/{below}"
        elif any(each.is_file() for each in place.rglob("*")):
            left.add(value)
        else:
            # Nothing was written there yet, as in the experiment that MLflow makes by itself.
            row[column] = f"mlflow-artifacts:/{place.name}"
    return row


def _continue_numbers(target: Connection, table: Table) -> None:
    """Have PostgreSQL count on from the highest number that is there."""
    for column in table.primary_key:
        if not isinstance(column.type, Integer):
            continue
        counter = target.scalar(text("select pg_get_serial_sequence(:t, :c)"), {"t": table.name, "c": column.name})
        highest = target.scalar(select(func.max(column)))
        if counter and highest:
            target.execute(text("select setval(:counter, :highest)"), {"counter": counter, "highest": highest})


def _send_artifacts(folder: Path) -> tuple[int, int]:
    """Send every file that the store does not have yet; how many there are, and how many were sent.

    Raises:
        RecastError: one did not arrive as it was sent.
    """
    store, bucket, prefix = object_store()
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    sent = 0
    for file in files:
        key = f"{prefix}mlflow/{file.relative_to(folder).as_posix()}"
        with file.open("rb") as opened:
            wanted = hashlib.file_digest(opened, "sha256").hexdigest()
        if _stored(store, bucket, key) == wanted:
            continue
        store.upload_file(str(file), bucket, key)
        sent += 1
        if _stored(store, bucket, key) != wanted:
            raise RecastError(f"{file} did not arrive as it was sent; look at the store, then migrate again")
    return len(files), sent


def _stored(store: Any, bucket: str, key: str) -> str | None:
    """The SHA-256 of an object, or None where there is none."""
    from botocore.exceptions import ClientError

    try:
        body = store.get_object(Bucket=bucket, Key=key)["Body"]
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
            return None
        raise RecastError(f"the S3 store has refused: {error}") from error
    digest = hashlib.sha256()
    for block in body.iter_chunks(1 << 20):
        digest.update(block)
    return digest.hexdigest()
