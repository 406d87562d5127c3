"""Training speed compared with a plain PyTorch loop and with Keras on TensorFlow, on input (128, 120, 14).

Goal: never slower than plain PyTorch.
"""

import json
import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from architectures import REGISTRY, WindowShape
from benchmarks.batches import make_batches, make_windows
from benchmarks.measure import install_peers, measure_in_turn, read_line, round_results, send_go, time_call
from project.settings.sections import TrainSettings
from stages.training.fit import fit
from stages.training.objectives import choose_objective

BATCH, STEPS_BACK, FEATURES, UNITS = 128, 120, 14, 32
LAYERS = {"gru": nn.GRU, "lstm": nn.LSTM, "simple_rnn": nn.RNN}


def run(quick: bool) -> dict[str, Any]:
    """Samples per second of one epoch. Only Recast's epoch includes drawing the batches, and one validation batch."""
    steps, rounds = (20, 2) if quick else (100, 5)
    keras = install_peers("keras")
    result: dict[str, Any] = {"batch": BATCH, "window": [STEPS_BACK, FEATURES], "units": UNITS}
    for threads in (1, 2):
        for name in LAYERS:
            torch.set_num_threads(threads)
            contenders: dict[str, Callable[[], float]] = {
                "Recast": _train_with_recast(name, steps, threads),
                "plain torch.nn in a loop": _train_with_torch(name, steps),
            }
            if keras:
                contenders["Keras on TensorFlow"] = _train_with_keras(keras, name, steps, threads)
            results = measure_in_turn(contenders, "samples/s", rounds, more_is_better=True)
            result[f"{name}, {threads} thread{'s' if threads > 1 else ''}"] = round_results(results)
    if not keras:
        result["note"] = "TensorFlow could not be installed, so Keras was left out"
    return result


def _train_with_recast(name: str, steps: int, threads: int) -> Callable[[], float]:
    data = np.random.default_rng(0).standard_normal((20_000, FEATURES)).astype(np.float32)
    batches = make_batches(data, STEPS_BACK, 1, 24)
    one_batch = make_batches(data[: STEPS_BACK + 24 + BATCH], STEPS_BACK, 1, 24)
    shape = WindowShape(STEPS_BACK, FEATURES, 1, 24, 24)
    hyperparameters = REGISTRY[name].Hyperparameters()
    settings = TrainSettings(epochs=1, steps_per_epoch=steps, batch_size=BATCH, threads=threads)
    objective = choose_objective(make_windows(data, STEPS_BACK, 1, 24), settings)

    def measure_rate() -> float:
        with tempfile.TemporaryDirectory() as folder:
            splits = {"train": batches, "validation": one_batch}
            duration = time_call(
                lambda: fit(
                    name,
                    hyperparameters,
                    0,
                    settings,
                    shape,
                    objective,
                    splits,
                    torch.device("cpu"),
                    Path(folder) / "checkpoint.pt",
                    lambda state: None,
                )
            )
        return steps * BATCH / duration

    return measure_rate


def _train_with_torch(name: str, steps: int) -> Callable[[], float]:
    """The loop that a person would write: a layer, a linear output, RMSprop, MAE, and a batch in memory."""
    x_BTF, y_B = torch.randn(BATCH, STEPS_BACK, FEATURES), torch.randn(BATCH)

    def measure_rate() -> float:
        layer, output = LAYERS[name](FEATURES, UNITS, batch_first=True), nn.Linear(UNITS, 1)
        optimizer = torch.optim.RMSprop([*layer.parameters(), *output.parameters()], lr=1e-3)

        def train_epoch() -> None:
            for _ in range(steps):
                h_BTH, _ = layer(x_BTF)
                loss = nn.functional.l1_loss(output(h_BTH[:, -1]).squeeze(1), y_B)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()

        return steps * BATCH / time_call(train_epoch)

    return measure_rate


def _train_with_keras(python: Path, name: str, steps: int, threads: int) -> Callable[[], float]:
    """Keras's own loop on the same shapes, in a process that keeps running between the rounds."""
    script = Path(__file__).parent / "keras_steps.py"
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    command = [str(python), str(script), name, str(steps), str(threads)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    )

    def measure_rate() -> float:
        send_go(process)
        return float(json.loads(read_line(process)))

    return measure_rate
