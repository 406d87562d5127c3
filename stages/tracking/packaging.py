"""The best trial of each architecture, stored in MLflow as a model that can be served, with the code that it needs."""

import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import polars as pl
import torch
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec
from numpy.typing import NDArray

from forecasting.about import About
from forecasting.forecaster import ABOUT_FILE
from project import paths
from project.source_code import ROOT, find_module_file
from stages.evaluation.leaderboard import Evaluation
from stages.evaluation.selection import select_best_trials
from stages.sequences.reading import VOCABULARY_FILE
from stages.tracking import store
from stages.tracking.served_model import (
    MODEL_MODULE,
    build_forecaster,
    describe_model,
    hash_content,
    read_example_rows,
    stored_modules,
)
from stages.training import reading
from stages.training.trials import Trial, read_run_notes, trial_folder

REQUIRED_DISTRIBUTIONS = ("mlflow", "numpy", "polars", "pyarrow", "pydantic", "safetensors", "torch")
"""The distributions that the stored code needs. Polars needs pyarrow to make pandas' tables."""
MODEL_TAG = "recast.model"
"""Tag of a run whose model is stored: the model's URI."""
CONTENT_TAG = "recast.model.content"
"""Tag of a run, and of a version: the hash of its model's content. A model with another content is stored again."""

_lock = threading.Lock()
"""MLflow keeps the model that it loads in a global variable, but problems are evaluated side by side in one process."""


@store.translate_errors()
def store_best_models(evaluation: Evaluation, trials: Sequence[Trial]) -> list[str]:
    """Store the best trial, by validation, of each architecture's best configuration, and return the new models' URIs.

    A model is stored again when its content has changed: its description, or the code that it runs.

    Raises:
        TrackingError: MLflow cannot be reached.
    """
    uris = []
    for row, best in select_best_trials(evaluation.rows, trials):
        run = str(read_run_notes(trial_folder(best))["mlflow_run_id"])
        tags = store.get_client().get_run(run).data.tags
        levels = [interval.level for interval in row.intervals]
        commit = tags.get("mlflow.source.git.commit", "")
        about = describe_model(best, evaluation.unit, evaluation.synthetic, levels, commit)
        if MODEL_TAG not in tags or tags.get(CONTENT_TAG) != hash_content(about):
            uris.append(_store_model(best, run, about))
    return uris


def _rows_signature(about: About, forecasts: pl.DataFrame) -> ModelSignature:
    """The types of the input and the output of a model of rows.

    Args:
        forecasts: an example of the output.
    """
    types = {pl.String: DataType.string, pl.Float64: DataType.double}
    return ModelSignature(
        inputs=Schema(
            [
                ColSpec(DataType.datetime, "time"),
                ColSpec(DataType.string, "series", required=len(about.series) > 1),
                *(ColSpec(DataType.double, name) for name in about.columns),
            ]
        ),
        outputs=Schema(
            [ColSpec(types.get(type(dtype), DataType.datetime), name) for name, dtype in forecasts.schema.items()]
        ),
        params=ParamSchema([ParamSpec("all_windows", DataType.boolean, default=False)]),
    )


def _sequence_signature(about: About, dtype: np.dtype[Any]) -> ModelSignature:
    """The types of the input and the output of a model of sequences.

    Args:
        dtype: of the input.
    """
    shape = about.shape
    answers = [-1] if shape.each else [shape.leads] if shape.leads > 1 else []
    outputs = [shape.outputs] if shape.outputs > 1 else []
    # Where each step is answered, a sequence can have any length.
    return ModelSignature(
        inputs=Schema([TensorSpec(dtype, (-1, -1 if shape.each else shape.steps, shape.features))]),
        outputs=Schema([TensorSpec(np.dtype(np.float64), (-1, *answers, *outputs))]),
    )


def _store_model(trial: Trial, run: str, description: About) -> str:
    """Log the model of a trial to the trial's run, and return the model's URI."""
    ingested, normalized, windowed = (
        paths.stage_folder(name, trial.problem) for name in ("ingest", "normalize", "window")
    )
    forecaster = build_forecaster(trial, description)
    about = forecaster.about
    example: pl.DataFrame | NDArray[Any]
    if about.preparation:
        example = rows = read_example_rows(about, ingested, normalized, windowed)
        signature, input_example = _rows_signature(about, forecaster.forecast(rows).drop("inputs")), rows.to_pandas()
    else:
        data = reading.read_batches(normalized, windowed, torch.device("cpu"))["train"]
        example = input_example = data.select(torch.arange(1)).x_BTF.numpy()
        signature = _sequence_signature(about, example.dtype)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "artifacts").mkdir()
        forecaster.write(folder / "artifacts", example)
        if (normalized / VOCABULARY_FILE).exists():
            shutil.copy(normalized / VOCABULARY_FILE, folder / "artifacts" / VOCABULARY_FILE)
        end_time = store.get_client().get_run(run).info.end_time
        with store.translate_artifact_errors(), _lock, _restore_imports(), mlflow.start_run(run_id=run):
            model = mlflow.pyfunc.log_model(
                name="model",
                python_model=str(ROOT / find_module_file(MODEL_MODULE)),
                code_paths=copy_code(folder / "code"),
                artifacts={
                    "model" if file.name == ABOUT_FILE else file.stem: str(file)
                    for file in sorted((folder / "artifacts").iterdir())
                },
                signature=signature,
                input_example=input_example,
                pip_requirements=[f"{name}=={version(name).partition('+')[0]}" for name in REQUIRED_DISTRIBUTIONS],
                metadata={"columns": about.columns, "unit": about.unit, "synthetic": about.synthetic},
            )
        # The end of the trial, not the time when its model was stored.
        store.get_client().set_terminated(run, end_time=end_time)
        # The tag of the model comes first: if a kill leaves it without the other, the model is stored again.
        for tag, value in ((MODEL_TAG, model.model_uri), (CONTENT_TAG, hash_content(description))):
            store.get_client().set_tag(run, tag, value)
    return str(model.model_uri)


def copy_code(folder: Path) -> list[str]:
    """Copy the modules that a model may import into `folder`, and return the folders of the top-level packages."""
    modules = stored_modules()
    packages = {package for module in modules for package in _parent_packages(module)}
    for module in modules | packages:
        file = find_module_file(module)
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, folder / file)
    return sorted({str(folder / module.partition(".")[0]) for module in modules})


def _parent_packages(module: str) -> list[str]:
    """The packages around a module, the outermost first."""
    parts = module.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts))]


@contextmanager
def _restore_imports() -> Iterator[None]:
    """Undo what MLflow does to the imports of this process when it tries a model before it stores it.

    It leaves the model's copies of our packages first on the path, and worker processes would import these.
    """
    path = list(sys.path)
    packages = {module.partition(".")[0] for module in stored_modules()}
    modules = {name: module for name, module in sys.modules.items() if name.partition(".")[0] in packages}
    try:
        yield
    finally:
        sys.path[:] = path
        sys.modules.update(modules)
