"""What an evaluation comes to, in words, the same wherever it is told; and numbers as people read them."""

import math
from dataclasses import dataclass

from stages.evaluation.leaderboard import BASELINE, Evaluation
from stages.evaluation.metrics import Comparison


@dataclass(frozen=True)
class Verdict:
    """What the evaluation comes to, in words.

    Attributes:
        headline: the best configuration.
        result: how good it is on the test rows.
        comparison: whether it is better than the runner-up beyond noise.
        settled: the difference between the best and the runner-up is beyond noise; None without a comparison.
    """

    headline: str
    result: str
    comparison: str
    settled: bool | None


def verdict(evaluation: Evaluation) -> Verdict:
    """The evaluation in a few sentences."""
    best = evaluation.row(evaluation.best)
    measure = evaluation.measure
    tested = {row.configuration: row.test[measure.name] for row in evaluation.rows if row.selected}
    if best is None or best.configuration not in tested:
        if any(row.finished_seeds for row in evaluation.rows):
            return Verdict(
                "No configuration finished with every seed",
                "Trials of each have failed, so none is ranked or tried on the test rows. The reasons stand below.",
                "",
                None,
            )
        return Verdict(
            "No configuration finished",
            "No trial has a result, so there is nothing to rank. The reasons stand below.",
            "",
            None,
        )
    digits = digits_of(evaluation)
    error = tested[best.configuration]
    seeds = len(best.finished_seeds)
    over = f"mean ± deviation over {seeds} seeds" if seeds > 1 else "one trial"
    told = quantity(error.mean, digits, measure.unit, error.deviation)
    result = f"On the test rows its {measure.title} is {told} ({over})"
    besides = [
        f"{other.title} {quantity(of.mean, decimals(of.mean, 4), other.unit, of.deviation)}"
        for other in evaluation.measures[1:]
        if (of := best.test[other.name]) and not measure.scaled
    ]
    if besides:
        result += f", {', '.join(besides)}"
    if evaluation.persistence_test is None:
        result += "."
    elif best.architecture == BASELINE:
        result += "; it is what skill is measured against."
    elif best.skill is None:
        result += "; persistence makes no error there."
    else:
        less = "less" if best.skill >= 0 else "more"
        reference = quantity(evaluation.persistence_test, digits, measure.unit)
        result += f", {percent(abs(best.skill))} {less} than persistence ({reference}): skill {signed(best.skill, 3)}."
    if best.configuration not in evaluation.curves:
        result += " It is a baseline: no trained network was better on validation."
    first, lowest = min(tested.items(), key=lambda each: each[1].mean)
    if lowest.mean < error.mean:
        result += (
            f" The lowest on test is that of {first} ({quantity(lowest.mean, digits, measure.unit)}); selection is by "
            "validation alone."
        )
    headline = f"Best: {best.configuration}"
    comparison, runner_up = evaluation.comparison, evaluation.runner_up
    if comparison is None or runner_up is None:
        others = any(row.architecture != best.architecture for row in evaluation.rows)
        alone = (
            "No other architecture finished with every seed, so there is none to compare it with."
            if others
            else "There is no other architecture to compare it with."
        )
        return Verdict(headline, result, alone, None)
    if max(-comparison.low, comparison.high) <= ROUNDING * (evaluation.persistence_test or error.mean):
        return Verdict(headline, result, f"The runner-up, {runner_up}, makes the same errors.", False)
    settled = comparison.high < 0 or comparison.low > 0
    return Verdict(headline, result, _compared(comparison, runner_up, evaluation.comparison_unit), settled)


ROUNDING = 1e-6
"""Errors that differ by a smaller share are the same: networks compute with seven digits."""


def _compared(comparison: Comparison, runner_up: str, unit: str) -> str:
    """Whether the best is better than the runner-up, in a sentence."""
    low, high, difference = comparison.low, comparison.high, comparison.difference
    level = f"{100 * comparison.level:g}\N{NO-BREAK SPACE}%"
    digits = decimals(max(abs(low), abs(high), abs(difference)), 3)

    def by(value: float) -> str:
        return f"{quantity(abs(value), digits, unit)} {'smaller' if value < 0 else 'larger'}"

    if high < 0:
        return (
            f"It is better than the runner-up, {runner_up}, beyond noise at the {level} level: its error is "
            f"{by(difference)} ({level} interval: {fixed(-high, digits)} to {quantity(-low, digits, unit)} smaller)."
        )
    if low > 0:
        return (
            f"Validation chose it, but on the test rows the runner-up, {runner_up}, is better beyond noise at the "
            f"{level} level: the error of the chosen one is {by(difference)} ({level} interval: {fixed(low, digits)} "
            f"to {quantity(high, digits, unit)} larger)."
        )
    return (
        f"Whether it is better than the runner-up, {runner_up}, is not settled: its error is {by(difference)}, which "
        f"is within noise at the {level} level ({level} interval: from {by(low)} to {by(high)})."
    )


def digits_of(evaluation: Evaluation) -> int:
    """Digits after the point for errors of the measure that selects."""
    tested = [row.test[evaluation.measure.name].mean for row in evaluation.rows if row.selected]
    return decimals(evaluation.persistence_test or min(tested, default=1.0), 4)


def decimals(value: float, significant: int) -> int:
    """Digits after the point that show `value` with so many significant digits."""
    return min(max(significant - 1 - math.floor(math.log10(abs(value))), 0), 9) if value else significant - 1


def fixed(value: float, digits: int) -> str:
    """A number with its minus sign and thousands, and never minus zero."""
    return f"{round(value, digits) + 0.0:,.{digits}f}".replace("-", "\N{MINUS SIGN}")


def signed(value: float, digits: int) -> str:
    """`fixed`, a plus before a number above 0."""
    return ("+" if round(value, digits) > 0 else "") + fixed(value, digits)


def percent(share: float) -> str:
    """A share of 1 in percent."""
    return f"{fixed(100 * share, 1)}\N{NO-BREAK SPACE}%"


def quantity(value: float, digits: int, unit: str, deviation: float | None = None) -> str:
    """A number, with its deviation where there is one, and its unit; no line breaks within."""
    spread = "" if deviation is None else f" ± {fixed(deviation, digits)}"
    return f"{fixed(value, digits)}{spread} {unit}".rstrip().replace(" ", "\N{NO-BREAK SPACE}")
