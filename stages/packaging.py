"""The best trial of each architecture as an MLflow model that can be served."""

import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import mlflow
import numpy as np
import torch
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec

from stages import batches, places, tracking
from stages.atomic import write_json
from stages.leaderboard import Evaluation
from stages.normalize import Table
from stages.objectives import objective, shape_for
from stages.selection import best_trials
from stages.sequences import VOCABULARY
from stages.trials import Trial, read_run, trial_folder
from stages.window import Windowing, read_windows

CODE = Path(__file__).parent / "forecaster.py"
CODE_PATH = "architectures"
PACKAGED = "recast.model"
"""Tag of a run whose model is stored."""

_lock = threading.Lock()
"""MLflow keeps the model that it loads in a variable of the process, in which problems are evaluated side by side."""


@tracking.reported()
def package(evaluation: Evaluation, trials: Sequence[Trial]) -> list[str]:
    """Store the best trial, by validation, of each architecture's best configuration; the URIs of the new models.

    Raises:
        TrackingError: MLflow cannot be reached.
    """
    stored = []
    for _, best in best_trials(evaluation.rows, trials):
        run = str(read_run(trial_folder(best))["mlflow_run_id"])
        if PACKAGED not in tracking.client().get_run(run).data.tags:
            stored.append(_store(best, run, evaluation))
    return stored


def _store(trial: Trial, run: str, evaluation: Evaluation) -> str:
    """Log the model of one trial to its own run."""
    normalized, windowed = places.stage("normalize", trial.problem), places.stage("window", trial.problem)
    windows = read_windows(windowed)
    shape = shape_for(windows, trial.train)
    x_BTF = batches.read(normalized, windowed, torch.device("cpu"))["train"].at(torch.arange(1)).x_BTF
    about = {
        "architecture": trial.configuration.architecture,
        "hyperparameters": trial.configuration.hyperparameters.model_dump(mode="json"),
        "shape": asdict(shape),
        "objective": windows.objective,
        "quantiles": objective(windows, trial.train).quantiles,
        "unit": evaluation.unit,
    }
    if isinstance(windows, Windowing):
        prepared = Table.read(normalized).preparation
        about |= {"features": prepared.features, "center": prepared.center, "scale": prepared.scale}
        example = (x_BTF.double().numpy() * np.array(prepared.scale) + np.array(prepared.center)).astype(np.float32)
    else:
        names = [f"number {i + 1}" for i in range(shape.features)] if shape.codes is None else ["code"]
        about |= {"features": names, "center": [0.0] * shape.features, "scale": [1.0] * shape.features}
        example = x_BTF.numpy()
    answer = [-1] if shape.each else [shape.leads] if shape.leads > 1 else []
    outputs = [shape.outputs] if shape.outputs > 1 else []
    # Where each step is answered, a sequence may have any length.
    steps = -1 if shape.each else shape.steps
    signature = ModelSignature(
        inputs=Schema([TensorSpec(example.dtype, (-1, steps, shape.features))]),
        outputs=Schema([TensorSpec(np.dtype(np.float64), (-1, *answer, *outputs))]),
    )
    weights = trial_folder(trial) / "weights.safetensors"
    with tempfile.TemporaryDirectory() as folder:
        write_json(Path(folder) / "model.json", about)
        artifacts = {"model": str(Path(folder) / "model.json")}
        if weights.exists():
            artifacts["weights"] = str(weights)
        if (normalized / VOCABULARY).exists():
            artifacts["vocabulary"] = str(normalized / VOCABULARY)
        ended = tracking.client().get_run(run).info.end_time
        with tracking.storing(), _lock, _imports_kept(), mlflow.start_run(run_id=run):
            model = mlflow.pyfunc.log_model(
                name="model",
                python_model=str(CODE),
                code_paths=[CODE_PATH],
                artifacts=artifacts,
                signature=signature,
                input_example=example,
                pip_requirements=[
                    f"{name}=={version(name).partition('+')[0]}"
                    for name in ("mlflow", "numpy", "pydantic", "safetensors", "torch")
                ],
                metadata={"features": about["features"], "unit": about["unit"], "synthetic": evaluation.synthetic},
            )
        # When the trial ended, not when its model was stored.
        tracking.client().set_terminated(run, end_time=ended)
        tracking.client().set_tag(run, PACKAGED, model.model_uri)
    return str(model.model_uri)


@contextmanager
def _imports_kept() -> Iterator[None]:
    """Take back what MLflow, which tries a model before it stores it, does to the imports of this process.

    It leaves the model's copy of `architectures` first on the path, where a worker process would import it from.
    """
    path = list(sys.path)
    modules = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == CODE_PATH}
    try:
        yield
    finally:
        sys.path[:] = path
        sys.modules.update(modules)
