"""Figures as metrics of MLflow: a run for each model version, a step for each day."""

from collections.abc import Mapping
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import polars as pl
from mlflow.entities import Metric

from lifecycle.monitoring.versions import MonitoredVersion
from stages.tracking import store

BATCH_SIZE = 1000
"""Metrics in one request: MLflow takes no more."""
DAY_MILLISECONDS = 86_400_000


@store.translate_errors()
def log_figures(problem: str, figures: pl.DataFrame, versions: Mapping[int, MonitoredVersion], page: Path) -> None:
    """Write the figures and the page to MLflow: a run for each version, a step for each day.

    Figures that MLflow has already are not written again. Those of the newest day, which is not over, are left for the
    next day.

    Raises:
        TrackingError: MLflow has failed.
    """
    client, experiment = store.get_client(), store.get_or_create_experiment(problem)
    if figures.is_empty():
        return
    today = figures["day"].max()
    for (number,), part in figures.group_by("model_version", maintain_order=True):
        if number not in versions:
            continue
        run = _find_or_create_run(experiment, problem, versions[int(str(number))])
        present = {
            (metric.key, metric.step, metric.value)
            for name, dtype in part.schema.items()
            if dtype.is_numeric() and name != "model_version"
            for metric in client.get_metric_history(run, name)
        }
        metrics = [
            Metric(name, float(value), timestamp, timestamp // DAY_MILLISECONDS)
            for row in part.filter(pl.col("day") < today).iter_rows(named=True)
            for timestamp in [_timestamp(row["day"])]
            for name, value in row.items()
            if isinstance(value, int | float) and name != "model_version" and np.isfinite(value)
        ]
        missing = [metric for metric in metrics if (metric.key, metric.step, metric.value) not in present]
        for begin in range(0, len(missing), BATCH_SIZE):
            client.log_batch(run, metrics=missing[begin : begin + BATCH_SIZE])
        with store.translate_artifact_errors():
            client.log_artifact(run, str(page))


def _timestamp(day: date) -> int:
    """The beginning of a day in UTC, in milliseconds since 1970, as MLflow has times."""
    return round(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp() * 1000)


def _find_or_create_run(experiment: str, problem: str, version: MonitoredVersion) -> str:
    """The id of the run that has the figures of a version."""
    client = store.get_client()
    same = f"tags.`recast.kind` = 'monitor' and tags.`recast.version` = '{version.version}'"
    if found := client.search_runs([experiment], same, max_results=1):
        return str(found[0].info.run_id)
    tags = {"recast.kind": "monitor", "recast.problem": problem, "recast.version": str(version.version)}
    run = client.create_run(experiment, run_name=f"monitor version {version.version}", tags=tags)
    client.log_param(run.info.run_id, "label", version.label)
    client.set_terminated(run.info.run_id)
    return str(run.info.run_id)
