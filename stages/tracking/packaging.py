"""The best trial of each architecture as an MLflow model that can be served."""

import hashlib
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
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
from pydantic import TypeAdapter

from architectures import REGISTRY, Network
from forecasting.forecaster import ABOUT, About, Forecaster, quantile_ends
from project import paths
from project.source_code import ROOT, imported_modules, module_file, source_digest
from stages.evaluation.leaderboard import Evaluation
from stages.evaluation.metrics import conformal_reach
from stages.evaluation.selection import best_trials
from stages.sequences.reading import VOCABULARY
from stages.tables.table import CHUNK, Table, times, values
from stages.tables.windows import Windowing, ranges, read_windows
from stages.tracking import store
from stages.training import batches
from stages.training.fit import answers
from stages.training.networks import load_network
from stages.training.objectives import objective, ordered, shape_for
from stages.training.trials import Trial, read_run, trial_folder

MODEL = "forecasting.mlflow_model"
"""The module that MLflow runs to load a model. What it imports is stored with the model."""
DECIDES_NO_FORECAST = {"architectures.view": "says what can be drawn of a network at work"}
"""Modules that are stored with a model, but do not decide its forecasts, each with the reason."""
REQUIRED = ("httpx", "mlflow", "numpy", "polars", "pyarrow", "pydantic", "safetensors", "tenacity", "torch")
"""The distributions that it needs."""
PACKAGED = "recast.model"
"""Tag of a run whose model is stored."""
CONTENT = "recast.model.content"
"""Tag of a run, and of a version: what its model is made of, see `content`. One of something else is stored again."""

_lock = threading.Lock()
"""MLflow keeps the model that it loads in a variable of the process, in which problems are evaluated side by side."""


@store.reported()
def package(evaluation: Evaluation, trials: Sequence[Trial]) -> list[str]:
    """Store the best trial, by validation, of each architecture's best configuration; the URIs of the new models.

    Raises:
        TrackingError: MLflow cannot be reached.
    """
    stored = []
    for row, best in best_trials(evaluation.rows, trials):
        run = str(read_run(trial_folder(best))["mlflow_run_id"])
        tags = store.client().get_run(run).data.tags
        levels = [interval.level for interval in row.intervals]
        about = described(best, evaluation.unit, evaluation.synthetic, levels, tags.get("mlflow.source.git.commit", ""))
        if PACKAGED not in tags or tags.get(CONTENT) != content(about):
            stored.append(_store(best, run, about))
    return stored


def content(about: About) -> str:
    """The hash of all that decides a model's forecasts and intervals: its description and the code stored with it."""
    # Reaches and ranges follow from the rest; the commit is that of the run.
    same = replace(about, reaches={}, ranges={}, commit="")
    modules = (MODEL, "architectures.combined", REGISTRY[about.architecture].__module__)
    digest = hashlib.sha256(source_digest(modules, DECIDES_NO_FORECAST).encode())
    digest.update(TypeAdapter(About).dump_json(same))
    return digest.hexdigest()[:16]


def forecaster_of(trial: Trial, unit: str, synthetic: bool, levels: Sequence[float], commit: str = "") -> Forecaster:
    """A trained trial as what forecasts from rows in their own units, with intervals by its validation errors; see
    `described`.
    """
    return _forecaster(trial, described(trial, unit, synthetic, levels, commit))


def described(trial: Trial, unit: str, synthetic: bool, levels: Sequence[float], commit: str) -> About:
    """What a trial's forecaster is made of, without what has to be measured for it: reaches and ranges.

    Args:
        unit: the target's.
        levels: of the intervals; the validation windows must be enough for them.
        commit: that it was trained at.
    """
    windows = read_windows(paths.stage("window", trial.problem))
    of_table: dict[str, Any] = {}
    if isinstance(windows, Windowing):
        table = Table.read(paths.stage("normalize", trial.problem))
        of_table = {
            # A baseline knows of no quantiles.
            "quantiles": objective(windows, trial.train).quantiles if trial.trainable else (),
            "preparation": table.preparation,
            "cadence": table.cadence,
            "lookback": windows.lookback,
            "step": windows.step,
            "delay": windows.delay,
            "leads": tuple(windows.leads),
            "series": tuple(each.name for each in table.series),
            "levels": tuple(levels),
        }
    return About(
        problem=trial.problem,
        key=trial.key,
        architecture=trial.configuration.architecture,
        hyperparameters=trial.configuration.hyperparameters.model_dump(mode="json"),
        shape=shape_for(windows, trial.train),
        objective=windows.objective,
        unit=unit,
        synthetic=synthetic,
        code=trial.code,
        data=trial.data,
        commit=commit,
        **of_table,
    )


def _forecaster(trial: Trial, about: About) -> Forecaster:
    """The forecaster that is described, with all that is measured for it."""
    normalized, windowed = paths.stage("normalize", trial.problem), paths.stage("window", trial.problem)
    network = load_network(trial, read_windows(windowed))
    if about.preparation:
        table = Table.read(normalized)
        reaches = _reaches(network, about.quantiles, about.levels, table, normalized, windowed)
        about = replace(about, reaches=reaches, ranges=_ranges(table, normalized))
    return Forecaster(about, network)


def _reaches(
    network: Network,
    quantiles: tuple[float, ...],
    levels: Sequence[float],
    table: Table,
    normalized: Path,
    windowed: Path,
) -> dict[float, tuple[float, ...]]:
    """How far the intervals reach, by level and lead, in the target's unit; see `evaluation.forecasts.bands`."""
    wanted = [level for level in levels if not quantile_ends(quantiles, level)]
    if not wanted:
        return {}
    data = batches.read(normalized, windowed, torch.device("cpu"))["validation"]
    scale = table.preparation.of_target[1]
    middle = quantiles.index(0.5) if quantiles else 0
    pieces = [
        ((ordered(y_BSO) if quantiles else y_BSO)[:, :, middle] - batch.y_BSK[:, :, 0]).double().numpy()
        for y_BSO, batch in answers(network, data)
    ]
    errors_NL = np.concatenate(pieces) * scale
    found: dict[float, tuple[float, ...]] = {}
    for level in wanted:
        reaches = [conformal_reach(errors_N, level) for errors_N in errors_NL.T]
        # The evaluation has intervals of those levels alone for which the windows are enough.
        assert all(reach is not None for reach in reaches)
        found[level] = tuple(reach for reach in reaches if reach is not None)
    return found


def _ranges(table: Table, normalized: Path) -> dict[str, tuple[float, float]]:
    """The least and the greatest value of each declared column in the training rows, in its unit."""
    count = len(table.preparation.table.features)
    low_C, high_C = np.full(count, np.inf), np.full(count, -np.inf)
    normalized_NF = values(normalized)
    for each in table.series:
        for begin in range(0, each.train, CHUNK):
            until = each.first + min(begin + CHUNK, each.train)
            piece_NC = normalized_NF[each.first + begin : until, :count]
            low_C = np.fmin(low_C, np.fmin.reduce(piece_NC))
            high_C = np.fmax(high_C, np.fmax.reduce(piece_NC))
    center_C, scale_C = (np.array(each[:count]) for each in (table.preparation.center, table.preparation.scale))
    # Seven digits: the table is of float32.
    low_C, high_C = (np.array([float(f"{v:.7g}") for v in each * scale_C + center_C]) for each in (low_C, high_C))
    return dict(zip(table.preparation.table.features, zip(low_C.tolist(), high_C.tolist(), strict=True), strict=True))


def example_of(about: About, ingested: Path, normalized: Path, windowed: Path) -> pl.DataFrame:
    """The rows of the first training window, as a user has them."""
    assert about.preparation
    known, fill = about.preparation.table.known, about.preparation.table.fill
    row = int(ranges(windowed, "train")[0, 0])
    cadence = timedelta(seconds=about.cadence)
    series = next(each for each in Table.read(normalized).series if row < each.first + each.rows)
    # A window is named by the row after its inputs, which need not be there.
    origin: datetime = times(normalized)[row - about.step].item()
    first = origin - (about.rows - 1) * cadence - (fill or timedelta(0))
    last = origin + (about.horizon * cadence if known else timedelta(0))
    others = [name for name in about.columns if name not in known]
    return (
        pl.scan_parquet(ingested / "table.parquet")
        .filter(pl.col("series") == series.name, pl.col("time").is_between(first, last))
        .select("time", "series", *about.columns)
        .with_columns(pl.when(pl.col("time") <= origin).then(pl.col(others)))
        .collect(engine="streaming")
    )


def _signature(about: About, example: pl.DataFrame | NDArray[Any], answer: Any) -> ModelSignature:
    """What goes into the model and comes out of it."""
    if isinstance(example, np.ndarray):
        shape = about.shape
        answers_ = [-1] if shape.each else [shape.leads] if shape.leads > 1 else []
        outputs = [shape.outputs] if shape.outputs > 1 else []
        # Where each step is answered, a sequence may have any length.
        return ModelSignature(
            inputs=Schema([TensorSpec(example.dtype, (-1, -1 if shape.each else shape.steps, shape.features))]),
            outputs=Schema([TensorSpec(np.dtype(np.float64), (-1, *answers_, *outputs))]),
        )
    kinds = {pl.String: DataType.string, pl.Float64: DataType.double}
    return ModelSignature(
        inputs=Schema(
            [
                ColSpec(DataType.datetime, "time"),
                ColSpec(DataType.string, "series", required=len(about.series) > 1),
                *(ColSpec(DataType.double, name) for name in about.columns),
            ]
        ),
        outputs=Schema(
            [ColSpec(kinds.get(type(dtype), DataType.datetime), name) for name, dtype in answer.schema.items()]
        ),
        params=ParamSchema([ParamSpec("all_windows", DataType.boolean, default=False)]),
    )


def _store(trial: Trial, run: str, described: About) -> str:
    """Log the model of one trial to its own run."""
    ingested, normalized, windowed = (paths.stage(name, trial.problem) for name in ("ingest", "normalize", "window"))
    forecaster = _forecaster(trial, described)
    about = forecaster.about
    example: pl.DataFrame | NDArray[Any]
    if about.preparation:
        example = example_of(about, ingested, normalized, windowed)
        answer = forecaster.forecast(example).drop("inputs")
    else:
        data = batches.read(normalized, windowed, torch.device("cpu"))["train"]
        example, answer = data.at(torch.arange(1)).x_BTF.numpy(), None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "artifacts").mkdir()
        forecaster.write(folder / "artifacts", example)
        if (normalized / VOCABULARY).exists():
            shutil.copy(normalized / VOCABULARY, folder / "artifacts" / VOCABULARY)
        ended = store.client().get_run(run).info.end_time
        with store.storing(), _lock, _imports_kept(), mlflow.start_run(run_id=run):
            model = mlflow.pyfunc.log_model(
                name="model",
                python_model=str(ROOT / module_file(MODEL)),
                code_paths=_copy_code(folder / "code"),
                artifacts={
                    "model" if file.name == ABOUT else file.stem: str(file)
                    for file in sorted((folder / "artifacts").iterdir())
                },
                signature=_signature(about, example, answer),
                input_example=example.to_pandas() if isinstance(example, pl.DataFrame) else example,
                pip_requirements=[f"{name}=={version(name).partition('+')[0]}" for name in REQUIRED],
                metadata={"columns": about.columns, "unit": about.unit, "synthetic": about.synthetic},
            )
        # When the trial ended, not when its model was stored.
        store.client().set_terminated(run, end_time=ended)
        # First the model: without the others it is stored again.
        for tag, value in ((PACKAGED, model.model_uri), (CONTENT, content(described))):
            store.client().set_tag(run, tag, value)
    return str(model.model_uri)


def _copy_code(folder: Path) -> list[str]:
    """Copy the modules that a model imports into `folder`; the packages that they are in."""
    modules = imported_modules([MODEL, "architectures"])
    packages = {package for module in modules for package in _packages(module)}
    for module in modules | packages:
        file = module_file(module)
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, folder / file)
    return sorted(str(folder / package) for package in {module.partition(".")[0] for module in modules})


def _packages(module: str) -> list[str]:
    """The packages that hold a module, the outermost first."""
    parts = module.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts))]


@contextmanager
def _imports_kept() -> Iterator[None]:
    """Take back what MLflow, which tries a model before it stores it, does to the imports of this process.

    It leaves the model's copies of our packages first on the path, where a worker process would import them from.
    """
    path = list(sys.path)
    stored = {module.partition(".")[0] for module in imported_modules([MODEL, "architectures"])}
    modules = {name: module for name, module in sys.modules.items() if name.partition(".")[0] in stored}
    try:
        yield
    finally:
        sys.path[:] = path
        sys.modules.update(modules)
