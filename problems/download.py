"""Download one file from the first mirror that gives it: resumed where it was cut, checked, and never half there."""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from problems.errors import RecastError, Unreachable
from problems.source import Progress

WAIT = wait_random_exponential(multiplier=0.5, max=10)
TIMEOUT = httpx.Timeout(30, connect=5)
LEFTOVERS = (".sha256", ".part", ".part.json")
"""What a download adds to a file's name: its recorded checksum, and the part of one that was cut."""
CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")


class _AnotherFileError(Exception):
    """A mirror answered, but not with the file; asking it again would not help."""


def download(
    urls: Sequence[str],
    destination: Path,
    progress: Progress,
    *,
    attempts: int = 3,
    sha256: str | None = None,
    magic: bytes = b"",
    mend: str = "",
) -> httpx.Headers:
    """Download a file from the first of `urls` that gives it, and record its checksum beside it.

    What has come is kept in `<name>.part`, so a later call goes on from there if the server still has the same file.

    Args:
        urls: mirrors of the same file, tried in order.
        destination: where the file goes once it is whole; its folder exists.
        progress: told the bytes that have come, as they come.
        attempts: how often each mirror is tried while it fails in a way that may pass.
        sha256: what the file's checksum must be, in hexadecimal, where it is known.
        magic: the bytes that such a file begins with.
        mend: what the user can do when no mirror gives the file; ends the error's message.

    Returns:
        the headers of the answer that brought its end

    Raises:
        Unreachable: no mirror gave the file; the message says why, a line each.
    """
    reasons = []
    for url in urls:
        try:
            # A connection that is refused is refused again: the next mirror is the better retry.
            for attempt in Retrying(
                stop=stop_after_attempt(attempts), wait=WAIT, retry=retry_if_exception(may_pass), reraise=True
            ):
                with attempt:
                    headers = _continue(url, destination, progress)
            _check_content(_part(destination), sha256, magic)
        except (httpx.HTTPError, httpx.InvalidURL, _AnotherFileError) as error:
            reasons.append(f"  {url}: {reason(error)}")
            continue
        # The record comes first: a file without one would never be verified.
        record(destination).write_text(f"{_sha256(_part(destination))}  {destination.name}\n", encoding="utf-8")
        _part(destination).replace(destination)
        _origin(destination).unlink(missing_ok=True)
        return headers
    raise Unreachable("\n".join([f"{destination.name} could not be downloaded:", *reasons, mend]).rstrip())


def verify(file: Path) -> None:
    """Check a downloaded file against the checksum recorded when it came; a file without a record passes.

    Raises:
        RecastError: the file is not what was downloaded.
    """
    if not record(file).exists():
        return
    recorded, found = record(file).read_text(encoding="utf-8").split()[0], _sha256(file)
    if found != recorded:
        raise RecastError(
            f"{file}: the file is not what was downloaded: its sha256 is {found}, {record(file).name} says {recorded}; "
            "delete both files to download it anew"
        )


def record(file: Path) -> Path:
    """Where the checksum of a downloaded file is recorded, as `sha256sum --check` reads it."""
    return file.with_name(f"{file.name}.sha256")


def _part(destination: Path) -> Path:
    return destination.with_name(f"{destination.name}.part")


def _origin(destination: Path) -> Path:
    """Which version of which length the `.part` file is the beginning of."""
    return destination.with_name(f"{destination.name}.part.json")


def _continue(url: str, destination: Path, progress: Progress) -> httpx.Headers:
    """Bring the `.part` file to its end, from where it stands if the server lets us, else from the beginning."""
    part, origin = _part(destination), _origin(destination)
    # Sizes and ranges count the bytes of the file itself, not of a compressed transfer.
    headers = {"Accept-Encoding": "identity"}
    known = _known(part, origin)
    if known.get("version"):
        # If-Range: a server whose file has changed, or that cannot tell, sends the whole file with status 200.
        headers |= {"Range": f"bytes={part.stat().st_size}-", "If-Range": known["version"]}
    with httpx.stream("GET", url, headers=headers, timeout=TIMEOUT, follow_redirects=True) as response:
        if response.status_code == 416 or (response.status_code == 206 and not _continues(response, part, known)):
            part.unlink()
            raise httpx.RemoteProtocolError("the server answered with another range than the one asked for")
        response.raise_for_status()
        if response.status_code == 206:
            come, total = part.stat().st_size, known["size"]
        else:
            part.unlink(missing_ok=True)
            come, total = 0, _length(response)
            origin.write_text(json.dumps({"version": _version(response), "size": total}), encoding="utf-8")
        with part.open("ab") as file:
            # No chunk size: what has come when the connection breaks must be in the file, not in a buffer.
            for chunk in response.iter_raw():
                file.write(chunk)
                come += len(chunk)
                progress(come, total)
    if total is not None and come != total:
        raise httpx.RemoteProtocolError(f"{come:,} of {total:,} bytes came")
    return response.headers


def _known(part: Path, origin: Path) -> dict[str, Any]:
    """What was written about the version that the part is of; nothing if it was cut before that."""
    try:
        return dict(json.loads(origin.read_text(encoding="utf-8"))) if part.exists() else {}
    except (FileNotFoundError, ValueError):
        return {}


def _continues(response: httpx.Response, part: Path, known: dict[str, Any]) -> bool:
    """Whether a partial answer goes on exactly where the part ends, in a file of the length that was promised."""
    match = CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    return match is not None and (int(match[1]), int(match[2])) == (part.stat().st_size, known["size"])


def _length(response: httpx.Response) -> int | None:
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdigit() else None


def _version(response: httpx.Response) -> str | None:
    """What `If-Range` can hold: a strong entity tag, else the date of the last change."""
    tag: str | None = response.headers.get("ETag")
    changed: str | None = response.headers.get("Last-Modified")
    return changed if tag is None or tag.startswith("W/") else tag


def _check_content(part: Path, sha256: str | None, magic: bytes) -> None:
    """Refuse, and delete, what is not the file: an error page with status 200, or another version."""
    with part.open("rb") as file:
        head = file.read(512)
    why = None
    if not head.startswith(magic):
        page = head.lstrip().startswith(b"<")
        why = f"answered with {'a web page' if page else 'something else'}, not with a {part.stem.split('.')[-1]} file"
    elif sha256 is not None and (found := _sha256(part)) != sha256.lower():
        why = f"answered with another file: its sha256 is {found}, expected {sha256}"
    if why is not None:
        part.unlink()
        raise _AnotherFileError(why)


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def may_pass(error: BaseException) -> bool:
    """Whether the same request may succeed a moment later."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code in (408, 429) or error.response.status_code >= 500
    return isinstance(error, httpx.TransportError) and not isinstance(
        error, (httpx.ConnectError, httpx.ConnectTimeout, httpx.UnsupportedProtocol, httpx.ProxyError)
    )


def reason(error: Exception) -> str:
    """Why a request has failed, in one line."""
    if isinstance(error, httpx.HTTPStatusError):
        return f"answered {error.response.status_code} {error.response.reason_phrase}".rstrip()
    return " ".join(str(error).split()) or type(error).__name__
