"""What one GPU trains: trials per hour by the number of processes that share it, and a step of each recurrent layer.

A trial is the lecture's GRU (row D6) on Jena's windows, trained by `train_trial` without Prefect and MLflow: 20 epochs
of 500 batches of 128. Each process trains one epoch after another for six seconds, each from a new network and with its
pass over the validation windows. Trials per hour are the epochs per hour divided by 20. `runner.slots_per_gpu` in
params.yaml says how many processes share a GPU. They take turns or, where its daemon runs, they run side by side by
NVIDIA's Multi-Process Service (MPS). A GPU counts as busy while any kernel runs on it, however few of its cores the
kernel uses.

With turns, four processes are enough, because the GPU works for one at a time. Side by side, 16 processes, one for each
core of that machine, train four times as much, 17 times what one process trains. The larger Python's share of the time,
the more processes a GPU has room for. Besides its tensors, each process takes some 750 MiB for CUDA itself.

The layers are those of the benchmark `cells`: milliseconds of a forward and a backward pass, the mean of ten in a row
after ten warm-up passes, on input (128, 120, 14) with 32 units. Goal: three times as fast as the textbook loop. Where
the name says recurrent dropout, PyTorch's layer and both loops are without it. As plain loops, without CUDA graphs,
Recast's own layers took 20 ms (Jordan), 39 (LSTM with recurrent dropout), 49 (peephole LSTM), 40 (GRU with recurrent
dropout), 33 (GRU, reset before) and 15 (Elman with recurrent dropout): 2.1 to 3.7 times as fast as the textbook loop.
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
from benchmarks.measure import read_line, send_go
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
    """Trials per hour, and milliseconds per step.

    Raises:
        RecastError: there is no GPU, or there are no windows to train on.
    """
    if not torch.cuda.is_available():
        raise RecastError("this benchmark needs a GPU, and PyTorch finds none here")
    if not paths.stage_folder("window", PROBLEM).exists():
        raise RecastError(
            f"data/window/{PROBLEM} does not exist; make it: recast use grids/lecture.yaml && recast run {PROBLEM}"
        )
    seconds, sharing = (2.0, SHARING[:2]) if quick else (6.0, SHARING)
    result: dict[str, Any] = {"gpu": torch.cuda.get_device_name()}
    result["processes that take turns"] = _compare_process_counts(sharing, seconds)
    with multi_process_service(True) as uses_mps:
        if uses_mps:
            result["processes side by side, with MPS"] = _compare_process_counts(sharing, seconds)
        else:
            result["note"] = f"{CONTROL} does not run here, so MPS was left out"
    result["layers, ms per step"] = _time_layers(5 if quick else 10)
    return result


def _time_layers(times: int) -> dict[str, dict[str, str]]:
    """The milliseconds of a step by layer and kind of contender."""
    torch.set_num_threads(1)
    x_BTF = torch.randn(cells.BATCH, cells.STEPS_BACK, cells.FEATURES, device="cuda")
    kinds = {
        "Recast": "Recast",
        "PyTorch's layer": "torch.nn.",
        "PyTorch's cell in a loop": "loop over",
        cells.LOOP: cells.LOOP,
    }
    table = {}
    for name, factories in cells.CONTENDERS.items():
        milliseconds = {}
        for contender, make_layer in factories.items():
            step = cells.time_step(make_layer(cells.UNITS).to("cuda"), x_BTF, times)
            # The first calls allocate memory and capture graphs.
            step()
            kind = next(kind for kind, prefix in kinds.items() if contender.startswith(prefix))
            milliseconds[kind] = step()
        times_faster = milliseconds[cells.LOOP] / milliseconds["Recast"]
        table[name] = {kind: f"{milliseconds[kind]:.2f}" if kind in milliseconds else "" for kind in kinds}
        table[name][f"{cells.LOOP} / Recast"] = f"{times_faster:.0f}"
    return table


def _compare_process_counts(sharing: tuple[int, ...], seconds: float) -> dict[str, Any]:
    """What the processes train, by their number."""
    table: dict[str, Any] = {}
    for processes in sharing:
        table[str(processes)] = _train_in_processes(processes, seconds)
        print(json.dumps({processes: table[str(processes)]}), file=sys.stderr, flush=True)
    return table


def _train_in_processes(count: int, seconds: float) -> dict[str, str]:
    """What `count` processes train at once, each in a folder of its own."""
    with tempfile.TemporaryDirectory() as name:
        processes = []
        for i in range(count):
            folder = Path(name) / str(i)
            folder.mkdir()
            (folder / "data").symlink_to(Path("data").absolute())
            shutil.copy(PARAMS, folder)
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "benchmarks.gpu", str(seconds)],
                    cwd=folder,
                    env={**os.environ, "PYTHONPATH": _python_path(), "OMP_NUM_THREADS": "1"},
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
        for process in processes:
            read_line(process)
        with _watch_gpu() as samples:
            for process in processes:
                send_go(process)
            reports = [json.loads(read_line(process)) for process in processes]
        for process in processes:
            process.communicate()
    rate = sum(report["epochs"] / report["seconds"] for report in reports)
    return {
        "trials/h": f"{3600 * rate / EPOCHS:,.0f}",
        "s per trial": f"{count * EPOCHS / rate:.1f}",
        "GPU busy, %": f"{sum(samples['busy']) / len(samples['busy']):.0f}",
        "power, W": f"{sum(samples['watts']) / len(samples['watts']):.0f}",
        "GPU memory, MiB": f"{max(samples['memory']):,.0f}",
        "one trial's tensors, MiB": f"{max(report['peak'] for report in reports):.0f}",
    }


def _python_path() -> str:
    """The PYTHONPATH with which a process in another folder finds this project."""
    root = str(Path(__file__).parent.parent.absolute())
    return os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])


@contextmanager
def _watch_gpu() -> Iterator[dict[str, list[float]]]:
    """Sample the GPU five times per second with NVIDIA's management library, as nvidia-smi does."""
    samples: dict[str, list[float]] = {"busy": [], "watts": [], "memory": []}
    ended = threading.Event()
    pynvml.nvmlInit()
    gpu = pynvml.nvmlDeviceGetHandleByIndex(0)

    def watch() -> None:
        while not ended.wait(0.2):
            samples["busy"].append(pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu)
            samples["watts"].append(pynvml.nvmlDeviceGetPowerUsage(gpu) / 1000)
            samples["memory"].append(pynvml.nvmlDeviceGetMemoryInfo(gpu).used / 2**20)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield samples
    finally:
        ended.set()
        watcher.join()
        pynvml.nvmlShutdown()


def _list_short_trials() -> list[Trial]:
    """Trials of one epoch each."""
    grid = Grid.model_validate({"seeds": list(range(1000)), "architectures": {"gru": {}}})
    settings = load_settings().model_copy(update={"grid": grid, "train": TrainSettings(epochs=1)})
    return list_trials(settings, PROBLEM, paths.stage_folder("window", PROBLEM))


def _train(seconds: float) -> None:
    """After a line on standard input, train for some seconds, and print how much was trained."""
    device = torch.device("cuda:0")
    warm_up, *trials = _list_short_trials()
    train_trial(warm_up, device, None, lambda: None)
    print("ready", flush=True)
    sys.stdin.readline()
    begun, epochs = time.perf_counter(), 0
    while time.perf_counter() - begun < seconds:
        train_trial(trials[epochs], device, None, lambda: None)
        epochs += 1
    duration, peak = time.perf_counter() - begun, torch.cuda.max_memory_reserved() / 2**20
    print(json.dumps({"epochs": epochs, "seconds": duration, "peak": peak}), flush=True)


if __name__ == "__main__":
    _train(float(sys.argv[1]))
