"""Copies a laptop's runs, models, artifacts and Prefect's state to the stores of the profile `servers`.

The databases are copied row by row with their ids, so that every reference to a run, a version or a deployment stays
valid. Each is copied in one transaction, which is committed only after every table has been read back and compared.
Artifacts that have arrived already, with the same bytes, are not sent again, so a migration that was killed continues
when it is started again.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from sqlalchemy import Connection, Engine, Integer, MetaData, Table, create_engine, func, inspect, select, text
from sqlalchemy.exc import SQLAlchemyError

from flows.prefect_internals import server_tables
from infra import postgres
from infra.laptop import ARTIFACTS, DATABASES, LOCATIONS
from infra.s3 import MLFLOW_FOLDER
from infra.server_process import running_address, running_port, start
from infra.servers import MLFLOW, POSTGRES, PREFECT, WORKER, connect_object_store
from problems.errors import RecastError
from problems.files.file_hash import file_sha256
from project import profile

BLOCK_ROWS = 1000
"""How many rows are written at once."""


@dataclass(frozen=True)
class MigrationResult:
    """What was copied.

    Attributes:
        rows: the number of rows by database and table, without empty tables.
        artifacts: how many files there are, and how many of them were sent.
        left: locations of artifacts that were not moved, as they are not below the project's `mlruns/artifacts`.
    """

    rows: dict[str, dict[str, int]]
    artifacts: tuple[int, int]
    left: tuple[str, ...]


def migrate(laptop: Path, replace: bool) -> MigrationResult:
    """Copy the stores of a laptop's project to the servers. The laptop's files stay as they are.

    Args:
        laptop: the root of the laptop's project.
        replace: also if the servers have runs that the laptop does not have. These are lost.

    Raises:
        RecastError: the servers run, have another version or runs of their own, or the copy differs.
    """
    if profile.read_profile().name != "servers":
        raise RecastError(
            "this project uses a laptop's stores: run `recast up --profile servers` and `recast down` first"
        )
    if running := [server.title for server in (PREFECT, MLFLOW, WORKER) if running_address(server)]:
        raise RecastError(f"{', '.join(running)} may write meanwhile: run `recast down` first")
    sources = {name: laptop / database for name, database in DATABASES.items()}
    if not any(file.exists() for file in sources.values()):
        raise RecastError(f"{laptop} has neither {' nor '.join(map(str, DATABASES.values()))}")
    start(POSTGRES)
    existing = {name: file for name, file in sources.items() if file.exists()}
    for name, file in existing.items():
        with _connect(name, file) as (source, target):
            _check_databases(name, source, target, replace)
    artifacts = _send_artifacts(laptop / ARTIFACTS)
    rows: dict[str, dict[str, int]] = {}
    left: set[str] = set()
    for name, file in existing.items():
        with _connect(name, file) as (source, target):
            rows[name] = _copy_database(name, source, target, replace, left)
    return MigrationResult(rows, artifacts, tuple(sorted(left)))


@contextmanager
def _connect(name: str, file: Path) -> Iterator[tuple[Engine, Engine]]:
    """The laptop's database and the servers'.

    Raises:
        RecastError: one of them refuses.
    """
    source = create_engine(f"sqlite:///file:{file.absolute()}?mode=ro&uri=true")
    # Only the administrator may insert rows before those that they refer to.
    target = postgres.engine(running_port(POSTGRES), name, postgres.ADMIN)
    try:
        yield source, target
    except SQLAlchemyError as error:
        reason = str(error).strip().splitlines()[0]
        raise RecastError(
            f"{file} could not be copied to PostgreSQL, whose database {name} is as it was: {reason}"
        ) from error
    finally:
        source.dispose()
        target.dispose()


def _tables(name: str) -> MetaData:
    """The tables of MLflow's or of Prefect's database, with the types of both SQLite and PostgreSQL."""
    if name == "mlflow":
        from mlflow.store.model_registry.dbmodels import models as registry  # noqa: F401, PLC0415 - saves seconds where a check fails
        from mlflow.store.tracking.dbmodels import models as tracking  # noqa: PLC0415 - likewise

        tables: MetaData = tracking.Base.metadata
        return tables
    return server_tables()


def _check_databases(name: str, source_engine: Engine, target_engine: Engine, replace: bool) -> None:
    """Check that a database can be copied.

    Raises:
        RecastError: the versions of the databases differ, or the copy would delete runs.
    """
    tables = _tables(name).sorted_tables
    for engine, owner in ((source_engine, "laptop's"), (target_engine, "servers'")):
        _require_current(name, engine, owner, tables)
    if not replace:
        with source_engine.connect() as source, target_engine.connect() as target:
            _refuse_to_delete(name, source, target)


def _copy_database(
    name: str, source_engine: Engine, target_engine: Engine, replace: bool, left: set[str]
) -> dict[str, int]:
    """Copy a database, read it back and compare; the number of rows by table.

    Args:
        left: gets the locations of artifacts that are not moved.

    Raises:
        RecastError: the copy would delete runs, or it differs.
    """
    tables = _tables(name).sorted_tables
    with source_engine.connect() as source, target_engine.begin() as target:
        if not replace:
            # Again: sending the artifacts has taken its time.
            _refuse_to_delete(name, source, target)
        target.execute(text("set local session_replication_role = replica"))
        target.execute(text(f"truncate {', '.join(table.name for table in tables)} cascade"))
        counts = {}
        for table in tables:
            sent = RowChecksum()
            for rows in _blocks(source, table):
                moved = [_move_artifacts(table, row, left) for row in rows] if name == "mlflow" else rows
                sent.add(moved)
                target.execute(table.insert(), moved)
            arrived = RowChecksum()
            for rows in _blocks(target, table):
                arrived.add(rows)
            if (sent.count, sent.total) != (arrived.count, arrived.total):
                raise RecastError(f"{name}: {table.name} did not arrive as it was sent; this database is as it was")
            if sent.count:
                counts[table.name] = sent.count
            _restart_counters(target, table)
    return counts


def _require_current(name: str, engine: Engine, owner: str, tables: list[Table]) -> None:
    """Check that a database has the tables and columns that the installed version works with.

    Raises:
        RecastError: it does not.
    """
    # The version numbers that Prefect keeps differ between SQLite and PostgreSQL, but the columns are the same.
    existing = inspect(engine).get_multi_columns()
    for table in tables:
        columns = {column["name"] for column in existing.get((None, table.name), ())}
        if {column.name for column in table.columns} - columns:
            raise RecastError(
                f"{name}: the {owner} database does not have {table.name} as the installed version needs it: `recast "
                "up` and `recast down`, once with each profile, bring both databases up to date; then migrate"
            )


def _refuse_to_delete(name: str, source: Connection, target: Connection) -> None:
    """Check that the copy deletes no runs.

    Raises:
        RecastError: the servers have runs that the laptop does not have.
    """
    table, column = {"mlflow": ("runs", "run_uuid"), "prefect": ("flow_run", "id")}[name]
    key = _tables(name).tables[table].c[column]
    deleted = set(target.scalars(select(key))) - set(source.scalars(select(key)))
    if deleted:
        raise RecastError(
            f"{name}: the servers have {len(deleted)} runs that the laptop does not have, and would lose them; "
            "migrate to new servers, or `--replace`"
        )


def _blocks(connection: Connection, table: Table) -> Iterator[list[dict[str, Any]]]:
    streamed = connection.execute(select(table), execution_options={"stream_results": True})
    for block in streamed.mappings().partitions(BLOCK_ROWS):
        yield [dict(row) for row in block]


class RowChecksum:
    """The number of rows and a checksum that does not depend on their order."""

    def __init__(self) -> None:
        self.count = self.total = 0

    def add(self, rows: list[dict[str, Any]]) -> None:
        for row in rows:
            # PostgreSQL keeps what JSON means, but not the order of keys or how numbers are written (1e+23, -0.0).
            normalized = json.loads(json.dumps(row, default=_to_json), parse_float=_parse_number)
            digest = hashlib.sha256(json.dumps(normalized, sort_keys=True).encode()).digest()
            self.total = (self.total + int.from_bytes(digest, "big")) % (1 << 256)
        self.count += len(rows)


def _parse_number(text: str) -> int | float:
    """A number in JSON, as an integer where its value is one."""
    value = Decimal(text)
    return int(value) if value == value.to_integral_value() else float(text)


def _to_json(value: Any) -> Any:
    """A value that JSON does not know, as one that it knows; the same for equal values."""
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else repr(value)


def _move_artifacts(table: Table, row: dict[str, Any], left: set[str]) -> dict[str, Any]:
    """A row whose artifacts' locations are those of MLflow's server."""
    for column in LOCATIONS.get(table.name, ()):
        value = row.get(column)
        if not isinstance(value, str) or not value.startswith(("file:", "/")):
            continue
        _, separator, below = value.partition(f"/{ARTIFACTS}/")
        folder = Path(value.removeprefix("file://"))
        if separator:
            row[column] = f"mlflow-artifacts:/{below}"
        elif any(path.is_file() for path in folder.rglob("*")):
            left.add(value)
        else:
            # Nothing was written there yet, as for the experiment that MLflow creates itself.
            row[column] = f"mlflow-artifacts:/{folder.name}"
    return row


def _restart_counters(target: Connection, table: Table) -> None:
    """Have PostgreSQL continue to count from the highest number in the table."""
    for column in table.primary_key:
        if not isinstance(column.type, Integer):
            continue
        counter = target.scalar(text("select pg_get_serial_sequence(:t, :c)"), {"t": table.name, "c": column.name})
        highest = target.scalar(select(func.max(column)))
        if counter and highest:
            target.execute(text("select setval(:counter, :highest)"), {"counter": counter, "highest": highest})


def _send_artifacts(folder: Path) -> tuple[int, int]:
    """Send every file that the store does not have yet; how many files there are, and how many were sent.

    Raises:
        RecastError: a file did not arrive as it was sent.
    """
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    sent = 0
    with connect_object_store() as (store, bucket, prefix):
        for file in files:
            key = f"{prefix}{MLFLOW_FOLDER}/{file.relative_to(folder).as_posix()}"
            digest = file_sha256(file)
            if _stored_digest(store, bucket, key) == digest:
                continue
            store.upload_file(str(file), bucket, key)
            sent += 1
            if _stored_digest(store, bucket, key) != digest:
                raise RecastError(f"{file} did not arrive as it was sent; look at the store, then migrate again")
    return len(files), sent


def _stored_digest(store: Any, bucket: str, key: str) -> str | None:
    """The SHA-256 of an object; None: there is no such object."""
    from botocore.exceptions import ClientError  # noqa: PLC0415 - an optional package

    try:
        body = store.get_object(Bucket=bucket, Key=key)["Body"]
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
            return None
        raise
    digest = hashlib.sha256()
    for block in body.iter_chunks(1 << 20):
        digest.update(block)
    return digest.hexdigest()
