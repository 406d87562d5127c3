"""A backtest as an HTML page that needs no network and nothing beside it; the same backtest gives the same bytes."""

from datetime import datetime
from itertools import cycle, product
from pathlib import Path

import numpy as np

from lifecycle.backtests.backtest import Backtest, Line
from lifecycle.champions.pages import Drawn
from stages.evaluation.leaderboard import BASELINE
from stages.evaluation.phrasing import decimals, fixed, percent, quantity, signed
from stages.report.drawing import drawing
from stages.report.figures import COLORS, DASHES, GREY, INK, OBSERVED, STYLE, canvas, date_axis, svg
from stages.report.figures import Line as Look
from stages.report.templates import load_template

PARTS = {"training": "#0072b2", "validation": "#e69f00", "test": "#009e73"}


def render(found: Backtest) -> str:
    """The page."""
    drawn = _drawn_lines(found)
    errors = [line.test.mean for line in found.lines if line.test]
    digits = decimals(min(errors), 4) if errors else 4
    with drawing(STYLE):
        return load_template("backtest.html.jinja", Path(__file__).parent).render(
            b=found,
            looks=drawn,
            result=_result(found, digits),
            errors=_errors(found, drawn),
            splits=_splits(found),
            parts={name: Look(color) for name, color in PARTS.items()},
            digits=digits,
            day=day,
            fixed=fixed,
            signed=signed,
            quantity=quantity,
        )


def day(text: str) -> str:
    """A time as people read it; midnight is a date."""
    return text.replace("T", " ").removesuffix(" 00:00")


def _drawn_lines(found: Backtest) -> dict[str, Look]:
    """How the best configuration of each architecture is drawn: the first of the table."""
    looks = cycle(Look(color, dash) for dash, color in product(DASHES, COLORS))
    drawn: dict[str, Look] = {}
    architectures = set()
    for line in sorted(found.lines, key=lambda line: line.architecture):
        first = next(each for each in found.lines if each.architecture == line.architecture)
        if line.architecture not in architectures and first.test:
            architectures.add(line.architecture)
            drawn[first.configuration] = Look(GREY, (4, 3)) if line.architecture == BASELINE else next(looks)
    return {line.configuration: drawn[line.configuration] for line in found.lines if line.configuration in drawn}


def _result(found: Backtest, digits: int) -> list[str]:
    """What it comes to, in sentences."""
    chosen, measure = found.chosen, found.measure
    if chosen.test is None:
        return ["No configuration finished with every seed at any origin. The reasons stand below."]
    origins = len(chosen.test.values)
    over = f"mean ± deviation over {origins} origins" if origins > 1 else "one origin"
    sentences = [
        f"What validation chooses has a test {measure.title} of "
        f"{quantity(chosen.test.mean, digits, measure.unit, chosen.test.deviation)} ({over})."
    ]
    if chosen.skill is not None:
        better = sum(value > 0 for value in chosen.skill.values)
        sentences[0] = (
            f"{sentences[0][:-1]}: skill {signed(chosen.skill.mean, 3)} against persistence, which it beats at "
            f"{better} of {len(chosen.skill.values)} origins."
        )
    whole = [line for line in found.lines if line.test and all(line.at)]
    lowest = min(whole, key=lambda line: line.test.mean if line.test else 0, default=None)
    if lowest is not None and lowest.test is not None and lowest.test.mean < chosen.test.mean:
        more = 1 - lowest.test.mean / chosen.test.mean
        sentences.append(
            f"{lowest.configuration} at every origin would have had "
            f"{quantity(lowest.test.mean, digits, measure.unit)}, {percent(more)} less: what choosing by validation "
            "has cost, known only afterwards."
            if more > 0.0005
            else f"{lowest.configuration} at every origin would have had as much."
        )
    return sentences


def _errors(found: Backtest, drawn: dict[str, Look]) -> Drawn | None:
    """Test errors by origin: a line an architecture, a ring around what validation chose."""
    if not drawn:
        return None
    measure = found.measure
    figure, axes = canvas(1180, 300)
    places = np.arange(len(found.origins))
    for line in found.lines:
        if line.configuration in drawn:
            look = drawn[line.configuration]
            values = [np.nan if cell is None else cell.test.mean for cell in line.at]
            axes.plot(places, values, color=look.color, linestyle=look.style, marker="o", markersize=4.5)
    ringed = [np.nan if cell is None else cell.test.mean for cell in found.chosen.at]
    axes.plot(places, ringed, "o", markersize=13, markerfacecolor="none", markeredgecolor=INK, markeredgewidth=1.4)
    every = -(-len(places) // 12)
    axes.set_xticks(places[::every], [day(origin.test_from) for origin in found.origins][::every])
    axes.set_xlim(-0.4, len(places) - 0.6)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("origin")
    said = [f"{line.configuration} {_told(line)}" for line in found.lines if line.configuration in drawn]
    about = f"Test {measure.title} by origin, {measure.unit}: {'; '.join(said)}"
    return Drawn(f"Test {measure.title} by origin, {measure.unit}".rstrip(", "), svg(figure, about, found.synthetic))


def _told(line: Line) -> str:
    return ", ".join("none" if cell is None else f"{cell.test.mean:.3g}" for cell in line.at)


def _splits(found: Backtest) -> Drawn:
    """Which rows train, validate and test at each origin."""
    figure, axes = canvas(1180, 24 * len(found.origins) + 34, left=96, bottom=26)
    for place, origin in enumerate(found.origins):
        ends = [origin.train_from, origin.validation_from, origin.test_from, origin.test_until]
        moments = [np.datetime64(datetime.fromisoformat(end)) for end in ends]
        for begin, end, color in zip(moments, moments[1:], PARTS.values(), strict=False):
            axes.plot([begin, end], [place, place], color=color, linewidth=9, solid_capstyle="butt")
    axes.set_yticks(range(len(found.origins)), [day(origin.test_from) for origin in found.origins])
    axes.set_ylim(len(found.origins) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.axhline(len(found.origins) - 0.4, color=OBSERVED, linewidth=0.8)
    date_axis(axes)
    first, last = found.origins[0], found.origins[-1]
    about = f"Rows that train, validate and test at each origin, from {first.train_from} to {last.test_until}"
    return Drawn("Rows by origin", svg(figure, about, found.synthetic))
