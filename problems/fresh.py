"""Where the new rows of a source that grows come from: `problems.<name>.fresh`."""

import glob
import hashlib
import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit

import httpx
import polars as pl
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from tenacity import Retrying, retry_if_exception, stop_after_attempt

from problems import download as downloading
from problems.database import DatabaseSource
from problems.download import TIMEOUT, download, may_pass, reason, record
from problems.errors import RecastError, Unreachable
from problems.increments import GrowingSource
from problems.source import Duration, Progress

COMPARED_BYTES = 1 << 20
"""So much of a file's known end comes again with its tail, to see that the file has only grown: weeks of a station."""


class Fresh(BaseModel):
    """A place that new rows come from; one subclass a kind of place.

    Attributes:
        fits: the kinds of sources whose files come from such a place
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    fits: ClassVar[tuple[str, ...]] = ("jena", "table")

    def files(
        self, source: GrowingSource, cache: Path, after: Any, problem: str, progress: Progress, attempts: int
    ) -> list[Path]:
        """Files that hold all that is new, and more, in the order in which they were written: the last one is right.

        Args:
            cache: a folder for copies, which lives on and may be deleted.
            after: the time, as the source writes it, up to which rows are known; None: nothing is known.

        Raises:
            Unreachable: the place cannot be reached now.
            RecastError: it is not there, or wrong.
        """
        raise NotImplementedError


def _address(value: str) -> str:
    try:
        parts = httpx.URL(value)
    except httpx.InvalidURL as error:
        raise ValueError(f"no address: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.host:
        raise ValueError("write http://... or https://...")
    if parts.password:
        raise ValueError("a password must not stand in the file; httpx takes it from ~/.netrc")
    return value


Address = Annotated[str, AfterValidator(_address)]


class HttpFresh(Fresh):
    """Files on a web server that are written on. Only what has changed is fetched, and of a file that grew its tail."""

    kind: Literal["http"]
    url: Address | Annotated[tuple[Address, ...], Field(min_length=1)] = Field(
        description="of a file, or of several; of rows with the same time that of the last one counts"
    )
    whole: Duration = Field(
        "7d",
        validate_default=True,
        description="how often a file that grows is fetched whole, so that rows corrected long before its end are seen",
    )

    def files(
        self, source: GrowingSource, cache: Path, after: Any, problem: str, progress: Progress, attempts: int
    ) -> list[Path]:
        """A copy of each file, brought up to date."""
        urls = (self.url,) if isinstance(self.url, str) else self.url
        copies = [_copy(url, cache) for url in urls]
        for url, copy in zip(urls, copies, strict=True):
            mirror(
                url, copy, progress, attempts, self.whole, f"correct problems.{problem}.fresh.url, or try again later"
            )
        return copies


class FolderFresh(Fresh):
    """A folder in which files appear and grow, such as a logger's or one that a file is copied to every night."""

    kind: Literal["folder"]
    path: str = Field(min_length=1, description="a folder, a pattern such as incoming/*.csv, or a file")

    def files(
        self, source: GrowingSource, cache: Path, after: Any, problem: str, progress: Progress, attempts: int
    ) -> list[Path]:
        """The files by their names."""
        place = Path(self.path).expanduser()
        while glob.has_magic(str(place)) and not place.exists():
            place = place.parent
        if not place.exists():
            raise RecastError(f"problems.{problem}.fresh.path: there is no file or folder {place}; correct it")
        return self.there(source)

    def there(self, source: GrowingSource) -> list[Path]:
        """The files that are there now, by their names."""
        place = Path(self.path).expanduser()
        # glob.glob, not Path.glob: a pattern may be absolute.
        there = place.iterdir() if place.is_dir() else map(Path, glob.glob(str(place)))  # noqa: PTH207
        return [file for file in sorted(there) if file.is_file() and source.is_fresh_file(file)]


class QueryFresh(Fresh):
    """A query to the database of the source, asked for the rows after the last one that is known."""

    fits: ClassVar[tuple[str, ...]] = ("database",)

    kind: Literal["query"]
    query: str | None = Field(
        None,
        min_length=1,
        description="in the database's SQL, with :after where the last known time goes; null: source.query, with the "
        "condition added",
    )
    overlap: Duration | None = Field(
        None, description="ask for so much before the last known time again, for rows that come late or are corrected"
    )

    def files(
        self, source: GrowingSource, cache: Path, after: Any, problem: str, progress: Progress, attempts: int
    ) -> list[Path]:
        """The answer, as a Parquet file; none where it has no rows."""
        if not isinstance(source, DatabaseSource):
            raise TypeError(f"a query to a source of kind {source.kind}")  # type: ignore[attr-defined]
        from sqlalchemy import bindparam, column, literal_column, select, text

        if self.query is None:
            known = text(f"({source.query.rstrip().removesuffix(';')}) AS rows_of_source")
            statement: Any = select(literal_column("*")).select_from(known)
            statement = statement.where(column(source.time) > bindparam("after", after))
        else:
            statement = text(self.query)
            if "after" in statement._bindparams:
                statement = statement.bindparams(after=after)
        parts: list[Path] = []
        for batch in source.answer(f"problems.{problem}.source", statement, f"problems.{problem}.fresh.query"):
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


def _copy(url: str, cache: Path) -> Path:
    """Where the copy of a file goes; its name ends as the address does."""
    suffixes = PurePosixPath(urlsplit(url).path).suffixes[-2:]
    ending = "".join(each for each in suffixes if each.lower() in (".csv", ".tsv", ".txt", ".parquet", ".gz", ".zip"))
    return cache / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}{ending or '.csv'}"


def mirror(url: str, copy: Path, progress: Progress, attempts: int, whole: timedelta, mend: str) -> None:
    """Bring the copy of a file up to date: nothing where the server says it is, its tail where the file only grew.

    The copy is what the server has or had: a tail is taken only if the file's last known megabyte stands before it.

    Args:
        whole: after so long without it, the file is fetched whole.
        mend: what the user can do when the server does not give the file.

    Raises:
        Unreachable: the server does not give the file; the copy stays as it was.
    """
    try:
        for attempt in Retrying(
            stop=stop_after_attempt(attempts), wait=downloading.WAIT, retry=retry_if_exception(may_pass), reraise=True
        ):
            with attempt:
                known = _known(copy)
                if known is not None and _has_only_grown(url, copy, known, progress, whole):
                    return
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise Unreachable(f"{url} could not be fetched: {reason(error)}\n{mend}") from error
    here = copy.with_name(f"{copy.name}.whole")
    headers = download([url], here, progress, attempts=attempts, mend=mend)
    record(here).unlink()
    with here.open("rb") as content:
        head = content.read(512).lstrip()
    if head[:9].lower().startswith((b"<!doctype", b"<html")):
        here.unlink()
        raise Unreachable(f"{url} answered with a web page, not with a table\n{mend}")
    _about(copy).unlink(missing_ok=True)
    here.replace(copy)
    _note(copy, headers, datetime.now(UTC))


def _about(copy: Path) -> Path:
    return copy.with_name(f"{copy.name}.json")


def _note(copy: Path, headers: httpx.Headers, whole_at: datetime) -> None:
    """Note which version the copy is. Without the note, or with half of it, the file is fetched whole."""
    about = {
        "etag": headers.get("ETag"),
        "modified": headers.get("Last-Modified"),
        "size": copy.stat().st_size,
        "whole_at": whole_at.isoformat(),
    }
    temporary = _about(copy).with_suffix(".tmp")
    temporary.write_text(json.dumps(about), encoding="utf-8")
    temporary.replace(_about(copy))


def _known(copy: Path) -> dict[str, Any] | None:
    """What was noted of the copy; what was added after the note, by one that was killed, is taken off."""
    try:
        about: dict[str, Any] = json.loads(_about(copy).read_text(encoding="utf-8"))
        size = copy.stat().st_size
    except (FileNotFoundError, ValueError):
        return None
    if size < about["size"]:
        return None
    if size > about["size"]:
        os.truncate(copy, about["size"])
    return about


def _has_only_grown(url: str, copy: Path, known: dict[str, Any], progress: Progress, whole: timedelta) -> bool:
    """Ask for what is new: True: nothing is, or the tail was added to the copy; False: the file must come whole."""
    size, whole_at = known["size"], datetime.fromisoformat(known["whole_at"])
    compared = min(size, COMPARED_BYTES)
    headers = {"Accept-Encoding": "identity"}
    if known["etag"]:
        headers["If-None-Match"] = known["etag"]
    if known["modified"]:
        headers["If-Modified-Since"] = known["modified"]
    wants_tail = size > 0 and datetime.now(UTC) - whole_at < whole
    if wants_tail:
        headers["Range"] = f"bytes={size - compared}-"
    elif len(headers) == 1:
        return False
    with httpx.stream("GET", url, headers=headers, timeout=TIMEOUT, follow_redirects=True) as response:
        if response.status_code == 304:
            return True
        if response.status_code in (200, 416):
            return False  # it came anew, or is shorter than it was
        response.raise_for_status()
        sent = downloading.CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if response.status_code != 206 or sent is None or int(sent[1]) != size - compared or int(sent[2]) < size:
            return False
        total = int(sent[2])
        if not _appended(copy, response.iter_raw(), size, compared, total, progress):
            return False
        _note(copy, response.headers, whole_at)
        return True


def _appended(copy: Path, chunks: Iterator[bytes], size: int, compared: int, total: int, progress: Progress) -> bool:
    """Add to the copy what comes after its last `compared` bytes; False: the bytes before are others.

    Raises:
        httpx.RemoteProtocolError: less came than was promised.
    """
    with copy.open("r+b") as file:
        file.seek(size - compared)
        expected = file.read(compared)
        come = b""
        for chunk in chunks:
            if len(come) < compared:
                come += chunk
                if not expected.startswith(come[:compared]):
                    return False
                chunk = come[compared:]
            file.write(chunk)
            progress(file.tell(), total)
        if len(come) < compared or file.tell() != total:
            raise httpx.RemoteProtocolError(f"{file.tell():,} of {total:,} bytes came")
        file.flush()
        os.fsync(file.fileno())
    return True
