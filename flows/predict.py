"""The predict flow: forecasts by the champion, from a file of rows or from the newest that was ingested, into a file.

It may be repeated: the same rows and model version give the same bytes, and nothing stands twice in the log.
"""

from pathlib import Path

import polars as pl
from prefect import flow
from prefect.runtime import flow_run

from forecasting.forecaster import Forecaster
from lifecycle.champions import registry
from lifecycle.champions.registry import Version
from lifecycle.serving import forecast_log
from problems.errors import RecastError
from project import paths
from project.atomic import replaced_file
from project.progress import console

PATIENCE_SECONDS = 150
"""How long MLflow may be out of reach."""
FIRST_TAIL = 4
"""So many windows' rows of each series are looked through first for the newest complete one."""


def _run_name() -> str:
    return f"predict {flow_run.parameters['problem']}"


@flow(name="predict", flow_run_name=_run_name)
def predict(problem: str, rows: Path | None = None, out: Path | None = None, all_windows: bool = False) -> Path:
    """Forecast with a problem's champion, and note the forecasts in the log; the file that holds them.

    Args:
        rows: Parquet or CSV with `time` (UTC), `series` where there are several, and the problem's columns in their own
            units; a forecast is made at the last row of each series. None: from the newest complete window of each
            series that was ingested.
        out: Parquet; None: data/forecasts/<problem>.parquet.
        all_windows: forecast at every row at which a window is complete.

    Raises:
        RecastError: there is no champion, or no forecast can be made from these rows.
    """
    version, forecaster = champion(problem)
    table = _newest(problem, forecaster) if rows is None else read(rows)
    forecasts = forecaster.forecast(table, all_windows=all_windows)
    if forecasts.is_empty():
        raise RecastError(f"{rows}: no window in it is complete; a window takes {forecaster.about.rows:,} rows")
    made = forecast_log.identified(problem, version.version, forecasts)
    if not made["forecast"].is_finite().all():
        raise RecastError(f"{rows or problem}: a forecast is no number: values are too far from those of training")
    file = out or forecast_log.FOLDER / f"{problem}.parquet"
    first = ["forecast_id", "model_version"]
    # The log comes first: an id that anybody has can be traced.
    forecast_log.record(problem, made)
    with replaced_file(file) as temporary:
        made.drop("inputs").select(*first, pl.exclude(first)).write_parquet(temporary)
    console.print(
        f"{problem}: {len(made):,} {'forecast' if len(made) == 1 else 'forecasts'} by version {version.version}, made "
        f"at {made['origin'].max()!s}: {file}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    return file


def champion(problem: str) -> tuple[Version, Forecaster]:
    """The champion, and its model.

    Raises:
        RecastError: there is none, or it cannot be loaded.
    """

    def loaded() -> tuple[Version, Forecaster]:
        if registry.champion(problem) is None:
            # Another checkout that writes to the same store may have made one.
            registry.reconcile(problem)
        version = registry.champion(problem)
        if version is None:
            raise RecastError(f"{problem} has no champion yet: recast retrain {problem}, or recast promote {problem}")
        return version, registry.load(version)

    version, forecaster = registry.patiently(loaded, PATIENCE_SECONDS)
    if forecaster.about.preparation is None:
        raise RecastError(f"{problem} is a problem of sequences: load {version.uri} with MLflow")
    return version, forecaster


def read(file: Path) -> pl.DataFrame:
    """The rows of a Parquet or CSV file, with `time` as times.

    Raises:
        RecastError: it cannot be read as that.
    """
    try:
        if file.suffix.lower() in (".parquet", ".pq"):
            rows = pl.read_parquet(file)
        else:
            rows = pl.read_csv(file, infer_schema_length=None, null_values=["", "NaN", "nan", "NA"])
    except FileNotFoundError:
        raise RecastError(f"{file}: not there") from None
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


def _newest(problem: str, forecaster: Forecaster) -> pl.DataFrame:
    """The newest complete window of each series that was ingested; one that has none is left out.

    Raises:
        RecastError: nothing was ingested, or no series has one.
    """
    file = paths.stage("ingest", problem) / "table.parquet"
    if not file.exists():
        raise RecastError(f"{file} is not there: recast run {problem} ingests the rows, or name a file of them")
    about = forecaster.about
    table = pl.scan_parquet(file)
    tail = FIRST_TAIL * (about.rows + about.horizon)
    total = table.select(pl.len()).collect().item()
    while True:
        rows = table.group_by("series", maintain_order=True).tail(tail).collect(engine="streaming")
        newest = forecaster.newest(rows)
        if len(rows) == total or newest["series"].n_unique() == rows["series"].n_unique():
            break
        # The last rows of a series have gaps.
        tail *= FIRST_TAIL
    if newest.is_empty():
        raise RecastError(f"{file}: no window is complete; a window takes {about.rows:,} rows without a gap or a null")
    return newest
