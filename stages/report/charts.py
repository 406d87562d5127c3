"""The charts of the report on an evaluation: errors, learning curves, confusion matrices, and forecasts."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from learning.measures import normalized_name
from stages.evaluation.baseline import BASELINE
from stages.evaluation.leaderboard import Evaluation, MeasureInfo
from stages.evaluation.metrics import mae
from stages.evaluation.number_format import format_number, format_quantity
from stages.evaluation.phrasing import choose_error_decimals
from stages.report.figures import (
    FAINT,
    GREY,
    INK,
    OBSERVED,
    Chart,
    LineStyle,
    create_chart,
    format_date_axis,
    render_frame,
    render_svg,
)
from stages.training.history import Epoch

MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
MAX_DRAWN_POINTS = 3000
"""The largest number of points of a forecast that are drawn; of more, every second, every third, and so on."""
FAN_SHADE = 0.12
"""The opacity of each interval of a fan; the inner ones lie on top of the outer ones."""
REFERENCE_LINE: dict[str, Any] = {"color": GREY, "linestyle": (0, (4, 3)), "linewidth": 1.2}
"""How the error of the baseline is drawn."""


def draw_learning_curves(evaluation: Evaluation, lines: dict[str, LineStyle]) -> list[Chart]:
    """The selection measure on validation by epoch: a chart for each configuration, all with the same scale."""
    measure = evaluation.selection_measure
    errors = [
        epoch.validation[measure.name]
        for seeds in evaluation.curves.values()
        for history in seeds.values()
        for epoch in history
    ]
    if not errors:
        return []
    baseline = next((row for row in evaluation.rows if row.architecture == BASELINE and row.validation), None)
    reference = baseline.validation[normalized_name(measure.name)].mean if baseline and measure.scaled else None
    low, high = min(errors), max(errors)
    if reference is not None:
        low, high = min(low, reference), max(high, reference)
    margin = 0.06 * (high - low) or 0.01
    longest = max(
        epoch.epoch for seeds in evaluation.curves.values() for history in seeds.values() for epoch in history
    )
    figure, axes = create_chart(290, 190)
    axes.set_xlim(1 - 0.05 * longest, longest + 0.05 * longest)
    axes.set_ylim(low - margin, high + margin)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel("epoch")
    if reference is not None:
        axes.axhline(reference, **REFERENCE_LINE)
    frame = render_frame(figure, axes, "learning-curves")
    charts: list[Chart] = []
    for label, seeds in evaluation.curves.items():
        best_epochs = [_best_epoch(history, measure) for history in seeds.values()]
        artists: list[Artist] = []
        for history, best in zip(seeds.values(), best_epochs, strict=True):
            artists += axes.plot(
                [epoch.epoch for epoch in history],
                [epoch.validation[measure.name] for epoch in history],
                color=lines[label].color,
                linestyle=lines[label].style,
                alpha=0.75,
            )
            artists += axes.plot(best.epoch, best.validation[measure.name], "o", color=lines[label].color)
        lowest = _best_epoch(best_epochs, measure)
        about = f"Validation {measure.title} of {label} by epoch{', normalised' if measure.scaled else ''}, for seed "
        about += (
            f"{', '.join(seeds)}: lowest {format_number(lowest.validation[measure.name], 4)} in epoch {lowest.epoch}"
        )
        svg = render_svg(figure, about, evaluation.synthetic, frame, is_first=not charts)
        charts.append(Chart(label, svg, lines[label]))
        _remove(artists)
    return charts


def _remove(artists: Iterable[Artist]) -> None:
    """Remove what was drawn, so that the next chart with the same frame can be drawn in the same figure."""
    for artist in artists:
        artist.remove()


def _best_epoch(history: Sequence[Epoch], measure: MeasureInfo) -> Epoch:
    return min(history, key=lambda epoch: epoch.validation[measure.name])


def draw_seeds(evaluation: Evaluation, lines: dict[str, LineStyle]) -> Chart | None:
    """Test errors of the selected configurations: a dot for each seed and a bar at the mean."""
    measure = evaluation.selection_measure
    test_errors = [(row.configuration, row.test[measure.name]) for row in evaluation.rows if row.selected]
    if not test_errors:
        return None
    figure, axes = create_chart(380, 42 * len(test_errors) + 44, left=8)
    axes.set_ylim(len(test_errors) - 0.5, -0.75)
    axes.set_yticks([])
    axes.margins(x=0.04)
    if evaluation.persistence_test is not None:
        axes.axvline(evaluation.persistence_test, **REFERENCE_LINE)
    for y, (label, errors) in enumerate(test_errors):
        color = lines[label].color
        axes.axhline(y, color=FAINT, linewidth=0.8)
        axes.plot(errors.values, [y] * len(errors.values), "o", color=color, alpha=0.55, markersize=7, mew=0)
        axes.plot(errors.mean, y, "|", color=color, markersize=16, mew=2.2)
        axes.annotate(label, (0, y), (0, 13), xycoords=("axes fraction", "data"), textcoords="offset points", color=INK)
    axes.set_xlabel(f"test {measure.title}, {measure.unit}".rstrip(", "))
    digits = choose_error_decimals(evaluation)
    means = [
        f"{label} {format_quantity(errors.mean, digits, measure.unit, errors.deviation)}"
        for label, errors in test_errors
    ]
    about = f"Test {measure.title} by configuration and seed: {'; '.join(means)}"
    return Chart(f"Test {measure.title}, one dot per seed", render_svg(figure, about, evaluation.synthetic))


def draw_leads(evaluation: Evaluation, lines: dict[str, LineStyle]) -> Chart | None:
    """Test MAE by lead: a line for each configuration; None where there is only one lead."""
    if not evaluation.leads:
        return None
    names = evaluation.lead_names
    figure, axes = create_chart(380, 296)
    for label, values in evaluation.leads.items():
        axes.plot(values, color=lines[label].color, linestyle=lines[label].style, marker="o", markersize=3.5)
    tick_step = -(-len(names) // 8)
    ticks = list(range(len(names) - 1, -1, -tick_step))
    axes.set_xticks(ticks, [names[tick] for tick in ticks])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("lead: how far ahead")
    ends = [
        f"{label} {values[0]:.3g} at {names[0]}, {values[-1]:.3g} at {names[-1]}"
        for label, values in evaluation.leads.items()
    ]
    about = f"Test MAE by lead, {evaluation.unit}: {'; '.join(ends)}"
    return Chart(f"Test MAE by lead, {evaluation.unit}", render_svg(figure, about, evaluation.synthetic))


def draw_confusions(evaluation: Evaluation, lines: dict[str, LineStyle]) -> list[Chart]:
    """The confusion matrix of each configuration, as shares of the true class."""
    charts = []
    for label, counts in evaluation.confusion.items():
        counts_CC = np.array(counts)
        share_CC = counts_CC / np.maximum(counts_CC.sum(axis=1, keepdims=True), 1)
        figure, axes = create_chart(290, 270)
        axes.imshow(share_CC, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        axes.grid(False)
        axes.xaxis.set_major_locator(MaxNLocator(10, integer=True, min_n_ticks=1))
        axes.yaxis.set_major_locator(MaxNLocator(10, integer=True, min_n_ticks=1))
        axes.set_xlabel("answer (rows: the true class)")
        for i, j in np.ndindex(share_CC.shape):
            if len(share_CC) <= 10 and share_CC[i, j] >= 0.005:
                ink = "white" if share_CC[i, j] > 0.5 else INK
                axes.annotate(f"{100 * share_CC[i, j]:.0f}", (j, i), ha="center", va="center", color=ink, size=8.5)
        worst = np.argsort(1 - np.diag(share_CC))[-1]
        about = (
            f"Answers of {label} by class, in percent of the class: class {worst} is most often wrong, and right in "
            f"{share_CC[worst, worst]:.0%}"
        )
        charts.append(Chart(label, render_svg(figure, about, evaluation.synthetic), lines[label]))
    return charts


def draw_groups(
    evaluation: Evaluation,
    name: str,
    ticks: Sequence[str],
    errors: dict[str, list[float | None]],
    lines: dict[str, LineStyle],
) -> Chart | None:
    """Test MAE by the hour or the month of the target: a line for each configuration; None where there are no errors.

    Args:
        name: what the groups are, such as month.
        ticks: the names of the groups.
        errors: by configuration and group; None for a group without windows.
    """
    if not errors:
        return None
    figure, axes = create_chart(380, 296)
    positions = np.arange(len(ticks))
    for label, values in errors.items():
        # matplotlib leaves a hole in the line where a value is None; a group between two holes is visible as a marker.
        axes.plot(
            positions,
            np.array(values, dtype=np.float64),
            color=lines[label].color,
            linestyle=lines[label].style,
            marker="o",
            markersize=3.5,
        )
    tick_step = 3 if len(ticks) > 12 else 1
    axes.set_xticks(positions[::tick_step], ticks[::tick_step])
    axes.set_xlim(-0.5, len(ticks) - 0.5)
    axes.set_xlabel(f"{name} of the target")
    worst_groups = [
        f"{label} worst at {worst}" for label, values in errors.items() if (worst := _worst_group(values, ticks))
    ]
    about = f"Test MAE by {name}, {evaluation.unit}: {'; '.join(worst_groups)}"
    return Chart(f"Test MAE by {name}, {evaluation.unit}", render_svg(figure, about, evaluation.synthetic))


def _worst_group(values: Sequence[float | None], names: Sequence[str]) -> str | None:
    """The name of the group with the largest error."""
    present = [(value, name) for value, name in zip(values, names, strict=True) if value is not None]
    return max(present)[1] if present else None


def draw_forecasts(evaluation: Evaluation, lines: dict[str, LineStyle]) -> list[Chart]:
    """Forecasts and observations along a stretch of time: a strip for each configuration, all with the same scale."""
    if not evaluation.forecasts:
        return []
    thinning = -(-len(evaluation.forecasts["time"]) // MAX_DRAWN_POINTS) or 1
    columns = {name: values[::thinning] for name, values in evaluation.forecasts.items()}
    labels = [label for label in columns if label in lines]
    if not labels or not columns["time"]:
        return []
    times = np.array(columns.pop("time"), dtype="datetime64[ms]")
    step = np.timedelta64(round(1000 * evaluation.quality["cadence_seconds"] * thinning), "ms")
    holes = np.flatnonzero(np.diff(times) != step) + 1
    broken_times = np.insert(times, holes, np.datetime64("NaT"))
    values = {name: np.insert(np.array(column, dtype=np.float64), holes, np.nan) for name, column in columns.items()}
    all_fans = [fan for fans in evaluation.fans.values() for fan in fans]
    low = min([float(np.nanmin(column)) for column in values.values()] + [min(fan.low) for fan in all_fans])
    high = max([float(np.nanmax(column)) for column in values.values()] + [max(fan.high) for fan in all_fans])
    margin = 0.05 * (high - low) or 1.0
    dots: dict[str, Any] = {"marker": "o", "markevery": _find_lone_points(holes, len(times))}
    figure, axes = create_chart(1180, 150, bottom=24)
    axes.set_ylim(low - margin, high + margin)
    axes.margins(x=0.005)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    format_date_axis(axes)
    axes.plot(broken_times, values["observed"], color=OBSERVED, linewidth=3, **dots)
    axes.set_xlim(axes.get_xlim())
    frame = render_frame(figure, axes, "observed")
    charts: list[Chart] = []
    for label in labels:
        line = lines[label]
        artists: list[Artist] = []
        for fan in evaluation.fans.get(label, ()):
            low_N, high_N = (np.insert(np.array(end[::thinning]), holes, np.nan) for end in (fan.low, fan.high))
            artists.append(
                axes.fill_between(broken_times, low_N, high_N, color=line.color, alpha=FAN_SHADE, linewidth=0)
            )
        artists += axes.plot(broken_times, values[label], color=line.color, linestyle=line.style, **dots)
        errors_N = np.subtract(evaluation.forecasts[label], evaluation.forecasts["observed"])
        stretch_mae = format_quantity(mae(errors_N), choose_error_decimals(evaluation), evaluation.unit)
        about = f"Forecast of {label} and the observed {evaluation.target}: MAE {stretch_mae} in this stretch"
        caption = f"{label}: MAE {stretch_mae} in this stretch"
        svg = render_svg(figure, about, evaluation.synthetic, frame, is_first=not charts)
        charts.append(Chart(caption, svg, line))
        _remove(artists)
    return charts


def _find_lone_points(holes: NDArray[np.int64], points: int) -> list[int]:
    """The positions, among points with a gap inserted at each hole, of points between two holes.

    Such a point has no neighbour to which a line could be drawn, so it needs a marker.

    Args:
        holes: the positions of the points before which a hole is.
        points: how many there are, without the gaps.
    """
    ends = np.concatenate([[0], holes, [points]])
    lone = np.flatnonzero(np.diff(ends) == 1)
    positions: list[int] = (ends[lone] + lone).tolist()
    return positions
