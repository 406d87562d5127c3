"""A copy of a file on a web server. It is fetched only if it has changed, and only its tail if it has only grown."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tenacity import Retrying, retry_if_exception, stop_after_attempt

from problems.errors import Unreachable
from problems.files import download as downloading
from problems.files.download import checksum_file, download, error_reason, is_transient, request_timeout
from problems.lazy_modules import httpx
from problems.source import DownloadProgress

COMPARED_BYTES = 1 << 20
"""How many of the last known bytes come again with the tail, to check that the file has only grown: weeks of rows of a
weather station.
"""


def update_copy(url: str, copy: Path, progress: DownloadProgress, attempts: int, whole: timedelta, fix: str) -> None:
    """Bring the copy of a file up to date.

    Nothing is fetched where the server says that the file has not changed, and only its tail where it has only grown.
    The copy is always what the server has or had: a tail is taken only if the last known megabyte of the file precedes
    it.

    Args:
        progress: see `DownloadProgress`.
        attempts: how often the server is asked while its failure may be transient.
        whole: after this time without it, the file is fetched as a whole.
        fix: what the user can do when the server does not give the file.

    Raises:
        Unreachable: the server does not give the file; the copy stays as it was.
    """
    try:
        for attempt in Retrying(
            stop=stop_after_attempt(attempts),
            wait=downloading.RETRY_WAIT,
            retry=retry_if_exception(is_transient),
            reraise=True,
        ):
            with attempt:
                known = _read_note(copy)
                if known is not None and _append_tail(url, copy, known, progress, whole):
                    return
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise Unreachable(f"{url} could not be fetched: {error_reason(error)}\n{fix}") from error
    new_copy = copy.with_name(f"{copy.name}.whole")
    headers = download([url], new_copy, progress, attempts=attempts, fix=fix)
    checksum_file(new_copy).unlink()
    with new_copy.open("rb") as content:
        head = content.read(512).lstrip()
    if head[:9].lower().startswith((b"<!doctype", b"<html")):
        new_copy.unlink()
        raise Unreachable(f"{url} answered with a web page, not with a table\n{fix}")
    _note_file(copy).unlink(missing_ok=True)
    new_copy.replace(copy)
    _write_note(copy, headers, datetime.now(UTC))


def _note_file(copy: Path) -> Path:
    return copy.with_name(f"{copy.name}.json")


def _write_note(copy: Path, headers: httpx.Headers, whole_at: datetime) -> None:
    """Note which version the copy is. Without a note that can be read, the file is fetched as a whole."""
    note = {
        "etag": headers.get("ETag"),
        "modified": headers.get("Last-Modified"),
        "size": copy.stat().st_size,
        "whole_at": whole_at.isoformat(),
    }
    temporary = _note_file(copy).with_suffix(".tmp")
    temporary.write_text(json.dumps(note), encoding="utf-8")
    temporary.replace(_note_file(copy))


def _read_note(copy: Path) -> dict[str, Any] | None:
    """Read the note about the copy; bytes that a killed process added after the note are cut off."""
    try:
        note: dict[str, Any] = json.loads(_note_file(copy).read_text(encoding="utf-8"))
        size = copy.stat().st_size
    except (FileNotFoundError, ValueError):
        return None
    if size < note["size"]:
        return None
    if size > note["size"]:
        os.truncate(copy, note["size"])
    return note


def _append_tail(url: str, copy: Path, known: dict[str, Any], progress: DownloadProgress, whole: timedelta) -> bool:
    """Ask the server for what is new, and append a tail to the copy.

    Returns:
        whether the copy is up to date; if not, the file must be fetched as a whole
    """
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
    with httpx.stream("GET", url, headers=headers, timeout=request_timeout(), follow_redirects=True) as response:
        if response.status_code == 304:
            return True
        if response.status_code in (200, 416):
            return False  # it has come as a whole, or is shorter than it was
        response.raise_for_status()
        sent = downloading.CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if response.status_code != 206 or sent is None or int(sent[1]) != size - compared or int(sent[2]) < size:
            return False
        total = int(sent[2])
        if not _append_chunks(copy, response.iter_raw(), size, compared, total, progress):
            return False
        _write_note(copy, response.headers, whole_at)
        return True


def _append_chunks(
    copy: Path, chunks: Iterator[bytes], size: int, compared: int, total: int, progress: DownloadProgress
) -> bool:
    """Append to the copy what comes after its last `compared` bytes.

    Returns:
        False if the bytes that come differ from those last bytes

    Raises:
        httpx.RemoteProtocolError: fewer bytes came than were promised.
    """
    with copy.open("r+b") as file:
        file.seek(size - compared)
        expected = file.read(compared)
        received = b""
        for chunk in chunks:
            if len(received) < compared:
                received += chunk
                if not expected.startswith(received[:compared]):
                    return False
                chunk = received[compared:]
            file.write(chunk)
            progress(file.tell(), total)
        if len(received) < compared or file.tell() != total:
            raise httpx.RemoteProtocolError(f"{file.tell():,} of {total:,} bytes came")
        file.flush()
        os.fsync(file.fileno())
    return True
