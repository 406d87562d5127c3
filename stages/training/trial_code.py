"""The source code that decides the result of a trial, as a digest for the trial's key."""

from functools import cache
from pathlib import Path

from architectures import REGISTRY
from project.source_code import ROOT, digest_source

TRAINING_MODULE = "stages.training.bundle"
"""The module that trains a trial. What it imports decides the result, unless the table below says why it does not."""

DECIDES_NO_TRIAL = {
    "architectures.kernels.compiled": "compiles loops, whose own code counts, and keeps them",
    "architectures.kernels.loading": "says whether loops can be compiled here; trial.json says which loops were used",
    "architectures.view": "says what can be drawn of a network at work",
    "flows": "decides when and where a trial is trained",
    "forecasting.about": "describes a stored model",
    "forecasting.filling": "fills the rows, which stand in the table that the key hashes",
    "forecasting.forecaster": "forecasts with a trained network",
    "forecasting.mlflow_model": "serves a stored model",
    "forecasting.quantiles": "makes intervals of forecasts",
    "forecasting.windows": "makes windows of the rows that a stored model is given",
    "infra": "starts servers and shares devices",
    "lifecycle": "compares, serves and monitors trained networks",
    "problems": "says where rows come from; the rows themselves are in the table that the key hashes",
    "project": "reads the settings, whose values are in the key, and says where files are and how they are written",
    "stages.array_files": "writes the table, which the key hashes",
    "stages.dependencies": "writes the dependencies in dvc.yaml",
    "stages.evaluate": "measures trained networks",
    "stages.evaluation": "measures trained networks",
    "stages.fetching": "brings the raw files",
    "stages.ingest": "writes the rows, which the key hashes",
    "stages.normalize": "writes the table, which the key hashes",
    "stages.report": "draws what was measured",
    "stages.sequences.cut": "writes the windows, which the key hashes",
    "stages.sequences.encode": "writes the sequences, which the key hashes",
    "stages.sequences.ingest": "writes the sequences as they were read",
    "stages.table_discovery": "proposes settings for a file",
    "stages.tables.cells": "writes the rows, which the key hashes",
    "stages.tables.checks": "checks the rows",
    "stages.tables.ingested": "names the files with the rows, which the key hashes",
    "stages.tables.polars_errors": "explains errors in the rows",
    "stages.tables.polars_limits": "bounds the memory that writing the rows takes",
    "stages.tables.quality": "reports on the rows",
    "stages.tables.seasons": "measures how well a climatology describes the validation rows",
    "stages.tables.tabulation": "writes the rows, which the key hashes",
    "stages.tables.times": "writes the rows, which the key hashes",
    "stages.tracking": "records what happened",
    "stages.train": "lists the trials of a grid",
    "stages.training.expansion": "expands the grid into trials, whose values are in the key",
    "stages.training.listed_trials": "says what the list of a grid's trials holds",
    "stages.training.networks": "loads trained networks",
    "stages.training.outcomes": "reads how trials ended",
    "stages.training.peak_memory": "measures memory",
    "stages.training.recurrent_loops": "compiles loops before trials are trained",
    "stages.training.trial_code": "computes this digest",
    "stages.training.trial_log": "reports what happened",
    "stages.training.trials": "computes the keys of trials and says where their files are",
    "stages.window": "writes the windows, which the key hashes",
}
"""Modules, or whole packages, whose code does not decide the result of a trial, each with the reason."""


def list_start_modules(architecture: str) -> tuple[str, ...]:
    """The modules whose imports are the code that decides a trial of the architecture."""
    return TRAINING_MODULE, "architectures.combined", REGISTRY[architecture].__module__


@cache
def digest_trial_code(architecture: str, root: Path = ROOT) -> str:
    """The digest of the source code that decides a trial of the architecture; see `project.source_code`.

    Args:
        root: the folder of the project's packages.
    """
    return digest_source(list_start_modules(architecture), DECIDES_NO_TRIAL, root)
