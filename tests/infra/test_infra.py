"""The project's servers and the slots of the machine."""

import json
import multiprocessing
import os
import subprocess
import sys
import time
from multiprocessing.synchronize import Event
from pathlib import Path

import httpx
import psutil
import pytest

from infra import servers
from infra.devices.slots import Slot, claimed, cores, slots
from project.settings.sections import Runner
from tests.support.checkout import ROOT

RUNNER = {"kind": "local", "workers": 3, "slots_per_gpu": 2, "devices": "auto", "bundle": 1}


def test_a_server_is_started_once_reused_and_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mlruns").mkdir()
    # A proxy of the machine is none for its own loopback.
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    assert servers.url(servers.MLFLOW) is None
    address = servers.start(servers.MLFLOW)
    assert address.startswith("http://127.0.0.1:") and httpx.get(address + "/health", trust_env=False).is_success
    assert servers.start(servers.MLFLOW) == address
    pid = json.loads(servers.MLFLOW.record.read_text())["pid"]
    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    assert servers.stop(servers.MLFLOW)
    assert not [each for each in family if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]
    assert servers.url(servers.MLFLOW) is None and not servers.stop(servers.MLFLOW)


def test_another_checkouts_server_is_not_taken_for_this_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record whose process does not listen on its port, as after a crash, is no running server."""
    monkeypatch.chdir(tmp_path)
    servers.STATE.mkdir()
    me = psutil.Process()
    servers.write_json(servers.MLFLOW.record, {"pid": me.pid, "created": me.create_time(), "port": 1})
    assert servers.url(servers.MLFLOW) is None


@pytest.mark.parametrize("record", ["", "{", "[]", '{"pid": 1}', '{"pid": "x", "created": 0, "port": 1}'])
def test_a_record_that_is_none_is_no_server(record: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    servers.STATE.mkdir()
    servers.MLFLOW.record.write_text(record)
    assert servers.url(servers.MLFLOW) is None
    assert not servers.stop(servers.MLFLOW)


def test_every_gpu_has_its_slots_and_one_of_each_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    found = [(slot.device, slot.number) for slot in slots(Runner.model_validate(RUNNER), 1)]
    assert found == [("cuda:0", 0), ("cuda:1", 0), ("cuda:0", 1), ("cuda:1", 1)]
    on_cpu = slots(Runner.model_validate({**RUNNER, "devices": "cpu"}), 1)
    assert on_cpu == [Slot("cpu", 0), Slot("cpu", 1), Slot("cpu", 2)]


def test_a_slot_is_one_owners_and_free_again_when_the_owner_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    choice = [Slot("cpu", 0)]
    context = multiprocessing.get_context("spawn")
    taken, wanted = context.Event(), context.Event()
    first = context.Process(target=_hold, args=(choice, taken))
    first.start()
    assert taken.wait(60)
    second = context.Process(target=_hold, args=(choice, wanted))
    second.start()
    assert not wanted.wait(0.5), "two owners of one slot"
    first.kill()
    assert wanted.wait(60)
    second.kill()


def _hold(choice: list[Slot], held: Event) -> None:
    with claimed(choice):
        held.set()
        time.sleep(600)


def test_a_process_keeps_its_slot_on_a_gpu_for_as_long_as_it_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code = (
        "import sys\n"
        "from infra.devices.slots import Slot, claim\n"
        "choice = (Slot('cuda:0', 0), Slot('cuda:1', 0))\n"
        "print(claim(choice), claim(choice), flush=True)\n"
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
        assert keepers[-1].stdout and keepers[-1].stdout.readline().strip() == expected
    keepers[0].kill()
    keepers[0].communicate()
    with claimed([Slot("cuda:0", 0), Slot("cuda:1", 0)]) as device:
        assert str(device) == "cuda:0"
    keepers[1].communicate("")


def test_trials_of_several_threads_share_the_cores() -> None:
    anywhere = Runner.model_validate({**RUNNER, "workers": None, "devices": "cpu"})
    assert len(slots(anywhere, 1)) == cores()
    assert len(slots(anywhere, cores())) == len(slots(anywhere, 10 * cores())) == 1
    assert len(slots(Runner.model_validate({**RUNNER, "devices": "cpu"}), 4)) == 3, "as many as `workers` says"


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
    assert cores(tmp_path) == (expected or cores(tmp_path / "none"))
