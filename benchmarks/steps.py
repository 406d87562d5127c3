"""Training steps a second against a plain PyTorch loop and against Keras on TensorFlow, on (128, 120, 14).

Aim: never slower than plain PyTorch.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from architectures import REGISTRY, WindowShape
from benchmarks.batches import _batches, _windowing
from benchmarks.measure import alternate, peers, seconds, table
from project.settings.sections import TrainSettings
from stages.training.fit import fit
from stages.training.objectives import choose_objective

BATCH, STEPS_BACK, FEATURES, UNITS = 128, 120, 14, 32
LAYERS = {"gru": nn.GRU, "lstm": nn.LSTM, "simple_rnn": nn.RNN}


def run(quick: bool) -> dict[str, Any]:
    """Samples a second of one epoch. Recast's includes drawing the batches and one validation batch; theirs nothing."""
    steps, rounds = (20, 2) if quick else (100, 5)
    keras = peers("keras")
    found: dict[str, Any] = {"batch": BATCH, "window": [STEPS_BACK, FEATURES], "units": UNITS}
    for threads in (1, 2):
        for name in LAYERS:
            torch.set_num_threads(threads)
            contenders: dict[str, Callable[[], float]] = {
                "Recast": _recast(name, steps, threads),
                "plain torch.nn in a loop": _plain(name, steps),
            }
            if keras:
                contenders["Keras on TensorFlow"] = _by_keras(keras, name, steps, threads)
            results = alternate(contenders, "samples/s", rounds, more_is_better=True)
            found[f"{name}, {threads} thread{'s' if threads > 1 else ''}"] = table(results)
    if not keras:
        found["note"] = "TensorFlow could not be installed; Keras was left out"
    return found


def _recast(name: str, steps: int, threads: int) -> Callable[[], float]:
    data = np.random.default_rng(0).standard_normal((20_000, FEATURES)).astype(np.float32)
    batches = _batches(data, STEPS_BACK, 1, 24)
    one_batch = _batches(data[: STEPS_BACK + 24 + BATCH], STEPS_BACK, 1, 24)
    shape = WindowShape(STEPS_BACK, FEATURES, 1, 24, 24)
    hyperparameters = REGISTRY[name].Hyperparameters()
    settings = TrainSettings(epochs=1, steps_per_epoch=steps, batch_size=BATCH, threads=threads)
    objective = choose_objective(_windowing(data, STEPS_BACK, 1, 24), settings)

    def rate() -> float:
        with tempfile.TemporaryDirectory() as folder:
            splits = {"train": batches, "validation": one_batch}
            taken = seconds(
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
                    lambda progress: None,
                )
            )
        return steps * BATCH / taken

    return rate


def _plain(name: str, steps: int) -> Callable[[], float]:
    """What a person would write: a layer, a linear output, RMSprop, MAE, batches that lie in memory."""
    x_BTF, y_B = torch.randn(BATCH, STEPS_BACK, FEATURES), torch.randn(BATCH)

    def rate() -> float:
        layer, output = LAYERS[name](FEATURES, UNITS, batch_first=True), nn.Linear(UNITS, 1)
        optimizer = torch.optim.RMSprop([*layer.parameters(), *output.parameters()], lr=1e-3)

        def epoch() -> None:
            for _ in range(steps):
                h_BTH, _ = layer(x_BTF)
                loss = nn.functional.l1_loss(output(h_BTH[:, -1]).squeeze(1), y_B)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()

        return steps * BATCH / seconds(epoch)

    return rate


def _by_keras(python: Path, name: str, steps: int, threads: int) -> Callable[[], float]:
    """Keras's own loop over the same shapes, in a process that stays up between the rounds."""
    script = Path(__file__).parent / "keras_steps.py"
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    command = [str(python), str(script), name, str(steps), str(threads)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    )

    def rate() -> float:
        assert process.stdin and process.stdout
        process.stdin.write("go\n")
        process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            sys.exit("Keras's process ended; run benchmarks/keras_steps.py by hand to see why")
        return float(json.loads(line))

    return rate
