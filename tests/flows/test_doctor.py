"""`recast doctor` says what is wrong, and how to mend it."""

import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.support.checkout import ROOT, Checkout


def test_where_all_is_well_it_says_so(fresh: Checkout) -> None:
    fresh.file("requirements.lock").write_bytes((ROOT / "requirements.lock").read_bytes())
    said = fresh.recast("doctor", new_process=True)
    assert "broken" not in said
    for what in (
        "settings",
        "Python",
        "versions",
        "folders",
        "space",
        "GPU",
        "Prefect",
        "clock",
        "MLflow",
        "artifacts",
    ):
        assert f" {what} " in said


def test_what_is_broken_is_named_with_its_mend_and_the_rest_is_looked_at_all_the_same(fresh: Checkout) -> None:
    fresh.file("requirements.lock").write_text("# Pinned.\npolars==0.1\nnothing-of-that-name==1.0\n")
    secret = fresh.file(".recast/secrets/aws")
    secret.parent.mkdir(mode=0o700, parents=True)
    secret.touch(mode=0o644)
    store = fresh.file("store")
    store.touch()
    fresh.dvc("remote", "add", "--default", "here", str(store))
    nowhere = {"PREFECT_API_URL": "http://127.0.0.1:9/api", "MLFLOW_TRACKING_URI": "http://u:secret@127.0.0.1:9"}
    said = fresh.recast("doctor", status=1, **nowhere)
    broken = [line for line in said.splitlines() if " broken " in line]
    for what in ("versions", "secrets", "Prefect", "MLflow", "DVC remote"):
        assert [line for line in broken if f" {what} " in line], said
    assert "polars" in said
    assert "instead of 0.1" in said
    assert "chmod -R go=" in said
    assert "unset PREFECT_API_URL" in said
    assert "u:secret" not in said
    assert "space" in said


@pytest.mark.parametrize("login", ["basic", "bearer", "version not served"])
def test_mlflow_is_asked_for_its_version_with_the_login(login: str, fresh: Checkout, tmp_path: Path) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer("9.9.9")

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            experiment = {"experiment_id": "0", "name": "demo", "artifact_location": str(tmp_path / "artifacts")}
            self._answer(json.dumps({"experiments": [experiment]}))

        def _answer(self, text: str) -> None:
            is_user = self.headers["Authorization"] in ("Basic dTpw", "Bearer t0ken")
            hides_version = login == "version not served" and self.path == "/version"
            self.send_response(404 if hides_version else 200 if is_user else 401)
            self.end_headers()
            self.wfile.write((text if is_user else "You are not authenticated").encode())

        def log_message(self, *_: Any) -> None:
            pass

    user = {"MLFLOW_TRACKING_USERNAME": "u", "MLFLOW_TRACKING_PASSWORD": "p"}
    token = {"MLFLOW_TRACKING_TOKEN": "t0ken"}
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        hides_version = login == "version not served"
        environment = {"MLFLOW_TRACKING_URI": address, **(token if login == "bearer" else user)}
        said = fresh.recast("doctor", status=1 if hides_version else 0, **environment)
        server.shutdown()
    assert (f"{address} answers with status 404" if hides_version else f"9.9.9 at {address}") in said


def test_ray_is_looked_for_where_a_run_would_find_it(fresh: Checkout) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"ray://127.0.0.1:{listener.getsockname()[1]}"
        fresh.settings(runner__address=address)
        assert f"its head at {address}" in fresh.recast("doctor")
    assert f"{address} does not answer" in fresh.recast("doctor", status=1)
    assert "starts on this machine when a grid is trained" in fresh.recast("doctor", RAY_ADDRESS="local")
