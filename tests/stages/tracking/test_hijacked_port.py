"""Another program has the port on which MLflow is expected."""

from pathlib import Path

import pytest

from problems.errors import RecastError
from stages.tracking import store
from tests.support.hijacker import ANSWERS, hijacked_port


# To MLflow's client, an empty answer is a list without entries.
@pytest.mark.parametrize("answer", [name for name in ANSWERS if name != "nothing"])
def test_another_program_on_mlflows_port_is_reported_in_one_line(
    answer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    store.get_client.cache_clear()
    with hijacked_port(answer) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        with pytest.raises(RecastError, match=f"MLflow at {address} ") as raised:
            store.get_client()
    store.get_client.cache_clear()
    assert "\n" not in str(raised.value)
    assert "Start it" in str(raised.value)
