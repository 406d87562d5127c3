"""The places that the new rows of a growing source come from: the section `fresh` of a problem in params.yaml."""

from __future__ import annotations

import glob
import hashlib
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from problems.addresses import fill_in_variables, name_variables, refuse_password
from problems.durations import Duration
from problems.errors import RecastError, Unreachable
from problems.files.local_paths import list_files, resolve_path
from problems.files.web_copy import update_copy
from problems.growing_source import GrowingSource, KnownRows
from problems.lazy_modules import httpx, pl
from problems.passwords import VARIABLE
from problems.source import EPOCHS, DownloadProgress

_COPIED_SUFFIXES = (".csv", ".tsv", ".txt", ".parquet", ".gz", ".zip")

_YEAR_FIRST = re.compile(r"%Y%m%d(%H(%M(%S(%[.\d]*f)?)?)?)?(%[:#]*z)?|%\+")
"""The fields of a time format in which a later time is also later in alphabetical order."""


class Fresh(BaseModel):
    """A place that new rows come from; each kind of place is a subclass. Each source says which kinds it allows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_age: Duration | None = Field(
        None,
        description="how old the newest row may be when a forecast is made from it; with older rows the forecast is "
        "stale; null: three times the cadence",
    )

    def bring_files(
        self,
        source: GrowingSource,
        known: KnownRows,
        cache: Path,
        problem: str,
        progress: DownloadProgress,
        attempts: int,
    ) -> list[Path]:
        """Bring files that hold all new rows, and perhaps others, in the order in which they were written.

        Of several rows with the same time, the one of the last file counts.

        Args:
            known: what is known already.
            cache: a folder for copies, which is there again the next time unless somebody deletes it.
            problem: the problem's name, for messages.
            progress: see `DownloadProgress`.
            attempts: how often a download is tried.

        Raises:
            Unreachable: the place cannot be reached now.
            RecastError: the place does not exist, or what it holds is not what it should be.
        """
        raise NotImplementedError

    def local_files(self, source: GrowingSource) -> list[Path]:
        """The files of this machine that new rows come from now; none where they come from elsewhere."""
        return []


def _check_address(value: str) -> str:
    try:
        parts = httpx.URL(VARIABLE.sub("x", value))
    except httpx.InvalidURL as error:
        raise ValueError(f"not an address: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.host:
        raise ValueError("write http://... or https://...")
    return refuse_password(value)


Address = Annotated[str, AfterValidator(_check_address)]


class HttpFresh(Fresh):
    """Files on a web server that grow. Only what has changed is fetched, and only the tail of a file that grew."""

    kind: Literal["http"]
    url: Address | Annotated[tuple[Address, ...], Field(min_length=1)] = Field(
        description="the address of a file, or a list of them; of several rows with the same time, the one of the last "
        "file counts; ${NAME} is the value of an environment variable"
    )
    whole: Duration = Field(
        "7d",
        validate_default=True,
        description="how often a file that grows is fetched as a whole, to see corrections far before its end",
    )

    def bring_files(
        self,
        source: GrowingSource,
        known: KnownRows,
        cache: Path,
        problem: str,
        progress: DownloadProgress,
        attempts: int,
    ) -> list[Path]:
        """Bring a copy of each file up to date."""
        urls = (self.url,) if isinstance(self.url, str) else self.url
        copies = [_copy_path(url, cache) for url in urls]
        fix = f"correct problems.{problem}.fresh.url, or try again later"
        for url, copy in zip(urls, copies, strict=True):
            address = fill_in_variables(url, f"problems.{problem}.fresh.url")
            try:
                update_copy(address, copy, progress, attempts, self.whole, fix)
            except Unreachable as error:
                raise Unreachable(name_variables(str(error), url)) from None
        return copies


class FolderFresh(Fresh):
    """A folder in which files appear and grow, such as that of a logger, or one that gets a copy every night."""

    kind: Literal["folder"]
    path: str = Field(min_length=1, description="a folder, a pattern such as incoming/*.csv, or a file")

    def bring_files(
        self,
        source: GrowingSource,
        known: KnownRows,
        cache: Path,
        problem: str,
        progress: DownloadProgress,
        attempts: int,
    ) -> list[Path]:
        """List the files by name."""
        place = resolve_path(self.path, f"problems.{problem}.fresh.path")
        while glob.has_magic(str(place)) and not place.exists():
            place = place.parent
        if not place.exists():
            raise RecastError(f"problems.{problem}.fresh.path: there is no file or folder {place}; correct it")
        return self.local_files(source)

    def local_files(self, source: GrowingSource) -> list[Path]:
        """List the files that exist now, by name."""
        return [file for file in list_files(resolve_path(self.path, "fresh.path")) if source.is_fresh_file(file)]


class QueryFresh(Fresh):
    """A query to the source itself, which is asked for the rows after the last one that is known."""

    kind: Literal["query"]
    query: str | None = Field(
        None,
        min_length=1,
        description="in the SQL of the database, with :after in place of the last known time; null: source.query, to "
        "which the condition is added",
    )
    overlap: Duration | None = Field(
        None, description="ask again for this long before the last known time, for rows that come late or are corrected"
    )

    def bring_files(
        self,
        source: GrowingSource,
        known: KnownRows,
        cache: Path,
        problem: str,
        progress: DownloadProgress,
        attempts: int,
    ) -> list[Path]:
        """Write the answer to a Parquet file; there is no file where the answer has no rows."""
        if self.query is None:
            _check_times_sort(known, problem)
        after = known.last_time(self.overlap or timedelta(0))
        parts: list[Path] = []
        for batch in source.read_rows_after(self.query, after, problem):
            if batch.height:
                parts.append(cache / f"answer-{len(parts):06d}.parquet")
                batch.write_parquet(parts[-1])
                progress(sum(part.stat().st_size for part in parts), None)
        if not parts:
            return []
        # A column that is null in all of a batch has no type there.
        whole = cache / "answer.parquet"
        pl.concat([pl.scan_parquet(part) for part in parts], how="vertical_relaxed").sink_parquet(whole)
        for part in parts:
            part.unlink()
        return [whole]


AnyFresh = Annotated[HttpFresh | FolderFresh | QueryFresh, Field(discriminator="kind")]


def _copy_path(url: str, cache: Path) -> Path:
    """Where the copy of a file is; its name ends as the address does."""
    suffixes = PurePosixPath(urlsplit(url).path).suffixes[-2:]
    ending = "".join(suffix for suffix in suffixes if suffix.lower() in _COPIED_SUFFIXES)
    return cache / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}{ending or '.csv'}"


def _check_times_sort(known: KnownRows, problem: str) -> None:
    """Check that the database can compare the times of its rows.

    Raises:
        RecastError: the times are text, and later ones do not come later in alphabetical order.
    """
    rows = known.rows()
    dtype = rows.frame.collect_schema()[rows.time]
    if dtype.is_temporal() or (dtype.is_numeric() and rows.time_format in EPOCHS):
        return
    times = known.times().drop_nulls().collect()
    zones = times["written"].cast(pl.String).str.extract(r"([zZ]|[+-]\d\d:?\d\d)\s*$").n_unique()
    is_sorted = times.sort("written", "time")["time"].is_sorted()
    has_year_first = rows.time_format is None or _YEAR_FIRST.fullmatch("".join(_format_fields(rows.time_format)))
    if is_sorted and zones <= 1 and has_year_first:
        return
    raise RecastError(
        f"problems.{problem}.fresh: the query's column {rows.time!r} holds text such as {times['written'][-1]!r}. "
        "Later times do not come later in alphabetical order, so the database cannot be asked for the rows after the "
        "last known time; write fresh.query, in the database's SQL, with a cast to a time on both sides, such as "
        f"where cast({rows.time} as timestamp) > cast(:after as timestamp)"
    )


def _format_fields(time_format: str) -> Iterator[str]:
    """The fields of a time format, without the signs between them."""
    for short, long in (("%F", "%Y-%m-%d"), ("%T", "%H:%M:%S"), ("%R", "%H:%M")):
        time_format = time_format.replace(short, long)
    yield from re.findall(r"%[-_.:#\d]*[A-Za-z+]", time_format)
