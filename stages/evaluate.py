"""evaluate: the leaderboard. Selection by validation alone; the test rows are read once, for what was selected."""

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from architectures import REGISTRY, Axes
from problems.problem import Problem
from stages import batches, history, places, tracking
from stages.atomic import replaced_folder, write_json
from stages.batches import Batches
from stages.command import command
from stages.fit import forecast
from stages.history import Epoch
from stages.leaderboard import BASELINE, Evaluation, Interval, Row, Spread
from stages.metrics import Errors, conformal_reach, coverage, mae, paired_block_bootstrap, rmse, skill
from stages.normalize import Series, Table, times
from stages.packaging import package
from stages.report import render
from stages.settings import Evaluate, load
from stages.train import load_network
from stages.trials import Trial, expand, read_trial, trial_folder
from stages.views import Inside, look
from stages.window import Windowing


@dataclass(frozen=True)
class Targets:
    """The windows of a split: targets (N,) in the target's unit, and when each target is observed (N,).

    Attributes:
        rows_N: the target's row in the table.
        scale, center: of the target; value = normalised * scale + center.
    """

    batches: Batches
    rows_N: NDArray[np.int64]
    observed_N: NDArray[np.float64]
    times_N: NDArray[np.datetime64]
    scale: float
    center: float

    def forecasts(self, network: torch.nn.Module) -> NDArray[np.float64]:
        """Forecasts (N,) in the target's unit."""
        return forecast(network, self.batches).double().numpy() * self.scale + self.center


def evaluate(
    name: str,
    problem: Problem,
    settings: Evaluate,
    trials: Sequence[Trial],
    ingested: Path,
    normalized: Path,
    windowed: Path,
) -> Evaluation:
    """Rank the grid's configurations by validation MAE and try the best of each architecture on the test rows, once.

    A configuration is ranked and may be selected only when all its trials have finished.
    """
    # The last bits of a forecast depend on the number of threads, and the leaderboard should not.
    torch.set_num_threads(1)
    table, windowing = Table.read(normalized), Windowing.read(windowed)
    ended = {trial.key: read_trial(trial) for trial in trials}
    by_configuration: dict[str, list[Trial]] = {}
    for trial in trials:
        by_configuration.setdefault(trial.configuration.label, []).append(trial)
    rows = [_validated(group, ended) for group in by_configuration.values()]
    rows.sort(key=lambda row: (not row.complete, row.validation_mae.mean if row.validation_mae else math.inf))

    data = batches.read(normalized, windowed, torch.device("cpu"))
    validation, test = (_targets(data[split], times(normalized), table, windowing) for split in ("validation", "test"))
    baseline = REGISTRY[BASELINE](windowing.shape, Axes())
    errors_N = test.forecasts(baseline) - test.observed_N
    reference = mae(errors_N)

    chosen: dict[str, NDArray[np.float64]] = {}
    curves: dict[str, dict[str, list[Epoch]]] = {}
    selected: set[str] = set()
    for i, row in enumerate(rows):
        if not row.complete or row.architecture in selected:
            continue
        selected.add(row.architecture)
        group = by_configuration[row.configuration]
        networks = [load_network(trial, windowing) for trial in group]
        forecasts_SN = np.stack([test.forecasts(network) for network in networks])
        chosen[row.configuration] = forecasts_SN
        errors_SN = forecasts_SN - test.observed_N
        known_SN = np.stack([validation.forecasts(network) for network in networks]) - validation.observed_N
        intervals = _intervals(known_SN, errors_SN, settings.intervals)
        rows[i] = replace(_tested(row, errors_SN, test.scale, reference), intervals=intervals)
        if group[0].trainable:
            curves[row.configuration] = {str(trial.seed): history.read(trial_folder(trial)) for trial in group}

    absolute = {label: np.abs(forecasts_SN - test.observed_N).mean(axis=0) for label, forecasts_SN in chosen.items()}
    ranked = list(chosen)
    best, runner_up = (ranked[0] if ranked else None), (ranked[1] if len(ranked) > 1 else None)
    comparison = None
    if best and runner_up:
        comparison = paired_block_bootstrap(
            absolute[best],
            absolute[runner_up],
            _moments(test.times_N, table.cadence),
            block=round(settings.bootstrap.block.total_seconds() / table.cadence),
            resamples=settings.bootstrap.resamples,
            level=settings.bootstrap.level,
        )
    shown, forecasts = _stretch(test, chosen, table.series, round(settings.forecasts.total_seconds() / table.cadence))
    return Evaluation(
        problem=name,
        title=problem.title,
        target=problem.table.target,
        unit=problem.table.unit,
        synthetic=table.synthetic,
        split=problem.split.model_dump(mode="json"),
        window=problem.window.model_dump(mode="json"),
        rows=rows,
        best=best,
        runner_up=runner_up,
        comparison=comparison,
        persistence_test_mae=reference,
        curves=curves,
        hours={label: _by(_hour(test.times_N), error_N, 24) for label, error_N in absolute.items()},
        months={label: _by(_month(test.times_N), error_N, 12) for label, error_N in absolute.items()},
        forecasts=forecasts,
        forecasts_of=shown,
        quality=json.loads((ingested / "quality.json").read_text(encoding="utf-8")),
        windows=asdict(windowing),
    )


def _validated(group: Sequence[Trial], ended: dict[str, Any]) -> Row:
    """A configuration by its trials' validation errors."""
    finished = [trial for trial in group if ended[trial.key]["status"] == "finished"]

    def spread(name: str) -> Spread | None:
        return Spread.of([ended[trial.key]["validation"][name] for trial in finished]) if finished else None

    configuration = group[0].configuration
    return Row(
        configuration=configuration.label,
        architecture=configuration.family,
        source=REGISTRY[configuration.architecture].source,
        parameters=ended[finished[0].key]["parameters"] if finished else None,
        finished_seeds=[trial.seed for trial in finished],
        failed=[f"seed {t.seed}: {ended[t.key]['reason']}" for t in group if ended[t.key]["status"] == "failed"],
        selected=False,
        validation_mae=spread("mae"),
        validation_rmse=spread("rmse"),
        validation_mae_normalized=spread("mae_normalized"),
        validation_rmse_normalized=spread("rmse_normalized"),
        test_mae=None,
        test_rmse=None,
        test_mae_normalized=None,
        test_rmse_normalized=None,
        skill=None,
        intervals=[],
    )


def _tested(row: Row, errors_SN: Errors, scale: float, reference: float) -> Row:
    """The row with its errors on the test rows.

    Args:
        errors_SN: by seed and window, in the target's unit.
        scale: of the target.
        reference: MAE of the baseline.
    """
    maes, rmses = [mae(errors_N) for errors_N in errors_SN], [rmse(errors_N) for errors_N in errors_SN]
    return replace(
        row,
        selected=True,
        test_mae=Spread.of(maes),
        test_rmse=Spread.of(rmses),
        test_mae_normalized=Spread.of([error / scale for error in maes]),
        test_rmse_normalized=Spread.of([error / scale for error in rmses]),
        skill=skill(statistics.fmean(maes), reference),
    )


def _intervals(known_SN: Errors, errors_SN: Errors, levels: Sequence[float]) -> list[Interval]:
    """Intervals around the forecasts of each seed, as wide as its validation errors ask, and what they hold in test.

    Args:
        known_SN, errors_SN: of validation and of test, by seed and window.
    """
    found = []
    for level in sorted(levels):
        reaches = [conformal_reach(known_N, level) for known_N in known_SN]
        known = [reach for reach in reaches if reach is not None]
        # All seeds have the same windows: they are enough for each, or for none.
        if known:
            held = [coverage(errors_N, reach) for errors_N, reach in zip(errors_SN, known, strict=True)]
            found.append(Interval(level, Spread.of([2 * reach for reach in known]), Spread.of(held)))
    return found


def _targets(data: Batches, moments: NDArray[np.datetime64], table: Table, windowing: Windowing) -> Targets:
    rows_N = data.rows(torch.arange(len(data))) + windowing.delay
    observed_N = data.targets_N.index_select(0, rows_N)
    scale, center = table.scale[table.target], table.center[table.target]
    return Targets(
        batches=data,
        rows_N=rows_N.numpy(),
        observed_N=observed_N.double().numpy() * scale + center,
        times_N=moments[rows_N.numpy()],
        scale=scale,
        center=center,
    )


def _moments(times_N: NDArray[np.datetime64], cadence: float) -> NDArray[np.int64]:
    """Times counted in rows: rows of two series are of one moment also where they stand on different beats."""
    moments_N: NDArray[np.int64] = times_N.astype("datetime64[ms]").astype(np.int64) // round(1000 * cadence)
    return moments_N


def _hour(times_N: NDArray[np.datetime64]) -> NDArray[np.int64]:
    hours_N: NDArray[np.int64] = times_N.astype("datetime64[h]").astype(np.int64) % 24
    return hours_N


def _month(times_N: NDArray[np.datetime64]) -> NDArray[np.int64]:
    months_N: NDArray[np.int64] = times_N.astype("datetime64[M]").astype(np.int64) % 12
    return months_N


def _by(group_N: NDArray[np.int64], error_N: Errors, groups: int) -> list[float | None]:
    """Mean error by group; None for a group without windows."""
    sums = np.bincount(group_N, weights=error_N, minlength=groups)
    counts = np.bincount(group_N, minlength=groups)
    return [float(total / n) if n else None for total, n in zip(sums, counts, strict=True)]


def _stretch(
    test: Targets, chosen: dict[str, NDArray[np.float64]], series: Sequence[Series], length: int
) -> tuple[str, dict[str, list[Any]]]:
    """The first `length` test windows of one series, forecasts averaged over seeds; and the name of that series."""
    first = next(each for each in series if test.rows_N[0] < each.first + each.rows)
    part = slice(0, min(length, int(np.searchsorted(test.rows_N, first.first + first.rows))))
    times_N = test.times_N[part]
    units: tuple[Literal["m", "s", "ms"], ...] = ("m", "s", "ms")
    unit = next(unit for unit in units if (times_N == times_N.astype(f"datetime64[{unit}]")).all())
    return first.name, {
        "time": np.datetime_as_string(times_N, unit=unit).tolist(),
        "observed": test.observed_N[part].tolist(),
        **{label: forecasts_SN[:, part].mean(axis=0).tolist() for label, forecasts_SN in chosen.items()},
    }


def metrics(evaluation: Evaluation) -> dict[str, Any]:
    """What `dvc metrics show` shows: the best by validation, and what it does on the test rows."""
    found: dict[str, Any] = {"persistence": {"test_mae": round(evaluation.persistence_test_mae, 4)}}
    for row in evaluation.rows:
        if row.configuration == evaluation.best:
            errors = {
                "validation_mae": row.validation_mae,
                "validation_mae_normalized": row.validation_mae_normalized,
                "test_mae": row.test_mae,
                "test_mae_normalized": row.test_mae_normalized,
                "test_rmse": row.test_rmse,
                "test_rmse_normalized": row.test_rmse_normalized,
            }
            found["best"] = {
                "configuration": row.configuration,
                **{name: round(error.mean, 4) for name, error in errors.items() if error},
                "skill": row.skill and round(row.skill, 4),
            }
    return found


def plots(evaluation: Evaluation) -> dict[str, pl.DataFrame]:
    """What `dvc plots show` draws, by file name: long tables with a column `configuration`."""
    curves = [
        {"configuration": f"{label} seed={seed}", "epoch": epoch.epoch, "validation_mae": epoch.validation_mae}
        for label, seeds in evaluation.curves.items()
        for seed, history in seeds.items()
        for epoch in history
    ]
    forecasts = [
        {"configuration": label, "time": time, "value": value}
        for label in ("observed", *(row.configuration for row in evaluation.rows if row.selected))
        for time, value in zip(evaluation.forecasts["time"], evaluation.forecasts[label], strict=True)
    ]
    return {
        "curves.csv": pl.DataFrame(
            curves, schema={"configuration": pl.String, "epoch": pl.Int64, "validation_mae": pl.Float64}
        ),
        "hours.csv": _long("hour", evaluation.hours, 0),
        "months.csv": _long("month", evaluation.months, 1),
        "forecasts.csv": pl.DataFrame(
            forecasts, schema={"configuration": pl.String, "time": pl.String, "value": pl.Float64}
        ),
    }


def _long(name: str, groups: dict[str, list[float | None]], first: int) -> pl.DataFrame:
    return pl.DataFrame(
        [
            {"configuration": label, name: group, "test_mae": value}
            for label, values in groups.items()
            for group, value in enumerate(values, first)
            if value is not None
        ],
        schema={"configuration": pl.String, name: pl.Int64, "test_mae": pl.Float64},
    )


def write(evaluation: Evaluation, inside: Inside, out: Path) -> None:
    """Write the evaluation, metrics, plots, pictures of the networks and the report into the folder `out`."""
    with replaced_folder(out) as folder:
        write_json(folder / "leaderboard.json", asdict(evaluation))
        write_json(folder / "metrics.json", metrics(evaluation))
        for name, frame in plots(evaluation).items():
            frame.write_csv(folder / name)
        inside.write(folder)
        (folder / "report.html").write_text(render(evaluation, inside), encoding="utf-8")


def main(problem: str) -> None:
    """Rank the trained grid of a problem, try what was selected on the test rows, and write the report."""
    settings = load()
    normalized, windowed = places.stage("normalize", problem), places.stage("window", problem)
    out = places.stage("evaluate", problem)
    trials = expand(settings, problem, windowed)
    evaluation = evaluate(
        problem,
        settings.problem(problem),
        settings.evaluate,
        trials,
        places.stage("ingest", problem),
        normalized,
        windowed,
    )
    write(evaluation, look(evaluation, trials, normalized, windowed), out)
    context = tracking.open_pipeline(problem, settings, trials, newest=True)
    tracking.log_unlogged(context, trials)
    tracking.log_evaluation(context, evaluation, trials, out)
    package(evaluation, trials)


if __name__ == "__main__":
    command(main)
