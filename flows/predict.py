"""The predict flow: forecasts by the champion, from a file of rows or from the newest ingested rows, into a file.

It may be repeated: the same rows and model version give the same bytes, and no forecast is twice in the log.
"""

from pathlib import Path

import polars as pl
from prefect import flow
from prefect.runtime import flow_run

from forecasting.forecaster import Forecaster
from lifecycle import forecast_log
from lifecycle.champions import history, promotion, registry
from lifecycle.champions.history import Version
from problems.errors import RecastError
from project import paths
from project.atomic import replace_file
from project.progress import console
from project.retry import retry_while_unreachable

MLFLOW_PATIENCE_SECONDS = 150
"""How long MLflow may be out of reach."""

TAIL_FACTOR = 4
"""The newest complete window of each series is looked for in the last rows of so many windows, and if it is not found,
in so many times more rows."""


def _run_name() -> str:
    return f"predict {flow_run.parameters['problem']}"


@flow(name="predict", flow_run_name=_run_name)
def predict(problem: str, rows: Path | None = None, out: Path | None = None, all_windows: bool = False) -> Path:
    """Forecast with a problem's champion, and write the forecasts to the log and to a file; the file.

    Args:
        rows: a Parquet or CSV file with `time` (UTC), `series` where there are several, and the problem's columns in
            their own units. Forecasts are made at the last row of each series. None: from the newest complete window
            of each series among the ingested rows.
        out: the Parquet file to write; None: data/forecasts/<problem>.parquet.
        all_windows: forecast at every row at which a window is complete.

    Raises:
        RecastError: there is no champion, or no forecast can be made from these rows.
    """
    version, forecaster = load_champion(problem)
    table = _read_newest_windows(problem, forecaster) if rows is None else read_rows(rows)
    forecasts = forecaster.forecast(table, all_windows=all_windows)
    if forecasts.is_empty():
        raise RecastError(f"{rows}: it has no complete window; a window takes {forecaster.about.window_rows:,} rows")
    identified = forecast_log.add_ids(problem, version.version, forecasts)
    if not identified["forecast"].is_finite().all():
        raise RecastError(f"{rows or problem}: a forecast is not a number: values are too far from those of training")
    file = out or forecast_log.FORECASTS_FOLDER / f"{problem}.parquet"
    first_columns = ["forecast_id", "model_version"]
    # The log is written first, so that every id that anybody sees can be traced.
    forecast_log.record_forecasts(problem, identified)
    with replace_file(file) as temporary:
        identified.drop("inputs").select(*first_columns, pl.exclude(first_columns)).write_parquet(temporary)
    console.print(
        f"{problem}: {len(identified):,} {'forecast' if len(identified) == 1 else 'forecasts'} by version "
        f"{version.version}, made at {identified['origin'].max()!s}: {file}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    return file


def load_champion(problem: str) -> tuple[Version, Forecaster]:
    """The champion, and its model.

    Raises:
        RecastError: there is none, or it cannot be loaded.
    """

    def load() -> tuple[Version, Forecaster]:
        if history.find_champion(problem) is None:
            # Another checkout that uses the same store may have promoted one.
            promotion.reconcile(problem)
        version = history.find_champion(problem)
        if version is None:
            raise RecastError(f"{problem} has no champion yet: recast retrain {problem}, or recast promote {problem}")
        return version, registry.load_model(version)

    version, forecaster = retry_while_unreachable(load, MLFLOW_PATIENCE_SECONDS, "MLflow")
    if forecaster.about.preparation is None:
        raise RecastError(f"{problem} is a problem of sequences: load {version.uri} with MLflow")
    return version, forecaster


def read_rows(file: Path) -> pl.DataFrame:
    """The rows of a Parquet or CSV file, with `time` as times.

    Raises:
        RecastError: there is no such file, or its content cannot be read.
    """
    try:
        if file.suffix.lower() in (".parquet", ".pq"):
            rows = pl.read_parquet(file)
        else:
            rows = pl.read_csv(file, infer_schema_length=None, null_values=["", "NaN", "nan", "NA"])
    except FileNotFoundError:
        raise RecastError(f"{file}: there is no such file") from None
    except (pl.exceptions.PolarsError, UnicodeDecodeError) as error:
        raise RecastError(f"{file}: {str(error).splitlines()[0]}") from None
    if rows.schema.get("time") != pl.String:
        return rows
    try:
        return rows.with_columns(pl.col("time").str.to_datetime(time_unit="ms", time_zone="UTC"))
    except pl.exceptions.PolarsError as error:
        raise RecastError(
            f"{file}: column 'time' must hold times in one form of ISO 8601, such as 2016-01-01T00:00:00: "
            f"{str(error).splitlines()[0]}"
        ) from None


def _read_newest_windows(problem: str, forecaster: Forecaster) -> pl.DataFrame:
    """The newest complete window of each series among the ingested rows. A series without one is left out.

    Raises:
        RecastError: nothing was ingested, or no series has a complete window.
    """
    file = paths.stage_folder("ingest", problem) / "table.parquet"
    if not file.exists():
        raise RecastError(f"{file} does not exist: `recast run {problem}` ingests the rows; or name a file of rows")
    about = forecaster.about
    table = pl.scan_parquet(file)
    tail = TAIL_FACTOR * (about.window_rows + about.horizon_rows)
    total = table.select(pl.len()).collect().item()
    while True:
        rows = table.group_by("series", maintain_order=True).tail(tail).collect(engine="streaming")
        newest = forecaster.window_builder.select_newest(rows)
        if len(rows) == total or newest["series"].n_unique() == rows["series"].n_unique():
            break
        # The last rows of a series have gaps: look further back.
        tail *= TAIL_FACTOR
    if newest.is_empty():
        raise RecastError(
            f"{file}: no window is complete; a window takes {about.window_rows:,} rows without a gap or a null"
        )
    return newest
