"""Whether a challenger takes the champion's place: both forecast the same windows, and the difference must be no noise.

The windows are the newest there are, the test windows of the challenger's split, without those that the champion was
trained or selected on. Both are the models that are stored, as they would serve: from rows in their own units, through
the Preparation that was fitted to each one's own training rows. A first champion has to beat persistence.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from architectures import REGISTRY, Axes
from forecasting.forecaster import About, Forecaster
from lifecycle.champions import registry
from lifecycle.champions.history import RETRAIN
from lifecycle.champions.registry import Version
from problems.errors import RecastError
from problems.problem import Problem
from problems.source import written
from project import paths
from project.atomic import replaced_file, write_json
from project.settings.sections import Retrain, Settings
from stages.evaluation import leaderboard
from stages.evaluation.forecasts import Targets, moments
from stages.evaluation.leaderboard import BASELINE
from stages.evaluation.metrics import Comparison, Errors, mae, paired_block_bootstrap
from stages.evaluation.phrasing import decimals, fixed, quantity
from stages.evaluation.selection import best_trials
from stages.tables.table import Table, times, values
from stages.tables.windows import Windowing, ranges
from stages.tracking import store
from stages.tracking.store import TrackingError
from stages.training.trials import Trial, expand

Values = NDArray[np.float64]

VALIDATED_UNTIL = "recast.validated_until"
"""Tag of a version: the time of the last target that it was trained or selected on."""
SEASONS = ("Dec to Feb", "Mar to May", "Jun to Aug", "Sep to Nov")
DRAWN_POINTS = 1000
"""Points of the forecasts that a decision keeps at most, to be drawn."""


@dataclass(frozen=True)
class Contender:
    """One of the two.

    Attributes:
        version: of the registered model; None: persistence.
        label: what it is, for people.
        mae: on the windows of the comparison, in the target's unit; None where there was none.
    """

    version: int | None
    key: str | None
    label: str
    mae: float | None = None


@dataclass(frozen=True)
class Slice:
    """The two on a part of the windows' targets.

    Attributes:
        group: season, hour or extreme.
        targets: how many; too few are shown but not judged.
        challenger, champion: mean absolute errors in the target's unit.
    """

    group: str
    name: str
    targets: int
    challenger: float
    champion: float
    judged: bool

    @property
    def change(self) -> float | None:
        """By what share of the champion's error the challenger's is larger; None where the champion makes none."""
        return self.challenger / self.champion - 1 if self.champion else None

    def is_worse(self, limit: float) -> bool:
        """Whether the challenger is worse by more than this share of the champion's error."""
        return self.judged and self.challenger > (1 + limit) * self.champion


@dataclass(frozen=True)
class Decision:
    """Whether the challenger is to be champion, and why.

    Attributes:
        id: a hash of both keys, the data and the rules: the same comparison has the same.
        champion: what the challenger is compared with; persistence, where there is no champion.
        data: identity of the data.
        rules: the settings that decide.
        windows: on how many it rests.
        left_out: test windows that the champion knows, or cannot forecast.
        first, last: times of the first and the last target.
        comparison: of the challenger with the champion; None where there were too few windows, or none to compare.
        reasons: the first decides; a sentence each.
        stretch: `time`, `observed`, `challenger` and `champion` along the newest windows of one series.
    """

    id: str
    problem: str
    title: str
    target: str
    unit: str
    synthetic: bool
    challenger: Contender
    champion: Contender
    data: str
    rules: dict[str, Any]
    windows: int
    left_out: int
    first: str | None
    last: str | None
    comparison: Comparison | None
    slices: list[Slice]
    promoted: bool
    reasons: list[str]
    stretch: dict[str, list[Any]]

    @property
    def folder(self) -> Path:
        return registry.folder(self.problem) / "decisions" / self.id


def read(problem: str, decision: str) -> Decision | None:
    """A decision that was made, or None.

    Raises:
        RecastError: another version of Recast wrote it.
    """
    file = registry.folder(problem) / "decisions" / decision / "decision.json"
    if not file.exists():
        return None
    try:
        return TypeAdapter(Decision).validate_json(file.read_bytes())
    except ValidationError as error:
        what = error.errors()[0]
        raise RecastError(
            f"{file}: written by another version of Recast ({'.'.join(map(str, what['loc']))}: {what['msg']}); delete "
            f"the file: the comparison is made again"
        ) from error


def best(problem: str, settings: Settings) -> Trial:
    """The challenger: the best trial, by validation, of the best configuration.

    Raises:
        RecastError: there is no leaderboard, or no configuration finished with every seed.
    """
    table_problem(problem, settings)
    found = leaderboard.read(paths.stage("evaluate", problem))
    if found is None:
        raise RecastError(f"{problem}: no leaderboard yet; `recast run {problem}` makes one")
    for row, trial in best_trials(found.rows, expand(settings, problem, paths.stage("window", problem))):
        if row.configuration == found.best:
            return trial
    raise RecastError(
        f"{problem}: no configuration finished with every seed, so there is no challenger; `recast leaderboard "
        f"{problem}` names the reasons"
    )


def table_problem(problem: str, settings: Settings) -> Problem:
    """
    Raises:
        RecastError: the problem is one of whole sequences, which have no clock by which anything would be recent.
    """
    declared = settings.problem(problem)
    if not isinstance(declared, Problem):
        raise RecastError(f"{problem} has no table with a clock; champions are for problems whose rows have times")
    return declared


def validated_until(problem: str) -> str:
    """The time of the last target that this grid's trials were trained or selected on, ISO 8601."""
    normalized, windowed = paths.stage("normalize", problem), paths.stage("window", problem)
    delay = Windowing.read(windowed).delay
    last_K = np.concatenate([ranges(windowed, split)[:, 1] - 1 + delay for split in ("train", "validation")])
    return str(times(normalized)[last_K].max())


def rules(settings: Settings) -> dict[str, Any]:
    """The settings that decide a comparison."""
    retrain = settings.retrain.model_dump(mode="json", include={"level", "worse", "windows", "slice_windows"})
    return retrain | {"bootstrap": settings.evaluate.bootstrap.model_dump(mode="json", exclude={"level"})}


def identity(trial: Trial, champion: Version | None, settings: Settings) -> str:
    """The id of the decision about a challenger.

    Raises:
        TrackingError: MLflow has failed.
    """
    parts = [trial.key, champion.key if champion else None, trial.data, rules(settings)]
    if champion and champion.key == trial.key:
        # What differs is what stands around the network; a champion that came back is asked anew.
        parts += [registry.content(trial), registry.reign(registry.history(trial.problem))[-1].time]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def settled(trial: Trial, champion: Version | None, settings: Settings) -> str | None:
    """Why a challenger is not compared with the champion: it was, or a person has decided since it was a challenger by
    these rules; None: it is to be compared. Its key holds for the data: other data make another trial.
    """
    entries = registry.history(trial.problem)
    if before := registry.decided(trial.problem, identity(trial, champion, settings)):
        return f"it was decided on before ({before.kind})"
    made = [read(trial.problem, each.decision) if each.decision and each.key == trial.key else None for each in entries]
    by_these_rules = [i for i, each in enumerate(made) if each and each.rules == rules(settings)]
    was_promoted = any(entries[i].kind == "promotion" for i in by_these_rules)
    if was_promoted and trial.key not in [each.key for each in registry.reign(entries)]:
        return "it was promoted and rolled back before"
    changes = [i for i, each in enumerate(entries) if each.kind in ("promotion", "rollback")]
    if by_these_rules and changes and changes[-1] > by_these_rules[0] and entries[changes[-1]].by != RETRAIN:
        return f"a person has chosen version {entries[changes[-1]].version} since it was a challenger"
    return None


def compare(trial: Trial, challenger: Version, champion: Version | None, settings: Settings) -> Decision:
    """Let both forecast the same windows, and decide; what was decided before is not decided again.

    The champion's own network, stored with other intervals, say, forecasts the same, and takes its place. The evidence
    is written to the decision's folder.

    Raises:
        TrackingError: the champion's model cannot be loaded.
        RecastError: the problem is one of whole sequences.
    """
    decision = read(trial.problem, identity(trial, champion, settings))
    if decision is None:
        decision = _decide(trial, challenger, champion, settings)
        decision.folder.mkdir(parents=True, exist_ok=True)
        write_json(decision.folder / "decision.json", asdict(decision))
    return decision


def publish(decision: Decision, challenger: Version, page: str) -> None:
    """Write a decision's page, and log it with its evidence to the challenger's run and version.

    Raises:
        TrackingError: MLflow has failed.
    """
    with replaced_file(decision.folder / "page.html") as temporary:
        temporary.write_text(page, encoding="utf-8")
    with store.storing():
        store.client().log_artifacts(challenger.run, str(decision.folder), f"decisions/{decision.id}")
    tags = {
        "recast.decision": decision.id,
        "recast.promotion": "advised" if decision.promoted else "not advised",
        "recast.reason": decision.reasons[0],
    }
    registry.tag(challenger, tags)


# The comparison


@dataclass(frozen=True)
class _Windows:
    """The test windows (N) of the challenger's split, by what they forecast.

    Attributes:
        series_N: the number of each one's series in `table.series`.
    """

    targets: Targets
    series_N: NDArray[np.int64]
    table: Table

    def named(self) -> list[tuple[str, np.datetime64]]:
        """Series and last target time of each: what it is known by to whatever network forecasts it."""
        names = [self.table.series[i].name for i in self.series_N]
        return list(zip(names, self.targets.times_NL[:, -1], strict=True))

    def only(self, chosen_N: NDArray[np.bool_]) -> "_Windows":
        """Those of them that are chosen."""
        all_ = self.targets
        targets = Targets(all_.observed_NL[chosen_N], all_.rows_NL[chosen_N], all_.times_NL[chosen_N])
        return replace(self, targets=targets, series_N=self.series_N[chosen_N])


def _test_windows(problem: str) -> _Windows:
    normalized, windowed = paths.stage("normalize", problem), paths.stage("window", problem)
    table = Table.read(normalized)
    rows_N = np.concatenate([np.arange(first, until) for first, until in ranges(windowed, "test")])
    rows_NL = rows_N[:, None] + np.array(Windowing.read(windowed).leads)
    center, scale = table.preparation.of_target
    observed_NL = values(normalized)[:, table.preparation.target][rows_NL].astype(np.float64) * scale + center
    series_N = np.searchsorted([each.first for each in table.series], rows_N, side="right") - 1
    return _Windows(Targets(observed_NL, rows_NL, times(normalized)[rows_NL]), series_N, table)


def _decide(trial: Trial, challenger: Version, champion: Version | None, settings: Settings) -> Decision:
    """The decision, its evidence and its reasons."""
    # The last bits of a forecast depend on the number of threads, and a decision should not.
    torch.set_num_threads(1)
    problem = table_problem(trial.problem, settings)
    ours = registry.load(challenger)
    undecided = Decision(
        id=identity(trial, champion, settings),
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
        rules=rules(settings),
        windows=0,
        left_out=0,
        first=None,
        last=None,
        comparison=None,
        slices=[],
        promoted=False,
        reasons=[],
        stretch={},
    )
    if champion and champion.key == trial.key:
        around = "what stands around it, such as its intervals, has changed in the settings"
        return replace(undecided, promoted=True, reasons=[f"The same network as version {champion.version}; {around}."])
    try:
        theirs = registry.load(champion) if champion else _persistence(ours)
    except TrackingError:
        raise
    except RecastError as error:
        # A model that the code of today forecasts otherwise with serves no more, and must not stop each retraining.
        return replace(undecided, reasons=[f"The champion cannot be loaded: {error}"])
    if different := mismatch(ours.about, theirs.about):
        return replace(undecided, reasons=[f"The two do not answer the same question: {different}."])
    windows = _test_windows(trial.problem)
    rows = _rows(trial.problem, windows, max(_reach(ours.about), _reach(theirs.about)))
    try:
        ours_NL, theirs_NL = _forecasts(ours, rows, windows), _forecasts(theirs, rows, windows)
    except RecastError as error:
        return replace(undecided, reasons=[f"The champion cannot forecast these windows: {error}."])
    return _judged(undecided, windows, ours_NL, theirs_NL, known_until(champion), settings)


def _persistence(forecaster: Forecaster) -> Forecaster:
    """The forecast that a first champion has to beat, of the same windows."""
    about = replace(forecaster.about, architecture=BASELINE, levels=(), reaches={})
    return Forecaster(about, REGISTRY[BASELINE](about.shape, Axes()))


def mismatch(challenger: About, champion: About) -> str | None:
    """What keeps the two from being compared, in words; None: nothing."""
    first, second = challenger.preparation, champion.preparation
    if first is None or second is None or first.table.target != second.table.target:
        return "they forecast other columns"
    if challenger.unit != champion.unit:
        return f"the champion's unit is {champion.unit}, the challenger's {challenger.unit}"
    if challenger.cadence != champion.cadence:
        every = [written(timedelta(seconds=each.cadence)) for each in (champion, challenger)]
        return f"the champion's rows come every {every[0]}, the challenger's every {every[1]}"
    if challenger.lead_names != champion.lead_names:
        ahead = [", ".join(each.lead_names) for each in (champion, challenger)]
        return f"the champion forecasts {ahead[0]} ahead, the challenger {ahead[1]}"
    return None


def _reach(about: About) -> timedelta:
    """How far before its last target a forecast begins to look, what is carried forward included."""
    assert about.preparation is not None
    fill = about.preparation.table.fill or timedelta(0)
    return timedelta(seconds=(about.rows + about.horizon + 1) * about.cadence) + fill


def _rows(problem: str, windows: _Windows, reach: timedelta) -> pl.DataFrame:
    """The rows that the windows are forecast from, in their own units."""
    since = windows.targets.times_NL[:, -1].min() - np.timedelta64(reach)
    names = [each.name for each in windows.table.series]
    return (
        pl.scan_parquet(paths.stage("ingest", problem) / "table.parquet")
        .filter(pl.col("time") >= since.item(), pl.col("series").is_in(names))
        .collect(engine="streaming")
    )


def _forecasts(forecaster: Forecaster, rows: pl.DataFrame, windows: _Windows) -> Values:
    """Forecasts (N, L) of the windows, in the target's unit; NaN of those that the network has no inputs for.

    Raises:
        RecastError: the rows lack a column that the network reads, or have a series that it does not know.
    """
    found = forecaster.answered(forecaster.windows(rows, all_windows=True))
    places_of = {key: i for i, key in enumerate(zip(found.series_K, found.targets_KL[:, -1], strict=True))}
    at_N = np.array([places_of.get(key, -1) for key in windows.named()])
    forecast_NL: Values = found.forecast_KL[at_N]
    forecast_NL[at_N < 0] = np.nan
    return forecast_NL


def known_until(champion: Version | None) -> np.datetime64 | None:
    """The time of the last target that a champion was trained or selected on; None: persistence knows nothing.

    Raises:
        TrackingError: MLflow has failed.
        RecastError: the version was not registered by Recast.
    """
    if champion is None:
        return None
    with store.reported():
        tags = store.client().get_model_version(champion.problem, str(champion.version)).tags
    if VALIDATED_UNTIL not in tags:
        raise RecastError(
            f"{champion.uri} has no tag {VALIDATED_UNTIL}, so which windows it was selected on is not known; set it to "
            "the time of the last target that it was trained or selected on, such as 2020-01-31T23:00:00"
        )
    return np.datetime64(tags[VALIDATED_UNTIL], "ms")


def _judged(
    decision: Decision,
    windows: _Windows,
    challenger_NL: Values,
    champion_NL: Values,
    known_until: np.datetime64 | None,
    settings: Settings,
) -> Decision:
    """The decision with its evidence.

    Args:
        known_until: the last time of a target that the champion was trained or selected on.
    """
    limits, bootstrap = settings.retrain, settings.evaluate.bootstrap
    fair_N: NDArray[np.bool_] = np.asarray(np.isfinite(challenger_NL + champion_NL).all(axis=1))
    if known_until is not None:
        fair_N[windows.targets.times_NL[:, 0] <= known_until] = False
    count = int(fair_N.sum())
    decision = replace(decision, windows=count, left_out=len(fair_N) - count)
    if count < limits.windows:
        return replace(
            decision,
            reasons=[
                f"There are too few windows to tell: {count:,} that both can forecast and the champion was not "
                f"selected on, and retrain.windows asks for {limits.windows:,}. Wait for more rows, or lengthen the "
                f"test part of problems.{decision.problem}.split."
            ],
        )
    windows = windows.only(fair_N)
    targets, table = windows.targets, windows.table
    first_NL, second_NL = challenger_NL[fair_N], champion_NL[fair_N]
    errors_NL, others_NL = np.abs(first_NL - targets.observed_NL), np.abs(second_NL - targets.observed_NL)
    cadence = timedelta(seconds=table.cadence)
    comparison = paired_block_bootstrap(
        errors_NL.mean(axis=1),
        others_NL.mean(axis=1),
        moments(targets, table.cadence),
        block=round(bootstrap.block / cadence),
        resamples=bootstrap.resamples,
        level=limits.level,
    )
    first_series_N = np.flatnonzero(windows.series_N == windows.series_N[0])
    part_N = first_series_N[-round(settings.evaluate.forecasts / cadence) :]
    decision = replace(
        decision,
        challenger=replace(decision.challenger, mae=mae(errors_NL)),
        champion=replace(decision.champion, mae=mae(others_NL)),
        first=str(targets.times_NL.min()),
        last=str(targets.times_NL.max()),
        comparison=comparison,
        slices=list(slices(targets, errors_NL, others_NL, limits.slice_windows)),
        stretch=_stretch(targets, first_NL, second_NL, part_N),
    )
    promoted, reasons = verdict(decision, limits)
    return replace(decision, promoted=promoted, reasons=reasons)


def slices(targets: Targets, challenger_NL: Errors, champion_NL: Errors, least: int) -> Iterator[Slice]:
    """Both errors by season, by hour of day, and where the target is among the lowest or the highest tenth.

    Args:
        least: a slice of fewer targets is not judged.
    """
    months_NL = targets.times_NL.astype("datetime64[M]").astype(np.int64) % 12
    hours_NL = targets.times_NL.astype("datetime64[h]").astype(np.int64) % 24
    low, high = np.quantile(targets.observed_NL, [0.1, 0.9])
    parts: list[tuple[str, str, NDArray[np.bool_]]] = [
        *(("season", name, (months_NL + 1) % 12 // 3 == i) for i, name in enumerate(SEASONS)),
        *(("hour", f"{hour:02}", hours_NL == hour) for hour in range(24)),
        ("extreme", "lowest tenth", targets.observed_NL <= low),
        ("extreme", "highest tenth", targets.observed_NL >= high),
    ]
    for group, name, is_in_NL in parts:
        if count := int(is_in_NL.sum()):
            mean, other = float(challenger_NL[is_in_NL].mean()), float(champion_NL[is_in_NL].mean())
            yield Slice(group, name, count, mean, other, judged=count >= least)


def share(value: float) -> str:
    """A share of 1 in percent, with the digits that it has."""
    return f"{100 * value:g}\N{NO-BREAK SPACE}%"


def verdict(decision: Decision, rules: Retrain) -> tuple[bool, list[str]]:
    """Whether the challenger is promoted, and why."""
    comparison, unit = decision.comparison, decision.unit
    assert comparison is not None
    other = "persistence" if decision.champion.version is None else "the champion"
    digits = decimals(max(abs(comparison.low), abs(comparison.high)), 3)
    level = share(rules.level)

    def by(value: float) -> str:
        return f"{quantity(abs(value), digits, unit)} {'smaller' if value < 0 else 'larger'}"

    interval = f"{level} interval: from {by(comparison.low)} to {by(comparison.high)}"
    told = f"its MAE is {by(comparison.difference)} ({interval}) on {decision.windows:,} windows"
    if comparison.low > 0:
        return False, [f"The challenger is worse than {other} beyond noise: {told}."]
    if comparison.high >= 0:
        return False, [f"The challenger is not better than {other} beyond noise: {told}."]
    reasons = [f"The challenger is better than {other} beyond noise: {told}."]
    if decision.champion.version is None:
        return True, [*reasons, "It is the first champion, which has to beat persistence on the whole."]
    worse = [each for each in decision.slices if each.is_worse(rules.worse)]
    if worse:
        named = ", ".join(
            f"{each.group} {each.name} ({fixed(each.challenger, digits)} against "
            f"{quantity(each.champion, digits, unit)})"
            for each in worse
        )
        return False, [
            f"The challenger is better on the whole, but worse by more than {share(rules.worse)} in: {named}.",
            *reasons,
        ]
    return True, [*reasons, f"In no season, hour or extreme is it worse by more than {share(rules.worse)}."]


def _stretch(
    targets: Targets, challenger_NL: Values, champion_NL: Values, part_N: NDArray[np.int64]
) -> dict[str, list[Any]]:
    """Some windows at the last lead, thinned to what can be drawn."""
    chosen = part_N[:: -(-len(part_N) // DRAWN_POINTS)]
    named = {"observed": targets.observed_NL, "challenger": challenger_NL, "champion": champion_NL}
    return {
        "time": np.datetime_as_string(targets.times_NL[chosen, -1], unit="s").tolist(),
        **{name: [round(value, 4) for value in of_NL[chosen, -1].tolist()] for name, of_NL in named.items()},
    }
