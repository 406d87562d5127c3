"""The figures of each day and model version: errors, skill, coverage, drift, and what was not forecast.

The figures of a day cover the days of `monitor.window` that end with it. All of them are computed from the forecast log
and the ingested table: the same observations give the same figures, however often and whenever this is done, and a
corrected observation corrects its figures.
"""

from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import polars as pl

from learning.measures import MAE
from lifecycle.monitoring.drift import measure_drift
from lifecycle.monitoring.matching import count_unforecast, match_forecasts
from lifecycle.monitoring.versions import MonitoredVersion
from problems.problem import Problem
from project.settings.operation import MonitorSettings

FIGURES = ("mae", "persistence_mae", "mae_skill", "skill", "error", "missing", "drift")
"""Figures that are drawn and logged, beside the coverages and the errors by the measure by which a version is judged.

`error` and `skill` are by that measure: the multiple of the version's error on the test rows, and the skill score
against persistence. `mae_skill` is the skill score by MAE.
"""


def daily_figures(
    problem: Problem,
    name: str,
    settings: MonitorSettings,
    ingested: Path,
    versions: Mapping[int, MonitoredVersion],
) -> pl.DataFrame:
    """The figures of each day and version, as the history holds them.

    Returns:
        Columns: `day`, `model_version`, `forecasts` (their number), FIGURES, `drift_column` (the column that has
        drifted farthest), `coverage_<level>`, and `selection_measure`, the name of the measure by which the version is
        judged. The errors by that measure are in the column of its name, and those of persistence in
        `persistence_<measure>`.
    """
    matched = match_forecasts(problem, name, ingested, versions)
    if matched.is_empty():
        return pl.DataFrame()
    levels = [column.removeprefix("inside_") for column in matched.columns if column.startswith("inside_")]
    days = settings.window // timedelta(days=1)
    daily = matched.group_by("model_version", "day").agg(
        pl.len().alias("forecasts"),
        pl.col("error", "persistence", "score", "persistence_score").sum(),
        *(pl.col(f"inside_{level}").sum().alias(f"inside_{level}") for level in levels),
        *(pl.col(f"inside_{level}").count().alias(f"intervals_{level}") for level in levels),
    )
    unforecast = _rolling_sums(count_unforecast(problem, name, ingested), ["observed", "unforecast"], days)
    # The version that made the newest forecast has figures up to the newest observation: that it no longer forecasts
    # is a figure too.
    last_days = dict(daily.group_by("model_version").agg(pl.col("day").max()).iter_rows())
    last_days[max(last_days, key=lambda number: (last_days[number], number))] = unforecast["day"].max()
    measures = dict(matched.select("model_version", "measure").unique().iter_rows())
    parts = [
        _figures_of_version(part, measures[number], versions[number], levels, days, last_days[number])
        for (number,), part in daily.group_by("model_version", maintain_order=False)
    ]
    figures = pl.concat(parts, how="diagonal")
    missing = unforecast.select("day", _divide("unforecast", "observed").alias("missing"))
    figures = figures.join(missing, on="day", how="left")
    drifts = [
        _farthest_drift(problem, part, days, ingested, versions) for part in figures.partition_by("model_version")
    ]
    by_measure = sorted(set(measures.values()) - {MAE})
    coverages = [f"coverage_{level}" for level in levels]
    return (
        figures.join(pl.concat(drifts), on=["day", "model_version"], how="left")
        .select(
            *("day", "model_version", "forecasts", *FIGURES, "drift_column", *coverages),
            *("selection_measure", *by_measure, *(f"persistence_{measure}" for measure in by_measure)),
        )
        .sort("day", "model_version")
    )


def _figures_of_version(
    daily: pl.DataFrame, measure: str, version: MonitoredVersion, levels: Sequence[str], days: int, last: date
) -> pl.DataFrame:
    """The figures of one version on each day up to `last`, but `missing` and `drift`.

    Args:
        daily: the sums of each of its days.
        measure: the name of the measure by which it is judged.
        days: how many days the figures of a day cover.
    """
    counts = [f"{prefix}_{level}" for level in levels for prefix in ("inside", "intervals")]
    sums = ["error", "persistence", "score", "persistence_score", *counts]
    test_error = version.test_errors.get(measure) or None
    return (
        _rolling_sums(daily, ["forecasts", *sums], days, last)
        .with_columns(
            model_version=pl.lit(version.version, dtype=pl.Int64),
            selection_measure=pl.lit(measure),
            **{
                measure: _divide("score", "forecasts"),
                f"persistence_{measure}": _divide("persistence_score", "forecasts").fill_nan(None),
            },
        )
        .with_columns(
            mae=_divide("error", "forecasts"),
            persistence_mae=_divide("persistence", "forecasts"),
            mae_skill=_measure_skill("error", "persistence"),
            skill=_measure_skill("score", "persistence_score"),
            error=pl.col(measure) / pl.lit(test_error, dtype=pl.Float64),
            **{f"coverage_{level}": _divide(f"inside_{level}", f"intervals_{level}") for level in levels},
        )
    )


def _measure_skill(error: str, baseline: str) -> pl.Expr:
    """The skill score of two columns with sums of errors; null where the baseline has no error or is not known."""
    return pl.when(pl.col(baseline) > 0).then(1 - pl.col(error) / pl.col(baseline)).fill_nan(None)


def _divide(part: str, whole: str) -> pl.Expr:
    """The ratio of two columns; null where the second one is 0."""
    return pl.when(pl.col(whole) > 0).then(pl.col(part) / pl.col(whole))


def _rolling_sums(daily: pl.DataFrame, columns: Sequence[str], days: int, last: date | None = None) -> pl.DataFrame:
    """The sums over so many days that end with each day, from the first day to the last; days without a row count too.

    Args:
        last: the last day; None: that of the rows.
    """
    dates: list[date] = daily["day"].to_list()
    whole = pl.DataFrame({"day": pl.date_range(min(dates), last or max(dates), eager=True)})
    return whole.join(daily, on="day", how="left").select(
        "day", pl.col(*columns).fill_null(0).rolling_sum(days, min_samples=1)
    )


def _farthest_drift(
    problem: Problem, part: pl.DataFrame, days: int, ingested: Path, versions: Mapping[int, MonitoredVersion]
) -> pl.DataFrame:
    """The column that has drifted farthest from the rows that a version knows, and how far, on each of its days.

    Args:
        part: the figures of the version.
    """
    version = versions[part["model_version"][0]]
    rows = pl.scan_parquet(ingested / "table.parquet").select("time", *problem.table.features)
    last_days = part["day"].to_numpy().astype("datetime64[D]").astype(np.int64)
    drifts_by_day = measure_drift(
        rows.collect(engine="streaming"), list(problem.table.features), version.known_until, days, last_days
    )
    farthest = [
        max((drift for drift in drifts if drift.ratio is not None), key=lambda drift: drift.ratio or 0.0, default=None)
        for drifts in drifts_by_day
    ]
    return part.select("day", "model_version").with_columns(
        drift=pl.Series([drift.ratio if drift else None for drift in farthest], dtype=pl.Float64),
        drift_column=pl.Series([drift.column if drift else None for drift in farthest], dtype=pl.String),
    )
