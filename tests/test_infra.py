"""The project's servers and the slots of the machine."""

import json
import multiprocessing
import time
from multiprocessing.synchronize import Event
from pathlib import Path

import httpx
import psutil
import pytest

from infra import servers
from infra.slots import Slot, claimed, slots
from stages.settings import Runner

RUNNER = {"kind": "local", "workers": 3, "slots_per_gpu": 2, "devices": "auto", "bundle": 1}


def test_a_server_is_started_once_reused_and_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mlruns").mkdir()
    assert servers.url(servers.MLFLOW) is None
    address = servers.start(servers.MLFLOW)
    assert address.startswith("http://127.0.0.1:") and httpx.get(address + "/health").is_success
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


def test_every_gpu_has_its_slots_and_one_of_each_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    found = [(slot.device, slot.number) for slot in slots(Runner.model_validate(RUNNER))]
    assert found == [("cuda:0", 0), ("cuda:1", 0), ("cuda:0", 1), ("cuda:1", 1)]
    on_cpu = slots(Runner.model_validate({**RUNNER, "devices": "cpu"}))
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
