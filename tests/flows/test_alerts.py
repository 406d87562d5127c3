"""Alerts: they arrive where params.yaml says, at a mail server and a web server on loopback, or it is told."""

import base64
import json
import runpy
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from flows.alerts import ALERT_LOG, alert
from problems.errors import RecastError
from project.settings.parsing import parse_settings
from tests.support.checkout import ROOT, SETTINGS


@dataclass
class Received:
    """What a server was sent."""

    port: int = 0
    mails: list[EmailMessage] = field(default_factory=list)
    logins: list[bytes] = field(default_factory=list)
    posts: list[dict[str, Any]] = field(default_factory=list)
    status: int = 200


@contextmanager
def _served(server: socketserver.BaseServer, received: Received) -> Iterator[Received]:
    received.port = server.server_address[1]  # type: ignore[index, assignment]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield received
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def mailbox() -> Iterator[Received]:
    """A mail server that takes every user and every message."""
    received = Received()

    class Session(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self._say("220 loopback")
            while line := self.rfile.readline().strip():
                match line.split(b" ")[0].upper():
                    case b"EHLO":
                        self._say("250-loopback\r\n250 AUTH PLAIN")
                    case b"AUTH":
                        received.logins.append(base64.b64decode(line.split(b" ")[2]))
                        self._say("235 welcome")
                    case b"DATA":
                        self._say("354 go on")
                        lines = []
                        while (text := self.rfile.readline()) != b".\r\n":
                            lines.append(text)
                        received.mails.append(message_from_bytes(b"".join(lines), policy=policy.default))
                        self._say("250 taken")
                    case b"QUIT":
                        self._say("221 bye")
                        return
                    case _:
                        self._say("250 fine")

        def _say(self, text: str) -> None:
            self.wfile.write(f"{text}\r\n".encode())

    with _served(socketserver.ThreadingTCPServer(("127.0.0.1", 0), Session), received):
        yield received


@pytest.fixture
def hook() -> Iterator[Received]:
    """A web server that takes JSON."""
    received = Received()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.headers["Content-Type"] == "application/json"
            received.posts.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(received.status)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with _served(HTTPServer(("127.0.0.1", 0), Handler), received):
        yield received


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Write params.yaml with these alerts into an empty folder, which is the current one."""
    monkeypatch.chdir(tmp_path)

    def write_settings(**alerts: Any) -> None:
        with Path("params.yaml").open("w") as file:
            YAML().dump({**SETTINGS, "alerts": alerts}, file)

    return write_settings


def _email(received: Received, **more: Any) -> dict[str, Any]:
    server = f"127.0.0.1:{received.port}"
    return {"to": ["a@example.org", "b@example.org"], "sender": "recast@example.org", "server": server, **more}


def test_without_settings_an_alert_goes_to_the_log_alone(write: Any) -> None:
    write()
    alert("breach", "jena: new rows break the data contract", "T (degC) is stuck\nat 7.13 °C")
    first, *rest = ALERT_LOG.read_text().splitlines()
    assert first.endswith(" breach: jena: new rows break the data contract")
    assert rest == ["    T (degC) is stuck", "    at 7.13 °C"]


def test_an_alert_comes_by_mail_and_by_webhook(
    write: Any, mailbox: Received, hook: Received, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(email=_email(mailbox, security="none"), webhook={"url": "${TEAM_HOOK}"})
    monkeypatch.setenv("TEAM_HOOK", f"http://127.0.0.1:{hook.port}/services/T0/B0/X0")
    monkeypatch.setenv("RECAST_SMTP_USER", "recast")
    monkeypatch.setenv("RECAST_SMTP_PASSWORD", "geheim")
    alert("promotion", "jena: version 3 is promoted", "Its MAE is 1.71 °C, {{ subject }} 0.12 °C smaller.")
    (mail,) = mailbox.mails
    assert mail["Subject"] == "[recast] promotion: jena: version 3 is promoted"
    assert mail["From"] == "recast@example.org"
    assert mail["To"] == "a@example.org, b@example.org"
    assert "1.71 °C" in mail.get_content()
    assert mail["Date"]
    assert mail["Message-ID"]
    assert mailbox.logins == [b"\0recast\0geheim"]
    text = "*promotion: jena: version 3 is promoted*\nIts MAE is 1.71 °C, {{ subject }} 0.12 °C smaller."
    assert hook.posts == [{"text": text}]


def test_each_channel_has_kinds_of_its_own(
    write: Any, mailbox: Received, hook: Received, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEAM_HOOK", f"http://127.0.0.1:{hook.port}")
    write(
        log=["failure"],
        email=_email(mailbox, security="none", kinds=["refusal"]),
        webhook={"url": "${TEAM_HOOK}", "kinds": ["monitor", "failure"]},
    )
    for kind in ("failure", "breach", "promotion", "refusal", "monitor"):
        alert(kind, f"a {kind}", "")
    assert [line.split(" ", 1)[1] for line in ALERT_LOG.read_text().splitlines()] == ["failure: a failure"]
    assert [mail["Subject"] for mail in mailbox.mails] == ["[recast] refusal: a refusal"]
    assert [post["text"].strip() for post in hook.posts] == ["*failure: a failure*", "*monitor: a monitor*"]


def test_a_channel_that_fails_is_told_and_stops_neither_the_caller_nor_the_others(
    write: Any, hook: Received, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nobody = Received(port=9)
    monkeypatch.setenv("TEAM_HOOK", f"http://127.0.0.1:{hook.port}/secret")
    write(email=_email(nobody), webhook={"url": "${TEAM_HOOK}"})
    alert("failure", "retrain of jena has failed", "why")
    assert len(hook.posts) == 1
    assert "did not go out by e-mail: ConnectionRefusedError" in ALERT_LOG.read_text()
    assert "did not go out by e-mail" in capsys.readouterr().err.replace("\n", " ")
    hook.status = 500
    alert("failure", "another", "why")
    assert "'another' did not go out by webhook: it answers 500 Internal Server Error" in ALERT_LOG.read_text()
    for address in (f"http://LOCALHOST:{hook.port}/secret ", "http://127.0.0.1:9/secret", "http://a\n/secret"):
        monkeypatch.setenv("TEAM_HOOK", address)
        alert("failure", "another", "why")
    assert "did not go out by webhook: ConnectError\n" in ALERT_LOG.read_text()
    assert "did not go out by webhook: InvalidURL\n" in ALERT_LOG.read_text()
    said = ALERT_LOG.read_text() + capsys.readouterr().err
    assert "/secret" not in said, "who knows the address can post there"
    monkeypatch.delenv("TEAM_HOOK")
    alert("failure", "a third", "why")
    assert "the environment's TEAM_HOOK is not an http(s) address" in ALERT_LOG.read_text()


def test_a_log_that_cannot_be_written_does_not_keep_an_alert_from_the_other_channels(
    write: Any, hook: Received, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TEAM_HOOK", f"http://127.0.0.1:{hook.port}")
    write(webhook={"url": "${TEAM_HOOK}"})
    ALERT_LOG.mkdir(parents=True)
    alert("failure", "the disk is full", "why")
    assert [post["text"] for post in hook.posts] == ["*failure: the disk is full*\nwhy"]
    assert "'the disk is full' did not go out by log: IsADirectoryError" in capsys.readouterr().err


def test_in_a_flow_alerts_and_their_failures_stand_in_the_log_of_its_run(
    write: Any, servers: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect import flow
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
    from prefect.logging.handlers import APILogWorker
    from prefect.settings import PREFECT_API_URL, temporary_settings

    write(email=_email(Received(port=9)))

    @flow(name="telling")
    def telling() -> None:
        alert("breach", "jena: new rows break the data contract", "why")

    with temporary_settings({PREFECT_API_URL: servers["api"]}):
        state = telling(return_state=True)
        assert state.is_completed()
        APILogWorker.instance().drain()
        with get_client(sync_client=True) as client:
            wanted = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[state.state_details.flow_run_id]))
            messages = [log.message for log in client.read_logs(wanted)]
    assert any(message.startswith("breach: jena: new rows break") for message in messages)
    assert any("did not go out by e-mail" in message for message in messages)


@pytest.mark.parametrize(
    ("alerts", "said"),
    [
        ({"log": ["breech"]}, "breach"),
        ({"webhook": {"url": "https://hooks.example.org/T0"}}, "write ${NAME}, a variable of the environment"),
        ({"email": {"to": [], "sender": "a@example.org", "server": "mail"}}, "must not be empty"),
        ({"email": {"to": ["team"], "sender": "a@example.org", "server": "mail"}}, "write an address such as"),
        ({"email": {"to": ["a@b.c"], "sender": "a@b.c", "server": "smtp://mail"}}, "host, or host:port"),
        ({"mail": None}, "unknown key"),
    ],
)
def test_wrong_settings_are_refused(alerts: dict[str, Any], said: str, write: Any) -> None:
    write(**alerts)
    with pytest.raises(RecastError, match=r"params\.yaml: alerts") as error:
        parse_settings()
    assert said in str(error.value)


def test_with_settings_that_cannot_be_read_an_alert_goes_to_the_log_with_the_reason(write: Any) -> None:
    write(log=[], mail=None)
    alert("failure", "retrain of jena has failed", "why")
    first, second, third, *_ = ALERT_LOG.read_text().splitlines()
    assert first.endswith(" failure: retrain of jena has failed")
    assert second == "    why"
    assert "the channels are not known: params.yaml: alerts" in third
    assert "mail" in ALERT_LOG.read_text()


def test_that_the_settings_keep_what_is_deployed_from_running_is_told(write: Any) -> None:
    write(mail=None)
    with pytest.raises(RecastError, match=r"params\.yaml: alerts"):
        runpy.run_path(str(ROOT / "flows/deployed.py"))
    assert "failure: what is deployed cannot run\n    params.yaml: alerts" in ALERT_LOG.read_text()
