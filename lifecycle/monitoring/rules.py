"""What became of forecasts: they meet the observations that came later, day by day, version by version.

The figures of a day are over the days of `monitor.window` that end with it. All are made of the log of forecasts and of
the ingested table: the same observations give the same figures, however often and whenever this is run, and one that is
corrected corrects them.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
from mlflow.entities import Metric
from pydantic import TypeAdapter, ValidationError

from lifecycle.champions import registry
from lifecycle.champions.comparison import known_until
from lifecycle.champions.registry import Version
from lifecycle.monitoring.drift import drift
from lifecycle.serving import forecast_log
from problems.errors import RecastError
from problems.problem import Problem
from project.atomic import replaced_file, write_json
from project.settings.sections import Monitor
from stages.tracking import store

FOLDER = Path("data/monitor")
"""Histories and pages, a folder a problem."""

ALL = (datetime(1970, 1, 1), datetime(9999, 1, 1))
NUMBERS = ("mae", "persistence_mae", "skill", "error", "missing", "drift")
"""Figures that are drawn and logged, beside the coverages. `error`: the MAE in times that on the test rows."""


@dataclass(frozen=True)
class Breached:
    """A rule of `monitor` that the newest figures of a version break.

    Attributes:
        rule: its key in the settings.
        message: for people, with the figures.
    """

    rule: str
    message: str


@dataclass(frozen=True)
class Watched:
    """What is known of a version that has forecast.

    Attributes:
        label: for people.
        test_mae: on the test rows of its training; None where MLflow has none.
        until: the time of the last target that it was trained or selected on.
    """

    version: int
    label: str
    run: str
    test_mae: float | None
    until: np.datetime64


def folder(problem: str) -> Path:
    """Where the history and the page of a problem are."""
    return FOLDER / problem


def watched(problem: str) -> dict[int, Watched]:
    """The versions that have forecast, by number; those that MLflow no longer has are left out.

    Raises:
        TrackingError: MLflow has failed.
    """
    there = forecast_log.between(problem, *ALL)["model_version"].unique().to_list()
    known = registry.known(problem) if there else {}
    return {number: _watched(known[number]) for number in sorted(there) if number in known}


def _watched(version: Version) -> Watched:
    until = known_until(version)
    assert until is not None
    with store.reported():
        metrics = store.client().get_run(version.run).data.metrics
    return Watched(version.version, version.label, version.run, metrics.get("test_mae"), until)


# Forecasts meet observations


def met(problem: Problem, name: str, ingested: Path, versions: dict[int, Watched]) -> pl.DataFrame:
    """Forecasts beside what was observed, one a version, series, origin and lead: the one that was made first.

    Those of moments that their version was trained or selected on are left out, as are those without a forecast of
    persistence. Columns: `day` (of the target, UTC), `model_version`, `error`, `persistence` (both absolute, in the
    target's unit), and for each level whether the interval held, `held_<level>`, null where there is none.
    """
    forecasts = (
        forecast_log.between(name, *ALL)
        .sort("made")
        .unique(["model_version", "series", "origin", "lead"], keep="first", maintain_order=True)
    )
    until = pl.DataFrame(
        {"model_version": list(versions), "until": [each.until.item() for each in versions.values()]},
        schema={"model_version": pl.Int64, "until": pl.Datetime("ms")},
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
    joined = (
        forecasts.join(until, on="model_version")
        .filter(pl.col("target_time") > pl.col("until"))
        .join(observed, left_on=["series", "target_time"], right_on=["series", "time"])
        .sort("origin")
        .join_asof(last, left_on="origin", right_on="last_time", by="series", check_sortedness=False)
        .filter(pl.col("origin") - pl.col("last_time") <= tolerance)
    )
    levels = [each.removeprefix("low_") for each in joined.columns if each.startswith("low_")]
    return joined.select(
        pl.col("target_time").dt.date().alias("day"),
        "model_version",
        (pl.col("forecast") - pl.col("observed")).abs().alias("error"),
        (pl.col("last") - pl.col("observed")).abs().alias("persistence"),
        *(pl.col("observed").is_between(f"low_{each}", f"high_{each}").alias(f"held_{each}") for each in levels),
    )


def unforecast(problem: Problem, name: str, ingested: Path) -> pl.DataFrame:
    """By day, of what series and moments there were observations (`observed`), and of how many no forecast (`without`).

    It begins with the day of the first forecast, and counts series that were ever forecast.
    """
    forecasts = forecast_log.between(name, *ALL).select("series", pl.col("target_time").alias("time")).unique()
    return (
        pl.scan_parquet(ingested / "table.parquet")
        .filter(
            pl.col(problem.table.target).is_not_null(),
            pl.col("time") >= forecasts["time"].min(),
            pl.col("series").is_in(forecasts["series"].unique().to_list()),
        )
        .select("series", "time")
        .collect(engine="streaming")
        .join(forecasts.with_columns(there=pl.lit(True)), on=["series", "time"], how="left")
        .group_by(pl.col("time").dt.date().alias("day"))
        .agg(pl.len().alias("observed"), pl.col("there").is_null().sum().alias("without"))
        .sort("day")
    )


# Figures


def figures(
    problem: Problem, name: str, settings: Monitor, ingested: Path, versions: dict[int, Watched]
) -> pl.DataFrame:
    """The figures of each day and version, as the history holds them.

    Columns: `day`, `model_version`, `forecasts` (how many they are of), NUMBERS, `drift_column` (the one that has
    drifted farthest), `coverage_<level>`.
    """
    joined = met(problem, name, ingested, versions)
    levels = [each.removeprefix("held_") for each in joined.columns if each.startswith("held_")]
    days = settings.window // timedelta(days=1)
    daily = joined.group_by("model_version", "day").agg(
        pl.len().alias("forecasts"),
        pl.col("error", "persistence").sum(),
        *(pl.col(f"held_{each}").sum().alias(f"held_{each}") for each in levels),
        *(pl.col(f"held_{each}").count().alias(f"of_{each}") for each in levels),
    )
    sums = ["forecasts", "error", "persistence", *(f"{end}_{each}" for each in levels for end in ("held", "of"))]
    if daily.is_empty():
        return pl.DataFrame()
    absent = _rolled(unforecast(problem, name, ingested), ["observed", "without"], days)
    # The version that forecast last is told of to the last observation: that it no longer forecasts is a figure too.
    ends = dict(daily.group_by("model_version").agg(pl.col("day").max()).iter_rows())
    ends[max(ends, key=lambda version: (ends[version], version))] = absent["day"].max()
    rolled = [
        _rolled(part, sums, days, ends[version]).with_columns(model_version=pl.lit(version, dtype=pl.Int64))
        for (version,), part in daily.group_by("model_version", maintain_order=False)
    ]
    tests = {number: each.test_mae for number, each in versions.items() if each.test_mae}
    told = (
        pl.concat(rolled)
        .with_columns(
            mae=_ratio("error", "forecasts"),
            persistence_mae=_ratio("persistence", "forecasts"),
            **{f"coverage_{each}": _ratio(f"held_{each}", f"of_{each}") for each in levels},
        )
        .with_columns(
            skill=pl.when(pl.col("persistence_mae") > 0).then(1 - pl.col("mae") / pl.col("persistence_mae")),
            error=pl.col("mae") / pl.col("model_version").replace_strict(tests, default=None, return_dtype=pl.Float64),
        )
        .drop(sums[2:])
    )
    told = told.join(absent.select("day", _ratio("without", "observed").alias("missing")), on="day", how="left")
    drifted = [_drifted(problem, part, days, ingested, versions) for part in told.partition_by("model_version")]
    return (
        told.join(pl.concat(drifted), on=["day", "model_version"], how="left")
        .select("day", "model_version", "forecasts", *NUMBERS, "drift_column", *(f"coverage_{each}" for each in levels))
        .sort("day", "model_version")
    )


def _ratio(part: str, whole: str) -> pl.Expr:
    return pl.when(pl.col(whole) > 0).then(pl.col(part) / pl.col(whole))


def _rolled(daily: pl.DataFrame, sums: Sequence[str], days: int, last: date | None = None) -> pl.DataFrame:
    """The sums over so many days up to and with each, from the first day to the last, whether or not it has any."""
    first, last = daily["day"].min(), last or daily["day"].max()  # type: ignore[assignment]
    assert isinstance(first, date)
    assert isinstance(last, date)
    whole = pl.DataFrame({"day": pl.date_range(first, last, eager=True)}).join(daily, on="day", how="left")
    return whole.select("day", pl.col(*sums).fill_null(0).rolling_sum(days, min_samples=1))


def _drifted(
    problem: Problem, part: pl.DataFrame, days: int, ingested: Path, versions: dict[int, Watched]
) -> pl.DataFrame:
    """The column that has drifted farthest from the rows that a version knows, and how far, on each of its days."""
    version = versions[part["model_version"][0]]
    rows = pl.scan_parquet(ingested / "table.parquet").select("time", *problem.table.features)
    wanted = part["day"].to_numpy().astype("datetime64[D]").astype(np.int64)
    found = drift(rows.collect(engine="streaming"), list(problem.table.features), version.until, days, wanted)
    farthest = [
        max((each for each in of_day if each.times is not None), key=lambda each: each.times or 0.0, default=None)
        for of_day in found
    ]
    return part.select("day", "model_version").with_columns(
        drift=pl.Series([each.times if each else None for each in farthest], dtype=pl.Float64),
        drift_column=pl.Series([each.column if each else None for each in farthest], dtype=pl.String),
    )


# The history


def history(problem: str) -> pl.DataFrame:
    """The figures of all days so far, the oldest first; empty where there are none."""
    file = folder(problem) / "history.parquet"
    return pl.read_parquet(file) if file.exists() else pl.DataFrame()


def updated(former: pl.DataFrame, found: pl.DataFrame) -> pl.DataFrame:
    """The history with the figures that were found now; days that can no longer be computed keep those they had."""
    if former.is_empty() or found.is_empty():
        return found if former.is_empty() else former
    kept = former.join(found, on=["day", "model_version"], how="anti")
    return pl.concat([kept, found], how="diagonal").sort("day", "model_version")


def write_history(problem: str, figures: pl.DataFrame) -> None:
    """Replace the history."""
    with replaced_file(folder(problem) / "history.parquet") as temporary:
        figures.write_parquet(temporary)


# Rules


def judged(history: pl.DataFrame, champion: int | None) -> dict[str, object]:
    """The row of the history that counts: the newest of the champion's, or where it has none yet, of all."""
    own = history.filter(pl.col("model_version") == champion)
    return (history if own.is_empty() else own).row(-1, named=True)


def breaches(settings: Monitor, newest: dict[str, object], test_mae: float | None, unit: str) -> list[Breached]:
    """The rules that the figures of a day, a row of the history, break; of too few forecasts only that some lack."""

    def figure(name: str) -> float | None:
        value = newest.get(name)
        return float(value) if isinstance(value, int | float) else None

    found = []
    without = figure("missing")
    if settings.missing is not None and without is not None and without > settings.missing:
        found.append(
            Breached(
                "missing",
                f"of {100 * without:.1f} % of what was observed there was no forecast; at most "
                f"{100 * settings.missing:g} % is right",
            )
        )
    if (figure("forecasts") or 0) < settings.least:
        return found
    error, gained, mae = figure("error"), figure("skill"), figure("mae")
    if settings.error is not None and error is not None and error > settings.error:
        found.append(
            Breached(
                "error",
                f"the MAE, {mae:.4g} {unit}, is {error:.2f} times that on the test rows, {test_mae:.4g} {unit}; "
                f"at most {settings.error:g} times is right",
            )
        )
    if settings.skill is not None and gained is not None and gained < settings.skill:
        found.append(
            Breached("skill", f"the skill against persistence is {gained:.3f}; at least {settings.skill:g} is right")
        )
    if settings.coverage is not None:
        for name in newest:
            held, level = figure(name), name.removeprefix("coverage_")
            if name.startswith("coverage_") and held is not None and held < float(level) - settings.coverage:
                found.append(
                    Breached(
                        "coverage",
                        f"intervals that should hold {100 * float(level):g} % of what is observed hold "
                        f"{100 * held:.1f} %; at most {100 * settings.coverage:g} % less is right",
                    )
                )
    far = figure("drift")
    if settings.drift is not None and far is not None and far > settings.drift:
        found.append(
            Breached(
                "drift",
                f"{newest['drift_column']} is not distributed as in the known rows of the season: {far:.2f} times as "
                f"far from them as any window among them; at most {settings.drift:g} times is right",
            )
        )
    return found


@dataclass(frozen=True)
class Told:
    """The rules that people have been told are broken, of a version; those that are mended are taken out again."""

    version: int
    rules: list[str]


def _told_file(problem: str) -> Path:
    return folder(problem) / "told.json"


def to_tell(problem: str, version: int, found: Sequence[Breached]) -> list[Breached]:
    """Of the rules that are broken now, those that people have not been told of yet.

    Raises:
        RecastError: the note of what they were told cannot be read.
    """
    file = _told_file(problem)
    if not file.exists():
        return list(found)
    try:
        told = TypeAdapter(Told).validate_json(file.read_bytes())
    except ValidationError:
        raise RecastError(f"{file}: cannot be read; delete it: people are told again of what is broken") from None
    return [each for each in found if told.version != version or each.rule not in told.rules]


def note_told(problem: str, version: int, found: Sequence[Breached]) -> None:
    """Note that people were told of these."""
    write_json(_told_file(problem), asdict(Told(version, sorted({each.rule for each in found}))))


# MLflow


@store.reported()
def log(problem: str, figures: pl.DataFrame, versions: dict[int, Watched], page: Path) -> None:
    """Write figures to MLflow: a run a version, a step a day; the page too.

    A figure that is there already is not written again, and that of a day that is not over is left for tomorrow.

    Raises:
        TrackingError: MLflow has failed.
    """
    client, where = store.client(), store.experiment(problem)
    if figures.is_empty():
        return
    today = figures["day"].max()
    for (number,), part in figures.group_by("model_version", maintain_order=True):
        if number not in versions:
            continue
        run = _run(where, problem, versions[int(str(number))])
        there = {
            (metric.key, metric.step, metric.value)
            for name in part.columns
            if name not in ("day", "model_version", "drift_column")
            for metric in client.get_metric_history(run, name)
        }
        metrics = [
            Metric(name, float(value), stamp, stamp // 86_400_000)
            for row in part.filter(pl.col("day") < today).iter_rows(named=True)
            for stamp in [_milliseconds(row["day"])]
            for name, value in row.items()
            if isinstance(value, int | float) and name != "model_version" and np.isfinite(value)
        ]
        fresh = [each for each in metrics if (each.key, each.step, each.value) not in there]
        for begin in range(0, len(fresh), 1000):
            client.log_batch(run, metrics=fresh[begin : begin + 1000])
        with store.storing():
            client.log_artifact(run, str(page))


def _milliseconds(day: date) -> int:
    return round(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp() * 1000)


def _run(where: str, problem: str, version: Watched) -> str:
    """The run in which the figures of a version stand, created where there is none."""
    client = store.client()
    same = f"tags.`recast.kind` = 'monitor' and tags.`recast.version` = '{version.version}'"
    if found := client.search_runs([where], same, max_results=1):
        return str(found[0].info.run_id)
    tags = {"recast.kind": "monitor", "recast.problem": problem, "recast.version": str(version.version)}
    run = client.create_run(where, run_name=f"monitor version {version.version}", tags=tags)
    client.log_param(run.info.run_id, "label", version.label)
    client.set_terminated(run.info.run_id)
    return str(run.info.run_id)
