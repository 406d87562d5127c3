"""A decision, and the history of a problem's champion, as HTML pages that need no network and nothing beside them."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from lifecycle.champions import comparison, registry
from lifecycle.champions.comparison import Decision, Slice
from lifecycle.champions.registry import Entry, folder, history, reign
from project.atomic import replaced_file
from stages.evaluation.phrasing import decimals, fixed, signed
from stages.report.drawing import drawing
from stages.report.figures import COLORS, GREY, INK, OBSERVED, STYLE, Line, canvas, date_axis, svg
from stages.report.templates import load_template

OURS, THEIRS = Line(COLORS[0]), Line(COLORS[1], (6, 2))
"""How the challenger and the champion are drawn."""
GOOD, BAD = "#0b6b4f", "#b42318"
DRAWN = 60
"""Decisions that the picture of a history shows at most: the newest."""


@dataclass(frozen=True)
class Drawn:
    """A picture with its caption."""

    caption: str
    svg: Markup


def decision_page(decision: Decision) -> str:
    """A decision and its evidence; the same decision gives the same bytes."""
    groups = {
        group: [each for each in decision.slices if each.group == group] for group in ("season", "hour", "extreme")
    }
    found = decision.comparison
    digits = decimals(max(decision.challenger.mae or 1.0, decision.champion.mae or 1.0), 4)
    with drawing(STYLE):
        return load_template("decision.html.jinja", Path(__file__).parent).render(
            d=decision,
            groups=groups,
            ours=OURS,
            theirs=THEIRS,
            interval=_interval(decision) if found else None,
            hours=_hours(decision, groups["hour"]) if groups["hour"] else None,
            parts=_parts(decision, groups["season"] + groups["extreme"]) if found else None,
            stretch=_stretch(decision) if decision.stretch else None,
            digits=digits,
            fixed=fixed,
            signed=signed,
            share=comparison.share,
        )


def write_history(problem: str) -> Path:
    """Write the page of all that happened to a problem's champion, beside the history."""
    entries = history(problem)
    decisions = {
        each.decision: found
        for each in entries
        if each.decision and each.decision not in ("",) and (found := comparison.read(problem, each.decision))
    }
    shown = [entry for entry in entries if entry.kind != "challenge"]
    reigned = reign(entries)
    page = folder(problem) / "history.html"
    with drawing(STYLE):
        text = load_template("history.html.jinja", Path(__file__).parent).render(
            problem=problem,
            about=next(reversed(decisions.values()), None),
            champion=reigned[-1] if reigned else None,
            previous=reigned[-2] if len(reigned) > 1 else None,
            waiting=registry.challenger(problem) if entries and entries[-1].kind == "challenge" else None,
            entries=list(reversed(shown)),
            decisions=decisions,
            picture=_history(shown, decisions),
            ours=OURS,
            theirs=THEIRS,
            digits=decimals(_typical(decisions), 4),
            moment=moment,
            fixed=fixed,
            signed=signed,
            drawn=DRAWN,
        )
    with registry.writing(problem), replaced_file(page) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return page


def moment(text: str) -> str:
    """A time of the history, to the minute."""
    return f"{datetime.fromisoformat(text):%Y-%m-%d %H:%M}"


def _typical(decisions: dict[str, Decision]) -> float:
    return next((each.challenger.mae for each in decisions.values() if each.challenger.mae), 1.0)


# Pictures


def _interval(decision: Decision) -> Drawn:
    """The difference of the two errors with its interval, against no difference."""
    found = decision.comparison
    assert found is not None
    color = GOOD if found.high < 0 else BAD if found.low > 0 else GREY
    figure, axes = canvas(380, 96, left=12)
    axes.set_yticks([])
    axes.set_ylim(-1, 1)
    axes.axvline(0, color=INK, linewidth=1)
    axes.plot([found.low, found.high], [0, 0], color=color, linewidth=5, alpha=0.45, solid_capstyle="butt")
    axes.plot(found.difference, 0, "o", color=color, markersize=9)
    axes.margins(x=0.15)
    axes.set_xlabel(f"MAE of the challenger minus that of the other, {decision.unit}".rstrip(", "))
    about = (
        f"Difference in MAE {found.difference:.4g} {decision.unit}, {100 * found.level:g} % interval {found.low:.4g} "
        f"to {found.high:.4g}"
    )
    return Drawn(
        "Difference with its interval; left of 0 the challenger is better", svg(figure, about, decision.synthetic)
    )


def _hours(decision: Decision, hours: Sequence[Slice]) -> Drawn:
    """Both errors by hour of day."""
    figure, axes = canvas(380, 230)
    for name, line in (("challenger", OURS), ("champion", THEIRS)):
        values = np.full(24, np.nan)
        for each in hours:
            values[int(each.name)] = getattr(each, name)
        axes.plot(values, color=line.color, linestyle=line.style, marker="o", markersize=3.5)
    axes.set_xticks(range(0, 24, 3))
    axes.set_xlim(-0.5, 23.5)
    axes.set_xlabel("hour of day of the target")
    worst = max(hours, key=lambda each: each.challenger)
    about = f"MAE by hour of day: the challenger is worst at {worst.name}, {worst.challenger:.4g} {decision.unit}"
    return Drawn(f"MAE by hour of day, {decision.unit}".rstrip(", "), svg(figure, about, decision.synthetic))


def _parts(decision: Decision, parts: Sequence[Slice]) -> Drawn:
    """Both errors by season and at the extremes, two dots a line."""
    figure, axes = canvas(380, 34 * len(parts) + 52, left=104)
    axes.set_ylim(len(parts) - 0.5, -0.5)
    axes.set_yticks(range(len(parts)), [each.name for each in parts])
    for place, each in enumerate(parts):
        worse = each.is_worse(decision.rules["worse"]) and decision.champion.version is not None
        axes.plot([each.champion, each.challenger], [place, place], color=BAD if worse else OBSERVED, linewidth=3)
        axes.plot(each.champion, place, "D", color=THEIRS.color, markersize=6)
        axes.plot(each.challenger, place, "o", color=OURS.color, markersize=7)
    axes.margins(x=0.08)
    axes.set_xlabel(f"MAE, {decision.unit}".rstrip(", "))
    about = "; ".join(f"{each.name}: {each.challenger:.4g} against {each.champion:.4g}" for each in parts)
    return Drawn(
        "MAE by season, and at the extremes of the target", svg(figure, f"MAE by part: {about}", decision.synthetic)
    )


def _stretch(decision: Decision) -> Drawn:
    """Both forecasts of the newest windows, against what was observed."""
    times = np.array(decision.stretch["time"], dtype="datetime64[s]")
    steps = np.diff(times)
    # Where a window is missing, the lines break.
    holes = np.flatnonzero(steps > np.median(steps)) + 1 if len(steps) else np.empty(0, dtype=np.int64)
    broken = np.insert(times, holes, np.datetime64("NaT"))
    figure, axes = canvas(1180, 220, bottom=24)
    axes.margins(x=0.005)
    for name, style in (
        ("observed", {"color": OBSERVED, "linewidth": 3.5}),
        ("champion", {"color": THEIRS.color, "linestyle": THEIRS.style}),
        ("challenger", {"color": OURS.color}),
    ):
        values: Any = np.insert(np.array(decision.stretch[name], dtype=np.float64), holes, np.nan)
        axes.plot(broken, values, **style)
    date_axis(axes)
    about = f"Forecasts of {decision.target} by the challenger and the champion against what was observed"
    return Drawn(f"{decision.target}, {decision.unit}".rstrip(", "), svg(figure, about, decision.synthetic))


def _history(entries: Sequence[Entry], decisions: dict[str, Decision]) -> Drawn | None:
    """The errors of challenger and champion, decision by decision, on the windows of each."""
    shown = [
        (entry, decisions[entry.decision])
        for entry in entries
        if entry.decision in decisions and entry.decision and decisions[entry.decision].comparison
    ][-DRAWN:]
    if not shown:
        return None
    figure, axes = canvas(1180, 240, bottom=44)
    for place, (entry, decision) in enumerate(shown):
        ours, theirs = decision.challenger.mae, decision.champion.mae
        assert ours is not None
        assert theirs is not None
        axes.plot([place, place], [theirs, ours], color=OBSERVED, linewidth=2.5)
        axes.plot(place, theirs, "D", color=THEIRS.color, markersize=6)
        face = OURS.color if entry.kind == "promotion" else "white"
        axes.plot(place, ours, "o", color=OURS.color, markerfacecolor=face, markersize=8, markeredgewidth=1.8)
    every = -(-len(shown) // 12)
    ticks = range(0, len(shown), every)
    axes.set_xticks(ticks, [f"v{shown[i][0].version}\n{shown[i][0].time[:10]}" for i in ticks])
    axes.set_xlim(-0.6, max(len(shown), 4) - 0.4)
    decision = shown[-1][1]
    about = "; ".join(f"version {entry.version}: {entry.kind}" for entry, _ in shown)
    return Drawn(
        f"MAE on the windows of each decision, {decision.unit}".rstrip(", "),
        svg(figure, f"Decisions: {about}", decision.synthetic),
    )
