"""The page of a decision, and the page of a problem's history of champions: HTML files that need nothing else."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from lifecycle.champions.comparison import Decision, Slice, format_share
from lifecycle.champions.decisions import read_decision
from lifecycle.champions.history import (
    Entry,
    champion_folder,
    champion_stack,
    find_challenger_in,
    read_history,
)
from problems.wording import capitalize
from project.atomic import replace_file
from project.paths import STATE
from stages.evaluation.bootstrap import Comparison
from stages.evaluation.number_format import choose_decimals, format_number, format_signed
from stages.report.drawing import use_matplotlib
from stages.report.figures import (
    CHART_STYLE,
    COLORS,
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

CHALLENGER_LINE, CHAMPION_LINE = LineStyle(COLORS[0]), LineStyle(COLORS[1], (6, 2))
GOOD, BAD = "#0b6b4f", "#b42318"
MAX_DRAWN_DECISIONS = 60
"""The chart of a history shows at most so many decisions: the newest."""


def render_decision(decision: Decision) -> str:
    """The page of a decision with its evidence; the same decision gives the same bytes."""
    groups = {
        group: [part for part in decision.slices if part.group == group] for group in ("season", "hour", "extreme")
    }
    digits = choose_decimals(max(decision.challenger.error or 1.0, decision.champion.error or 1.0), 4)
    with use_matplotlib(CHART_STYLE):
        return load_template("decision.html.jinja", Path(__file__).parent).render(
            d=decision,
            groups=groups,
            challenger_line=CHALLENGER_LINE,
            champion_line=CHAMPION_LINE,
            interval=_draw_interval(decision, decision.comparison) if decision.comparison else None,
            hours=_draw_hours(decision, groups["hour"]) if groups["hour"] else None,
            parts=_draw_parts(decision, groups["season"] + groups["extreme"]) if decision.comparison else None,
            stretch=_draw_stretch(decision) if decision.stretch else None,
            digits=digits,
            format_number=format_number,
            format_signed=format_signed,
            format_share=format_share,
        )


def write_history_page(problem: str) -> Path:
    """Write the page of everything that happened to a problem's champion, beside the history, and return its path."""
    page = champion_folder(problem) / "history.html"
    STATE.mkdir(exist_ok=True)
    # Whoever writes last has read the newest history. Drawing takes seconds, for which the history is not locked.
    with FileLock(STATE / f"champion-page-{problem}.lock"), replace_file(page) as temporary:
        temporary.write_text(_render_history(problem, read_history(problem)), encoding="utf-8")
    return page


def _render_history(problem: str, entries: Sequence[Entry]) -> str:
    """The page of everything that happened to a problem's champion."""
    decisions = _read_decisions(problem, entries)
    outcomes = [entry for entry in entries if entry.kind != "challenge"]
    stack = champion_stack(entries)
    with use_matplotlib(CHART_STYLE):
        return load_template("history.html.jinja", Path(__file__).parent).render(
            problem=problem,
            newest_decision=next(reversed(decisions.values()), None),
            champion=stack[-1] if stack else None,
            previous=stack[-2] if len(stack) > 1 else None,
            waiting=find_challenger_in(problem, entries) if entries and entries[-1].kind == "challenge" else None,
            entries=list(reversed(outcomes)),
            decisions=decisions,
            chart=_draw_history(outcomes, decisions),
            challenger_line=CHALLENGER_LINE,
            champion_line=CHAMPION_LINE,
            digits=choose_decimals(_first_error(decisions), 4),
            format_minute=format_minute,
            format_number=format_number,
            most_drawn=MAX_DRAWN_DECISIONS,
        )


def _read_decisions(problem: str, entries: Sequence[Entry]) -> dict[str, Decision]:
    """The decisions that entries rest on, by id, in the order of the entries."""
    ids = [entry.decision for entry in entries if entry.decision]
    return {id_: decision for id_ in ids if (decision := read_decision(problem, id_))}


def format_minute(text: str) -> str:
    """A time of the history, to the minute."""
    return f"{datetime.fromisoformat(text):%Y-%m-%d %H:%M}"


def _first_error(decisions: dict[str, Decision]) -> float:
    """An error of the usual size, which says how many digits to show."""
    return next((decision.challenger.error for decision in decisions.values() if decision.challenger.error), 1.0)


# Charts


def _draw_interval(decision: Decision, comparison: Comparison) -> Chart:
    """The difference of the two errors with its interval, beside no difference."""
    color = GOOD if comparison.high < 0 else BAD if comparison.low > 0 else GREY
    figure, axes = create_chart(380, 96, left=12)
    axes.set_yticks([])
    axes.set_ylim(-1, 1)
    axes.axvline(0, color=INK, linewidth=1)
    axes.plot([comparison.low, comparison.high], [0, 0], color=color, linewidth=5, alpha=0.45, solid_capstyle="butt")
    axes.plot(comparison.difference, 0, "o", color=color, markersize=9)
    axes.margins(x=0.15)
    opponent = "persistence" if decision.champion.version is None else "the champion"
    title = f"{capitalize(decision.measure_title)} of the challenger minus that of {opponent}"
    axes.set_xlabel(f"{title}, {decision.unit}".rstrip(", "))
    description = (
        f"Difference in {decision.measure_title} {comparison.difference:.4g} {decision.unit}, "
        f"{100 * comparison.level:g} % interval {comparison.low:.4g} to {comparison.high:.4g}"
    )
    return Chart(
        "Difference with its interval; left of 0 the challenger is better",
        render_svg(figure, description, decision.synthetic),
    )


def _draw_hours(decision: Decision, hours: Sequence[Slice]) -> Chart:
    """Both errors by hour of day."""
    figure, axes = create_chart(380, 230)
    challenger_H, champion_H = np.full(24, np.nan), np.full(24, np.nan)
    for part in hours:
        challenger_H[int(part.name)], champion_H[int(part.name)] = part.challenger, part.champion
    for error_H, line in ((challenger_H, CHALLENGER_LINE), (champion_H, CHAMPION_LINE)):
        axes.plot(error_H, color=line.color, linestyle=line.style, marker="o", markersize=3.5)
    axes.set_xticks(range(0, 24, 3))
    axes.set_xlim(-0.5, 23.5)
    axes.set_xlabel("hour of day of the target")
    worst = max(hours, key=lambda part: part.challenger)
    title = f"{capitalize(decision.measure_title)} by hour of day"
    description = f"{title}: the challenger is worst at {worst.name}, {worst.challenger:.4g} {decision.unit}"
    return Chart(f"{title}, {decision.unit}".rstrip(", "), render_svg(figure, description, decision.synthetic))


def _draw_parts(decision: Decision, parts: Sequence[Slice]) -> Chart:
    """Both errors by season and at the extremes, two dots on each line."""
    figure, axes = create_chart(380, 34 * len(parts) + 52, left=104)
    axes.set_ylim(len(parts) - 0.5, -0.5)
    axes.set_yticks(range(len(parts)), [part.name for part in parts])
    for row, part in enumerate(parts):
        is_worse = part.is_worse(decision.rules["worse"]) and decision.champion.version is not None
        axes.plot([part.champion, part.challenger], [row, row], color=BAD if is_worse else OBSERVED, linewidth=3)
        axes.plot(part.champion, row, "D", color=CHAMPION_LINE.color, markersize=6)
        axes.plot(part.challenger, row, "o", color=CHALLENGER_LINE.color, markersize=7)
    axes.margins(x=0.08)
    title = capitalize(decision.measure_title)
    axes.set_xlabel(f"{title}, {decision.unit}".rstrip(", "))
    errors = "; ".join(f"{part.name}: {part.challenger:.4g}, champion {part.champion:.4g}" for part in parts)
    return Chart(
        f"{title} by season, and at the extremes of the target",
        render_svg(figure, f"{title} of the challenger by part: {errors}", decision.synthetic),
    )


def _draw_stretch(decision: Decision) -> Chart:
    """Both forecasts of the newest windows, and the observations."""
    times = np.array(decision.stretch["time"], dtype="datetime64[s]")
    steps = np.diff(times)
    # Where windows are missing, the lines break.
    gaps = np.flatnonzero(steps > np.median(steps)) + 1 if len(steps) else np.empty(0, dtype=np.int64)
    times_with_gaps = np.insert(times, gaps, np.datetime64("NaT"))
    figure, axes = create_chart(1180, 220, bottom=24)
    axes.margins(x=0.005)
    for name, style in (
        ("observed", {"color": OBSERVED, "linewidth": 3.5}),
        ("champion", {"color": CHAMPION_LINE.color, "linestyle": CHAMPION_LINE.style}),
        ("challenger", {"color": CHALLENGER_LINE.color}),
    ):
        values: Any = np.insert(np.array(decision.stretch[name], dtype=np.float64), gaps, np.nan)
        axes.plot(times_with_gaps, values, **style)
    format_date_axis(axes)
    description = f"Forecasts of {decision.target} by the challenger and the champion, and the observations"
    return Chart(
        f"{decision.target}, {decision.unit}".rstrip(", "), render_svg(figure, description, decision.synthetic)
    )


def _draw_history(entries: Sequence[Entry], decisions: dict[str, Decision]) -> Chart | None:
    """The errors of challenger and champion, decision by decision, on the windows of each."""
    points = []
    for entry in entries:
        decision = decisions.get(entry.decision) if entry.decision else None
        if decision and decision.challenger.error is not None and decision.champion.error is not None:
            points.append((entry, decision, decision.challenger.error, decision.champion.error))
    points = points[-MAX_DRAWN_DECISIONS:]
    if not points:
        return None
    figure, axes = create_chart(1180, 240, bottom=44)
    for position, (entry, _, challenger, champion) in enumerate(points):
        axes.plot([position, position], [champion, challenger], color=OBSERVED, linewidth=2.5)
        axes.plot(position, champion, "D", color=CHAMPION_LINE.color, markersize=6)
        color = CHALLENGER_LINE.color
        face = color if entry.kind == "promotion" else "white"
        axes.plot(position, challenger, "o", color=color, markerfacecolor=face, markersize=8, markeredgewidth=1.8)
    step = -(-len(points) // 12)
    ticks = range(0, len(points), step)
    axes.set_xticks(ticks, [f"v{points[tick][0].version}\n{points[tick][0].time[:10]}" for tick in ticks])
    axes.set_xlim(-0.6, max(len(points), 4) - 0.4)
    newest = points[-1][1]
    titles = {decision.measure_title for _, decision, *_ in points}
    title = capitalize(titles.pop()) if len(titles) == 1 else "Error by the measure of each decision"
    outcomes = "; ".join(f"version {entry.version}: {entry.kind}" for entry, *_ in points)
    return Chart(
        f"{title} on the windows of each decision, {newest.unit}".rstrip(", "),
        render_svg(figure, f"Decisions: {outcomes}", newest.synthetic),
    )
