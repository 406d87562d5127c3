"""A backtest as an HTML page, which needs no network and no other files; the same backtest gives the same bytes."""

from datetime import datetime
from itertools import cycle, product
from pathlib import Path

import numpy as np

from learning.measures import MAE
from lifecycle.backtests.result import Backtest, ConfigurationResult
from stages.evaluation.baseline import BASELINE
from stages.evaluation.number_format import (
    choose_decimals,
    format_number,
    format_percent,
    format_quantity,
    format_signed,
)
from stages.report.drawing import use_matplotlib
from stages.report.figures import (
    CHART_STYLE,
    COLORS,
    DASHES,
    GREY,
    INK,
    OBSERVED,
    Chart,
    LineStyle,
    create_chart,
    format_date_axis,
    render_svg,
)
from stages.report.templates import load_template

SPLIT_STYLES = {"training": LineStyle("#0072b2"), "validation": LineStyle("#e69f00"), "test": LineStyle("#009e73")}


def render_backtest(backtest: Backtest) -> str:
    """The page of a backtest."""
    lines = _assign_line_styles(backtest)
    errors = [result.test.mean for result in backtest.configurations if result.test]
    digits = choose_decimals(min(errors), 4) if errors else 4
    with use_matplotlib(CHART_STYLE):
        return load_template("backtest.html.jinja", Path(__file__).parent).render(
            backtest=backtest,
            lines=lines,
            sentences=_phrase_result(backtest, digits),
            errors=_draw_errors(backtest, lines),
            splits=_draw_splits(backtest),
            split_styles=SPLIT_STYLES,
            digits=digits,
            shows_mae=backtest.measure.name != MAE,
            format_time=_format_time,
            format_number=format_number,
            format_signed=format_signed,
        )


def _format_time(text: str) -> str:
    """An ISO time as people read it; midnight is shown as a date."""
    return text.replace("T", " ").removesuffix(" 00:00")


def _assign_line_styles(backtest: Backtest) -> dict[str, LineStyle]:
    """The style of the best configuration of each architecture: the first one of the table."""
    best: dict[str, ConfigurationResult] = {}
    for result in backtest.configurations:
        best.setdefault(result.architecture, result)
    styles = cycle(LineStyle(color, dash) for dash, color in product(DASHES, COLORS))
    by_configuration = {
        result.configuration: LineStyle(GREY, (4, 3)) if architecture == BASELINE else next(styles)
        for architecture, result in sorted(best.items())
        if result.test
    }
    # In the order of the table, for the legend.
    return {
        result.configuration: by_configuration[result.configuration]
        for result in backtest.configurations
        if result.configuration in by_configuration
    }


def _phrase_result(backtest: Backtest, digits: int) -> list[str]:
    """The result in sentences."""
    chosen, measure = backtest.chosen, backtest.measure
    if chosen.test is None:
        return ["No configuration finished with every seed at any origin. The reasons are listed below."]
    origins = len(chosen.test.values)
    over = f"mean ± standard deviation over {origins} origins" if origins > 1 else "one origin"
    sentence = (
        f"The configurations chosen by validation have a test {measure.title} of "
        f"{format_quantity(chosen.test.mean, digits, measure.unit, chosen.test.deviation)} ({over})"
    )
    if chosen.skill is not None:
        wins = sum(skill > 0 for skill in chosen.skill.values)
        by_mae = (
            f" (by MAE {format_signed(chosen.mae_skill.mean, 3)})" if measure.name != MAE and chosen.mae_skill else ""
        )
        sentence += (
            f". Their skill score against persistence is {format_signed(chosen.skill.mean, 3)}{by_mae}; they are "
            f"better than persistence at {wins} of {len(chosen.skill.values)} origins"
        )
    return [f"{sentence}.", *_phrase_cost_of_selection(backtest, chosen.test.mean, digits)]


def _phrase_cost_of_selection(backtest: Backtest, chosen_error: float, digits: int) -> list[str]:
    """A sentence about the configuration with the lowest mean test error, if it is lower than that of the selection."""
    errors = {
        result.configuration: result.test.mean
        for result in backtest.configurations
        if result.test and all(result.by_origin)
    }
    if not errors:
        return []
    lowest = min(errors, key=lambda configuration: errors[configuration])
    if errors[lowest] >= chosen_error:
        return []
    share = 1 - errors[lowest] / chosen_error
    if share <= 0.0005:
        return [f"{lowest} at every origin would have had the same error."]
    return [
        f"{lowest} at every origin would have had {format_quantity(errors[lowest], digits, backtest.measure.unit)}, "
        f"{format_percent(share)} less. That is the cost of choosing by validation, which is known only afterwards."
    ]


def _draw_errors(backtest: Backtest, lines: dict[str, LineStyle]) -> Chart | None:
    """Test errors by origin: a line for each architecture, and a ring around the selected configuration."""
    if not lines:
        return None
    measure = backtest.measure
    figure, axes = create_chart(1180, 300)
    positions = np.arange(len(backtest.origins))
    drawn = [result for result in backtest.configurations if result.configuration in lines]
    for result in drawn:
        line = lines[result.configuration]
        errors = [np.nan if score is None else score.test.mean for score in result.by_origin]
        axes.plot(positions, errors, color=line.color, linestyle=line.style, marker="o", markersize=4.5)
    chosen = [np.nan if score is None else score.test.mean for score in backtest.chosen.by_origin]
    axes.plot(positions, chosen, "o", markersize=13, markerfacecolor="none", markeredgecolor=INK, markeredgewidth=1.4)
    tick_step = -(-len(positions) // 12)
    axes.set_xticks(
        positions[::tick_step], [_format_time(origin.test_from) for origin in backtest.origins][::tick_step]
    )
    axes.set_xlim(-0.4, len(positions) - 0.6)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("origin")
    errors_by_line = "; ".join(f"{result.configuration} {_list_errors(result)}" for result in drawn)
    about = f"Test {measure.title} by origin, {measure.unit}: {errors_by_line}"
    return Chart(
        f"Test {measure.title} by origin, {measure.unit}".rstrip(", "), render_svg(figure, about, backtest.synthetic)
    )


def _list_errors(result: ConfigurationResult) -> str:
    return ", ".join("none" if score is None else f"{score.test.mean:.3g}" for score in result.by_origin)


def _draw_splits(backtest: Backtest) -> Chart:
    """Which rows are for training, validation and test at each origin."""
    origins = backtest.origins
    figure, axes = create_chart(1180, 24 * len(origins) + 34, left=96, bottom=26)
    for y, origin in enumerate(origins):
        ends = [origin.train_from, origin.validation_from, origin.test_from, origin.test_until]
        moments = [np.datetime64(datetime.fromisoformat(end)) for end in ends]
        for begin, end, style in zip(moments, moments[1:], SPLIT_STYLES.values(), strict=False):
            axes.plot([begin, end], [y, y], color=style.color, linewidth=9, solid_capstyle="butt")
    axes.set_yticks(range(len(origins)), [_format_time(origin.test_from) for origin in origins])
    axes.set_ylim(len(origins) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.axhline(len(origins) - 0.4, color=OBSERVED, linewidth=0.8)
    format_date_axis(axes)
    about = (
        f"Rows for training, validation and test at each origin, from {origins[0].train_from} to "
        f"{origins[-1].test_until}"
    )
    return Chart("Rows by origin", render_svg(figure, about, backtest.synthetic))
