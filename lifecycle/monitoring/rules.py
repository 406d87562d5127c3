"""The rules of `monitor` in params.yaml, and which of them the newest figures break."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from learning.measures import MAE
from lifecycle.monitoring.versions import measure_titles
from project.settings.operation import MonitorSettings


@dataclass(frozen=True)
class BrokenRule:
    """A rule of `monitor` that the newest figures of a version break.

    Attributes:
        rule: its key in the settings.
        message: for people, with the figures.
    """

    rule: str
    message: str


def measure_of(figures: Mapping[str, object]) -> str:
    """The name of the measure by which a row of figures is judged."""
    return str(figures.get("selection_measure") or MAE)


def limit_least(settings: MonitorSettings, cadence: timedelta) -> MonitorSettings:
    """The rules with a least number of forecasts that rows at this cadence can reach.

    Two weeks have 336 hours but only 14 days: without the limit, forecasts of daily rows would never be judged.
    """
    return settings.model_copy(update={"least": min(settings.least, max(1, settings.window // cadence // 2))})


def broken_rules(settings: MonitorSettings, newest: Mapping[str, object], unit: str) -> list[BrokenRule]:
    """The rules that the figures of a day break. Figures of too few forecasts can only break the rule `missing`.

    Args:
        newest: the figures: a row of the history.
        unit: of the target.
    """

    def figure(name: str) -> float | None:
        value = newest.get(name)
        return float(value) if isinstance(value, int | float) else None

    broken = []
    missing = figure("missing")
    if settings.missing is not None and missing is not None and missing > settings.missing:
        broken.append(
            BrokenRule(
                "missing",
                f"{100 * missing:.1f} % of the observations had no forecast; the limit is {100 * settings.missing:g} %",
            )
        )
    if (figure("forecasts") or 0) < settings.least:
        return broken
    error, ratio, skill = figure(measure_of(newest)), figure("error"), figure("skill")
    if settings.error is not None and error is not None and ratio is not None and ratio > settings.error:
        title = measure_titles()[measure_of(newest)]
        broken.append(
            BrokenRule(
                "error",
                f"the {title}, {error:.4g} {unit}, is {ratio:.2f} times the {title} on the test rows, "
                f"{error / ratio:.4g} {unit}; the limit is {settings.error:g} times",
            )
        )
    if settings.skill is not None and skill is not None and skill < settings.skill:
        broken.append(
            BrokenRule(
                "skill",
                f"the skill score against persistence, by {measure_titles()[measure_of(newest)]}, is {skill:.3f}; it "
                f"should be at least {settings.skill:g}",
            )
        )
    if settings.coverage is not None:
        for name in newest:
            coverage, level = figure(name), name.removeprefix("coverage_")
            if name.startswith("coverage_") and coverage is not None and coverage < float(level) - settings.coverage:
                broken.append(
                    BrokenRule(
                        "coverage",
                        f"the {100 * float(level):g} % intervals contain {100 * coverage:.1f} % of the observations; "
                        f"the limit is {100 * settings.coverage:g} percentage points below their level",
                    )
                )
    drift = figure("drift")
    if settings.drift is not None and drift is not None and drift > settings.drift:
        broken.append(
            BrokenRule(
                "drift",
                f"{newest['drift_column']} is not distributed as in the known rows of the season: it is {drift:.2f} "
                f"times as far from them as any window among them; the limit is {settings.drift:g} times",
            )
        )
    return broken
