"""What became of a problem's forecasts as an HTML page that needs no network and nothing beside it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from matplotlib.axes import Axes

from lifecycle.champions.pages import Drawn
from lifecycle.monitoring.rules import Breached, Watched
from problems.problem import Problem
from project.settings.sections import Monitor
from stages.evaluation.phrasing import decimals, fixed, percent, quantity, signed
from stages.report.drawing import drawing
from stages.report.figures import COLORS, GREY, STYLE, Line, canvas, date_axis, svg
from stages.report.templates import load_template

LISTED = 60
"""Days that the table shows at most: the newest."""
OURS, REFERENCE, LIMIT = Line(COLORS[0]), Line(GREY, (4, 3)), Line("#b42318", (2, 2))
BAND = COLORS


def render(
    name: str,
    problem: Problem,
    settings: Monitor,
    figures: pl.DataFrame,
    newest: dict[str, Any] | None,
    versions: dict[int, Watched],
    found: Sequence[Breached],
) -> str:
    """The page; the same figures give the same bytes.

    Args:
        newest: the row of the figures that is judged.
        found: the rules that it breaks.
    """
    rows = figures.to_dicts()
    levels = sorted((each.removeprefix("coverage_") for each in figures.columns if "coverage_" in each), key=float)
    with drawing(STYLE):
        return load_template("monitor.html.jinja", Path(__file__).parent).render(
            problem=name,
            p=problem,
            s=settings,
            days=settings.window.days,
            newest=newest,
            rows=list(reversed(rows))[:LISTED],
            versions=versions,
            levels=levels,
            found=found,
            errors=_errors(problem, settings, figures, versions) if rows else None,
            coverages=_coverages(problem, settings, figures, levels) if rows and levels else None,
            drifts=_drifts(problem, settings, figures) if rows else None,
            absent=_missing(problem, settings, figures) if rows else None,
            ours=OURS,
            reference=REFERENCE,
            limit=LIMIT,
            bands=[Line(color) for color in BAND],
            digits=decimals((newest and newest["mae"]) or 1.0, 4),
            fixed=fixed,
            signed=signed,
            percent=percent,
            quantity=quantity,
        )


def _parts(figures: pl.DataFrame) -> list[pl.DataFrame]:
    """The figures by version, in the order of the versions."""
    return [part for _, part in sorted((int(p["model_version"][0]), p) for p in figures.partition_by("model_version"))]


def _line(axes: Axes, part: pl.DataFrame, name: str, line: Line) -> None:
    axes.plot(
        part["day"].to_numpy(),
        part[name].cast(pl.Float64).to_numpy(),
        color=line.color,
        linestyle=line.style,
        marker="o",
        markersize=2.5,
    )


def _versions_along(axes: Axes, figures: pl.DataFrame) -> None:
    """A line where each version begins, with its number."""
    for part in _parts(figures):
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


def _finished(axes: Axes, figures: pl.DataFrame) -> None:
    _versions_along(axes, figures)
    days = figures["day"].to_numpy()
    margin = np.timedelta64(max(1, int((days[-1] - days[0]).astype(int)) // 50), "D")
    axes.set_xlim(days[0] - margin, days[-1] + margin)
    date_axis(axes)


def _errors(problem: Problem, settings: Monitor, figures: pl.DataFrame, versions: dict[int, Watched]) -> Drawn:
    figure, axes = canvas(1180, 250, bottom=26)
    for part in _parts(figures):
        _line(axes, part, "mae", OURS)
        _line(axes, part, "persistence_mae", REFERENCE)
        version = versions.get(int(part["model_version"][0]))
        if version and version.test_mae and settings.error is not None:
            days = part["day"].to_numpy()[[0, -1]]
            limit = [settings.error * version.test_mae] * 2
            axes.plot(days, limit, color=LIMIT.color, linestyle=LIMIT.style)
    axes.set_ylim(bottom=0, top=axes.get_ylim()[1] * 1.12)
    _finished(axes, figures)
    last = figures.row(-1, named=True)
    about = f"MAE by day, over {settings.window.days} days each, {problem.unit}: {_share(last['mae'])} on {last['day']}"
    return Drawn(f"MAE, {problem.unit}".rstrip(", "), svg(figure, about, problem.source.synthetic))


def _coverages(problem: Problem, settings: Monitor, figures: pl.DataFrame, levels: Sequence[str]) -> Drawn:
    figure, axes = canvas(1180, 200, bottom=26)
    for place, level in enumerate(levels):
        color = BAND[place % len(BAND)]
        axes.axhline(float(level), color=color, linestyle=(0, (4, 3)), linewidth=1)
        for part in _parts(figures):
            _line(axes, part, f"coverage_{level}", Line(color))
    axes.set_ylim(0, 1.1)
    _finished(axes, figures)
    last = figures.row(-1, named=True)
    told = ", ".join(f"{level}: {_share(last[f'coverage_{level}'])}" for level in levels)
    about = f"Share of observations within the intervals, by day: on {last['day']} {told}"
    return Drawn("What the intervals hold; dashed: what they should", svg(figure, about, problem.source.synthetic))


def _share(value: Any) -> str:
    return "none" if value is None else f"{value:.2f}"


def _drifts(problem: Problem, settings: Monitor, figures: pl.DataFrame) -> Drawn | None:
    if figures["drift"].null_count() == len(figures):
        return None
    figure, axes = canvas(1180, 170, bottom=26)
    for part in _parts(figures):
        _line(axes, part, "drift", OURS)
    if settings.drift is not None:
        axes.axhline(settings.drift, color=LIMIT.color, linestyle=LIMIT.style)
    axes.set_ylim(bottom=0, top=axes.get_ylim()[1] * 1.12)
    _finished(axes, figures)
    last = figures.row(-1, named=True)
    about = f"Drift of the column that has drifted farthest, by day: {_share(last['drift'])} on {last['day']}"
    caption = "Drift of the farthest column, in times the farthest known window"
    return Drawn(caption, svg(figure, about, problem.source.synthetic))


def _missing(problem: Problem, settings: Monitor, figures: pl.DataFrame) -> Drawn:
    figure, axes = canvas(1180, 170, bottom=26)
    for part in _parts(figures):
        _line(axes, part, "missing", OURS)
    if settings.missing is not None:
        axes.axhline(settings.missing, color=LIMIT.color, linestyle=LIMIT.style)
    axes.set_ylim(0, 1.1)
    _finished(axes, figures)
    last = figures.row(-1, named=True)
    about = f"Share of observations that nothing had forecast, by day: {_share(last['missing'])} on {last['day']}"
    return Drawn("Observed, but not forecast: share", svg(figure, about, problem.source.synthetic))
