"""The best trial of each architecture, stored in MLflow as a model that can be served, with the code that it needs.

`mlflow.pyfunc.log_model` takes seconds for each model: it reads the metadata of every installed distribution, loads the
model to try it, and reads each metric of the run one by one. So the folder of a model is written here, in MLflow's
format. What all models of a grid have in common is written once; a model that is loaded checks itself against its
stored example.
"""

import json
import platform
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from mlflow.entities import LoggedModelOutput, LoggedModelStatus, Metric, Run, RunTag
from mlflow.models import Model, ModelSignature, convert_input_example_to_serving_input
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec
from numpy.typing import NDArray

from forecasting.about import About
from forecasting.forecaster import ABOUT_FILE
from project import paths
from project.source_code import ROOT, find_module_file
from stages.evaluation.leaderboard import Evaluation
from stages.evaluation.metrics import Errors
from stages.evaluation.selection import select_best_trials
from stages.sequences.reading import VOCABULARY_FILE
from stages.tracking import store
from stages.tracking.runs import read_runs
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

REQUIRED_DISTRIBUTIONS = (
    "filelock",
    "llvmlite",
    "mlflow",
    "numba",
    "numpy",
    "polars",
    "pyarrow",
    "pydantic",
    "safetensors",
    "torch",
)
"""The distributions that the stored code needs. Polars needs pyarrow to make pandas' tables."""
BUILD_DISTRIBUTIONS = ("pip", "setuptools", "wheel")
"""The distributions that an environment is built with."""
MODEL_TAG = "recast.model"
"""Tag of a run whose model is stored: the model's URI."""
CONTENT_TAG = "recast.model.content"
"""Tag of a run, and of a version: the hash of its model's content. A model with another content is stored again."""

CODE_FOLDER, FILES_FOLDER = "code", "artifacts"
"""In the folder of a model: the code that it runs, and the files of the forecaster."""
EXAMPLE_FILE, SERVING_EXAMPLE_FILE = "input_example.json", "serving_input_example.json"
EPOCH_METRICS = ("train_loss", "validation_", "system/")
"""How the names of metrics begin that describe an epoch, not the trained model."""
UPLOADS = 4
"""Models that are stored side by side: most of the time goes into waiting for the store."""


@dataclass(frozen=True)
class StaleModel:
    """A model that the store lacks, or has with another content.

    Attributes:
        run: the trial's run.
        content: the hash of the model's content.
    """

    trial: Trial
    run: Run
    about: About
    content: str


@dataclass(frozen=True)
class SharedFiles:
    """What the models of a grid have in common, in a folder that is copied into each model.

    Attributes:
        example: the rows, or the windows of sequences, that every model is tried with.
        example_info: what MLflow needs to know of the files with the example.
    """

    folder: Path
    example: pl.DataFrame | NDArray[Any]
    example_info: dict[str, str]


@store.translate_errors()
def store_best_models(
    evaluation: Evaluation, trials: Sequence[Trial], validation_errors: Mapping[str, Errors] | None = None
) -> list[str]:
    """Store the best trial, by validation, of each architecture's best configuration, and return the new models' URIs.

    A model is stored again when its content has changed: its description, or the code that it runs.

    Args:
        validation_errors: the normalised errors (N, L) of trials on validation, by key; those of other trials are
            measured, and of all trials where it is None.

    Raises:
        TrackingError: MLflow cannot be reached.
    """
    stale = _find_stale_models(evaluation, trials)
    if not stale:
        return []
    with tempfile.TemporaryDirectory() as name:
        shared = _write_shared_files(Path(name) / "shared", stale[0].about)
        folders = [_write_model(model, shared, Path(name), validation_errors or {}) for model in stale]
        with ThreadPoolExecutor(UPLOADS) as pool:
            return list(pool.map(_upload_model, stale, folders))


def _find_stale_models(evaluation: Evaluation, trials: Sequence[Trial]) -> list[StaleModel]:
    best_trials = list(select_best_trials(evaluation.rows, trials))
    run_ids = [str(read_run_notes(trial_folder(trial))["mlflow_run_id"]) for _, trial in best_trials]
    runs = read_runs(store.get_or_create_experiment(evaluation.problem), run_ids)
    stale = []
    for (row, trial), run_id in zip(best_trials, run_ids, strict=True):
        tags = runs[run_id].data.tags
        levels = [interval.level for interval in row.intervals]
        commit = tags.get("mlflow.source.git.commit", "")
        about = describe_model(trial, evaluation.unit, evaluation.synthetic, levels, commit)
        content = hash_content(about)
        if MODEL_TAG not in tags or tags.get(CONTENT_TAG) != content:
            stale.append(StaleModel(trial, runs[run_id], about, content))
    return stale


def _write_shared_files(folder: Path, about: About) -> SharedFiles:
    """Write what all models of a grid have in common: code, requirements, and an example of the input.

    Args:
        about: the description of any of them.
    """
    copy_code(folder / CODE_FOLDER)
    model_file = ROOT / find_module_file(MODEL_MODULE)
    shutil.copy(model_file, folder / model_file.name)
    _write_requirements(folder)
    ingested, normalized, windowed = (
        paths.stage_folder(name, about.problem) for name in ("ingest", "normalize", "window")
    )
    example: pl.DataFrame | NDArray[Any]
    if about.preparation:
        example = read_example_rows(about, ingested, normalized, windowed)
        serving_example = convert_input_example_to_serving_input(example.to_pandas())
        kind = {"type": "dataframe", "pandas_orient": "split"}
    else:
        data = reading.read_batches(normalized, windowed, torch.device("cpu"))["train"]
        example = data.select(torch.arange(1)).x_BTF.numpy()
        serving_example = convert_input_example_to_serving_input(example)
        kind = {"type": "ndarray"}
    (content,) = json.loads(serving_example).values()
    (folder / EXAMPLE_FILE).write_text(json.dumps(content), encoding="utf-8")
    (folder / SERVING_EXAMPLE_FILE).write_text(serving_example, encoding="utf-8")
    files = {"artifact_path": EXAMPLE_FILE, "serving_input_path": SERVING_EXAMPLE_FILE}
    (folder / FILES_FOLDER).mkdir()
    if (normalized / VOCABULARY_FILE).exists():
        shutil.copy(normalized / VOCABULARY_FILE, folder / FILES_FOLDER / VOCABULARY_FILE)
    return SharedFiles(folder, example, kind | files)


def _write_requirements(folder: Path) -> None:
    """Write what an environment for a model consists of, for pip, for a virtual environment and for conda."""
    python = platform.python_version()
    requirements = [f"{name}=={version(name).partition('+')[0]}" for name in REQUIRED_DISTRIBUTIONS]
    (folder / "requirements.txt").write_text("\n".join(requirements) + "\n", encoding="utf-8")
    virtual = {
        "python": python,
        "build_dependencies": list(BUILD_DISTRIBUTIONS),
        "dependencies": ["-r requirements.txt"],
    }
    conda = {
        "name": "mlflow-env",
        "channels": ["conda-forge"],
        "dependencies": [f"python={python}", "pip", {"pip": requirements}],
    }
    # JSON is YAML too.
    (folder / "python_env.yaml").write_text(json.dumps(virtual, indent=1), encoding="utf-8")
    (folder / "conda.yaml").write_text(json.dumps(conda, indent=1), encoding="utf-8")


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


def _write_model(
    stale: StaleModel, shared: SharedFiles, folder: Path, validation_errors: Mapping[str, Errors]
) -> tuple[Path, Model]:
    """Write a model into a new folder below `folder`; return that folder, and MLflow's description of the model."""
    forecaster = build_forecaster(stale.trial, stale.about, validation_errors.get(stale.trial.key))
    about = forecaster.about
    model_folder = folder / stale.trial.key
    shutil.copytree(shared.folder, model_folder)
    files = model_folder / FILES_FOLDER
    forecaster.write(files, shared.example)
    if isinstance(shared.example, pl.DataFrame):
        signature = _rows_signature(about, forecaster.forecast(shared.example).drop("inputs"))
    else:
        signature = _sequence_signature(about, shared.example.dtype)
    model = Model(
        run_id=stale.run.info.run_id,
        signature=signature,
        saved_input_example_info=shared.example_info,
        metadata={"columns": list(about.columns), "unit": about.unit, "synthetic": about.synthetic},
        model_size_bytes=sum(file.stat().st_size for file in model_folder.rglob("*") if file.is_file()),
    )
    model.add_flavor(
        "python_function",
        loader_module="mlflow.pyfunc.loaders.code_model",
        python_version=platform.python_version(),
        env={"conda": "conda.yaml", "virtualenv": "python_env.yaml"},
        code=CODE_FOLDER,
        model_code_path=find_module_file(MODEL_MODULE).name,
        artifacts={
            "model" if file.name == ABOUT_FILE else file.stem: {"path": f"{FILES_FOLDER}/{file.name}"}
            for file in sorted(files.iterdir())
        },
        streamable=False,
    )
    return model_folder, model


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


def _upload_model(stale: StaleModel, written: tuple[Path, Model]) -> str:
    """Store the model in the folder with its description, below the trial's run, and return its URI."""
    (folder, description), run, client = written, stale.run, store.get_client()
    run_id = run.info.run_id
    model = client.create_logged_model(
        run.info.experiment_id, name="model", source_run_id=run_id, params=dict(run.data.params)
    )
    try:
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
        description.artifact_path, description.model_uuid = model.artifact_location, model.model_id
        description.model_id = model.model_id
        description.save(str(folder / "MLmodel"))
        with store.translate_artifact_errors():
            client.log_model_artifacts(model.model_id, str(folder))
    except Exception:
        client.finalize_logged_model(model.model_id, LoggedModelStatus.FAILED)
        raise
    client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    now = int(time.time() * 1000)
    # MLflow's page of models shows and compares the metrics that are logged with a model's id. The tags come last: if a
    # kill leaves the run without them, the model is stored again.
    client.log_batch(
        run_id,
        metrics=[
            Metric(name, value, now, 0, model_id=model.model_id, run_id=run_id)
            for name, value in run.data.metrics.items()
            if not name.startswith(EPOCH_METRICS)
        ],
        tags=[RunTag(MODEL_TAG, model.model_uri), RunTag(CONTENT_TAG, stale.content)],
    )
    return str(model.model_uri)
