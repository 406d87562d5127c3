"""Logs without passwords, whatever was logged."""

import io
import logging
from collections.abc import Iterator

import pytest

from problems.errors import RecastError
from project.redaction import hide_passwords_in_logs


@pytest.fixture
def log() -> Iterator[tuple[logging.Logger, io.StringIO]]:
    """A logger whose records are made as in every process that imports `flows`, and what it has written."""
    factory, written = logging.getLogRecordFactory(), io.StringIO()
    logger, handler = logging.getLogger("test_redaction"), logging.StreamHandler(written)
    hide_passwords_in_logs()
    logger.addHandler(handler)
    yield logger, written
    logger.removeHandler(handler)
    logging.setLogRecordFactory(factory)


def test_a_log_has_no_passwords_in_messages_and_tracebacks(log: tuple[logging.Logger, io.StringIO]) -> None:
    logger, written = log
    try:
        try:
            raise ValueError("404 for url http://host/x?token=hunter2")
        except ValueError as error:
            raise RecastError("http://ann:hunter2@host cannot be reached") from error
    except RecastError:
        logger.exception("GET %s has failed", "http://host/x?password=hunter2")
    text = written.getvalue()
    assert "hunter2" not in text
    assert "GET http://host/x?password=*** has failed" in text
    assert "ValueError: 404 for url http://host/x?token=***" in text
    assert "RecastError: http://host cannot be reached" in text
