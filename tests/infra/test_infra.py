"""The project's servers and the slots of the machine."""

import json
import multiprocessing
import os
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from filelock import FileLock, Timeout

from infra import s3, server_process, servers
from infra.devices.slots import Slot, claim_slot, machine_slots, usable_cores
from infra.devices.status import DeviceStatus, RunningBundle, running_grids, status_file
from infra.processes import creation_time, describe_listener, find_process
from infra.server_process import Launch
from problems.errors import RecastError
from project import paths, profile
from project.atomic import write_json
from project.settings.operation import RunnerSettings
from tests.support.checkout import ROOT

SECONDS = 180
"""A process starts within this time, even on a busy machine."""

RUNNER = {"kind": "local", "workers": 3, "slots_per_gpu": 2, "devices": "auto", "bundle": 1}


def test_a_server_is_started_once_reused_and_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mlruns").mkdir()
    # The proxy of the machine is not used for its own loopback.
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    assert server_process.running_address(servers.MLFLOW) is None
    address = server_process.start(servers.MLFLOW)
    assert address.startswith("http://127.0.0.1:")
    assert httpx.get(address + "/health", trust_env=False).is_success
    assert server_process.start(servers.MLFLOW) == address
    pid = json.loads(servers.MLFLOW.record.read_text())["pid"]
    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    assert server_process.stop(servers.MLFLOW)
    assert not [process for process in family if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    assert server_process.running_address(servers.MLFLOW) is None
    assert not server_process.stop(servers.MLFLOW)


def test_a_server_whose_record_was_never_written_is_not_left_beside_a_second_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a kill between the start of its process and the record of it."""
    monkeypatch.chdir(tmp_path)
    server = server_process.Server(
        name="files",
        title="a server of files",
        port=0,
        launch=lambda port: Launch([sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(port)]),
        is_healthy=server_process.http_health_check("/"),
    )

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(server_process, "write_json", die)
        with pytest.raises(KeyboardInterrupt):
            server_process.start(server)
    assert not server.record.exists()
    mark = str(server.record.absolute())
    (orphan,) = [child for child in psutil.Process().children() if child.environ().get(server_process.MARK) == mark]
    server_process.start(server)
    try:
        assert not orphan.is_running() or orphan.status() == psutil.STATUS_ZOMBIE
        assert json.loads(server.record.read_text())["pid"] != orphan.pid
    finally:
        server_process.stop(server)


def test_another_checkouts_server_is_not_taken_for_this_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that does not listen on the port of its record, as after a crash, is not a running server."""
    monkeypatch.chdir(tmp_path)
    paths.STATE.mkdir()
    me = psutil.Process()
    write_json(servers.MLFLOW.record, {"pid": me.pid, "created": me.create_time(), "port": 1})
    assert server_process.running_address(servers.MLFLOW) is None


def test_the_server_of_another_user_is_not_this_ones_and_cannot_be_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    paths.STATE.mkdir()
    process = subprocess.Popen(["sleep", "600"])
    write_json(servers.MLFLOW.record, {"pid": process.pid, "created": creation_time(process.pid), "port": 1})

    def refuse(*_: Any, **options: Any) -> None:
        raise psutil.AccessDenied

    with monkeypatch.context() as patch:
        patch.setattr(psutil.Process, "net_connections", refuse)
        patch.setattr(psutil.Process, "send_signal", refuse)
        assert server_process.running_address(servers.MLFLOW) is None
        with pytest.raises(RecastError, match=f"a process of another user, {process.pid}: stop it as that user"):
            server_process.stop(servers.MLFLOW)
    process.kill()
    process.wait()


@pytest.mark.parametrize("record", ["", "{", "[]", '{"pid": 1}', '{"pid": "x", "created": 0, "port": 1}'])
def test_a_damaged_record_is_not_a_running_server(record: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths.STATE.mkdir()
    servers.MLFLOW.record.write_text(record)
    assert server_process.running_address(servers.MLFLOW) is None
    assert not server_process.stop(servers.MLFLOW)


def test_every_gpu_has_its_slots_and_one_of_each_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    slots = [(slot.device, slot.number) for slot in machine_slots(RunnerSettings.model_validate(RUNNER), 1)]
    assert slots == [("cuda:0", 0), ("cuda:1", 0), ("cuda:0", 1), ("cuda:1", 1)]
    on_cpu = machine_slots(RunnerSettings.model_validate({**RUNNER, "devices": "cpu"}), 1)
    assert on_cpu == [Slot("cpu", 0), Slot("cpu", 1), Slot("cpu", 2)]


def test_a_slot_has_one_owner_and_is_free_again_when_the_owner_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    choice = [Slot("cpu", 0)]
    context = multiprocessing.get_context("spawn")
    has_first, has_second, is_refused = context.Event(), context.Event(), context.Event()
    first = context.Process(target=_hold_slot, args=(choice, has_first, None))
    first.start()
    assert has_first.wait(SECONDS)
    second = context.Process(target=_hold_slot, args=(choice, has_second, is_refused))
    second.start()
    # The process takes seconds to import what it needs: that it has no slot yet says nothing before it was refused one.
    assert is_refused.wait(SECONDS)
    assert not has_second.is_set(), "two owners of one slot"
    first.kill()
    assert has_second.wait(SECONDS)
    second.kill()


def _hold_slot(choice: list[Slot], has_slot: Event, is_refused: Event | None) -> None:
    """Wait for a slot, and hold it for ever.

    Args:
        is_refused: is set once the slot was tried while another process held it.
    """
    if is_refused is not None:
        _set_when_refused(is_refused)
    with claim_slot(choice):
        has_slot.set()
        threading.Event().wait()


def _set_when_refused(event: Event) -> None:
    """Set the event each time that this process does not get a lock that another one holds."""
    acquire = FileLock.acquire

    def acquire_or_set(lock: FileLock, *args: Any, **options: Any) -> Any:
        try:
            return acquire(lock, *args, **options)
        except Timeout:
            event.set()
            raise

    setattr(FileLock, "acquire", acquire_or_set)  # noqa: B010 - mypy allows no assignment to a method


def test_a_process_keeps_its_slot_on_a_gpu_for_as_long_as_it_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code = (
        "import sys\n"
        "from infra.devices.slots import Slot, claim_slot_for_process\n"
        "choice = (Slot('cuda:0', 0), Slot('cuda:1', 0))\n"
        "print(claim_slot_for_process(choice), claim_slot_for_process(choice), flush=True)\n"
        "sys.stdin.read()\n"
    )
    keepers = []
    for expected in ("cuda:0 cuda:0", "cuda:1 cuda:1"):
        keepers.append(
            subprocess.Popen(
                [sys.executable, "-c", code],
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        assert keepers[-1].stdout
        assert keepers[-1].stdout.readline().strip() == expected
    keepers[0].kill()
    keepers[0].communicate()
    with claim_slot([Slot("cuda:0", 0), Slot("cuda:1", 0)]) as device:
        assert str(device) == "cuda:0"
    keepers[1].communicate("")


def test_trials_of_several_threads_share_the_cores() -> None:
    anywhere = RunnerSettings.model_validate({**RUNNER, "workers": None, "devices": "cpu"})
    assert len(machine_slots(anywhere, 1)) == usable_cores()
    assert len(machine_slots(anywhere, usable_cores())) == len(machine_slots(anywhere, 10 * usable_cores())) == 1
    assert len(machine_slots(RunnerSettings.model_validate({**RUNNER, "devices": "cpu"}), 4)) == 3, (
        "as many as `workers` says"
    )


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"cpu.max": "max 100000"}, None),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "100000 100000"}, 1),
        ({"cpu.max": "100000000 100000"}, None),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 1),
    ],
)
def test_the_quota_of_a_container_bounds_the_cores(files: dict[str, str], expected: int | None, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert usable_cores(tmp_path) == (expected or usable_cores(tmp_path / "none"))


def test_the_port_of_a_server_that_does_not_run_is_an_error_that_says_how_to_start_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecastError, match="PostgreSQL is not running; `recast up` starts it"):
        server_process.running_port(servers.POSTGRES)


def test_a_process_is_found_by_its_id_only_while_it_lives() -> None:
    """The system may give the id of a process that has ended to another one."""
    process = subprocess.Popen(["sleep", "600"])
    created = creation_time(process.pid)
    found = find_process(process.pid, created)
    assert found is not None
    assert found.pid == process.pid
    assert find_process(process.pid, created - 60) is None, "another process had this id before"
    process.kill()
    process.wait()
    assert find_process(process.pid, created) is None


def test_the_status_of_a_killed_grid_is_removed_and_a_damaged_one_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with status_file("this grid") as status:
        status.update([DeviceStatus("cpu", 1, None, None)], [RunningBundle("cpu", "gru", 0.0, None)], 2, None)
        killed = status.file.with_name("killed.json")
        killed.write_text(status.file.read_text().replace(f'"created": {creation_time()}', '"created": 1.0'))
        status.file.with_name("damaged.json").write_text('{"title": ')
        (grid,) = running_grids()
        assert (grid.title, grid.queued, grid.running[0].label) == ("this grid", 2, "gru")
        assert not killed.exists()
    assert not running_grids()


def test_a_checkout_keeps_its_ports_and_says_who_has_the_usual_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        server = replace(servers.MLFLOW, port=taken)
        port = server_process.reserve_port(server)
        assert port != taken
        listener = describe_listener(taken)
        assert listener
        assert listener.startswith(f"process {os.getpid()} (`")
        assert listener.endswith(f" in {tmp_path})")
    # The usual port is free now, but links name the other one.
    assert server_process.reserve_port(server) == port
    assert describe_listener(taken) is None
    for damaged in ("", "x", "0", "99999", "-1"):
        server.port_file.write_text(damaged)
        assert server_process.reserve_port(server) == taken
        server.port_file.write_text(str(port))


def test_a_server_that_was_stopped_is_at_the_same_address_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code = "import sys, http.server as h; h.test(h.SimpleHTTPRequestHandler, port=int(sys.argv[1]), bind='127.0.0.1')"
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        server = server_process.Server(
            "files",
            "Files",
            other.getsockname()[1],
            lambda port: server_process.Launch((sys.executable, "-c", code, str(port))),
            server_process.http_health_check("/"),
        )
        first = server_process.start(server)
    server_process.stop(server)
    again = server_process.start(server)
    server_process.stop(server)
    assert again == first == f"http://127.0.0.1:{server_process.reserve_port(server)}"


def test_links_lead_to_mlflow_over_http_whether_it_runs_or_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    page = servers.mlflow_page("/experiments/1/runs/2")
    assert page == f"http://127.0.0.1:{server_process.reserve_port(servers.MLFLOW)}/#/experiments/1/runs/2"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://ann:hunter2@mlflow.example.org/")
    assert servers.mlflow_page("/models/demo") == "https://mlflow.example.org/#/models/demo"


@pytest.mark.parametrize(
    "store", ["s3://id:hunter2@bucket", "s3://bucket/x?secret=hunter2", "s3://hunter2@bucket/x", "bucket", "s3://"]
)
def test_the_name_of_an_external_store_holds_no_keys(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(s3.EXTERNAL_STORE_VARIABLE, store)
    with pytest.raises(RecastError, match="write s3://bucket or s3://bucket/prefix, without keys") as raised:
        s3.external_store()
    assert "hunter2" not in str(raised.value)
    monkeypatch.setenv(s3.EXTERNAL_STORE_VARIABLE, "s3://team-models/recast/")
    assert s3.external_store() == "s3://team-models/recast"


def test_a_project_that_goes_back_to_a_laptops_stores_remembers_its_external_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    paths.STATE.mkdir()
    monkeypatch.setattr(s3, "configure_dvc_remote", lambda *_: None)
    profile.save_profile(profile.Profile("servers", "http://127.0.0.1:5000", "s3://team-models/recast"))
    servers.switch_profile("laptop")
    assert profile.read_profile() == profile.Profile("laptop", None, "s3://team-models/recast")


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "Could not connect .*; check AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID"),
        ({"AWS_ENDPOINT_URL": "s3.example.org"}, "AWS_ENDPOINT_URL: .*; write it with https://"),
        ({"AWS_ACCESS_KEY_ID": None}, "Unable to locate credentials; check AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID"),
    ],
)
def test_an_external_store_that_cannot_be_used_is_an_error_that_says_what_to_check(
    variables: dict[str, str | None], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    paths.STATE.mkdir()
    profile.save_profile(profile.Profile("servers", None, "s3://team-models/recast"))
    for name in (name for name in os.environ if name.startswith("AWS_")):
        monkeypatch.delenv(name)
    set_variables = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key", "AWS_EC2_METADATA_DISABLED": "true"}
    for name, value in ({**set_variables, "HOME": str(tmp_path)} | variables).items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name, raising=False)
    # It may know the keys of a former test.
    monkeypatch.setattr("boto3.DEFAULT_SESSION", None)
    Path("file").write_text("")
    with pytest.raises(RecastError, match=message), servers.connect_object_store() as (store, bucket, prefix):
        store.upload_file("file", bucket, f"{prefix}file")
