"""The page of a problem's monitoring: one HTML file, which loads nothing from the network or from other files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from matplotlib.axes import Axes

from learning.measures import MAE
from lifecycle.monitoring.rules import BrokenRule, measure_of
from lifecycle.monitoring.versions import MonitoredVersion, measure_titles
from problems.problem import Problem
from problems.wording import capitalize
from project.settings.operation import MonitorSettings
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
    GREY,
    Chart,
    LineStyle,
    create_chart,
    format_date_axis,
    render_svg,
)
from stages.report.templates import load_template

MAX_DAYS_LISTED = 60
"""The most days that the table shows: the newest ones."""
FORECAST_LINE, REFERENCE_LINE, LIMIT_LINE = LineStyle(COLORS[0]), LineStyle(GREY, (4, 3)), LineStyle("#b42318", (2, 2))
LEVEL_COLORS = COLORS


def render_page(
    name: str,
    problem: Problem,
    settings: MonitorSettings,
    figures: pl.DataFrame,
    newest: dict[str, Any] | None,
    versions: Mapping[int, MonitoredVersion],
    broken: Sequence[BrokenRule],
) -> str:
    """The page; the same figures give the same bytes.

    Args:
        figures: the history.
        newest: the row of the history that is judged; None: the history is empty.
        broken: the rules that it breaks.
    """
    figures = _with_judged_errors(figures)
    rows = figures.to_dicts()
    levels = sorted(
        (column.removeprefix("coverage_") for column in figures.columns if "coverage_" in column), key=float
    )
    measures = list(dict.fromkeys(measure_of(row) for row in reversed(rows)))
    measure = measure_of(newest) if newest else MAE
    titles = measure_titles()
    version = versions.get(newest["model_version"]) if newest else None
    selected_by = version.selection_measure.name if version else measure
    with use_matplotlib(CHART_STYLE):
        return load_template("monitor.html.jinja", Path(__file__).parent).render(
            problem=name,
            p=problem,
            s=settings,
            days=settings.window.days,
            newest=newest,
            measure=measure,
            titles=titles,
            error_title=capitalize(" or ".join(titles[measure] for measure in measures)),
            shows_mae=measures != [MAE],
            selected_by=selected_by,
            rows=list(reversed(rows))[:MAX_DAYS_LISTED],
            versions=versions,
            levels=levels,
            broken=broken,
            errors=_draw_errors(problem, settings, figures, versions, measures) if rows else None,
            coverages=_draw_coverages(problem, figures, levels) if rows and levels else None,
            drifts=_draw_drifts(problem, settings, figures) if rows else None,
            missing=_draw_missing(problem, settings, figures) if rows else None,
            forecast_line=FORECAST_LINE,
            reference_line=REFERENCE_LINE,
            limit_line=LIMIT_LINE,
            level_lines=[LineStyle(color) for color in LEVEL_COLORS],
            digits=choose_decimals((newest and newest[measure]) or 1.0, 4),
            fixed=format_number,
            signed=format_signed,
            percent=format_percent,
            quantity=format_quantity,
            capitalize=capitalize,
        )


def _with_judged_errors(figures: pl.DataFrame) -> pl.DataFrame:
    """The figures with errors by the measure of each row: `judged_error`, and `judged_persistence`."""
    if figures.is_empty():
        return figures
    rows = figures.to_dicts()
    errors = {
        "judged_error": [row[measure_of(row)] for row in rows],
        # Earlier versions of Recast did not compute it by other measures than the MAE.
        "judged_persistence": [row.get(f"persistence_{measure_of(row)}") for row in rows],
    }
    return figures.with_columns(pl.Series(name, values, dtype=pl.Float64) for name, values in errors.items())


def _split_by_version(figures: pl.DataFrame) -> list[pl.DataFrame]:
    """The figures of each version, in the order of the versions."""
    return sorted(figures.partition_by("model_version"), key=lambda part: int(part["model_version"][0]))


def _plot_days(axes: Axes, part: pl.DataFrame, column: str, line: LineStyle) -> None:
    axes.plot(
        part["day"].to_numpy(),
        part[column].cast(pl.Float64).to_numpy(),
        color=line.color,
        linestyle=line.style,
        marker="o",
        markersize=2.5,
    )


def _mark_versions(axes: Axes, figures: pl.DataFrame) -> None:
    """Draw a line where each version begins, with its number."""
    for part in _split_by_version(figures):
        axes.axvline(part["day"].to_numpy()[0], color="#9aa5b1", linewidth=0.8)
        axes.annotate(
            f"version {part['model_version'][0]}",
            (part["day"].to_numpy()[0], 1),
            (3, -2),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            va="top",
            size=9,
            color="#52606d",
        )


def _finish_axes(axes: Axes, figures: pl.DataFrame) -> None:
    """Mark the versions, and fit the axis of days."""
    _mark_versions(axes, figures)
    days = figures["day"].to_numpy()
    margin = np.timedelta64(max(1, int((days[-1] - days[0]).astype(int)) // 50), "D")
    axes.set_xlim(days[0] - margin, days[-1] + margin)
    format_date_axis(axes)


def _draw_errors(
    problem: Problem,
    settings: MonitorSettings,
    figures: pl.DataFrame,
    versions: Mapping[int, MonitoredVersion],
    measures: Sequence[str],
) -> Chart:
    figure, axes = create_chart(1180, 250, bottom=26)
    for part in _split_by_version(figures):
        _plot_days(axes, part, "judged_error", FORECAST_LINE)
        _plot_days(axes, part, "judged_persistence", REFERENCE_LINE)
        version = versions.get(int(part["model_version"][0]))
        test_error = version.test_errors.get(measure_of(part.row(-1, named=True))) if version else None
        if test_error and settings.error is not None:
            days = part["day"].to_numpy()[[0, -1]]
            limit = [settings.error * test_error] * 2
            axes.plot(days, limit, color=LIMIT_LINE.color, linestyle=LIMIT_LINE.style)
    axes.set_ylim(bottom=0, top=axes.get_ylim()[1] * 1.12)
    _finish_axes(axes, figures)
    last = figures.row(-1, named=True)
    title = capitalize(" or ".join(measure_titles()[measure] for measure in measures))
    value = f"{_format_value(last['judged_error'])} on {last['day']}"
    description = f"{title} by day, each over {settings.window.days} days, {problem.unit}: {value}"
    return Chart(f"{title}, {problem.unit}".rstrip(", "), render_svg(figure, description, problem.source.synthetic))


def _draw_coverages(problem: Problem, figures: pl.DataFrame, levels: Sequence[str]) -> Chart:
    figure, axes = create_chart(1180, 200, bottom=26)
    for i, level in enumerate(levels):
        color = LEVEL_COLORS[i % len(LEVEL_COLORS)]
        axes.axhline(float(level), color=color, linestyle=(0, (4, 3)), linewidth=1)
        for part in _split_by_version(figures):
            _plot_days(axes, part, f"coverage_{level}", LineStyle(color))
    axes.set_ylim(0, 1.1)
    _finish_axes(axes, figures)
    last = figures.row(-1, named=True)
    values = ", ".join(f"{level}: {_format_value(last[f'coverage_{level}'])}" for level in levels)
    description = f"Share of observations inside the intervals, by day: on {last['day']} {values}"
    return Chart(
        "Share of observations inside the intervals; dashed: their levels",
        render_svg(figure, description, problem.source.synthetic),
    )


def _format_value(value: Any) -> str:
    return "none" if value is None else f"{value:.2f}"


def _draw_drifts(problem: Problem, settings: MonitorSettings, figures: pl.DataFrame) -> Chart | None:
    if figures["drift"].null_count() == len(figures):
        return None
    figure, axes = create_chart(1180, 170, bottom=26)
    for part in _split_by_version(figures):
        _plot_days(axes, part, "drift", FORECAST_LINE)
    if settings.drift is not None:
        axes.axhline(settings.drift, color=LIMIT_LINE.color, linestyle=LIMIT_LINE.style)
    axes.set_ylim(bottom=0, top=axes.get_ylim()[1] * 1.12)
    _finish_axes(axes, figures)
    last = figures.row(-1, named=True)
    value = f"{_format_value(last['drift'])} on {last['day']}"
    description = f"Drift of the column that has drifted farthest, by day: {value}"
    caption = "Drift of the column that has drifted farthest, in multiples of the largest drift among the known rows"
    return Chart(caption, render_svg(figure, description, problem.source.synthetic))


def _draw_missing(problem: Problem, settings: MonitorSettings, figures: pl.DataFrame) -> Chart:
    figure, axes = create_chart(1180, 170, bottom=26)
    for part in _split_by_version(figures):
        _plot_days(axes, part, "missing", FORECAST_LINE)
    if settings.missing is not None:
        axes.axhline(settings.missing, color=LIMIT_LINE.color, linestyle=LIMIT_LINE.style)
    axes.set_ylim(0, 1.1)
    _finish_axes(axes, figures)
    last = figures.row(-1, named=True)
    value = f"{_format_value(last['missing'])} on {last['day']}"
    description = f"Share of observations without a forecast, by day: {value}"
    return Chart("Share of observations without a forecast", render_svg(figure, description, problem.source.synthetic))
