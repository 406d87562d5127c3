"""The longer scripts, as `make test-long` runs them. Each can also be run alone, for longer."""

import os
import shutil
from pathlib import Path

import pytest

from infra import postgres
from tests.scenarios import full_disk, kill_at_writes, kill_repeatedly, outages, partition, recompute, replay
from tests.support.commands import SESSION

pytestmark = pytest.mark.long

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may make network namespaces and disks")
needs_postgres = pytest.mark.skipif(
    not (list(postgres.PACKAGED_PROGRAMS.glob("*/bin/initdb")) or shutil.which("initdb")),
    reason="PostgreSQL is not installed: apt install postgresql",
)
JENA = os.environ.get("RECAST_JENA_CSV")


@pytest.fixture(autouse=True)
def new_processes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The scripts choose themselves how commands are started, and leave the current folder."""
    monkeypatch.setattr(SESSION, "folder", None)
    monkeypatch.chdir(tmp_path)


def test_a_grid_that_is_killed_again_and_again_loses_nothing() -> None:
    kill_repeatedly.main(times=5, epochs=250, longest=25.0, seed=0)


@pytest.mark.parametrize("command", kill_at_writes.ATTACKS)
def test_a_command_killed_at_its_writes_ends_as_if_nothing_had_happened(command: str) -> None:
    kill_at_writes.main([command], times=3, seed=0)


@needs_root
@pytest.mark.parametrize("command", full_disk.COMMANDS)
def test_a_command_on_a_full_disk_ends_with_the_reason_and_can_be_run_again(command: str) -> None:
    full_disk.main([command], sizes=4, seconds=60.0)


def test_other_code_computes_the_same_figures() -> None:
    assert recompute.main(None, "demo") == 0


@needs_postgres
@needs_root
def test_outages_lose_nothing() -> None:
    assert outages.main([*outages.OUTAGES], ["local", "ray"], away=30.0, epochs=40) == 0


@needs_root
@pytest.mark.skipif(shutil.which("ip") is None, reason="iproute2 is not installed")
def test_a_node_that_is_cut_off_for_a_minute_loses_nothing() -> None:
    partition.main(seconds=60.0)


@pytest.mark.skipif(JENA is None, reason="RECAST_JENA_CSV names no CSV of Jena's hourly rows")
def test_months_of_new_rows_lead_to_one_champion(tmp_path: Path) -> None:
    assert JENA
    replay.main(Path(JENA), tmp_path / "replay", year=2015, months=3)
