"""The verdict on a challenger: it becomes champion if its forecasts are significantly better, and nowhere much worse.

This module only weighs figures. `evidence` computes them, and `decisions` keeps what was decided.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lifecycle.champions.history import champion_folder
from lifecycle.seasons import SEASONS, number_seasons
from problems.durations import format_duration
from project.settings.operation import RetrainSettings
from stages.evaluation.bootstrap import LEAST_BLOCKS, Comparison
from stages.evaluation.forecasts import Targets
from stages.evaluation.metrics import Errors
from stages.evaluation.number_format import choose_decimals, format_number, format_quantity


@dataclass(frozen=True)
class Contender:
    """One of the two models that are compared.

    Attributes:
        version: the number of its version in MLflow; None: it is persistence.
        label: a name for people.
        mae: its MAE on the windows of the comparison, in the target's unit; None where nothing was compared.
        error: the same by the measure of the comparison. Decisions of earlier versions of Recast, which compared by MAE
            only, do not have it.
    """

    version: int | None
    key: str | None
    label: str
    mae: float | None = None
    error: float | None = None

    def __post_init__(self) -> None:
        if self.error is None:
            object.__setattr__(self, "error", self.mae)


@dataclass(frozen=True)
class Slice:
    """Both models on a part of the windows' targets.

    Attributes:
        group: season, hour or extreme.
        targets: how many there are.
        challenger, champion: errors by the measure of the comparison, in the target's unit.
        judged: whether there are enough targets to judge by; a smaller slice is only shown.
    """

    group: str
    name: str
    targets: int
    challenger: float
    champion: float
    judged: bool

    @property
    def change(self) -> float | None:
        """By what share of the champion's error the challenger's is larger; None where the champion's is 0."""
        return self.challenger / self.champion - 1 if self.champion else None

    def is_worse(self, limit: float) -> bool:
        """Whether the challenger is worse by more than this share of the champion's error."""
        return self.judged and self.challenger > (1 + limit) * self.champion


@dataclass(frozen=True)
class Decision:
    """Whether the challenger is to become champion, and why.

    Attributes:
        id: a hash of both keys, the data and the rules: the same comparison has the same id.
        champion: the model that the challenger is compared with; persistence where there is no champion.
        data: identity of the data.
        rules: the settings that decide.
        windows: how many it rests on.
        moments: at how many times their targets were observed: parallel series share their weather, so windows of one
            time are not independent.
        required: the fewest such times that a comparison may rest on; None: `retrain.windows` sets the fewest windows.
            Earlier versions of Recast wrote neither.
        left_out: test windows that the champion was trained or selected on, or that one of the two cannot forecast.
        first, last: times of the first and the last target.
        comparison: the challenger's errors minus the champion's; None where nothing was compared.
        reasons: a sentence each; the first one decides.
        stretch: `time`, `observed`, `challenger` and `champion` along the newest windows of one series.
        measure, measure_title: of the errors that are compared: its name in files, and its name for people. Decisions
            of earlier versions of Recast, which compared by MAE only, do not name it.
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
    measure: str = "mae"
    measure_title: str = "MAE"
    moments: int | None = None
    required: int | None = None

    @property
    def folder(self) -> Path:
        """Where the decision and its page are stored."""
        return decision_folder(self.problem, self.id)


def decision_folder(problem: str, decision: str) -> Path:
    """Where a decision about a problem's champion is stored."""
    return champion_folder(problem) / "decisions" / decision


def compare_slices(targets: Targets, challenger_NL: Errors, champion_NL: Errors, least: int) -> Iterator[Slice]:
    """Both errors by season, by hour of day, and where the target is among the lowest or the highest tenth.

    Args:
        least: fewer targets are not judged.
    """
    season_NL = number_seasons(targets.times_NL)
    hours_NL = targets.times_NL.astype("datetime64[h]").astype(np.int64) % 24
    low, high = np.quantile(targets.observed_NL, [0.1, 0.9])
    parts: list[tuple[str, str, NDArray[np.bool_]]] = [
        *(("season", name, season_NL == i) for i, name in enumerate(SEASONS)),
        *(("hour", f"{hour:02}", hours_NL == hour) for hour in range(24)),
        ("extreme", "lowest tenth", targets.observed_NL <= low),
        ("extreme", "highest tenth", targets.observed_NL >= high),
    ]
    for group, name, is_in_NL in parts:
        if count := int(is_in_NL.sum()):
            challenger, champion = float(challenger_NL[is_in_NL].mean()), float(champion_NL[is_in_NL].mean())
            yield Slice(group, name, count, challenger, champion, judged=count >= least)


def find_shortage(decision: Decision, rules: RetrainSettings, block: timedelta, least_test: timedelta) -> str | None:
    """Why the windows are too few to compare, as a sentence with the number that is needed; None: they are enough.

    Args:
        decision: with the number of its windows and moments.
        block: the length of a block of the bootstrap.
        least_test: the shortest test part with enough windows, if no row is missing.
    """
    can = (
        f"There are too few windows to compare: both can forecast {decision.windows:,} that the champion was not "
        "selected on"
    )
    fix = f"Wait for more rows, or lengthen the test part of problems.{decision.problem}.split"
    if rules.windows is not None and decision.windows < rules.windows:
        return f"{can}, and retrain.windows asks for {rules.windows:,}. {fix}."
    if decision.required is not None and (decision.moments or 0) < decision.required:
        return (
            f"{can}, at {decision.moments:,} times, and a comparison needs {decision.required:,} times: {LEAST_BLOCKS} "
            f"blocks of {format_duration(block)}, within which errors are correlated. {fix} to "
            f"at least {format_duration(least_test)}."
        )
    return None


def format_share(value: float) -> str:
    """A share of 1 in percent, with all of its digits."""
    return f"{100 * value:g}\N{NO-BREAK SPACE}%"


def judge(decision: Decision, rules: RetrainSettings) -> tuple[bool, list[str]]:
    """Whether the challenger is promoted, and why: a sentence for each reason.

    Args:
        decision: with its comparison and slices.
    """
    comparison, unit = decision.comparison, decision.unit
    if comparison is None:
        raise ValueError(f"decision {decision.id} has no comparison to judge by")
    is_first = decision.champion.version is None
    opponent = "persistence" if is_first else "the champion"
    digits = choose_decimals(max(abs(comparison.low), abs(comparison.high)), 3)
    level = format_share(rules.level)

    def by(value: float) -> str:
        return f"{format_quantity(abs(value), digits, unit)} {'smaller' if value < 0 else 'larger'}"

    interval = f"{level} interval: from {by(comparison.low)} to {by(comparison.high)}"
    needed = f" (at least {decision.required:,} are needed)" if decision.required else ""
    times = f" at {decision.moments:,} times{needed}" if decision.moments else ""
    windows = f"{decision.windows:,} windows{times}"
    figures = f"its {decision.measure_title} is {by(comparison.difference)} ({interval}) on {windows}"
    if comparison.low > 0:
        return False, [f"The challenger is significantly worse than {opponent} at the {level} level: {figures}."]
    if comparison.high >= 0:
        return False, [f"The challenger is not significantly better than {opponent} at the {level} level: {figures}."]
    reasons = [f"The challenger is significantly better than {opponent} at the {level} level: {figures}."]
    if is_first:
        return True, [*reasons, "It is the first champion, which only has to be better than persistence overall."]
    worse = [part for part in decision.slices if part.is_worse(rules.worse)]
    if worse:
        names = ", ".join(
            f"{part.group} {part.name} ({format_number(part.challenger, digits)} compared with "
            f"{format_quantity(part.champion, digits, unit)})"
            for part in worse
        )
        return False, [
            f"The challenger is better overall, but its {decision.measure_title} is worse by more than "
            f"{format_share(rules.worse)} in: {names}.",
            *reasons,
        ]
    return True, [*reasons, f"In no season, hour or extreme is it worse by more than {format_share(rules.worse)}."]
