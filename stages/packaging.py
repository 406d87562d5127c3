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
from stages.selection import best_trials
from stages.trials import Trial, read_run, trial_folder
from stages.window import Windowing

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
    problem = evaluation.problem
    table = Table.read(places.stage("normalize", problem))
    windowing = Windowing.read(places.stage("window", problem))
    stored = []
    for _, best in best_trials(evaluation.rows, trials):
        run = str(read_run(trial_folder(best))["mlflow_run_id"])
        if PACKAGED not in tracking.client().get_run(run).data.tags:
            stored.append(_store(best, run, table, windowing))
    return stored


def _store(trial: Trial, run: str, table: Table, windowing: Windowing) -> str:
    """Log the model of one trial to its own run."""
    normalized, windowed = places.stage("normalize", trial.problem), places.stage("window", trial.problem)
    shape = windowing.shape
    data = batches.read(normalized, windowed, torch.device("cpu"))["train"]
    x_BTF, _ = data.at(torch.arange(1))
    example = (x_BTF.double().numpy() * np.array(table.scale) + np.array(table.center)).astype(np.float32)
    float32 = np.dtype(np.float32)
    signature = ModelSignature(
        inputs=Schema([TensorSpec(float32, (-1, shape.steps, shape.features))]),
        outputs=Schema([TensorSpec(np.dtype(np.float64), (-1,))]),
    )
    about = {
        "architecture": trial.configuration.architecture,
        "hyperparameters": trial.configuration.hyperparameters.model_dump(mode="json"),
        "shape": asdict(shape),
        "features": table.features,
        "unit": table.unit,
        "center": table.center,
        "scale": table.scale,
    }
    weights = trial_folder(trial) / "weights.safetensors"
    with tempfile.TemporaryDirectory() as folder:
        write_json(Path(folder) / "model.json", about)
        artifacts = {"model": str(Path(folder) / "model.json")}
        if weights.exists():
            artifacts["weights"] = str(weights)
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
                metadata={"features": list(table.features), "unit": table.unit, "synthetic": table.synthetic},
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
