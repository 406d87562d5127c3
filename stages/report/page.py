"""The report: an evaluation as one HTML page that needs no network and nothing beside itself.

The page is an output of DVC, so the same evaluation gives the same bytes: no date, no random identifier, and charts
that are drawn by matplotlib's own defaults, whatever a user's matplotlibrc says.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.ticker import MaxNLocator

from stages.evaluation.leaderboard import BASELINE, Evaluation, Measured, Spread
from stages.evaluation.metrics import mae
from stages.evaluation.phrasing import decimals, digits_of, fixed, percent, quantity, signed, verdict
from stages.report.drawing import drawing
from stages.report.figures import FAINT, GREY, INK, OBSERVED, STYLE, Line, canvas, date_axis, lines_of, svg
from stages.report.templates import load_template
from stages.report.views import Inside
from stages.sequences.ingest import SequenceQuality
from stages.training.history import Epoch

MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
DRAWN_POINTS = 3000
"""Points of a forecast that are drawn at most; of more, every second, third and so on."""
LISTED_GAPS = 100
FAN_SHADE = 0.12
"""How much of a configuration's colour each interval of a fan has; the inner ones lie on the outer."""


@dataclass(frozen=True)
class Chart:
    """A picture with its caption; `line` where all of it shows one configuration."""

    caption: str
    svg: Markup
    line: Line | None = None


def render(evaluation: Evaluation, inside: Inside | None = None) -> str:
    """The report as an HTML page; the same evaluation gives the same bytes.

    Args:
        inside: pictures of the networks at work; None: there are none.
    """
    lines = lines_of(evaluation.rows)
    page = load_template("report.html.jinja", Path(__file__).parent)
    with drawing(STYLE):
        return page.render(
            e=evaluation,
            verdict=verdict(evaluation),
            best=evaluation.row(evaluation.best),
            split=_split(evaluation.split),
            lines=lines,
            decimals=digits_of(evaluation),
            leads=_leads(evaluation, lines),
            confusions=_confusions(evaluation, lines),
            curves=_curves(evaluation, lines),
            seeds=_seeds(evaluation, lines),
            hours=_groups(evaluation, "hour of day", [str(hour) for hour in range(24)], evaluation.hours, lines),
            months=_groups(evaluation, "month", MONTHS, evaluation.months, lines),
            decimals_of=decimals,
            forecasts=_forecasts(evaluation, lines),
            inside=inside or Inside(),
            gaps=_gaps(evaluation.quality),
            listed_gaps=LISTED_GAPS,
            sequences=SequenceQuality(**evaluation.quality).described if "sequences" in evaluation.quality else "",
            fixed=fixed,
            spread=_spread,
            signed=signed,
            percent=percent,
            figures=_figures,
        )


# Words and figures


def _split(split: dict[str, Any]) -> str:
    """Where the series is cut, in words."""
    match split:
        case {"kind": "lecture"}:
            return "the lecture's"
        case {"kind": "fractions", "train": train, "validation": validation}:
            parts = (f"{100 * part:.4g}" for part in (train, validation, 1 - train - validation))
            return "{} % training, {} % validation, {} % test".format(*parts).replace(" %", "\N{NO-BREAK SPACE}%")
        case {"kind": "given", "validation": share}:
            drawn = "" if share is None else f", {percent(share)} of the training sequences validate where it has none"
            return f"the source's own{drawn}"
        case {"kind": "dates", "validation_from": validation, "test_from": test}:
            first, last = split.get("train_from"), split.get("test_until")
            begin = f"training from {_moment(first)}, " if first else ""
            end = f" until {_moment(last)}" if last else ""
            return f"{begin}validation from {_moment(validation)}, test from {_moment(test)}{end}"
        case {"kind": "recent", "train": train, "validation": validation, "test": test}:
            before = f"the {train} before them" if train else "all rows before them"
            return f"the last {test} test, the {validation} before them validate, {before} train"
    return ", ".join(f"{name} {value}" for name, value in split.items())


def _moment(text: str) -> str:
    """An ISO time as people read it; midnight is a date."""
    return text.replace("T", " ").removesuffix("Z").removesuffix(" 00:00:00")


def _figures(value: float) -> str:
    """A number of any size with the digits that it has, six at most."""
    return f"{value:.6g}".replace("-", "\N{MINUS SIGN}")


def _spread(spread: Spread, digits: int) -> Markup:
    """Mean and deviation for a line in a cell of a table, the means of a column below each other."""
    deviation = "" if spread.deviation is None else f"± {fixed(spread.deviation, digits)}"
    return Markup('{} <span class="deviation">{}</span>').format(fixed(spread.mean, digits), deviation)


def _gaps(quality: dict[str, Any]) -> list[dict[str, Any]]:
    """The gaps that `ingest` listed, each with its series."""
    series = quality.get("series", {})
    return [{"series": name, **gap} for name, each in series.items() for gap in each["listed"]]


# Charts


def _curves(evaluation: Evaluation, lines: dict[str, Line]) -> list[Chart]:
    """The measure that selects by epoch, on validation: a chart a configuration, a line a seed, all to one scale."""
    measure = evaluation.measure
    baseline = next((row for row in evaluation.rows if row.architecture == BASELINE and row.validation), None)
    reference = baseline.validation[f"{measure.name}_normalized"].mean if baseline and measure.scaled else None
    everything = [
        epoch.validation[measure.name]
        for seeds in evaluation.curves.values()
        for history in seeds.values()
        for epoch in history
    ]
    if not everything:
        return []
    low, high = min(everything), max(everything)
    if reference is not None:
        low, high = min(low, reference), max(high, reference)
    margin = 0.06 * (high - low) or 0.01
    charts = []
    for label, seeds in evaluation.curves.items():
        figure, axes = canvas(290, 190)
        axes.set_ylim(low - margin, high + margin)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.set_xlabel("epoch")
        if reference is not None:
            axes.axhline(reference, color=GREY, linestyle=(0, (4, 3)), linewidth=1.2)
        for history in seeds.values():
            axes.plot(
                [epoch.epoch for epoch in history],
                [epoch.validation[measure.name] for epoch in history],
                color=lines[label].color,
                linestyle=lines[label].style,
                alpha=0.75,
            )
            best = _lowest(history, measure)
            axes.plot(best.epoch, best.validation[measure.name], "o", color=lines[label].color)
        lowest = min(
            (_lowest(each, measure) for each in seeds.values()), key=lambda epoch: epoch.validation[measure.name]
        )
        about = f"Validation {measure.title} of {label} by epoch{', normalised' if measure.scaled else ''}, for seed "
        about += f"{', '.join(seeds)}: lowest {fixed(lowest.validation[measure.name], 4)} in epoch {lowest.epoch}"
        charts.append(Chart(label, svg(figure, about, evaluation.synthetic), lines[label]))
    return charts


def _lowest(history: Sequence[Epoch], measure: Measured) -> Epoch:
    return min(history, key=lambda epoch: epoch.validation[measure.name])


def _seeds(evaluation: Evaluation, lines: dict[str, Line]) -> Chart | None:
    """Test errors of the selected configurations, a dot a seed and a bar at the mean."""
    measure = evaluation.measure
    tested = [(row.configuration, row.test[measure.name]) for row in evaluation.rows if row.selected]
    if not tested:
        return None
    figure, axes = canvas(380, 42 * len(tested) + 44, left=8)
    axes.set_ylim(len(tested) - 0.5, -0.75)
    axes.set_yticks([])
    axes.margins(x=0.04)
    if evaluation.persistence_test is not None:
        axes.axvline(evaluation.persistence_test, color=GREY, linestyle=(0, (4, 3)), linewidth=1.2)
    for place, (label, errors) in enumerate(tested):
        color = lines[label].color
        axes.axhline(place, color=FAINT, linewidth=0.8)
        axes.plot(errors.values, [place] * len(errors.values), "o", color=color, alpha=0.55, markersize=7, mew=0)
        axes.plot(errors.mean, place, "|", color=color, markersize=16, mew=2.2)
        axes.annotate(
            label, (0, place), (0, 13), xycoords=("axes fraction", "data"), textcoords="offset points", color=INK
        )
    axes.set_xlabel(f"test {measure.title}, {measure.unit}".rstrip(", "))
    digits = digits_of(evaluation)
    about = "; ".join(f"{label} {quantity(e.mean, digits, measure.unit, e.deviation)}" for label, e in tested)
    about = f"Test {measure.title} by configuration and seed: {about}"
    return Chart(f"Test {measure.title}, a dot a seed", svg(figure, about, evaluation.synthetic))


def _leads(evaluation: Evaluation, lines: dict[str, Line]) -> Chart | None:
    """Test MAE by lead, a line a configuration; nothing where there is one lead."""
    if not evaluation.leads:
        return None
    names = evaluation.lead_names
    figure, axes = canvas(380, 296)
    for label, values in evaluation.leads.items():
        axes.plot(values, color=lines[label].color, linestyle=lines[label].style, marker="o", markersize=3.5)
    every = -(-len(names) // 8)
    places = list(range(len(names) - 1, -1, -every))
    axes.set_xticks(places, [names[place] for place in places])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("lead: how far ahead")
    told = [
        f"{label} {values[0]:.3g} at {names[0]}, {values[-1]:.3g} at {names[-1]}"
        for label, values in evaluation.leads.items()
    ]
    about = f"Test MAE by lead, {evaluation.unit}: {'; '.join(told)}"
    return Chart(f"Test MAE by lead, {evaluation.unit}", svg(figure, about, evaluation.synthetic))


def _confusions(evaluation: Evaluation, lines: dict[str, Line]) -> list[Chart]:
    """Which class is taken for which: a chart a configuration."""
    charts = []
    for label, counts in evaluation.confusion.items():
        counts_CC = np.array(counts)
        share_CC = counts_CC / np.maximum(counts_CC.sum(axis=1, keepdims=True), 1)
        figure, axes = canvas(290, 270)
        axes.imshow(share_CC, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        axes.grid(False)
        axes.xaxis.set_major_locator(MaxNLocator(10, integer=True, min_n_ticks=1))
        axes.yaxis.set_major_locator(MaxNLocator(10, integer=True, min_n_ticks=1))
        axes.set_xlabel("answer (down: the true class)")
        for i, j in np.ndindex(share_CC.shape):
            if len(share_CC) <= 10 and share_CC[i, j] >= 0.005:
                ink = "white" if share_CC[i, j] > 0.5 else INK
                axes.annotate(f"{100 * share_CC[i, j]:.0f}", (j, i), ha="center", va="center", color=ink, size=8.5)
        worst = np.argsort(1 - np.diag(share_CC))[-1]
        about = (
            f"Answers of {label} by class, in percent of each: class {worst} is right in {share_CC[worst, worst]:.0%}"
        )
        charts.append(Chart(label, svg(figure, about, evaluation.synthetic), lines[label]))
    return charts


def _groups(
    evaluation: Evaluation,
    name: str,
    ticks: Sequence[str],
    errors: dict[str, list[float | None]],
    lines: dict[str, Line],
) -> Chart | None:
    """Test MAE by the hour or the month of the target, a line a configuration; nothing where there are no rows."""
    if not errors:
        return None
    figure, axes = canvas(380, 296)
    places = np.arange(len(ticks))
    for label, values in errors.items():
        # Of None, matplotlib makes a hole in the line; a month between two holes shows as its marker.
        axes.plot(
            places,
            np.array(values, dtype=np.float64),
            color=lines[label].color,
            linestyle=lines[label].style,
            marker="o",
            markersize=3.5,
        )
    every = 3 if len(ticks) > 12 else 1
    axes.set_xticks(places[::every], ticks[::every])
    axes.set_xlim(-0.5, len(ticks) - 0.5)
    axes.set_xlabel(f"{name} of the target")
    worst = [f"{label} worst at {_worst(values, ticks)}" for label, values in errors.items() if _worst(values, ticks)]
    about = f"Test MAE by {name}, {evaluation.unit}: {'; '.join(worst)}"
    return Chart(f"Test MAE by {name}, {evaluation.unit}", svg(figure, about, evaluation.synthetic))


def _worst(values: Sequence[float | None], names: Sequence[str]) -> str | None:
    present = [(value, name) for value, name in zip(values, names, strict=True) if value is not None]
    return max(present)[1] if present else None


def _forecasts(evaluation: Evaluation, lines: dict[str, Line]) -> list[Chart]:
    """Forecast against observation: a strip a configuration, all to one scale."""
    if not evaluation.forecasts:
        return []
    every = -(-len(evaluation.forecasts["time"]) // DRAWN_POINTS) or 1
    series = {name: values[::every] for name, values in evaluation.forecasts.items()}
    labels = [label for label in series if label in lines]
    if not labels or not series["time"]:
        return []
    times = np.array(series.pop("time"), dtype="datetime64[ms]")
    step = np.timedelta64(round(1000 * evaluation.quality["cadence_seconds"] * every), "ms")
    holes = np.flatnonzero(np.diff(times) != step) + 1
    # A forecast between two holes has no neighbour to draw a line to.
    ends = np.concatenate([[0], holes, [len(times)]])
    lone = np.flatnonzero(np.diff(ends) == 1)
    lone = ends[lone] + lone
    broken_times = np.insert(times, holes, np.datetime64("NaT"))
    values = {name: np.insert(np.array(column, dtype=np.float64), holes, np.nan) for name, column in series.items()}
    shaded = [fan for fans in evaluation.fans.values() for fan in fans]
    low = min([float(np.nanmin(column)) for column in values.values()] + [min(fan.low) for fan in shaded])
    high = max([float(np.nanmax(column)) for column in values.values()] + [max(fan.high) for fan in shaded])
    margin = 0.05 * (high - low) or 1.0
    charts = []
    for label in labels:
        figure, axes = canvas(1180, 150, bottom=24)
        axes.set_ylim(low - margin, high + margin)
        axes.margins(x=0.005)
        axes.yaxis.set_major_locator(MaxNLocator(4))
        dots: dict[str, Any] = {"marker": "o", "markevery": lone.tolist()}
        for fan in evaluation.fans.get(label, ()):
            low_N, high_N = (np.insert(np.array(end[::every]), holes, np.nan) for end in (fan.low, fan.high))
            axes.fill_between(broken_times, low_N, high_N, color=lines[label].color, alpha=FAN_SHADE, linewidth=0)
        axes.plot(broken_times, values["observed"], color=OBSERVED, linewidth=3, **dots)
        axes.plot(broken_times, values[label], color=lines[label].color, linestyle=lines[label].style, **dots)
        date_axis(axes)
        errors_N = np.subtract(evaluation.forecasts[label], evaluation.forecasts["observed"])
        digits = digits_of(evaluation)
        here = quantity(mae(errors_N), digits, evaluation.unit)
        about = f"Forecast of {label} against the observed {evaluation.target}: MAE {here} in this stretch"
        charts.append(
            Chart(f"{label}: MAE {here} in this stretch", svg(figure, about, evaluation.synthetic), lines[label])
        )
    return charts
