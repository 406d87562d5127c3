"""The result of an evaluation in sentences, which are the same on the report, on the command line and in MLflow."""

from dataclasses import dataclass

from stages.evaluation.baseline import BASELINE
from stages.evaluation.bootstrap import Comparison
from stages.evaluation.leaderboard import Evaluation, LeaderboardRow, Spread
from stages.evaluation.number_format import (
    choose_decimals,
    format_number,
    format_percent,
    format_quantity,
    format_signed,
)

SAME_ERROR_SHARE = 1e-6
"""Errors that differ by a smaller share count as equal: networks compute with seven digits."""


@dataclass(frozen=True)
class Verdict:
    """The result of an evaluation in sentences.

    Attributes:
        headline: the best configuration.
        result: how good it is on the test rows.
        comparison: whether it is significantly better than the runner-up.
        is_significant: the difference between the best and the runner-up is significant; None without a comparison.
    """

    headline: str
    result: str
    comparison: str
    is_significant: bool | None


def phrase_verdict(evaluation: Evaluation) -> Verdict:
    """The evaluation in a few sentences."""
    best = evaluation.find_row(evaluation.best)
    measure = evaluation.selection_measure
    test_errors = {row.configuration: row.test[measure.name] for row in evaluation.rows if row.selected}
    if best is None or best.configuration not in test_errors:
        return _phrase_failure(evaluation)
    error = test_errors[best.configuration]
    headline = f"Best: {best.configuration}"
    result = _phrase_result(evaluation, best, test_errors)
    comparison, runner_up = evaluation.comparison, evaluation.runner_up
    if comparison is None or runner_up is None:
        has_others = any(row.architecture != best.architecture for row in evaluation.rows)
        reason = (
            "No other architecture finished with every seed, so there is nothing to compare it with."
            if has_others
            else "There is no other architecture to compare it with."
        )
        return Verdict(headline, result, reason, None)
    if max(-comparison.low, comparison.high) <= SAME_ERROR_SHARE * (evaluation.persistence_test or error.mean):
        return Verdict(headline, result, f"The runner-up, {runner_up}, has the same errors.", False)
    is_significant = comparison.high < 0 or comparison.low > 0
    sentence = _phrase_comparison(comparison, runner_up, evaluation.comparison_unit)
    return Verdict(headline, result, sentence, is_significant)


def _phrase_failure(evaluation: Evaluation) -> Verdict:
    """The verdict on a grid without a complete configuration."""
    if any(row.finished_seeds for row in evaluation.rows):
        return Verdict(
            "No configuration finished with every seed",
            "Each has failed trials, so none is ranked or tested. The reasons are listed below.",
            "",
            None,
        )
    return Verdict(
        "No configuration finished",
        "No trial has a result, so there is nothing to rank. The reasons are listed below.",
        "",
        None,
    )


def _phrase_result(evaluation: Evaluation, best: LeaderboardRow, test_errors: dict[str, Spread]) -> str:
    """How good the best configuration is on the test rows.

    Args:
        test_errors: by the selection measure, of every selected configuration.
    """
    measure = evaluation.selection_measure
    digits = choose_error_decimals(evaluation)
    error = test_errors[best.configuration]
    seeds = len(best.finished_seeds)
    trials = f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else "one trial"
    mean_error = format_quantity(error.mean, digits, measure.unit, error.deviation)
    result = f"On the test rows, its {measure.title} is {mean_error} ({trials})"
    if not measure.scaled:
        for other in evaluation.measures[1:]:
            spread = best.test[other.name]
            value = format_quantity(spread.mean, choose_decimals(spread.mean, 4), other.unit, spread.deviation)
            result += f", {other.title} {value}"
    if evaluation.persistence_test is None:
        result += "."
    elif best.architecture == BASELINE:
        result += "; it is the reference of the skill score."
    elif best.skill is None:
        result += "; persistence has no error on these rows."
    else:
        direction = "lower" if best.skill >= 0 else "higher"
        reference = format_quantity(evaluation.persistence_test, digits, measure.unit)
        result += (
            f", {format_percent(abs(best.skill))} {direction} than that of persistence ({reference}): skill score "
            f"{format_signed(best.skill, 3)}"
        )
        if not evaluation.selects_by_mae and best.mae_skill is not None:
            result += f"; by MAE {format_signed(best.mae_skill, 3)}"
        result += "."
    if best.configuration not in evaluation.curves:
        result += " It is a baseline: no trained network was better on validation."
    lowest, lowest_error = min(test_errors.items(), key=lambda item: item[1].mean)
    if lowest_error.mean < error.mean:
        result += (
            f" The lowest test {measure.title} is that of {lowest} "
            f"({format_quantity(lowest_error.mean, digits, measure.unit)}), but only validation errors select."
        )
    return result


def _phrase_comparison(comparison: Comparison, runner_up: str, unit: str) -> str:
    """Whether the best is significantly better than the runner-up, in a sentence."""
    low, high, difference = comparison.low, comparison.high, comparison.difference
    level = f"{100 * comparison.level:g}\N{NO-BREAK SPACE}%"
    digits = choose_decimals(max(abs(low), abs(high), abs(difference)), 3)

    def phrase_difference(value: float) -> str:
        return f"{format_quantity(abs(value), digits, unit)} {'smaller' if value < 0 else 'larger'}"

    if high < 0:
        ends = f"{format_number(-high, digits)} to {format_quantity(-low, digits, unit)}"
        return (
            f"It is better than the runner-up, {runner_up}; the difference is significant at the {level} level: its "
            f"error is {phrase_difference(difference)} ({level} interval: {ends} smaller)."
        )
    if low > 0:
        ends = f"{format_number(low, digits)} to {format_quantity(high, digits, unit)}"
        return (
            f"Validation selected it, but on the test rows the runner-up, {runner_up}, is better; the difference is "
            f"significant at the {level} level: the error of the selected one is {phrase_difference(difference)} "
            f"({level} interval: {ends} larger)."
        )
    return (
        f"Its difference from the runner-up, {runner_up}, is not significant at the {level} level: its error is "
        f"{phrase_difference(difference)} ({level} interval: from {phrase_difference(low)} to "
        f"{phrase_difference(high)})."
    )


def choose_error_decimals(evaluation: Evaluation) -> int:
    """The digits after the decimal point for errors of the selection measure."""
    test_errors = [row.test[evaluation.selection_measure.name].mean for row in evaluation.rows if row.selected]
    return choose_decimals(evaluation.persistence_test or min(test_errors, default=1.0), 4)
