"""Forecasts of the log beside what was observed since: one row for each forecast, with its errors."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from forecasting.quantiles import find_interval_outputs
from learning.conformal import spread_quantiles
from learning.measures import MAE, Measure
from lifecycle import forecast_log
from lifecycle.monitoring.versions import MonitoredVersion
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
        judged (see `judging_columns`); `score` and `persistence_score`, the scores of both by that measure; and for
        each level `inside_<level>`, whether the interval contains the observation, null where the version has no such
        interval.
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
    persistence = _Persistence(observed, problem.table.fill or timedelta(0))
    matched = persistence.join(
        forecasts.join(known_until, on="model_version")
        .filter(pl.col("target_time") > pl.col("known_until"))
        .join(observed, left_on=["series", "target_time"], right_on=["series", "time"])
    )
    levels = [column.removeprefix("low_") for column in matched.columns if column.startswith("low_")]
    errors = matched.select(
        pl.col("target_time").dt.date().alias("day"),
        "model_version",
        (pl.col("forecast") - pl.col("observed")).abs().alias("error"),
        (pl.col("last") - pl.col("observed")).abs().alias("persistence"),
        *(pl.col("observed").is_between(f"low_{level}", f"high_{level}").alias(f"inside_{level}") for level in levels),
    )
    return errors.with_columns(_score_forecasts(matched, errors, versions, persistence))


@dataclass(frozen=True)
class _Persistence:
    """The forecast of persistence: the last value.

    Attributes:
        observed: `series`, `time` and `observed`.
        tolerance: how far the last value is carried forward, as an input is.
    """

    observed: pl.DataFrame
    tolerance: timedelta

    def join(self, forecasts: pl.DataFrame) -> pl.DataFrame:
        """The forecasts that have a last value, with it in the column `last`, sorted by `origin`."""
        last = self.observed.rename({"observed": "last", "time": "last_time"}).sort("last_time")
        return (
            forecasts.sort("origin")
            .join_asof(last, left_on="origin", right_on="last_time", by="series", check_sortedness=False)
            .filter(pl.col("origin") - pl.col("last_time") <= self.tolerance)
        )

    def spread(self, version: MonitoredVersion, horizon: timedelta, longest: timedelta) -> NDArray[np.float64]:
        """How far the quantiles of a version's objective are from the last value (O,), as in its leaderboard.

        Args:
            horizon: from the last value to the target.
            longest: the longest horizon of the version's forecasts: the windows that it was selected on reach as far
                ahead.

        Returns:
            NaN where the table does not have the rows that the version was selected on.
        """
        origins = self.observed.select("series", origin=pl.col("time") - horizon, target="observed")
        is_selected = pl.col("origin") <= pl.lit(version.known_until - np.timedelta64(longest))
        if version.validated_from is not None:
            is_selected &= pl.col("origin") >= pl.lit(version.validated_from)
        selected = self.join(origins.filter(is_selected))
        error_N = (selected["last"] - selected["target"]).to_numpy()
        if not len(error_N):
            return np.full(len(version.objective.quantiles), np.nan)
        spread_LO = spread_quantiles(error_N[:, None], version.objective.quantiles)
        return spread_LO.ravel()


def _score_forecasts(
    matched: pl.DataFrame, errors: pl.DataFrame, versions: Mapping[int, MonitoredVersion], persistence: _Persistence
) -> list[pl.Series]:
    """The columns `measure`, `score` and `persistence_score` of `match_forecasts`."""
    # Where the measure is the MAE, the scores are the absolute errors.
    names = np.full(len(matched), MAE, dtype=object)
    score_N, persistence_N = (errors[name].to_numpy().copy() for name in ("error", "persistence"))
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
        horizon_N = (forecasts["target_time"] - forecasts["origin"]).to_numpy()
        for horizon in np.unique(horizon_N):
            is_lead_N = horizon_N == horizon
            spread_O = persistence.spread(version, horizon.item(), horizon_N.max().item())
            last_N = forecasts["last"].to_numpy()[is_lead_N]
            persistence_N[rows_N[is_lead_N]] = _score(measure, last_N[:, None] + spread_O, observed_N[is_lead_N])
    return [
        pl.Series("measure", names, dtype=pl.String),
        pl.Series("score", score_N),
        pl.Series("persistence_score", persistence_N),
    ]


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
    if not quantiles:
        return ["forecast"]
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
