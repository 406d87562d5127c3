"""The rows of a query to a database, kept as they came."""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import polars as pl
from pydantic import Field, field_validator

from problems.download import record, verify
from problems.errors import RecastError, Unreachable
from problems.increments import GrowingSource
from problems.source import Progress, RepeatedHour, Rows, TimeZone
from problems.table import is_parquet, link_only, scan

if TYPE_CHECKING:
    from sqlalchemy import Select, TextClause

BATCH_ROWS = 100_000
"""Rows of the answer in memory at once."""
FILE = "rows.parquet"
_VARIABLE = re.compile(r"\$\{(\w+)\}")


class DatabaseSource(GrowingSource):
    """What a query answers. It is asked once; a changed query or address, or a removed file, asks again."""

    kind: Literal["database"]
    address: str = Field(
        description="as SQLAlchemy writes it, such as sqlite:///plant.db or postgresql://reader:${PASSWORD}@host/db; "
        "${NAME} is taken from the environment"
    )
    query: str = Field(min_length=1, description="in the database's SQL; the columns have the names of the features")
    time: str = Field(description="the column that holds the time")
    time_format: str | None = Field(None, description="how it is written, where it is text or a number; null: ISO 8601")
    time_zone: TimeZone | None = Field(None, description="of times that are without one; null: UTC")
    repeated_hour: RepeatedHour = Field(
        "refuse", description="when the clock is set back; in order: the row that comes first is the earlier"
    )
    series: str | None = Field(None, description="the column that names the series of a row; null: there is one")

    @field_validator("address")
    @classmethod
    def _no_secret(cls, address: str) -> str:
        # SQLAlchemy takes a while to import, and few problems need it.
        from sqlalchemy.engine import make_url
        from sqlalchemy.exc import ArgumentError

        try:
            url = make_url(_VARIABLE.sub("x", address))
        except ArgumentError:
            raise ValueError("write dialect://user:${PASSWORD}@host/database, or sqlite:///file.db") from None
        if url.password not in (None, "x"):
            raise ValueError("a password must not stand in the file: write ${NAME}, and set that variable")
        return address

    @property
    def _question(self) -> str:
        """What identifies the answer."""
        return hashlib.sha256(json.dumps([self.address, self.query]).encode()).hexdigest()

    def fetch(self, store: Path, progress: Progress, attempts: int) -> None:
        """Ask the database, batch by batch, unless the store holds the answer to this query.

        Raises:
            Unreachable: the database does not answer.
            RecastError: a variable is not set, there is no driver, the database refuses the query, or the answer has
                no rows.
        """
        rows, asked = store / FILE, store / f"{FILE}.part.json"
        if rows.exists() and asked.exists() and json.loads(asked.read_text(encoding="utf-8")) == self._question:
            verify(rows)
            return
        setting = f"problems.{store.name}.source"
        with tempfile.TemporaryDirectory() as scratch:
            come = 0
            parts: list[Path] = []
            for batch in self.answer(setting, self.query, f"{setting}.query"):
                parts.append(Path(scratch) / f"{len(parts):06d}.parquet")
                batch.write_parquet(parts[-1])
                come += round(batch.estimated_size())
                progress(come, None)
            if not come:
                raise RecastError(f"{setting}.query: the answer has no rows: {self.query}")
            whole = Path(scratch) / FILE
            # A column that is null in all of a batch has no type there.
            pl.concat([pl.scan_parquet(part) for part in parts], how="vertical_relaxed").sink_parquet(whole)
            link_only(store, [])
            part = store / f"{FILE}.part"
            shutil.copyfile(whole, part)
        asked.write_text(json.dumps(self._question), encoding="utf-8")
        with part.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        record(rows).write_text(f"{digest}  {FILE}\n", encoding="utf-8")
        part.replace(rows)

    def answer(self, setting: str, query: "str | TextClause | Select[Any]", asked_by: str) -> Iterator[pl.DataFrame]:
        """The rows of the answer to a query, some at a time.

        Args:
            setting, asked_by: where the address and the query come from, for messages.

        Raises:
            Unreachable: the database does not answer.
            RecastError: see `fetch`.
        """
        from sqlalchemy import create_engine
        from sqlalchemy.engine import make_url
        from sqlalchemy.exc import NoSuchModuleError, SQLAlchemyError

        if missing := [name for name in _VARIABLE.findall(self.address) if name not in os.environ]:
            raise RecastError(f"{setting}.address: the environment has no variable {missing[0]}; set it")
        url = make_url(_VARIABLE.sub(lambda found: os.environ[found[1]], self.address))
        if url.get_backend_name() == "sqlite" and not Path(url.database or "").expanduser().is_file():
            # SQLite would make an empty one.
            raise RecastError(f"{setting}.address: there is no file {url.database}")
        try:
            engine = create_engine(url)
        except (NoSuchModuleError, ModuleNotFoundError) as error:
            raise RecastError(f"{setting}.address: no driver for {url.drivername} is installed: {error}") from None
        shown = url.render_as_string(hide_password=True)
        try:
            with engine.connect() as connection:
                try:
                    yield from pl.read_database(
                        query,
                        connection.execution_options(stream_results=True, max_row_buffer=BATCH_ROWS),
                        iter_batches=True,
                        batch_size=BATCH_ROWS,
                        infer_schema_length=None,
                    )
                except SQLAlchemyError as error:
                    raise RecastError(f"{asked_by}: {shown} refuses it: {_reason(error)}") from None
        except SQLAlchemyError as error:
            raise Unreachable(f"{setting}.address: {shown} does not answer: {_reason(error)}") from None
        finally:
            engine.dispose()

    def read_base(self, store: Path, scratch: Path) -> Rows:
        """The rows that came.

        Raises:
            RecastError: they are not there.
        """
        if not (store / FILE).exists():
            raise RecastError(f"{store}: nothing was fetched; run recast fetch {store.name}")
        return self._rows(scan(store / FILE, name=f"the answer to problems.{store.name}.source.query"))

    def read_increment(self, file: Path, scratch: Path) -> Rows:
        """The rows of one answer.

        Raises:
            RecastError: the file is no Parquet file.
        """
        return self._rows(scan(file))

    def is_fresh_file(self, file: Path) -> bool:
        """Whether its name is one of a Parquet file."""
        return is_parquet(file)

    def _rows(self, frame: pl.LazyFrame) -> Rows:
        return Rows(frame, self.time, self.time_format, self.series, self.time_zone, self.repeated_hour)


def _reason(error: Exception) -> str:
    return str(getattr(error, "orig", None) or error).strip().splitlines()[0]
