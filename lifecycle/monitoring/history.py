"""The history of a problem's figures: a row for each day and model version, in a Parquet file."""

from pathlib import Path

import polars as pl

from learning.measures import MAE
from project.atomic import replace_file

MONITOR_FOLDER = Path("data/monitor")
"""Histories, pages and alert states, in one folder for each problem."""


def monitor_folder(problem: str) -> Path:
    """The folder with the history and the page of a problem."""
    return MONITOR_FOLDER / problem


def read_history(problem: str) -> pl.DataFrame:
    """The figures of all days so far, the oldest first; empty where there are none.

    Earlier versions of Recast judged by the MAE, and did not write the name of the measure; later ones had one skill
    score, by the MAE, whatever the measure.
    """
    file = monitor_folder(problem) / "history.parquet"
    history = pl.read_parquet(file) if file.exists() else pl.DataFrame()
    if history.is_empty():
        return history
    if "selection_measure" not in history.columns:
        history = history.with_columns(selection_measure=pl.lit(MAE))
    if "mae_skill" not in history.columns:
        by_mae = pl.when(pl.col("selection_measure") == MAE).then(pl.col("skill"))
        history = history.with_columns(mae_skill=pl.col("skill"), skill=by_mae)
    return history


def merge_history(former: pl.DataFrame, computed: pl.DataFrame) -> pl.DataFrame:
    """The former history with the figures that were computed now.

    Days that can no longer be computed, because their forecasts or observations are gone, keep their figures.
    """
    if former.is_empty() or computed.is_empty():
        return computed if former.is_empty() else former
    retained = former.join(computed, on=["day", "model_version"], how="anti")
    return pl.concat([retained, computed], how="diagonal").sort("day", "model_version")


def write_history(problem: str, figures: pl.DataFrame) -> None:
    """Replace the history."""
    with replace_file(monitor_folder(problem) / "history.parquet") as temporary:
        figures.write_parquet(temporary)


def newest_figures(history: pl.DataFrame, champion: int | None) -> dict[str, object]:
    """The row of the history that is judged: the newest one of the champion, or where it has none yet, of any version.

    Args:
        champion: the number of the champion's version; None: there is no champion.
    """
    own = history.filter(pl.col("model_version") == champion)
    return (history if own.is_empty() else own).row(-1, named=True)
