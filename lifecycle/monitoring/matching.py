"""Forecasts of the log beside what was observed since: one row for each forecast, with its errors."""

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from forecasting.quantiles import find_interval_outputs
from learning.measures import Measure
from lifecycle import forecast_log
from lifecycle.monitoring.versions import MAE, MonitoredVersion
from problems.problem import Problem


def match_forecasts(
    problem: Problem, name: str, ingested: Path, versions: Mapping[int, MonitoredVersion]
) -> pl.DataFrame:
    """The forecasts whose targets were observed: one for each version, series, origin and lead, the first one made.

    Left out are forecasts of targets that their version was trained or selected on, and those at whose origin there is
    no value for a forecast of persistence.

    Returns:
        Columns: `day` (of the target, UTC), `model_version`; `error` and `persistence`, the absolute errors of the
        forecast and of persistence in the target's unit; `measure`, the name of the measure by which the version is
        judged (see `judging_columns`); `score`, the score by that measure; and for each level
        `inside_<level>`, whether the interval contains the observation, null where the version has no such interval.
    """
    forecasts = (
        forecast_log.read_forecasts(name)
        .sort("made")
        .unique(["model_version", "series", "origin", "lead"], keep="first", maintain_order=True)
    )
    known_until = pl.DataFrame(
        {
            "model_version": list(versions),
            "known_until": [version.known_until.item() for version in versions.values()],
        },
        schema={"model_version": pl.Int64, "known_until": pl.Datetime("ms")},
    )
    target = problem.table.target
    observed = (
        pl.scan_parquet(ingested / "table.parquet")
        .select("series", "time", pl.col(target).alias("observed"))
        .drop_nulls()
        .collect(engine="streaming")
    )
    # Persistence is the last value, carried forward as far as an input may be.
    last = observed.rename({"observed": "last", "time": "last_time"}).sort("last_time")
    tolerance = problem.table.fill or timedelta(0)
    matched = (
        forecasts.join(known_until, on="model_version")
        .filter(pl.col("target_time") > pl.col("known_until"))
        .join(observed, left_on=["series", "target_time"], right_on=["series", "time"])
        .sort("origin")
        .join_asof(last, left_on="origin", right_on="last_time", by="series", check_sortedness=False)
        .filter(pl.col("origin") - pl.col("last_time") <= tolerance)
    )
    levels = [column.removeprefix("low_") for column in matched.columns if column.startswith("low_")]
    errors = matched.select(
        pl.col("target_time").dt.date().alias("day"),
        "model_version",
        (pl.col("forecast") - pl.col("observed")).abs().alias("error"),
        (pl.col("last") - pl.col("observed")).abs().alias("persistence"),
        *(pl.col("observed").is_between(f"low_{level}", f"high_{level}").alias(f"inside_{level}") for level in levels),
    )
    return errors.with_columns(_score_forecasts(matched, errors, versions))


def _score_forecasts(
    matched: pl.DataFrame, errors: pl.DataFrame, versions: Mapping[int, MonitoredVersion]
) -> list[pl.Series]:
    """The columns `measure` and `score` of `match_forecasts`."""
    # Where the measure is the MAE, the scores are the absolute errors.
    names = np.full(len(matched), MAE, dtype=object)
    score_N = errors["error"].to_numpy().copy()
    version_N = matched["model_version"].to_numpy()
    for number, version in versions.items():
        measure = version.selection_measure
        rows_N = np.flatnonzero(version_N == number)
        forecasts = matched[rows_N]
        columns = judging_columns(version, forecasts)
        if measure.name == MAE or columns is None:
            continue
        names[rows_N] = measure.name
        observed_N = forecasts["observed"].to_numpy()
        score_N[rows_N] = _score(measure, forecasts.select(columns).to_numpy(), observed_N)
    return [pl.Series("measure", names, dtype=pl.String), pl.Series("score", score_N)]


def _score(measure: Measure, forecast_NO: NDArray[np.float64], observed_N: NDArray[np.float64]) -> NDArray[np.float64]:
    """The scores (N,) of forecasts (N, O) by a measure."""
    forecast_N1O = torch.tensor(forecast_NO[:, None, :])
    observed_N11 = torch.tensor(observed_N[:, None, None])
    score_N: NDArray[np.float64] = measure.score(forecast_N1O, observed_N11)[:, 0].double().numpy()
    return score_N


def judging_columns(version: MonitoredVersion, forecasts: pl.DataFrame) -> list[str] | None:
    """The columns of the forecast log that hold the outputs of a version, in their order.

    The log holds a forecast and the ends of intervals. If the outputs are quantiles, the forecast is the median, and
    the other quantiles are in the log where they are the ends of an interval of `evaluate.intervals`.

    Args:
        forecasts: those of the version, as the log has them.

    Returns:
        None: the log does not hold all outputs. The version is judged by the MAE then.
    """
    quantiles = version.objective.quantiles
    if version.is_baseline or not quantiles:
        return ["forecast"] * version.objective.outputs
    column_of = {quantiles.index(0.5): "forecast"}
    for column in forecasts.columns:
        level = column.removeprefix("low_")
        if level != column and not forecasts[column].null_count():
            ends = find_interval_outputs(quantiles, float(level))
            column_of |= {ends[0]: f"low_{level}", ends[1]: f"high_{level}"} if ends else {}
    outputs = range(version.objective.outputs)
    return [column_of[output] for output in outputs] if set(outputs) <= column_of.keys() else None


def count_unforecast(problem: Problem, name: str, ingested: Path) -> pl.DataFrame:
    """By day, the number of observations of a series at a time, and the number of those that nothing had forecast.

    The days begin with that of the first forecast. Only series that were ever forecast count.

    Returns:
        Columns: `day`, `observed`, `unforecast`.
    """
    forecasts = forecast_log.read_forecasts(name).select("series", pl.col("target_time").alias("time")).unique()
    return (
        pl.scan_parquet(ingested / "table.parquet")
        .filter(
            pl.col(problem.table.target).is_not_null(),
            pl.col("time") >= forecasts["time"].min(),
            pl.col("series").is_in(forecasts["series"].unique().to_list()),
        )
        .select("series", "time")
        .collect(engine="streaming")
        .join(forecasts.with_columns(is_forecast=pl.lit(True)), on=["series", "time"], how="left")
        .group_by(pl.col("time").dt.date().alias("day"))
        .agg(pl.len().alias("observed"), pl.col("is_forecast").is_null().sum().alias("unforecast"))
        .sort("day")
    )
