"""Decisions about challengers: which trial is the challenger, whether to compare it, and what was decided.

A decision is stored in `data/champion/<problem>/decisions/<id>/decision.json`, its page beside it. The same challenger,
champion, data and rules have the same id, so nothing is decided twice, whenever a process is killed.
"""

import hashlib
import json
from dataclasses import asdict, replace
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from learning.objectives import Objective
from lifecycle.champions import history, registry
from lifecycle.champions.comparison import (
    Contender,
    Decision,
    compare_slices,
    decision_folder,
    find_shortage,
    judge,
)
from lifecycle.champions.evidence import (
    ComparedWindows,
    ModelForecasts,
    choose_measure,
    compute_errors,
    find_mismatch,
    forecast_test_windows,
    make_persistence,
    read_test_windows,
    read_window_rows,
    sample_stretch,
)
from lifecycle.champions.history import RETRAIN, Version
from lifecycle.champions.registry import read_validated_until
from lifecycle.table_problem import require_table_problem
from problems.errors import RecastError
from project import paths
from project.atomic import replace_file, write_json
from project.records import read_record
from project.settings.sections import Settings
from stages.evaluation import leaderboard
from stages.evaluation.baseline import BASELINE
from stages.evaluation.bootstrap import choose_block, count_required_moments, paired_block_bootstrap
from stages.evaluation.forecasts import number_moments
from stages.evaluation.metrics import mae
from stages.evaluation.selection import select_best_trials
from stages.tables.table import read_times
from stages.tables.windows import TableWindows, read_ranges, read_windows
from stages.tracking import store
from stages.tracking.store import TrackingError
from stages.training.expansion import list_trials
from stages.training.objectives import choose_objective
from stages.training.trials import Trial


def read_decision(problem: str, decision: str) -> Decision | None:
    """The decision with this id, or None where there is none.

    Raises:
        RecastError: another version of Recast wrote it.
    """
    file = decision_folder(problem, decision) / "decision.json"
    if not file.exists():
        return None
    return read_record(file, Decision, fix="delete the file to have the models compared again")


def select_challenger(problem: str, settings: Settings) -> Trial:
    """The trial that is the challenger: the best one, by validation, of the best configuration.

    Raises:
        RecastError: there is no leaderboard, or no configuration finished with every seed.
    """
    require_table_problem(problem, settings)
    evaluation = leaderboard.read_leaderboard(paths.stage_folder("evaluate", problem))
    if evaluation is None:
        raise RecastError(f"{problem}: no leaderboard yet; `recast run {problem}` makes one")
    trials = list_trials(settings, problem, paths.stage_folder("window", problem))
    for row, trial in select_best_trials(evaluation.rows, trials):
        if row.configuration == evaluation.best:
            return trial
    raise RecastError(
        f"{problem}: no configuration finished with every seed, so there is no challenger; `recast leaderboard "
        f"{problem}` gives the reasons"
    )


def find_validated_until(problem: str) -> str:
    """The time of the last target that the trials of the grid were trained or selected on, as ISO 8601."""
    normalized, windowed = paths.stage_folder("normalize", problem), paths.stage_folder("window", problem)
    delay = TableWindows.read(windowed).delay
    last_K = np.concatenate([read_ranges(windowed, split)[:, 1] - 1 + delay for split in ("train", "validation")])
    return str(read_times(normalized)[last_K].max())


def find_validated_from(problem: str) -> str:
    """The time of the last input of the first window that the trials of the grid were selected on, as ISO 8601."""
    normalized, windowed = paths.stage_folder("normalize", problem), paths.stage_folder("window", problem)
    origin_K = read_ranges(windowed, "validation")[:, 0] - TableWindows.read(windowed).step
    return str(read_times(normalized)[origin_K].min())


def comparison_rules(settings: Settings) -> dict[str, Any]:
    """The settings that decide a comparison."""
    retrain = settings.retrain.model_dump(mode="json", include={"level", "worse", "windows", "slice_windows"})
    return retrain | {"bootstrap": settings.evaluate.bootstrap.model_dump(mode="json", exclude={"level"})}


def decision_id(trial: Trial, champion: Version | None, settings: Settings) -> str:
    """The id of the decision about a challenger.

    Raises:
        TrackingError: MLflow has failed.
    """
    parts = [trial.key, champion.key if champion else None, trial.data, comparison_rules(settings)]
    if (measure := _objective(trial).selection_measure.name) != "mae":
        # Earlier versions of Recast compared by MAE whatever the problem. Decisions by MAE keep their ids.
        parts.append(measure)
    if champion and champion.key == trial.key:
        # The network is the same, so the difference is in the rest of the model. A champion that a rollback has
        # brought back is compared anew.
        parts += [
            registry.read_content_tag(trial),
            history.champion_stack(history.read_history(trial.problem))[-1].time,
        ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def reason_not_to_compare(trial: Trial, champion: Version | None, settings: Settings) -> str | None:
    """Why a challenger is not compared with the champion, as a clause; None: it is to be compared.

    It is not compared twice, nor after a person has chosen a champion since it was a challenger by these rules. Its key
    stands for the data as well: with other data it is another trial.
    """
    entries = history.read_history(trial.problem)
    if entry := history.find_outcome_in(entries, decision_id(trial, champion, settings)):
        return f"it was decided on before ({entry.kind})"
    decisions = [
        read_decision(trial.problem, entry.decision) if entry.decision and entry.key == trial.key else None
        for entry in entries
    ]
    rules = comparison_rules(settings)
    by_these_rules = [position for position, decision in enumerate(decisions) if decision and decision.rules == rules]
    was_promoted = any(entries[position].kind == "promotion" for position in by_these_rules)
    if was_promoted and trial.key not in [entry.key for entry in history.champion_stack(entries)]:
        return "it was promoted and rolled back before"
    changes = [position for position, entry in enumerate(entries) if entry.kind in ("promotion", "rollback")]
    if by_these_rules and changes and changes[-1] > by_these_rules[0] and entries[changes[-1]].by != RETRAIN:
        return f"a person has chosen version {entries[changes[-1]].version} since it was a challenger"
    return None


def decide(trial: Trial, challenger: Version, champion: Version | None, settings: Settings) -> Decision:
    """Compare the challenger with the champion, and write the decision with its evidence to the decision's folder.

    A decision that exists already is only read. The champion's own network, stored again with other intervals for
    example, forecasts the same as before and is promoted without a comparison.

    Raises:
        TrackingError: the champion's model cannot be loaded.
        RecastError: the problem is one of whole sequences.
    """
    decision = read_decision(trial.problem, decision_id(trial, champion, settings))
    if decision is None:
        decision = _decide(trial, challenger, champion, settings)
        decision.folder.mkdir(parents=True, exist_ok=True)
        write_json(decision.folder / "decision.json", asdict(decision))
    return decision


def publish_decision(decision: Decision, challenger: Version, page: str) -> None:
    """Write a decision's page, and log it with its evidence to the challenger's run and version.

    Raises:
        TrackingError: MLflow has failed.
    """
    with replace_file(decision.folder / "page.html") as temporary:
        temporary.write_text(page, encoding="utf-8")
    with store.translate_artifact_errors():
        store.get_client().log_artifacts(challenger.run, str(decision.folder), f"decisions/{decision.id}")
    tags = {
        "recast.decision": decision.id,
        "recast.promotion": "advised" if decision.promoted else "not advised",
        "recast.reason": decision.reasons[0],
        "recast.measure": decision.measure,
    }
    registry.set_tags(challenger, tags)


def _objective(trial: Trial) -> Objective:
    return choose_objective(read_windows(trial.windowed), trial.train)


def _decide(trial: Trial, challenger: Version, champion: Version | None, settings: Settings) -> Decision:
    """The decision, its evidence and its reasons."""
    # The last bits of a forecast depend on the number of threads, and a decision should not.
    torch.set_num_threads(1)
    problem = require_table_problem(trial.problem, settings)
    objective = _objective(trial)
    undecided = Decision(
        id=decision_id(trial, champion, settings),
        problem=trial.problem,
        title=problem.title,
        target=problem.target,
        unit=problem.unit,
        synthetic=problem.source.synthetic,
        challenger=Contender(challenger.version, trial.key, trial.label),
        champion=(
            Contender(champion.version, champion.key, champion.label) if champion else Contender(None, None, BASELINE)
        ),
        data=trial.data,
        rules=comparison_rules(settings),
        windows=0,
        left_out=0,
        first=None,
        last=None,
        comparison=None,
        slices=[],
        promoted=False,
        reasons=[],
        stretch={},
        measure=objective.selection_measure.name,
        measure_title=objective.selection_measure.title,
    )
    challenger_model = registry.load_model(challenger)
    if champion and champion.key == trial.key:
        reason = (
            f"It is the same network as version {champion.version}; other parts of the model, such as its intervals, "
            "have changed with the settings or the code."
        )
        return replace(undecided, promoted=True, reasons=[reason])
    try:
        champion_model = registry.load_model(champion) if champion else make_persistence(trial, challenger_model)
    except TrackingError:
        raise
    except RecastError as error:
        # Today's code forecasts something else with the champion's weights. That must not stop every retraining.
        return replace(undecided, reasons=[f"The champion cannot be loaded: {error}"])
    if mismatch := find_mismatch(challenger_model.about, champion_model.about):
        return replace(undecided, reasons=[f"The two models cannot be compared: {mismatch}."])
    windows = read_test_windows(trial.problem)
    rows = read_window_rows(trial.problem, windows, (challenger_model.about, champion_model.about))
    try:
        challenger_forecasts = forecast_test_windows(challenger_model, rows, windows)
        champion_forecasts = forecast_test_windows(champion_model, rows, windows)
    except RecastError as error:
        return replace(undecided, reasons=[f"The champion cannot forecast these windows: {error}."])
    known_until = read_validated_until(champion) if champion else None
    return _compare(undecided, objective, windows, challenger_forecasts, champion_forecasts, known_until, settings)


def _compare(
    decision: Decision,
    objective: Objective,
    windows: ComparedWindows,
    challenger: ModelForecasts,
    champion: ModelForecasts,
    known_until: np.datetime64 | None,
    settings: Settings,
) -> Decision:
    """The decision with its evidence.

    Args:
        objective: of the challenger.
        known_until: the time of the last target that the champion was trained or selected on; None: it was not trained.
    """
    limits, bootstrap = settings.retrain, settings.evaluate.bootstrap
    is_fair_N: NDArray[np.bool_] = np.asarray(np.isfinite(challenger.point + champion.point).all(axis=1))
    if known_until is not None:
        is_fair_N[windows.targets.times_NL[:, 0] <= known_until] = False
    count = int(is_fair_N.sum())
    measure, remark = choose_measure(objective, challenger, champion)
    decision = replace(
        decision,
        windows=count,
        left_out=len(is_fair_N) - count,
        measure=measure.name,
        measure_title=measure.title,
    )
    windows, challenger, champion = windows.select(is_fair_N), challenger.select(is_fair_N), champion.select(is_fair_N)
    targets, table = windows.targets, windows.table
    cadence = timedelta(seconds=table.cadence)
    block = choose_block(bootstrap.block / cadence, windows.window.horizon)
    moment_N = number_moments(targets, table.cadence)
    required = count_required_moments(block) if limits.windows is None else None
    decision = replace(decision, moments=len(np.unique(moment_N)), required=required)
    least_test = ((required or 0) + windows.window.lookback + windows.window.delay) * cadence
    if shortage := find_shortage(decision, limits, block * cadence, least_test):
        return replace(decision, reasons=[shortage])
    challenger_NL, champion_NL = (
        compute_errors(measure, objective.quantiles, model, targets.observed_NL) for model in (challenger, champion)
    )
    comparison = paired_block_bootstrap(
        challenger_NL.mean(axis=1),
        champion_NL.mean(axis=1),
        moment_N,
        block=block,
        resamples=bootstrap.resamples,
        level=limits.level,
    )
    window_of_series_K = np.flatnonzero(windows.series_N == windows.series_N[0])
    newest_K = window_of_series_K[-round(settings.evaluate.forecasts / cadence) :]

    def score(contender: Contender, model: ModelForecasts, errors_NL: NDArray[np.float64]) -> Contender:
        point_errors_NL = np.abs(model.point - targets.observed_NL)
        return replace(contender, mae=mae(point_errors_NL), error=measure.of_mean(float(errors_NL.mean())))

    decision = replace(
        decision,
        challenger=score(decision.challenger, challenger, challenger_NL),
        champion=score(decision.champion, champion, champion_NL),
        first=str(targets.times_NL.min()),
        last=str(targets.times_NL.max()),
        comparison=comparison,
        slices=list(compare_slices(targets, challenger_NL, champion_NL, limits.slice_windows)),
        stretch=sample_stretch(targets, challenger.point, champion.point, newest_K),
    )
    promoted, reasons = judge(decision, limits)
    return replace(decision, promoted=promoted, reasons=[*reasons, remark] if remark else reasons)
