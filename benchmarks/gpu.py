"""What a GPU trains: trials an hour by how many processes share it, and a step of each recurrent layer there.

A trial is the lecture's GRU (row D6) on Jena's windows, by way of `train_trial`, without Prefect and MLflow: 20 epochs
of 500 batches of 128. Each process trains one epoch after the other for six seconds, each from a new network and with
its pass over the validation windows; as many epochs an hour, by 20, are the trials an hour. As many processes as
`runner.slots_per_gpu` in params.yaml says share a GPU: by turns, or, where its daemon runs, side by side by NVIDIA's
Multi-Process Service (MPS). Busy is a GPU while any kernel runs on it, however few of its cores take part.

By turns four processes are enough, for the GPU does the work of one at a time; side by side 16, one for each core of
that machine, train four times as much, 17 times what one does. The more of the time is Python's, the more processes a
GPU has room for; beside its tensors each takes some 750 MiB for CUDA itself.

The layers are those of the benchmark `cells`: milliseconds of a forward and a backward pass, the mean of ten in a row
after ten that do not count, on (128, 120, 14) with 32 units. Aim: three times the textbook's loop. Where recurrent
dropout is in the name, PyTorch's layer and both loops are without it. As plain loops, without CUDA graphs, Recast's own
took 20 ms (Jordan), 39 (LSTM with recurrent dropout), 49 (peephole LSTM), 40 (GRU with recurrent dropout), 33 (GRU,
reset before) and 15 (Elman with recurrent dropout): 2.1 to 3.7 times as fast as the textbook's.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pynvml
import torch

from benchmarks import cells
from infra.devices.mps import CONTROL, multi_process_service
from problems.errors import RecastError
from project import paths
from project.paths import PARAMS
from project.settings.loading import load_settings
from project.settings.sections import Grid, TrainSettings
from stages.training.bundle import train_trial
from stages.training.expansion import list_trials
from stages.training.trials import Trial

PROBLEM = "jena"
EPOCHS = 20
SHARING = (1, 2, 4, 8, 16)


def run(quick: bool) -> dict[str, Any]:
    """Trials an hour and milliseconds of a step.

    Raises:
        RecastError: there is no GPU, or there are no windows to train on.
    """
    if not torch.cuda.is_available():
        raise RecastError("there is no GPU that PyTorch can use here; this benchmark is of one")
    if not paths.stage_folder("window", PROBLEM).exists():
        raise RecastError(f"data/window/{PROBLEM} is not there: recast use grids/lecture.yaml && recast run {PROBLEM}")
    seconds, sharing = (2.0, SHARING[:2]) if quick else (6.0, SHARING)
    about: dict[str, Any] = {"gpu": torch.cuda.get_device_name()}
    about["processes that take turns"] = _table(sharing, seconds)
    with multi_process_service(True) as served:
        if served:
            about["processes side by side, by MPS"] = _table(sharing, seconds)
        else:
            about["note"] = f"{CONTROL} does not run here; MPS was left out"
    about["layers, ms a step"] = _layers(5 if quick else 10)
    return about


def _layers(times: int) -> dict[str, dict[str, str]]:
    """By layer, what a step takes by each contender of the same kind."""
    torch.set_num_threads(1)
    x_BTF = torch.randn(cells.BATCH, cells.STEPS_BACK, cells.FEATURES, device="cuda")
    kinds = {
        "Recast": "Recast",
        "PyTorch's layer": "torch.nn.",
        "PyTorch's cell in a loop": "loop over",
        cells.LOOP: cells.LOOP,
    }
    found = {}
    for name, made in cells.CONTENDERS.items():
        taken = {}
        for contender, make in made.items():
            step = cells._step(make(cells.UNITS).to("cuda"), x_BTF, times)
            # The first ones allocate, and capture graphs.
            step()
            taken[next(kind for kind, begins in kinds.items() if contender.startswith(begins))] = step()
        times_faster = taken[cells.LOOP] / taken["Recast"]
        found[name] = {kind: f"{taken[kind]:.2f}" if kind in taken else "" for kind in kinds}
        found[name][f"{cells.LOOP} / Recast"] = f"{times_faster:.0f}"
    return found


def _table(sharing: tuple[int, ...], seconds: float) -> dict[str, Any]:
    """By the number of processes: what they train."""
    found: dict[str, Any] = {}
    for processes in sharing:
        found[str(processes)] = _shared(processes, seconds)
        print(json.dumps({processes: found[str(processes)]}), file=sys.stderr, flush=True)
    return found


def _shared(processes: int, seconds: float) -> dict[str, str]:
    """What so many processes train at once, each in a folder of its own."""
    with tempfile.TemporaryDirectory() as name:
        started = []
        for i in range(processes):
            folder = Path(name) / str(i)
            folder.mkdir()
            (folder / "data").symlink_to(Path("data").absolute())
            shutil.copy(PARAMS, folder)
            started.append(
                subprocess.Popen(
                    [sys.executable, "-m", "benchmarks.gpu", str(seconds)],
                    cwd=folder,
                    env={**os.environ, "PYTHONPATH": _path(), "OMP_NUM_THREADS": "1"},
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
        for process in started:
            _line(process)
        with _watched() as seen:
            for process in started:
                assert process.stdin
                process.stdin.write("go\n")
                process.stdin.flush()
            ended = [json.loads(_line(process)) for process in started]
        for process in started:
            process.communicate()
    rate = sum(each["epochs"] / each["seconds"] for each in ended)
    return {
        "trials/h": f"{3600 * rate / EPOCHS:,.0f}",
        "s a trial": f"{processes * EPOCHS / rate:.1f}",
        "GPU busy, %": f"{sum(seen['busy']) / len(seen['busy']):.0f}",
        "W": f"{sum(seen['watts']) / len(seen['watts']):.0f}",
        "MiB of the GPU": f"{max(seen['memory']):,.0f}",
        "of them a trial's tensors, MiB": f"{max(each['peak'] for each in ended):.0f}",
    }


def _path() -> str:
    """Where a process in another folder finds this project."""
    here = str(Path(__file__).parent.parent.absolute())
    return os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])


def _line(process: "subprocess.Popen[str]") -> str:
    """
    Raises:
        RecastError: the process has ended instead of writing one.
    """
    assert process.stdout
    line = process.stdout.readline()
    if not line:
        raise RecastError(f"a process that trains has ended with {process.wait()}; what it said stands above")
    return line


@contextmanager
def _watched() -> Iterator[dict[str, list[float]]]:
    """What NVIDIA's management library says of the GPU, as nvidia-smi does, five times a second."""
    seen: dict[str, list[float]] = {"busy": [], "watts": [], "memory": []}
    over = threading.Event()
    pynvml.nvmlInit()
    gpu = pynvml.nvmlDeviceGetHandleByIndex(0)

    def watch() -> None:
        while not over.wait(0.2):
            seen["busy"].append(pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu)
            seen["watts"].append(pynvml.nvmlDeviceGetPowerUsage(gpu) / 1000)
            seen["memory"].append(pynvml.nvmlDeviceGetMemoryInfo(gpu).used / 2**20)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield seen
    finally:
        over.set()
        watcher.join()
        pynvml.nvmlShutdown()


def _trials() -> list[Trial]:
    """Trials of one epoch."""
    grid = Grid.model_validate({"seeds": list(range(1000)), "architectures": {"gru": {}}})
    settings = load_settings().model_copy(update={"grid": grid, "train": TrainSettings(epochs=1)})
    return list_trials(settings, PROBLEM, paths.stage_folder("window", PROBLEM))


def _train(seconds: float) -> None:
    """Train, after a word on standard input, until so many seconds have passed, and print what was done."""
    device = torch.device("cuda:0")
    first, *trials = _trials()
    train_trial(first, device, None, lambda: None)
    print("ready", flush=True)
    sys.stdin.readline()
    begun, epochs = time.perf_counter(), 0
    while time.perf_counter() - begun < seconds:
        train_trial(trials[epochs], device, None, lambda: None)
        epochs += 1
    taken, peak = time.perf_counter() - begun, torch.cuda.max_memory_reserved() / 2**20
    print(json.dumps({"epochs": epochs, "seconds": taken, "peak": peak}), flush=True)


if __name__ == "__main__":
    _train(float(sys.argv[1]))
