"""Which bundle goes to which device next: rules that hold for all jobs and devices."""

import heapq
import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.devices.costs import Costs, Observation, Pace, cost_shape, read_observations
from infra.devices.mps import FOLDER_RECORD, multi_process_service
from infra.devices.packing import PILOT_SHARE, Device, Job, Packer, gpu_share, shortest_possible_seconds
from project import paths
from project.settings.loading import load_settings
from stages.training.expansion import list_trials
from tests.support.checkout import Checkout

PEAKS = {"small": 10, "middle": 30, "large": 90, "too large": 150}


@st.composite
def grids(draw: st.DrawFn) -> tuple[list[Job], list[Device]]:
    shapes = st.sampled_from([*PEAKS, "not measured"])
    jobs = draw(st.lists(st.builds(Job, st.just(0), shapes, st.floats(0.1, 100)), min_size=1, max_size=40))
    devices = draw(st.lists(st.builds(Device, st.just(""), st.integers(1, 5), st.just(100)), min_size=1, max_size=4))
    for i, device in enumerate(devices):
        device.name = f"cuda:{i}"
    return [Job(i, job.shape, job.seconds) for i, job in enumerate(jobs)], devices


def schedule(packer: Packer) -> float:
    """Run each job for its seconds, and check the devices at each step; the time when the last job has ended."""
    now = 0.0
    running: list[tuple[float, int]] = []
    while True:
        for job, _ in packer.start():
            heapq.heappush(running, (now + job.seconds, job.number))
        for device in packer.devices:
            assert len(device.running) <= device.slots
            assert device.used == sum(device.running.values())
            assert device.memory is None or device.used <= device.memory or len(device.running) == 1
        if not running:
            return now
        now, number = heapq.heappop(running)
        packer.remove(number)


@given(grids())
def test_every_job_is_run_once_and_no_device_is_overfull(grid: tuple[list[Job], list[Device]]) -> None:
    jobs, devices = grid
    packer = Packer(jobs, devices, PEAKS)
    longest = schedule(packer)
    assert len(packer) == 0
    assert not packer.running
    assert not any(device.running for device in devices)
    assert longest >= max(job.seconds for job in jobs) - 1e-9
    assert longest <= sum(job.seconds for job in jobs) + 1e-6
    fit = [job for job in jobs if job.shape in ("small", "middle", "large")]
    assert longest >= shortest_possible_seconds(fit, devices, PEAKS) - 1e-6


@given(grids())
def test_without_memory_the_schedule_is_within_grahams_bound(grid: tuple[list[Job], list[Device]]) -> None:
    """The bound of list scheduling in any order: mean load + longest job."""
    jobs, devices = grid
    for device in devices:
        device.memory = None
    slots = sum(device.slots for device in devices)
    longest = schedule(Packer(jobs, devices))
    assert longest <= sum(job.seconds for job in jobs) / slots + max(job.seconds for job in jobs) + 1e-6


@given(st.lists(st.floats(0.1, 100), min_size=1, max_size=6), st.integers(1, 3))
def test_longest_first_is_within_grahams_bound_of_the_best_schedule(lengths: list[float], slots: int) -> None:
    """At most 4/3 - 1/(3 m) of the best on m slots, which is found by trying all."""
    jobs = [Job(i, "a", length) for i, length in enumerate(lengths)]
    best = min(
        max(sum(length for length, to in zip(lengths, chosen, strict=True) if to == slot) for slot in range(slots))
        for chosen in itertools.product(range(slots), repeat=len(jobs))
    )
    assert schedule(Packer(jobs, [Device("cpu", slots)])) <= (4 / 3 - 1 / (3 * slots)) * best + 1e-6


def test_the_longest_that_fits_goes_first() -> None:
    jobs = [Job(0, "small", 1), Job(1, "large", 9), Job(2, "middle", 5), Job(3, "small", 3)]
    device = Device("cuda:0", 9, 100)
    packer = Packer(jobs, [device], PEAKS)
    assert [job.number for job, _ in packer.start()] == [1, 3], "beside the large one a small one has room"
    packer.remove(1)
    assert [job.number for job, _ in packer.start()] == [2, 0]


def test_one_job_to_each_device_before_a_second_to_any() -> None:
    devices = [Device("cuda:0", 2), Device("cuda:1", 2)]
    packer = Packer([Job(i, "small", 1) for i in range(4)], devices)
    assert [device.name for _, device in packer.start()] == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]


def test_a_shape_is_measured_by_one_job_before_the_device_is_filled() -> None:
    device = Device("cuda:0", 16, 100)
    packer = Packer([Job(i, "a", 1) for i in range(8)] + [Job(8 + i, "b", 5) for i in range(8)], [device])
    (first,) = (job for job, _ in packer.start())
    assert first.shape == "b"
    assert device.used == 100, "it has all of the device until it was measured"
    packer.record_peak("b", 20)
    assert [job.shape for job, _ in packer.start()] == ["a"], (
        "the first of the other shape, before the rest of this one"
    )
    assert device.used == 100
    packer.record_peak("a", 10)
    assert [job.shape for job, _ in packer.start()] == ["b"] * 3 + ["a"]
    assert device.used == 100


def test_a_shape_that_is_not_measured_waits_for_much_of_a_device() -> None:
    device = Device("cuda:0", 16, 100)
    packer = Packer([Job(0, "a", 9), Job(1, "b", 1)], [device], {"a": int(100 * (1 - PILOT_SHARE)) + 1})
    device.reserve(99, 10)
    assert [job.number for job, _ in packer.start()] == [1]
    packer.remove(1)
    packer.add(Job(1, "b", 1))
    packer.record_peak("b", 1)
    assert [job.number for job, _ in packer.start()] == [0, 1]


@pytest.mark.parametrize(("peak", "expected"), [(0, 0.01), (9, 0.1), (45, 0.5), (90, 1.0), (1000, 1.0)])
def test_the_share_of_a_gpu_leaves_a_margin(peak: int, expected: float) -> None:
    assert gpu_share(peak, 100) == pytest.approx(expected)


def test_what_trials_took_is_learnt_from_their_folders(tmp_path: Path) -> None:
    write = {
        "a": (
            {"device": "cpu", "epoch": 4, "training_seconds": 8.0, "seconds": 9.0, "shape": "x", "peak_bytes": 7},
            10,
        ),
        "b": (
            {"device": "cpu", "epoch": 2, "training_seconds": 8.0, "seconds": 9.0, "shape": "x", "peak_bytes": 9},
            10,
        ),
        "c": ({"device": "cuda:1", "epoch": 1, "training_seconds": 1.0, "seconds": 2.0}, 10),
        "d": ({"device": "cpu", "seconds": 0.5}, 0),
        "e": ({"device": "cpu"}, 10),
    }
    for name, (noted, parameters) in write.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(json.dumps(noted))
        about = {"status": "finished", "architecture": "gru", "parameters": parameters}
        (tmp_path / name / "trial.json").write_text(json.dumps(about))
    (tmp_path / "begun").mkdir()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "run.json").write_text('{"device": "cpu", "sec')
    (tmp_path / "damaged" / "trial.json").write_text("[]")
    observations = sorted(read_observations(tmp_path, "cpu"), key=lambda observation: observation.epoch_seconds)
    assert [(seen.shape, seen.epoch_seconds, seen.peak) for seen in observations] == [
        ("", 0.5, None),
        ("x", 2, 7),
        ("x", 4, 9),
    ]
    assert [seen.epoch_seconds for seen in read_observations(tmp_path, "cuda")] == [1.0]
    assert Costs(observations).peaks == {"x": 9}
    assert read_observations(tmp_path / "none", "cpu") == []


def seconds(taken: Sequence[tuple[float, float]], known: bool) -> float | None:
    pace = Pace(known)
    for seconds_taken, seconds_expected in taken:
        pace.record(seconds_taken, seconds_expected)
    return pace.seconds(10)


def test_the_time_that_is_left_follows_what_bundles_take_now() -> None:
    assert seconds([], known=False) is None
    assert seconds([], known=True) == 10
    assert seconds([(4, 2), (8, 4)], known=True) == seconds([(4, 2), (8, 4)], known=False) == 20


def test_what_a_trial_is_expected_to_take(finished: Checkout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As others of its shape; else by its weights, as those of its architecture, or as all; else not in seconds."""
    monkeypatch.chdir(finished.copy(tmp_path / "copy").root)
    gru = next(
        trial
        for trial in list_trials(load_settings(), "demo", paths.stage_folder("window", "demo"))
        if "gru" in trial.label
    )
    weights = Costs([]).parameters(gru)
    assert Costs([]).seconds(gru) == 2 * weights
    assert not Costs([]).are_seconds
    others = [Observation("", "lstm", 10, 40.0, None)]
    assert Costs(others).seconds(gru) == pytest.approx(2 * weights * 4.0)
    others.append(Observation("another", "gru", 10, 20.0, None))
    assert Costs(others).seconds(gru) == pytest.approx(2 * weights * 2.0)
    others.append(Observation(cost_shape(gru), "gru", weights, 3.0, 7))
    assert Costs(others).seconds(gru) == 6.0
    learnt = Costs.read([gru], "cpu")
    assert learnt.are_seconds
    assert learnt.peaks[cost_shape(gru)] > 10 << 20, "from the trials in its folder"


def test_mps_runs_for_the_time_of_a_grid_where_its_program_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real program needs a GPU: this one records its commands."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CUDA_MPS_PIPE_DIRECTORY", raising=False)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    with multi_process_service(True) as served:
        assert not served, "it is not installed"
    program = tmp_path / "nvidia-cuda-mps-control"
    program.write_text(
        f'#!/bin/sh\n[ "$1" = -d ] && echo started >> {tmp_path}/commands || cat >> {tmp_path}/commands\n'
        f"echo $CUDA_MPS_PIPE_DIRECTORY >> {tmp_path}/folders\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with multi_process_service(True) as served, multi_process_service(True) as too:
        assert served
        assert too
        assert Path(os.environ["CUDA_MPS_PIPE_DIRECTORY"]).is_dir()
        record = FOLDER_RECORD.read_bytes()
    assert "CUDA_MPS_PIPE_DIRECTORY" not in os.environ
    assert (tmp_path / "commands").read_text() == "started\nquit\n", "once for all grids of a process"
    assert not FOLDER_RECORD.exists()
    # A process that is killed leaves its daemon and this.
    FOLDER_RECORD.write_bytes(record)
    with multi_process_service(True):
        assert (tmp_path / "commands").read_text() == "started\nquit\nquit\nstarted\n"
    first, own, left, *later = (tmp_path / "folders").read_text().splitlines()
    assert first == own == left == record.decode()
    assert left not in later
    with multi_process_service(False) as served:
        assert not served
