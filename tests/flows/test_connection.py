"""The Prefect server that flows report to, and what else may answer at its address."""

import pytest
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from flows.connection import connect
from problems.errors import RecastError
from tests.support.hijacker import ANSWERS, hijacked_port


@pytest.mark.parametrize("answer", ANSWERS)
def test_another_program_on_prefects_port_is_reported(answer: str) -> None:
    with (
        hijacked_port(answer) as address,
        temporary_settings({PREFECT_API_URL: f"{address}/api", PREFECT_CLIENT_MAX_RETRIES: 0}),
        pytest.raises(RecastError, match=f"Prefect at {address}/api cannot be reached: .*unset PREFECT_API_URL"),
    ):
        connect()


def test_a_password_in_the_address_is_not_shown() -> None:
    address = "http://ann:hunter2@127.0.0.1:9/api?token=hunter2"
    settings = temporary_settings({PREFECT_API_URL: address, PREFECT_CLIENT_MAX_RETRIES: 0})
    with settings, pytest.raises(RecastError, match="cannot be reached") as raised:
        connect()
    assert "hunter2" not in str(raised.value)
