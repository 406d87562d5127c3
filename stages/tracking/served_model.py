"""A trained trial as a model that serves: its description, its intervals, the code that it needs, and example rows."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from pydantic import TypeAdapter

from architectures import REGISTRY
from forecasting.about import About
from forecasting.forecaster import Forecaster
from forecasting.quantiles import find_interval_outputs
from learning.conformal import conformal_half_width
from project import paths
from project.source_code import ROOT, digest_source, find_imported_modules
from stages.evaluation.metrics import Errors
from stages.tables.ingested import TABLE_FILE
from stages.tables.table import CHUNK_ROWS, Table, read_times, read_values
from stages.tables.windows import TableWindows, read_ranges, read_windows
from stages.training import reading
from stages.training.networks import load_network
from stages.training.objectives import choose_objective, choose_shape
from stages.training.scoring import collect_errors
from stages.training.trials import Trial

MODEL_MODULE = "forecasting.mlflow_model"
"""The module that MLflow runs to load a model. What it imports is stored with the model."""

DECIDES_NO_FORECAST = {"architectures.view": "says what can be drawn of a network at work"}
"""Modules that are stored with a model but do not decide its forecasts, each with the reason."""


_ABOUT = TypeAdapter(About)
"""Made once: that takes longer than all else that a hash of a model's content takes."""


@cache
def stored_modules(root: Path = ROOT) -> frozenset[str]:
    """The modules whose source is stored with every model: all that it may import, every architecture among them.

    Args:
        root: the folder that holds the project's packages.
    """
    return frozenset(find_imported_modules([MODEL_MODULE, "architectures"], root=root))


def hash_content(about: About, root: Path = ROOT) -> str:
    """A hash of everything that decides a model's forecasts and intervals: its description, and the code that it runs.

    Of the code that is stored with the model, other architectures do not count, nor does `DECIDES_NO_FORECAST`.

    Args:
        root: the folder that holds the project's packages.
    """
    modules = (MODEL_MODULE, "architectures.combined", REGISTRY[about.architecture].__module__)
    digest = hashlib.sha256(digest_source(modules, DECIDES_NO_FORECAST, root).encode())
    # The intervals and the ranges follow from the rest. The commit is only the one that was checked out in training.
    digest.update(_ABOUT.dump_json(replace(about, reaches={}, ranges={}, commit="")))
    return digest.hexdigest()[:16]


def describe_model(trial: Trial, unit: str, synthetic: bool, levels: Sequence[float], commit: str) -> About:
    """The description of a trial's forecaster, without what has to be measured for it: `reaches` and `ranges`.

    Args:
        unit: the target's unit.
        levels: the levels of the intervals; the validation windows must be enough for them.
        commit: the one that was checked out when the trial was trained.
    """
    windows = read_windows(paths.stage_folder("window", trial.problem))
    row_fields: dict[str, Any] = {}
    if isinstance(windows, TableWindows):
        table = Table.read(paths.stage_folder("normalize", trial.problem))
        row_fields = {
            "quantiles": choose_objective(windows, trial.train).quantiles,
            "preparation": table.preparation,
            "cadence": table.cadence,
            "lookback": windows.lookback,
            "step": windows.step,
            "delay": windows.delay,
            "leads": tuple(windows.leads),
            "series": tuple(series.name for series in table.series),
            "levels": tuple(levels),
        }
    return About(
        problem=trial.problem,
        key=trial.key,
        architecture=trial.configuration.architecture,
        hyperparameters=trial.configuration.hyperparameters.model_dump(mode="json"),
        shape=choose_shape(windows, trial.train),
        objective=windows.objective,
        unit=unit,
        synthetic=synthetic,
        code=trial.code,
        data=trial.data,
        commit=commit,
        **row_fields,
    )


def build_forecaster(trial: Trial, about: About, errors_NL: Errors | None = None) -> Forecaster:
    """The forecaster with this description, to which the measured widths of the intervals and ranges are added.

    Args:
        errors_NL: its normalised errors on validation, which decide the widths; None: they are measured.
    """
    normalized, windowed = paths.stage_folder("normalize", trial.problem), paths.stage_folder("window", trial.problem)
    network = load_network(trial, read_windows(windowed))
    if about.preparation:
        table = Table.read(normalized)
        levels = [level for level in about.levels if not find_interval_outputs(about.quantiles, level)]
        if levels and errors_NL is None:
            validation = reading.read_batches(normalized, windowed, torch.device("cpu"))["validation"]
            errors_NL = collect_errors(network, about.quantiles, validation)
        if levels and errors_NL is not None:
            about = replace(about, reaches=_find_half_widths(errors_NL * table.preparation.target_scaling[1], levels))
        about = replace(about, ranges=_measure_ranges(table, normalized))
    return Forecaster(about, network)


def _find_half_widths(errors_NL: Errors, levels: Sequence[float]) -> dict[float, tuple[float, ...]]:
    """Half the width of the intervals by level and lead, in the unit of the errors on validation, which decide it.

    Args:
        levels: those whose ends the network does not forecast.

    Raises:
        ValueError: the validation windows are too few for a level. The evaluation offers only levels with enough.
    """
    half_widths: dict[float, tuple[float, ...]] = {}
    for level in levels:
        widths = [conformal_half_width(errors_N, level) for errors_N in errors_NL.T]
        half_widths[level] = tuple(width for width in widths if width is not None)
        if len(half_widths[level]) < len(widths):
            raise ValueError(f"{len(errors_NL):,} validation windows are too few for an interval of level {level:g}")
    return half_widths


def _measure_ranges(table: Table, normalized: Path) -> dict[str, tuple[float, float]]:
    """The least and the greatest value of each declared column in the training rows, in its unit."""
    count = len(table.preparation.table.features)
    low_C, high_C = np.full(count, np.inf), np.full(count, -np.inf)
    normalized_NF = read_values(normalized)
    for series in table.series:
        for begin in range(0, series.train, CHUNK_ROWS):
            until = series.first + min(begin + CHUNK_ROWS, series.train)
            chunk_NC = normalized_NF[series.first + begin : until, :count]
            low_C = np.fmin(low_C, np.fmin.reduce(chunk_NC))
            high_C = np.fmax(high_C, np.fmax.reduce(chunk_NC))
    center_C, scale_C = np.array(table.preparation.center[:count]), np.array(table.preparation.scale[:count])
    # The table has float32 values: seven digits.
    low_C, high_C = (
        np.array([float(f"{value:.7g}") for value in end_C * scale_C + center_C]) for end_C in (low_C, high_C)
    )
    return dict(zip(table.preparation.table.features, zip(low_C.tolist(), high_C.tolist(), strict=True), strict=True))


def read_example_rows(about: About, ingested: Path, normalized: Path, windowed: Path) -> pl.DataFrame:
    """The rows of the first training window, in their own units, as a user has them."""
    if about.preparation is None:
        raise ValueError(f"{about.problem} has windows of sequences, not rows")
    known, fill = about.preparation.table.known, about.preparation.table.fill
    row = int(read_ranges(windowed, "train")[0, 0])
    cadence = timedelta(seconds=about.cadence)
    series = next(series for series in Table.read(normalized).series if row < series.first + series.rows)
    # A window is named by the row after its inputs, which need not exist.
    origin: datetime = read_times(normalized)[row - about.step].item()
    first = origin - (about.window_rows - 1) * cadence - (fill or timedelta(0))
    last = origin + (about.horizon_rows * cadence if known else timedelta(0))
    others = [name for name in about.columns if name not in known]
    return (
        pl.scan_parquet(ingested / TABLE_FILE)
        .filter(pl.col("series") == series.name, pl.col("time").is_between(first, last))
        .select("time", "series", *about.columns)
        .with_columns(pl.when(pl.col("time") <= origin).then(pl.col(others)))
        .collect(engine="streaming")
    )
