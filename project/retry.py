"""One policy for calls to servers: what is tried again, how long, and what the user reads meanwhile.

Tried again is what may pass by itself: a server that does not answer, that times out, that is overloaded or that fails
(no connection; HTTP 408, 425, 429 and 5xx). Never tried again is what will fail again however often it is tried: a
request that the server refuses (every other status), a missing library, a folder or a file of this machine.
"""

import errno
import sys
from collections.abc import Callable
from typing import TypeVar

import httpx
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_delay, wait_exponential

from problems.errors import RecastError
from problems.passwords import hide_passwords

LONGEST_PAUSE_SECONDS = 15
"""Between two attempts. The first pause is one second, and each further one twice as long."""

PASSING_STATUSES = (408, 425, 429)
"""HTTP's codes below 500 for a request that may succeed later: timeout, too early, too many requests."""

_LASTING_ERRORS = (
    ImportError,
    FileExistsError,
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
    httpx.UnsupportedProtocol,
)
_LASTING_ERRNOS = (errno.EDQUOT, errno.EFBIG, errno.ENAMETOOLONG, errno.ENOSPC, errno.EROFS)

Answer = TypeVar("Answer")


class ServerError(RecastError):
    """A server cannot be reached, has failed or refuses.

    Attributes:
        summary: what has happened, without what to do about it.
        lasting: the same call will fail again, however often it is repeated.
    """

    def __init__(self, summary: str, fix: str = "", lasting: bool = False) -> None:
        """
        Args:
            fix: what to do about it, in sentences.
        """
        self.summary, self.lasting = hide_passwords(summary), lasting
        super().__init__(f"{self.summary}. {fix}" if fix else self.summary)


def retry_while_unreachable(action: Callable[[], Answer], patience: float, server: str) -> Answer:
    """Call `action` until it returns, and return its answer; give up after `patience` seconds, or at a lasting error.

    The first failure is reported on standard error. Later ones are not: they say the same.

    Args:
        action: it may be called again after it has done a part of its work, or all of it.
        patience: seconds during which a new attempt may begin; 0: there is one attempt.
        server: its name, for the user.

    Raises:
        Exception: what the last attempt has raised.
    """

    def report_first_failure(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if state.attempt_number == 1 and error is not None:
            duration = f"{patience / 60:.0f} minutes" if patience >= 120 else f"{patience:.0f} seconds"
            print(f"warning: {_summarize(error, server)}; trying again for {duration}", file=sys.stderr)

    retrying = Retrying(
        retry=retry_if_exception(is_retried),
        stop=stop_after_delay(patience),
        wait=wait_exponential(max=LONGEST_PAUSE_SECONDS),
        before_sleep=report_first_failure,
        reraise=True,
    )
    return retrying(action)


def is_retried(error: BaseException) -> bool:
    """Whether an error is one of a server, and may pass."""
    return isinstance(error, ServerError | httpx.TransportError | httpx.HTTPStatusError) and not is_lasting(error)


def is_lasting(error: BaseException) -> bool:
    """Whether a call to a server that has failed in this way will fail again, however often it is repeated.

    An error of an unknown kind is expected to pass: libraries for stores of files have one of their own for each way in
    which a connection can break.
    """
    if isinstance(error, ServerError):
        return error.lasting
    status = http_status(error)
    if status is not None:
        return is_lasting_status(status)
    return isinstance(error, _LASTING_ERRORS) or (isinstance(error, OSError) and error.errno in _LASTING_ERRNOS)


def is_lasting_status(status: int) -> bool:
    """Whether a request that was answered with this HTTP status will be refused again."""
    return status < 500 and status not in PASSING_STATUSES


def http_status(error: BaseException) -> int | None:
    """The HTTP status of a server's refusal, as httpx, requests and boto3 pass it on; None: there is none."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        code = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        code = getattr(response, "status_code", None)
    return code if isinstance(code, int) else None


def _summarize(error: BaseException, server: str) -> str:
    if isinstance(error, ServerError):
        return error.summary
    lines = str(error).strip().splitlines()
    return hide_passwords(f"{server} does not answer: {lines[0] if lines else type(error).__name__}")
