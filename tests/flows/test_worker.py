"""The worker begins again after every error, and people hear of it once."""

from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from flows import worker
from flows.alerts import ALERT_LOG
from problems.errors import RecastError
from tests.support.checkout import SETTINGS


@pytest.fixture
def attempts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The attempts of a worker whose server cannot be reached; Ctrl-C comes after the twelfth."""
    monkeypatch.chdir(tmp_path)
    with Path("params.yaml").open("w") as file:
        YAML().dump(SETTINGS, file)
    attempts: list[str] = []

    def fail(**_: bool) -> None:
        attempts.append("connect")
        if len(attempts) > 12:
            raise KeyboardInterrupt
        raise RecastError("Prefect at http://me:secret@127.0.0.1:9/api cannot be reached")

    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    for name in ("PREFECT_WORKER_WEBSERVER_HOST", "PREFECT_WORKER_WEBSERVER_PORT", "PREFECT_WORKER_QUERY_SECONDS"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setattr(worker, "connect", fail)
    monkeypatch.setattr(worker, "setup_signal_handlers_worker", lambda *_: None)
    monkeypatch.setattr(worker, "refresh_global_settings_context", lambda: None)
    monkeypatch.setattr(worker, "RETRY_SECONDS", 0)
    return attempts


def test_a_worker_that_fails_again_and_again_goes_on_and_sends_one_alert(attempts: list[str]) -> None:
    worker.main(1)
    assert len(attempts) == 13
    log = ALERT_LOG.read_text()
    assert log.count("failure: the worker fails again and again") == 1
    assert "It has failed 5 times" in log
    assert "http://127.0.0.1:9/api cannot be reached" in log
    assert "secret" not in log


def test_failures_before_a_long_time_without_any_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []
    now = 0.0
    monkeypatch.setattr(worker, "alert", lambda *parts: sent.append(parts))
    monkeypatch.setattr(worker.time, "monotonic", lambda: now)
    failures = worker.FailureAlert()
    for _ in range(worker.FAILURES_BEFORE_ALERT - 1):
        failures.add("a restart")
    now += worker.FORGET_FAILURES_SECONDS + 1
    failures.add("another restart")
    assert not sent
    for _ in range(worker.FAILURES_BEFORE_ALERT - 1):
        failures.add("it does not recover")
    assert len(sent) == 1
