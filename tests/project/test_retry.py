"""Which failures of a server are tried again, how long, and what the user reads meanwhile."""

import copy
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from project.retry import ServerError, http_status, retry_while_unreachable
from stages.tracking import store
from stages.tracking.store import TrackingError
from tests.support.nodes import free_port

LASTING, PASSING = (400, 401, 403, 404, 405, 409, 413, 422, 451), (408, 425, 429, 500, 502, 503, 504)


class Answers:
    """A server on loopback that answers with the given statuses in turn, and with 200 from then on."""

    def __init__(self, statuses: list[int], body: str) -> None:
        self.requests = 0
        answers = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                status = statuses[answers.requests] if answers.requests < len(statuses) else 200
                answers.requests += 1
                text = (body if status != 200 else "{}").encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            do_POST = do_GET

            def log_message(self, *_: Any) -> None:
                """Print nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"


@contextmanager
def answering(statuses: list[int], body: str = "no") -> Iterator[Answers]:
    answers = Answers(statuses, body)
    thread = threading.Thread(target=answers.server.serve_forever, daemon=True)
    thread.start()
    try:
        yield answers
    finally:
        answers.server.shutdown()
        thread.join()
        answers.server.server_close()


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between attempts, which are not made."""
    pauses: list[float] = []
    monkeypatch.setattr("tenacity.nap.time.sleep", pauses.append)
    return pauses


def get(address: str) -> str:
    """Ask as Prefect's client does."""
    answer = httpx.get(address)
    answer.raise_for_status()
    return answer.text


@pytest.mark.parametrize("status", LASTING)
def test_a_request_that_is_refused_is_not_tried_again(status: int) -> None:
    with answering([status] * 5) as answers:
        with pytest.raises(httpx.HTTPStatusError) as refusal:
            retry_while_unreachable(lambda: get(answers.address), 60, "Prefect")
        assert answers.requests == 1
    assert http_status(refusal.value) == status


@pytest.mark.parametrize("status", PASSING)
def test_what_may_pass_is_tried_again_and_reported_once(
    status: int, capsys: pytest.CaptureFixture[str], no_pauses: list[float]
) -> None:
    with answering([status] * 6) as answers:
        assert retry_while_unreachable(lambda: get(answers.address), 240, "Prefect") == "{}"
        assert answers.requests == 7
    assert no_pauses == [1, 2, 4, 8, 15, 15]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: Prefect does not answer: ")
    assert line.endswith("; trying again for 4 minutes")
    assert str(status) in line


def test_no_connection_is_tried_again_until_the_patience_ends(capsys: pytest.CaptureFixture[str]) -> None:
    attempts = []

    def connect() -> str:
        attempts.append(1)
        if len(attempts) < 3:
            return get(f"http://user:secret@127.0.0.1:{free_port()}")
        return "connected"

    assert retry_while_unreachable(connect, 60, "Prefect") == "connected"
    printed = capsys.readouterr().err
    assert "trying again for 60 seconds" in printed
    assert "secret" not in printed
    attempts.clear()
    with pytest.raises(httpx.ConnectError):
        retry_while_unreachable(connect, 0, "Prefect")
    assert len(attempts) == 1
    assert not capsys.readouterr().err


def test_other_errors_are_raised_at_once() -> None:
    attempts = []

    def fail(error: Exception) -> None:
        attempts.append(error)
        raise error

    errors = [
        KeyError("a bug"),
        PermissionError("data"),
        httpx.UnsupportedProtocol("ftp"),
        ServerError("gone", "", True),
    ]
    for error in errors:
        with pytest.raises(type(error)):
            retry_while_unreachable(lambda: fail(error), 60, "Prefect")  # noqa: B023 - it is called at once
    assert attempts == errors


def test_an_error_of_a_server_survives_the_way_from_another_process() -> None:
    # A copy is made by the same methods as a pickle.
    error = copy.copy(TrackingError("http://me:secret@host is away", "Start it", lasting=True))
    assert isinstance(error, TrackingError)
    assert error.lasting
    assert (str(error), error.summary) == ("http://host is away. Start it", "http://host is away")


@pytest.fixture
def tracking(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[pytest.MonkeyPatch]:
    """MLflow's real client, which tries nothing again itself; the address is to be set."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    store.get_client.cache_clear()
    yield monkeypatch
    store.get_client.cache_clear()


@pytest.mark.parametrize("body", ["no", json.dumps({"error_code": "INVALID_PARAMETER_VALUE", "message": "too long"})])
@pytest.mark.parametrize("status", LASTING)
def test_what_mlflow_refuses_is_not_tried_again(tracking: pytest.MonkeyPatch, status: int, body: str) -> None:
    with answering([status] * 5, body) as answers:
        tracking.setenv("MLFLOW_TRACKING_URI", answers.address)
        with pytest.raises(TrackingError) as refusal:
            retry_while_unreachable(store.get_client, 240, "MLflow")
        assert answers.requests == 1
    assert refusal.value.lasting


@pytest.mark.parametrize("status", PASSING)
def test_mlflow_is_tried_again_while_it_fails(
    tracking: pytest.MonkeyPatch, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with answering([status] * 3) as answers:
        tracking.setenv("MLFLOW_TRACKING_URI", answers.address)
        assert retry_while_unreachable(store.get_client, 240, "MLflow") is store.get_client()
        assert answers.requests == 4
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: MLflow at {answers.address} cannot be reached: ")
    assert "Start it" not in line
    assert line.endswith("; trying again for 4 minutes")


def test_a_store_without_a_server_is_not_tried_again(tracking: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("not a database")
    tracking.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    with pytest.raises(TrackingError, match="file is not a database") as failure:
        retry_while_unreachable(store.get_client, 240, "MLflow")
    assert failure.value.lasting
