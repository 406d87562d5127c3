"""Training speed compared with a plain PyTorch loop and with Keras on TensorFlow, on input (128, 120, 14).

Recast trains a whole trial: it draws batches, validates on a fifth as many windows, and saves a checkpoint after each
epoch. The bare layer computes the same steps and the same validation on one batch, without all of that.

Goals: never slower than plain PyTorch; 2.8 times as fast as Keras for a GRU, 2 for a simple RNN, 1.4 for an LSTM; 85 %
of the samples per second of the bare layer.
"""

import json
import os
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from architectures import REGISTRY, WindowShape
from architectures.cells.elman import Elman
from architectures.cells.gru import GRU
from architectures.cells.layer import RecurrentLayer
from architectures.cells.lstm import LSTM
from benchmarks.batches import make_batches, make_windows
from benchmarks.cells import time_step
from benchmarks.measure import install_peers, measure_in_turn, read_line, round_results, send_go, time_call
from project.settings.sections import TrainSettings
from stages.training.fit import fit
from stages.training.objectives import choose_objective

BATCH, STEPS_BACK, FEATURES = 128, 120, 14
EPOCHS = 2
LAYERS: dict[str, tuple[type[RecurrentLayer], type[nn.RNN | nn.LSTM | nn.GRU]]] = {
    "gru": (GRU, nn.GRU),
    "lstm": (LSTM, nn.LSTM),
    "simple_rnn": (Elman, nn.RNN),
}
CASES = (("gru", 32, 1), ("lstm", 32, 1), ("simple_rnn", 32, 1), ("gru", 16, 1), ("gru", 32, 2), ("lstm", 32, 2))
"""Architecture, units and threads."""

VALIDATION_SHARE = 5
"""How many times as many windows as validation has an epoch trains on."""

RECAST, BARE = "Recast", "Recast's bare layer"


def run(quick: bool) -> dict[str, Any]:
    """Samples per second that are trained on."""
    steps, rounds = (20, 2) if quick else (100, 5)
    keras = install_peers("keras")
    result: dict[str, Any] = {"batch": BATCH, "window": [STEPS_BACK, FEATURES], "epochs": EPOCHS, "steps": steps}
    shares: dict[str, dict[str, str]] = {}
    for name, units, threads in CASES:
        torch.set_num_threads(threads)
        contenders: dict[str, Callable[[], float]] = {
            RECAST: _train_with_recast(name, units, steps, threads),
            BARE: _run_bare_layer(name, units, steps),
            "plain torch.nn in a loop": _train_with_torch(name, units, EPOCHS * steps),
        }
        with ExitStack() as processes:
            for jit_compile in ("on", "off") if threads == 1 else ("auto",):
                if keras:
                    process = _start_keras(keras, name, jit_compile, units, EPOCHS * steps, threads)
                    processes.enter_context(process)
                    contenders[f"Keras on TensorFlow, jit_compile {jit_compile}"] = partial(_train_with_keras, process)
            results = measure_in_turn(contenders, "samples/s", rounds, more_is_better=True)
        case = f"{name} {units}, {threads} thread{'s' if threads > 1 else ''}"
        result[case] = round_results(results)
        shares[case] = {"share": f"{results[1].ratio:.0%}"}
    result["share of the bare layer's samples per second that a whole trial reaches"] = shares
    if not keras:
        result["note"] = "TensorFlow could not be installed, so Keras was left out"
    return result


def _train_with_recast(name: str, units: int, steps: int, threads: int) -> Callable[[], float]:
    data = np.random.default_rng(0).standard_normal((20_000, FEATURES)).astype(np.float32)
    batches = make_batches(data, STEPS_BACK, 1, 24)
    validated = make_batches(data[: STEPS_BACK + 24 + BATCH * steps // VALIDATION_SHARE], STEPS_BACK, 1, 24)
    shape = WindowShape(STEPS_BACK, FEATURES, 1, 24, 24)
    hyperparameters = REGISTRY[name].Hyperparameters.model_validate({"units": units})
    settings = TrainSettings(epochs=EPOCHS, steps_per_epoch=steps, batch_size=BATCH, threads=threads)
    objective = choose_objective(make_windows(data, STEPS_BACK, 1, 24), settings)

    def measure_rate() -> float:
        with tempfile.TemporaryDirectory() as folder:
            splits = {"train": batches, "validation": validated}
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
        return EPOCHS * steps * BATCH / duration

    return measure_rate


def _run_bare_layer(name: str, units: int, steps: int) -> Callable[[], float]:
    layer, x_BTF = LAYERS[name][0](FEATURES, units), torch.randn(BATCH, STEPS_BACK, FEATURES)
    measure_step = time_step(layer, x_BTF, EPOCHS * steps)

    def validate() -> None:
        with torch.no_grad():
            for _ in range(EPOCHS * steps // VALIDATION_SHARE):
                layer(x_BTF)

    def measure_rate() -> float:
        seconds = EPOCHS * steps * measure_step() / 1000 + time_call(validate)
        return EPOCHS * steps * BATCH / seconds

    return measure_rate


def _train_with_torch(name: str, units: int, steps: int) -> Callable[[], float]:
    """The loop that a person would write: a layer, a linear output, RMSprop, MAE, and a batch in memory."""
    x_BTF, y_B = torch.randn(BATCH, STEPS_BACK, FEATURES), torch.randn(BATCH)

    def measure_rate() -> float:
        layer, output = LAYERS[name][1](FEATURES, units, batch_first=True), nn.Linear(units, 1)
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


def _start_keras(
    python: Path, name: str, jit_compile: str, units: int, steps: int, threads: int
) -> "subprocess.Popen[str]":
    """The process of Keras's own loop on the same shapes. It keeps running between the rounds."""
    script = Path(__file__).parent / "keras_steps.py"
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    command = [str(python), str(script), name, jit_compile, str(units), str(steps), str(threads)]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    )


def _train_with_keras(process: "subprocess.Popen[str]") -> float:
    send_go(process)
    return float(json.loads(read_line(process)))
