"""The rows that a query to a database returns, stored as they came."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator

from problems.addresses import PASSWORD_RULE, fill_in_variables, name_variables, refuse_password
from problems.errors import RecastError, Unreachable
from problems.files.download import checksum_file, verify_checksum
from problems.files.file_hash import file_sha256
from problems.files.local_paths import resolve_path
from problems.files.raw_store import replace_with_links
from problems.files.tables import is_parquet, scan_table
from problems.growing_source import GrowingSource
from problems.lazy_modules import pl
from problems.passwords import VARIABLE
from problems.source import DownloadProgress, RepeatedHour, Rows, TimeZone

if TYPE_CHECKING:
    from sqlalchemy import Select, TextClause

BATCH_ROWS = 100_000
"""How many rows of the answer are in memory at once."""
ANSWER_FILE = "rows.parquet"


class DatabaseSource(GrowingSource):
    """The answer to a query. The database is asked once, and again when the query, the address or the file in the store
    is changed or removed.
    """

    fresh_kinds: ClassVar[tuple[str, ...]] = ("query",)

    kind: Literal["database"]
    address: str = Field(
        description="as SQLAlchemy writes addresses, such as sqlite:///plant.db or "
        "postgresql://reader:${PASSWORD}@host/db; ${NAME} is the value of an environment variable"
    )
    query: str = Field(
        min_length=1, description="in the SQL of the database; its columns have the names of the features"
    )
    time: str = Field(description="the column that holds the time")
    time_format: str | None = Field(None, description="how times are written that are text or numbers; null: ISO 8601")
    time_zone: TimeZone | None = Field(
        None, description="the time zone of times that are written without one; null: UTC"
    )
    repeated_hour: RepeatedHour = Field(
        "refuse",
        description="what to do with the hour that comes twice when the clock is set back. refuse: report an error; in "
        "order: of two rows, the one that comes first is the earlier",
    )
    series: str | None = Field(None, description="the column that names the series of a row; null: there is one")

    @field_validator("address")
    @classmethod
    def _check_address(cls, address: str) -> str:
        # SQLAlchemy takes a while to import, and few problems need it.
        from sqlalchemy.engine import make_url  # noqa: PLC0415 - saves start-up time
        from sqlalchemy.exc import ArgumentError  # noqa: PLC0415 - saves start-up time

        try:
            url = make_url(VARIABLE.sub("1", address))
        except (ArgumentError, ValueError):
            raise ValueError("write dialect://user:${PASSWORD}@host/database, or sqlite:///file.db") from None
        if url.password not in (None, "1"):
            raise ValueError(PASSWORD_RULE)
        return refuse_password(address)

    @property
    def row_order_matters(self) -> bool:
        """The order of the rows tells which of two hours a row belongs to, if `repeated_hour` says so."""
        return self.repeated_hour == "in order"

    @property
    def _query_digest(self) -> str:
        """What identifies the answer in the store."""
        return hashlib.sha256(json.dumps([self.address, self.query]).encode()).hexdigest()

    def fetch(self, store: Path, progress: DownloadProgress, attempts: int) -> None:
        """Ask the database, batch by batch, unless the store holds the answer to this query already.

        Raises:
            Unreachable: the database does not answer.
            RecastError: a variable is not set, there is no driver, the database refuses the query, or the answer has
                no rows.
        """
        rows, query_file = store / ANSWER_FILE, store / f"{ANSWER_FILE}.part.json"
        if (
            rows.exists()
            and query_file.exists()
            and json.loads(query_file.read_text(encoding="utf-8")) == self._query_digest
        ):
            verify_checksum(rows)
            return
        setting = f"problems.{store.name}.source"
        with tempfile.TemporaryDirectory() as scratch:
            received = 0
            parts: list[Path] = []
            for batch in self._ask(setting, self.query, f"{setting}.query"):
                parts.append(Path(scratch) / f"{len(parts):06d}.parquet")
                batch.write_parquet(parts[-1])
                received += round(batch.estimated_size())
                progress(received, None)
            if not received:
                raise RecastError(f"{setting}.query: the answer has no rows: {self.query}")
            whole = Path(scratch) / ANSWER_FILE
            # A column that is null in all of a batch has no type there.
            pl.concat([pl.scan_parquet(part) for part in parts], how="vertical_relaxed").sink_parquet(whole)
            replace_with_links(store, [])
            part = store / f"{ANSWER_FILE}.part"
            shutil.copyfile(whole, part)
        query_file.write_text(json.dumps(self._query_digest), encoding="utf-8")
        checksum_file(rows).write_text(f"{file_sha256(part)}  {ANSWER_FILE}\n", encoding="utf-8")
        part.replace(rows)

    def read_rows_after(self, query: str | None, after: Any, problem: str) -> Iterator[pl.DataFrame]:
        """Ask the database for the rows after a time, see `GrowingSource.read_rows_after`."""
        # SQLAlchemy takes a while to import, and few problems need it.
        from sqlalchemy import (  # noqa: PLC0415 - saves start-up time
            bindparam,
            column,
            literal_column,
            select,
            text,
        )

        statement: TextClause | Select[Any]
        if query is None:
            # On a line of its own, because the query may end in a comment.
            source_rows = text(f"({self.query.rstrip().removesuffix(';')}\n) AS rows_of_source")
            statement = select(literal_column("*")).select_from(source_rows)
            statement = statement.where(column(self.time) > bindparam("after", after))
        else:
            statement = text(query)
            if "after" in statement.compile().params:
                statement = statement.bindparams(after=after)
        query_setting = f"problems.{problem}.{'source' if query is None else 'fresh'}.query"
        return self._ask(f"problems.{problem}.source", statement, query_setting)

    def _ask(self, setting: str, query: str | TextClause | Select[Any], query_setting: str) -> Iterator[pl.DataFrame]:
        """Ask the database, and read the rows of its answer batch by batch.

        Args:
            setting, query_setting: where the address and the query come from, for messages.

        Raises:
            Unreachable: the database does not answer.
            RecastError: see `fetch`.
        """
        # SQLAlchemy takes a while to import, and few problems need it.
        from sqlalchemy import create_engine  # noqa: PLC0415 - saves start-up time
        from sqlalchemy.engine import make_url  # noqa: PLC0415 - saves start-up time
        from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError  # noqa: PLC0415 - saves start-up time

        try:
            url = make_url(fill_in_variables(self.address, f"{setting}.address"))
        except (ArgumentError, ValueError):
            raise RecastError(
                f"{setting}.address: {self.address} is not an address once its variables have their values; characters "
                "such as @ and / in a value must be written as %40 and %2F"
            ) from None
        if url.get_backend_name() == "sqlite":
            place = resolve_path(url.database or "", f"{setting}.address")
            if not place.is_file():
                # SQLite would create an empty database.
                raise RecastError(f"{setting}.address: there is no file {url.database}")
            url = url.set(database=str(place))
        try:
            engine = create_engine(url)
        except (NoSuchModuleError, ModuleNotFoundError) as error:
            raise RecastError(f"{setting}.address: no driver for {url.drivername} is installed: {error}") from None
        # Parameters that SQLAlchemy or a driver does not know raise errors of Python.
        except (SQLAlchemyError, TypeError, ValueError) as error:
            raise RecastError(f"{setting}.address: {self.address} is refused: {self._explain(error)}") from None
        try:
            try:
                connection = engine.connect()
            except (SQLAlchemyError, TypeError, ValueError) as error:
                raise Unreachable(self._describe_failure(setting, error)) from None
            with connection:
                try:
                    yield from pl.read_database(
                        query,
                        connection.execution_options(stream_results=True, max_row_buffer=BATCH_ROWS),
                        iter_batches=True,
                        batch_size=BATCH_ROWS,
                        infer_schema_length=None,
                    )
                except SQLAlchemyError as error:
                    raise RecastError(f"{query_setting}: {self.address} refuses it: {self._explain(error)}") from None
        except SQLAlchemyError as error:
            raise Unreachable(self._describe_failure(setting, error)) from None
        finally:
            engine.dispose()

    def _describe_failure(self, setting: str, error: Exception) -> str:
        return f"{setting}.address: {self.address} does not answer: {self._explain(error)}"

    def _explain(self, error: Exception) -> str:
        """Why the database refuses, in one line; a driver may repeat parts of the address."""
        lines = str(getattr(error, "orig", None) or error).strip().splitlines()
        return name_variables(lines[0], self.address) if lines else type(error).__name__

    def read_base(self, store: Path, scratch: Path, numbers: Collection[str] = ()) -> Rows:
        """Read the stored answer.

        Raises:
            RecastError: there is no answer in the store.
        """
        if not (store / ANSWER_FILE).exists():
            raise RecastError(f"{store}: nothing has been fetched; run recast fetch {store.name}")
        return self._as_rows(scan_table(store / ANSWER_FILE, name=f"the answer to problems.{store.name}.source.query"))

    def read_increment(self, file: Path, scratch: Path, numbers: Collection[str] = ()) -> Rows:
        """Read the rows of one answer.

        Raises:
            RecastError: the file is not a Parquet file.
        """
        return self._as_rows(scan_table(file))

    def is_fresh_file(self, file: Path) -> bool:
        """Whether its name is that of a Parquet file."""
        return is_parquet(file)

    def _as_rows(self, frame: pl.LazyFrame) -> Rows:
        return Rows(frame, self.time, self.time_format, self.series, self.time_zone, self.repeated_hour)
