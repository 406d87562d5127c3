"""Which bundle goes to which device next: rules that hold for any jobs and devices."""

import heapq
import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.devices.costs import Costs, Observation, Pace, observed, shape
from infra.devices.mps import shared_gpus
from infra.devices.packing import PILOT_SHARE, Device, Job, Packer, bound, share
from project import paths
from project.settings.loading import load_settings
from stages.training.trials import expand
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
    """Let the jobs run, each for its seconds; when the last has ended. What a device holds is checked at each step."""
    now, running = 0.0, []
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
        packer.ended(number)


@given(grids())
def test_every_job_is_run_once_and_no_device_is_overfull(grid: tuple[list[Job], list[Device]]) -> None:
    jobs, devices = grid
    packer = Packer(jobs, devices, PEAKS)
    longest = schedule(packer)
    assert len(packer) == 0 and not packer.running and not any(device.running for device in devices)
    assert longest >= max(job.seconds for job in jobs) - 1e-9
    assert longest <= sum(job.seconds for job in jobs) + 1e-6
    fit = [job for job in jobs if job.shape in ("small", "middle", "large")]
    assert longest >= bound(fit, devices, PEAKS) - 1e-6


@given(grids())
def test_without_memory_it_is_within_graham_s_bound(grid: tuple[list[Job], list[Device]]) -> None:
    """Of list scheduling in any order: mean load + longest."""
    jobs, devices = grid
    for device in devices:
        device.memory = None
    slots = sum(device.slots for device in devices)
    longest = schedule(Packer(jobs, devices))
    assert longest <= sum(job.seconds for job in jobs) / slots + max(job.seconds for job in jobs) + 1e-6


@given(st.lists(st.floats(0.1, 100), min_size=1, max_size=6), st.integers(1, 3))
def test_longest_first_is_within_graham_s_bound_of_the_best_schedule(lengths: list[float], slots: int) -> None:
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
    packer.ended(1)
    assert [job.number for job, _ in packer.start()] == [2, 0]


def test_one_job_to_each_device_before_a_second_to_any() -> None:
    devices = [Device("cuda:0", 2), Device("cuda:1", 2)]
    packer = Packer([Job(i, "small", 1) for i in range(4)], devices)
    assert [device.name for _, device in packer.start()] == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]


def test_a_shape_is_measured_by_one_job_before_the_device_is_filled() -> None:
    device = Device("cuda:0", 16, 100)
    packer = Packer([Job(i, "a", 1) for i in range(8)] + [Job(8 + i, "b", 5) for i in range(8)], [device])
    (first,) = (job for job, _ in packer.start())
    assert first.shape == "b" and device.used == 100, "it has all of the device until it is known what it takes"
    packer.measured("b", 20)
    assert [job.shape for job, _ in packer.start()] == ["a"], "the other shape's first, before the rest of this one"
    assert device.used == 100
    packer.measured("a", 10)
    assert [job.shape for job, _ in packer.start()] == ["b"] * 3 + ["a"]
    assert device.used == 100


def test_a_shape_that_is_not_measured_waits_for_much_of_a_device() -> None:
    device = Device("cuda:0", 16, 100)
    packer = Packer([Job(0, "a", 9), Job(1, "b", 1)], [device], {"a": int(100 * (1 - PILOT_SHARE)) + 1})
    device.keep(99, 10)
    assert [job.number for job, _ in packer.start()] == [1]
    packer.ended(1)
    packer.add(Job(1, "b", 1))
    packer.measured("b", 1)
    assert [job.number for job, _ in packer.start()] == [0, 1]


@pytest.mark.parametrize(("peak", "expected"), [(0, 0.01), (9, 0.1), (45, 0.5), (90, 1.0), (1000, 1.0)])
def test_the_share_of_a_gpu_leaves_a_margin(peak: int, expected: float) -> None:
    assert share(peak, 100) == pytest.approx(expected)


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
    found = sorted(observed(tmp_path, "cpu"), key=lambda each: each.epoch_seconds)
    assert [(each.shape, each.epoch_seconds, each.peak) for each in found] == [
        ("", 0.5, None),
        ("x", 2, 7),
        ("x", 4, 9),
    ]
    assert [each.epoch_seconds for each in observed(tmp_path, "cuda")] == [1.0]
    assert Costs(found).peaks == {"x": 9}
    assert observed(tmp_path / "none", "cpu") == []


def seconds(taken: Sequence[tuple[float, float]], known: bool) -> float | None:
    pace = Pace(known)
    for each in taken:
        pace.tell(*each)
    return pace.seconds(10)


def test_the_time_that_is_left_follows_what_bundles_take_now() -> None:
    assert seconds([], known=False) is None
    assert seconds([], known=True) == 10
    assert seconds([(4, 2), (8, 4)], known=True) == seconds([(4, 2), (8, 4)], known=False) == 20


def test_what_a_trial_is_expected_to_take(finished: Checkout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As others of its shape did; else by parameters, as those of its architecture, or all; else in no unit."""
    monkeypatch.chdir(finished.copy(tmp_path / "copy").root)
    gru = next(
        trial for trial in expand(load_settings(), "demo", paths.stage("window", "demo")) if "gru" in trial.label
    )
    weights = Costs([]).parameters(gru)
    assert Costs([]).seconds(gru) == 2 * weights and not Costs([]).known
    others = [Observation("", "lstm", 10, 40.0, None)]
    assert Costs(others).seconds(gru) == pytest.approx(2 * weights * 4.0)
    others.append(Observation("another", "gru", 10, 20.0, None))
    assert Costs(others).seconds(gru) == pytest.approx(2 * weights * 2.0)
    others.append(Observation(shape(gru), "gru", weights, 3.0, 7))
    assert Costs(others).seconds(gru) == 6.0
    learnt = Costs.of([gru], "cpu")
    assert learnt.known and learnt.peaks[shape(gru)] > 10 << 20, "from the trials that stand in its folder"


def test_mps_runs_for_the_time_of_a_grid_where_its_program_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program itself needs a GPU: this one notes what it is told."""
    monkeypatch.delenv("CUDA_MPS_PIPE_DIRECTORY", raising=False)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    with shared_gpus(True) as served:
        assert not served, "it is not there"
    program = tmp_path / "nvidia-cuda-mps-control"
    program.write_text(f'#!/bin/sh\n[ "$1" = -d ] && echo started >> {tmp_path}/told || cat >> {tmp_path}/told\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with shared_gpus(True) as served, shared_gpus(True) as too:
        assert served and too and Path(os.environ["CUDA_MPS_PIPE_DIRECTORY"]).is_dir()
    assert "CUDA_MPS_PIPE_DIRECTORY" not in os.environ
    assert (tmp_path / "told").read_text() == "started\nquit\n", "once for all grids of a process"
    with shared_gpus(False) as served:
        assert not served
