"""evaluate: the leaderboard. Selection by validation alone; the test rows are read once, for what was selected."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from architectures import REGISTRY, Axes, Network, ShapeError
from problems.problem import AnyProblem, Problem
from problems.source import written
from project import paths
from project.atomic import replaced_folder, write_json
from project.command import command
from project.settings.loading import load_settings
from project.settings.sections import Evaluate
from stages.evaluation.forecasts import Forecasts, Targets, absolute, along, bands, by_hour, by_month, moments, stretch
from stages.evaluation.leaderboard import BASELINE, Evaluation, Measured, Row, Spread
from stages.evaluation.metrics import Errors, paired_block_bootstrap, skill
from stages.report.page import render
from stages.report.views import Inside, look
from stages.tables.table import Table, times
from stages.tables.windows import AnyWindows, Windowing, read_windows
from stages.tracking import store
from stages.tracking.packaging import package
from stages.training import batches, history
from stages.training.batches import Batches, Data
from stages.training.fit import EVALUATION_BATCH, answers
from stages.training.history import Epoch
from stages.training.networks import load_network
from stages.training.objectives import Objective, objective, ordered, shape_for
from stages.training.trials import Trial, expand, read_trial, trial_folder

CLASSES = 20
"""Of more than these no table is made that shows which is taken for which."""


@dataclass(frozen=True)
class Answers:
    """A network's answers to the windows of a split.

    Attributes:
        means: of each score.
        window_N: of each window, the mean of the score that selects.
        values_NLO: the answers themselves, normalised, where they are numbers.
        confusion_CC: of each class how often each was answered, where there are few.
    """

    means: dict[str, float]
    window_N: Errors
    values_NLO: NDArray[np.float64] | None
    confusion_CC: NDArray[np.float64] | None


def answered(network: Network, data: Data, aim: Objective, kind: str) -> Answers:
    """What a network answers, and how good that is.

    Args:
        kind: what an answer is.
    """
    sums: dict[str, float] = {}
    total = 0.0
    window: list[NDArray[np.float64]] = []
    values: list[NDArray[np.float64]] = []
    counts: NDArray[np.float64] | None = None
    for y_BSO, batch in answers(network, data):
        scores = aim.scores(y_BSO, batch.y_BSK)
        selects_BS = scores[aim.measure.score]
        weight_BS = torch.ones_like(selects_BS) if batch.weight_BS is None else batch.weight_BS.double()
        total += float(weight_BS.sum())
        for name, score_BS in scores.items():
            sums[name] = sums.get(name, 0.0) + float((score_BS * weight_BS).sum())
        window.append(((selects_BS * weight_BS).sum(dim=1) / weight_BS.sum(dim=1)).numpy())
        if kind == "value":
            values.append((ordered(y_BSO) if aim.quantiles else y_BSO).double().numpy())
        elif kind != "labels" and batch.weight_BS is None and max(aim.outputs, 2) <= CLASSES:
            answer_B = y_BSO[:, 0].argmax(dim=1) if kind == "classes" else (y_BSO[:, 0, 0] > 0).long()
            found = _counted(batch.y_BSK[:, 0, 0].long(), answer_B, max(aim.outputs, 2))
            counts = found if counts is None else counts + found
    return Answers(
        {name: each / total for name, each in sums.items()},
        np.concatenate(window),
        np.concatenate(values) if values else None,
        counts,
    )


def _counted(class_B: torch.Tensor, answer_B: torch.Tensor, classes: int) -> NDArray[np.float64]:
    """How often each class (a row) got each answer (a column)."""
    flat = np.bincount((class_B * classes + answer_B).numpy(), minlength=classes * classes)
    return flat.reshape(classes, classes).astype(np.float64)


def evaluate(
    name: str,
    problem: AnyProblem,
    settings: Evaluate,
    trials: Sequence[Trial],
    ingested: Path,
    normalized: Path,
    windowed: Path,
) -> Evaluation:
    """Rank the grid's configurations by the measure that selects and try the best of each architecture on test, once.

    A configuration is ranked and may be selected only when all its trials have finished.
    """
    # The last bits of a forecast depend on the number of threads, and the leaderboard should not.
    torch.set_num_threads(1)
    windows = read_windows(windowed)
    aim = objective(windows, trials[0].train)
    ended = {trial.key: read_trial(trial) for trial in trials}
    by_configuration: dict[str, list[Trial]] = {}
    for trial in trials:
        by_configuration.setdefault(trial.configuration.label, []).append(trial)
    rows = [validated(group, ended) for group in by_configuration.values()]
    rows.sort(key=lambda row: (not row.complete, _selecting(row, aim)))

    data = batches.read(normalized, windowed, torch.device("cpu"))
    table = Table.read(normalized) if isinstance(windows, Windowing) else None
    center, scale = table.preparation.of_target if table else (0.0, 1.0)
    reference = persistence_error(data["test"], windows, trials[0], aim, scale)

    tested: dict[str, list[Answers]] = {}
    curves: dict[str, dict[str, list[Epoch]]] = {}
    forecasts: dict[str, Forecasts] = {}
    selected: set[str] = set()
    for i, row in enumerate(rows):
        if not row.complete or row.architecture in selected:
            continue
        selected.add(row.architecture)
        group = by_configuration[row.configuration]
        networks = [load_network(trial, windows) for trial in group]
        found = [answered(network, data["test"], aim, windows.objective) for network in networks]
        tested[row.configuration] = found
        if windows.objective == "value":
            known = [answered(network, data["validation"], aim, windows.objective) for network in networks]
            known_SNLO, found_SNLO = (
                np.stack([each.values_NLO for each in of if each.values_NLO is not None]) for of in (known, found)
            )
            quantiles = aim.quantiles if group[0].trainable else ()
            if aim.quantiles and not quantiles:
                # A baseline knows of no quantiles: all of its outputs are its forecast.
                known_SNLO, found_SNLO = known_SNLO[..., :1], found_SNLO[..., :1]
            forecasts[row.configuration] = Forecasts(
                known_SNLO * scale + center, found_SNLO * scale + center, quantiles
            )
        measured = [aim.measured(each.means, scale) for each in found]
        test = {each: Spread.of([of_seed[each] for of_seed in measured]) for each in measured[0]}
        gained = None if reference is None else skill(test[aim.measure.name].mean, reference)
        rows[i] = replace(row, selected=True, test=test, skill=gained)
        if group[0].trainable:
            curves[row.configuration] = {str(trial.seed): history.read(trial_folder(trial)) for trial in group}

    truth = {split: _targets(data[split], table, normalized) for split in ("validation", "test")} if forecasts else {}
    intervals = {
        label: bands(each, truth["validation"], truth["test"], settings.intervals) for label, each in forecasts.items()
    }
    best, runner_up = (*tested, None, None)[:2]
    window = {label: np.mean([each.window_N for each in found], axis=0) for label, found in tested.items()}
    in_rows = timedelta(seconds=table.cadence) if table else timedelta(seconds=1)
    comparison = None
    if best and runner_up:
        factor = scale if aim.measure.scaled else 1.0
        comparison = paired_block_bootstrap(
            factor * window[best],
            factor * window[runner_up],
            moments(truth["test"], table.cadence) if table else np.arange(len(data["test"])),
            # Sequences are no neighbours: each is a block of its own.
            block=round(settings.bootstrap.block / in_rows) if table else 1,
            resamples=settings.bootstrap.resamples,
            level=settings.bootstrap.level,
        )
    errors = {label: absolute(each, truth["test"]) for label, each in forecasts.items()} if table else {}
    shown, part = "", slice(0)
    if table and errors:
        shown, part = stretch(truth["test"], table.series, round(settings.forecasts / in_rows))
    leads = _lead_names(problem)
    return Evaluation(
        problem=name,
        title=problem.title,
        target=problem.target,
        unit=problem.unit,
        synthetic=problem.source.synthetic,
        split=problem.split.model_dump(mode="json"),
        window=problem.window.model_dump(mode="json"),
        measures=[
            Measured(
                each.name, each.title, problem.unit if each.scaled else each.unit, each.scaled, each.more_is_better
            )
            for each in aim.measures
        ],
        rows=[replace(row, intervals=[band.interval for band in intervals.get(row.configuration, [])]) for row in rows],
        best=best,
        runner_up=runner_up,
        comparison=comparison,
        comparison_unit=problem.unit if aim.measure.scaled else "nats",
        persistence_test=reference,
        curves=curves,
        leads={label: error_NL.mean(axis=0).tolist() for label, error_NL in errors.items() if len(leads) > 1},
        lead_names=leads,
        hours={label: by_hour(truth["test"], error_NL) for label, error_NL in errors.items()},
        months={label: by_month(truth["test"], error_NL) for label, error_NL in errors.items()},
        forecasts=along(truth["test"], forecasts, part) if errors else {},
        forecasts_of=shown,
        fans={label: [band.fan(part) for band in reversed(intervals[label])] for label in errors},
        confusion={
            label: np.mean(counts, axis=0).tolist()
            for label, found in tested.items()
            if (counts := [each.confusion_CC for each in found if each.confusion_CC is not None])
        },
        quality=json.loads((ingested / "quality.json").read_text(encoding="utf-8")),
        windows=asdict(windows),
    )


def _lead_names(problem: AnyProblem) -> list[str]:
    """How far ahead each forecast is, the shortest first; nothing where there is no clock."""
    if not isinstance(problem, Problem):
        return []
    window = problem.window
    return [written(window.delay - later * window.step) for later in reversed(range(window.leads))]


def _selecting(row: Row, aim: Objective) -> float:
    """What the row is ranked by."""
    return row.validation[aim.measure.name].mean if row.validation else math.inf


def persistence_error(test: Data, windows: AnyWindows, trial: Trial, aim: Objective, scale: float) -> float | None:
    """The test error of persistence; None where it is no answer."""
    try:
        baseline = REGISTRY[BASELINE](shape_for(windows, trial.train), Axes())
    except ShapeError:
        return None
    return aim.measured(answered(baseline, test, aim, windows.objective).means, scale)[aim.measure.name]


def validated(group: Sequence[Trial], ended: dict[str, Any]) -> Row:
    """A configuration by its trials' validation errors."""
    finished = [trial for trial in group if ended[trial.key]["status"] == "finished"]
    results = [ended[trial.key]["validation"] for trial in finished]
    configuration = group[0].configuration
    return Row(
        configuration=configuration.label,
        architecture=configuration.family,
        source=REGISTRY[configuration.architecture].source,
        parameters=ended[finished[0].key]["parameters"] if finished else None,
        finished_seeds=[trial.seed for trial in finished],
        failed=[f"seed {t.seed}: {ended[t.key]['reason']}" for t in group if ended[t.key]["status"] == "failed"],
        selected=False,
        validation={name: Spread.of([result[name] for result in results]) for name in results[0]} if results else {},
        test={},
        skill=None,
        intervals=[],
    )


def _targets(data: Data, table: Table | None, normalized: Path) -> Targets:
    """The targets of a split, in order, in the target's unit."""
    if table is None or not isinstance(data, Batches):
        y_NLK = torch.cat([batch.y_BSK for batch in data.in_order(EVALUATION_BATCH)])
        no_times = np.empty((0, 1), dtype="datetime64[ms]")
        return Targets(y_NLK[:, :, 0].double().numpy(), np.arange(len(data))[:, None], no_times)
    rows_NL = data.targets(data.rows(torch.arange(len(data))))
    center, scale = table.preparation.of_target
    observed_NL = data.targets_N[rows_NL].double().numpy() * scale + center
    return Targets(observed_NL, rows_NL.numpy(), times(normalized)[rows_NL.numpy()])


def metrics(evaluation: Evaluation) -> dict[str, Any]:
    """What `dvc metrics show` shows: the best by validation, and what it does on the test rows."""
    found: dict[str, Any] = {}
    if evaluation.persistence_test is not None:
        found["persistence"] = {f"test_{evaluation.measure.name}": round(evaluation.persistence_test, 4)}
    row = evaluation.row(evaluation.best)
    if row:
        found["best"] = {
            "configuration": row.configuration,
            **{f"validation_{name}": round(error.mean, 4) for name, error in row.validation.items()},
            **{f"test_{name}": round(error.mean, 4) for name, error in row.test.items()},
            "skill": row.skill and round(row.skill, 4),
        }
    return found


def plots(evaluation: Evaluation) -> dict[str, pl.DataFrame]:
    """What `dvc plots show` draws, by file name: long tables with a column `configuration`.

    Without a clock, those of hours, months and forecasts are empty.
    """
    measure = evaluation.measure.name
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
    settings = load_settings()
    normalized, windowed = paths.stage("normalize", problem), paths.stage("window", problem)
    out = paths.stage("evaluate", problem)
    trials = expand(settings, problem, windowed)
    evaluation = evaluate(
        problem,
        settings.problem(problem),
        settings.evaluate,
        trials,
        paths.stage("ingest", problem),
        normalized,
        windowed,
    )
    write(evaluation, look(evaluation, trials, normalized, windowed), out)

    def log() -> None:
        context = store.open_pipeline(problem, settings, trials, newest=True)
        store.log_unlogged(context, trials)
        store.log_evaluation(context, evaluation, trials, out)
        package(evaluation, trials)

    store.awaited(log)


if __name__ == "__main__":
    command(main)
