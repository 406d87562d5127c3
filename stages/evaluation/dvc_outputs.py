"""The files of the stage `evaluate` that DVC compares between commits: metrics and plots."""

from typing import Any

import polars as pl

from learning.measures import MAE
from stages.evaluation.leaderboard import Evaluation


def summarize_metrics(evaluation: Evaluation) -> dict[str, Any]:
    """The metrics of `dvc metrics show`: the test errors of persistence, and the errors of the best configuration."""
    metrics: dict[str, Any] = {}
    baseline = {evaluation.selection_measure.name: evaluation.persistence_test, MAE: evaluation.persistence_mae}
    if errors := {f"test_{name}": round(error, 4) for name, error in baseline.items() if error is not None}:
        metrics["persistence"] = errors
    row = evaluation.find_row(evaluation.best)
    if row:
        metrics["best"] = {
            "configuration": row.configuration,
            **{f"validation_{name}": round(error.mean, 4) for name, error in row.validation.items()},
            **{f"test_{name}": round(error.mean, 4) for name, error in row.test.items()},
            "skill": row.skill and round(row.skill, 4),
            **({} if evaluation.selects_by_mae else {"mae_skill": row.mae_skill and round(row.mae_skill, 4)}),
        }
    return metrics


def tabulate_plots(evaluation: Evaluation) -> dict[str, pl.DataFrame]:
    """The tables of `dvc plots show`, by file name, in long form with a column `configuration`.

    Where the data have no clock, the tables of hours, months and forecasts are empty.
    """
    measure = evaluation.selection_measure.name
    curves = [
        {"configuration": f"{label} seed={seed}", "epoch": epoch.epoch, "validation": epoch.validation[measure]}
        for label, seeds in evaluation.curves.items()
        for seed, history in seeds.items()
        for epoch in history
    ]
    forecasts = [
        {"configuration": label, "time": time, "value": value}
        for label in ("observed", *(row.configuration for row in evaluation.rows if row.selected))
        if label in evaluation.forecasts
        for time, value in zip(evaluation.forecasts["time"], evaluation.forecasts[label], strict=True)
    ]
    return {
        "curves.csv": pl.DataFrame(
            curves, schema={"configuration": pl.String, "epoch": pl.Int64, "validation": pl.Float64}
        ),
        "hours.csv": _tabulate_groups("hour", evaluation.hours, 0),
        "months.csv": _tabulate_groups("month", evaluation.months, 1),
        "forecasts.csv": pl.DataFrame(
            forecasts, schema={"configuration": pl.String, "time": pl.String, "value": pl.Float64}
        ),
    }


def _tabulate_groups(name: str, groups: dict[str, list[float | None]], first: int) -> pl.DataFrame:
    """Errors by configuration and group.

    Args:
        name: the name of the column of groups.
        first: the number of the first group.
    """
    return pl.DataFrame(
        [
            {"configuration": label, name: group, "test_mae": value}
            for label, values in groups.items()
            for group, value in enumerate(values, first)
            if value is not None
        ],
        schema={"configuration": pl.String, name: pl.Int64, "test_mae": pl.Float64},
    )
