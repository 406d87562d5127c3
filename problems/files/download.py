"""Download a file from the first mirror that gives it. The download continues where it was cut, and is verified."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from problems.errors import RecastError, Unreachable
from problems.files.file_hash import file_sha256
from problems.lazy_modules import httpx
from problems.source import DownloadProgress

RETRY_WAIT = wait_random_exponential(multiplier=0.5, max=10)
DOWNLOAD_SUFFIXES = (".sha256", ".part", ".part.json")
"""What a download adds to a file's name: for its recorded checksum, and for the part of a download that was cut."""
CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")


def request_timeout() -> httpx.Timeout:
    """How long to wait for an answer, and for a connection."""
    return httpx.Timeout(30, connect=5)


class _WrongFileError(Exception):
    """A mirror answered, but not with the file; asking it again would not help."""


def download(
    urls: Sequence[str],
    destination: Path,
    progress: DownloadProgress,
    *,
    attempts: int = 3,
    sha256: str | None = None,
    magic: bytes = b"",
    fix: str = "",
) -> httpx.Headers:
    """Download a file from the first of `urls` that gives it, and record its checksum beside it.

    What has come is kept in `<name>.part`. A later call continues from there if the server still has the same file.

    Args:
        urls: mirrors of the same file, tried in order.
        destination: where the file goes once it is whole; its folder exists.
        progress: called as bytes come, see `DownloadProgress`.
        attempts: how often each mirror is tried while its failure may be transient.
        sha256: what the file's checksum must be, in hexadecimal, where it is known.
        magic: the bytes that such a file begins with.
        fix: what the user can do when no mirror gives the file; the error's message ends with it.

    Returns:
        the headers of the answer with which the download ended

    Raises:
        Unreachable: no mirror gave the file; the message gives the reasons, one on each line.
    """
    reasons = []
    for url in urls:
        try:
            # A connection that is refused will be refused again: the next mirror is the better retry.
            for attempt in Retrying(
                stop=stop_after_attempt(attempts), wait=RETRY_WAIT, retry=retry_if_exception(is_transient), reraise=True
            ):
                with attempt:
                    headers = _continue_download(url, destination, progress)
            _check_content(_part_file(destination), sha256, magic)
        except (httpx.HTTPError, httpx.InvalidURL, _WrongFileError) as error:
            reasons.append(f"  {url}: {error_reason(error)}")
            continue
        # The checksum comes first: a file without one would never be verified.
        digest = file_sha256(_part_file(destination))
        checksum_file(destination).write_text(f"{digest}  {destination.name}\n", encoding="utf-8")
        _part_file(destination).replace(destination)
        _version_file(destination).unlink(missing_ok=True)
        return headers
    raise Unreachable("\n".join([f"{destination.name} could not be downloaded:", *reasons, fix]).rstrip())


def verify_checksum(file: Path) -> None:
    """Compare a downloaded file with the checksum that was recorded when it came; a file without one passes.

    Raises:
        RecastError: the file is not what was downloaded.
    """
    if not checksum_file(file).exists():
        return
    recorded, actual = checksum_file(file).read_text(encoding="utf-8").split()[0], file_sha256(file)
    if actual != recorded:
        raise RecastError(
            f"{file}: the file is not what was downloaded: its sha256 is {actual}, {checksum_file(file).name} says "
            f"{recorded}; delete both files to download it again"
        )


def checksum_file(file: Path) -> Path:
    """Where the checksum of a downloaded file is recorded, in the form that `sha256sum --check` reads."""
    return file.with_name(f"{file.name}.sha256")


def _part_file(destination: Path) -> Path:
    return destination.with_name(f"{destination.name}.part")


def _version_file(destination: Path) -> Path:
    """The note with the version and the length of the file that the `.part` file is the beginning of."""
    return destination.with_name(f"{destination.name}.part.json")


def _continue_download(url: str, destination: Path, progress: DownloadProgress) -> httpx.Headers:
    """Complete the `.part` file, from where it ends if the server allows it, else from the beginning."""
    part, version_file = _part_file(destination), _version_file(destination)
    # Sizes and ranges count the bytes of the file itself, not those of a compressed transfer.
    headers = {"Accept-Encoding": "identity"}
    known = _read_version(part, version_file)
    if known.get("version"):
        # If-Range: a server whose file has changed, or that cannot tell, sends the whole file with status 200.
        headers |= {"Range": f"bytes={part.stat().st_size}-", "If-Range": known["version"]}
    with httpx.stream("GET", url, headers=headers, timeout=request_timeout(), follow_redirects=True) as response:
        if response.status_code == 416 or (response.status_code == 206 and not _is_continuation(response, part, known)):
            part.unlink()
            raise httpx.RemoteProtocolError("the server answered with a range other than the one requested")
        response.raise_for_status()
        if response.status_code == 206:
            received, total = part.stat().st_size, known["size"]
        else:
            part.unlink(missing_ok=True)
            received, total = 0, _content_length(response)
            version_file.write_text(json.dumps({"version": _version_of(response), "size": total}), encoding="utf-8")
        with part.open("ab") as file:
            # No chunk size: what has come when the connection breaks must be in the file, not in a buffer.
            for chunk in response.iter_raw():
                file.write(chunk)
                received += len(chunk)
                progress(received, total)
    if total is not None and received != total:
        raise httpx.RemoteProtocolError(f"{received:,} of {total:,} bytes came")
    return response.headers


def _read_version(part: Path, version_file: Path) -> dict[str, Any]:
    """Read what was noted about the version of the part; empty if the download was cut before that."""
    try:
        return dict(json.loads(version_file.read_text(encoding="utf-8"))) if part.exists() else {}
    except (FileNotFoundError, ValueError):
        return {}


def _is_continuation(response: httpx.Response, part: Path, known: dict[str, Any]) -> bool:
    """Whether a partial answer continues exactly where the part ends, in a file of the length that was promised."""
    match = CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    return match is not None and (int(match[1]), int(match[2])) == (part.stat().st_size, known["size"])


def _content_length(response: httpx.Response) -> int | None:
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdigit() else None


def _version_of(response: httpx.Response) -> str | None:
    """What `If-Range` can hold: a strong entity tag, else the date of the last change."""
    tag: str | None = response.headers.get("ETag")
    changed: str | None = response.headers.get("Last-Modified")
    return changed if tag is None or tag.startswith("W/") else tag


def _check_content(part: Path, sha256: str | None, magic: bytes) -> None:
    """Delete what is not the file, an error page with status 200 or another version.

    Raises:
        _WrongFileError: it was deleted.
    """
    with part.open("rb") as file:
        head = file.read(512)
    fault = None
    if not head.startswith(magic):
        page = head.lstrip().startswith(b"<")
        kind = part.stem.split(".")[-1]
        fault = f"answered with {'a web page' if page else 'something else'}, not with a {kind} file"
    elif sha256 is not None and (actual := file_sha256(part)) != sha256.lower():
        fault = f"answered with another file: its sha256 is {actual}, expected {sha256}"
    if fault is not None:
        part.unlink()
        raise _WrongFileError(fault)


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed a moment later."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code in (408, 429) or error.response.status_code >= 500
    return isinstance(error, httpx.TransportError) and not isinstance(
        error, (httpx.ConnectError, httpx.ConnectTimeout, httpx.UnsupportedProtocol, httpx.ProxyError)
    )


def error_reason(error: Exception) -> str:
    """Why a request failed, in one line."""
    if isinstance(error, httpx.HTTPStatusError):
        return f"answered {error.response.status_code} {error.response.reason_phrase}".rstrip()
    return " ".join(str(error).split()) or type(error).__name__
