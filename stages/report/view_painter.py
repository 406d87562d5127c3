"""Drawing the views of networks: maps, lines and bars, in panels that fit the page."""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, MultipleLocator, NullLocator
from numpy.typing import NDArray

from architectures.view import STEPS, View, ViewAxis
from stages.evaluation.leaderboard import Evaluation
from stages.report.drawing import use_matplotlib
from stages.report.figures import CHART_STYLE, COLORS, DASHES, GREY, INK, LineStyle, assign_line_styles, render_svg
from stages.report.pictures import Picture
from stages.tables.windows import AnyWindows

MAX_DRAWN_CELLS = 160
"""The largest number of rows and of columns of a map that are drawn; in a larger map, neighbours are averaged."""
MAX_PANELS_IN_ROW = 4
"""More panels side by side leave no room for their text."""
MAX_NAMED_ROWS = 30
"""A map with more rows is drawn without their names, which nobody could read."""
PAGE_WIDTH = 1180
"""Pixels."""
LEGEND_COLUMNS = 6
MAP_COLORS = "Blues"


@dataclass(frozen=True)
class _Layout:
    """Where the panels of a view are; all lengths are in pixels.

    Attributes:
        across, down: panels side by side, and rows of panels.
        panel_width, panel_height: the size of a panel.
        left, bottom: the margins of the figure.
        top: the space above each panel.
        gap: the space between panels.
        has_row_names: the rows of a map are named.
    """

    across: int
    down: int
    panel_width: int
    panel_height: int
    left: int
    bottom: int
    top: int
    gap: int
    has_row_names: bool

    @property
    def width(self) -> int:
        return self.left + self.across * self.panel_width + (self.across - 1) * self.gap + 10

    @property
    def height(self) -> int:
        return self.bottom + self.down * (self.panel_height + self.top)

    def panel_box(self, row: int, column: int) -> tuple[float, float, float, float]:
        """Left, bottom, width and height of a panel as shares of the figure."""
        left = self.left + column * (self.panel_width + self.gap)
        bottom = self.height - (row + 1) * (self.panel_height + self.top)
        return (
            left / self.width,
            bottom / self.height,
            self.panel_width / self.width,
            self.panel_height / self.height,
        )


def _lay_out(view: View) -> _Layout:
    """The layout of a view that fits the width of the page."""
    panels, rows, columns = view.values.shape
    across = min(view.columns, panels, MAX_PANELS_IN_ROW)
    down = -(-panels // across)
    left, bottom, gap = 60, 44, 26
    has_row_names = view.kind == "map" and 0 < len(view.names) <= MAX_NAMED_ROWS
    top = 24 if any(view.panels) else 8
    if view.kind == "lines":
        # The legend is above the panel's name.
        top += 6 + 16 * -(-len(view.names) // LEGEND_COLUMNS)
    elif has_row_names:
        left = 40 + 9 * max(map(len, view.names))
    width = (PAGE_WIDTH - left - 10 - gap * (across - 1)) // across
    if view.kind == "lines":
        width, height = min(width, 720), 230
    elif view.kind == "bars":
        width, height = min(width, 720), 70 if down > 1 else 140
    elif has_row_names:
        width, height = min(width, 230), 20 * rows
    elif 2 * rows > columns:
        width = height = min(width, 230)
    else:
        width, height = min(width, 520), min(170, max(100, 12 * rows))
    return _Layout(across, down, width, height, left, bottom, top, gap, has_row_names)


@dataclass(frozen=True)
class ViewPainter:
    """Draws views of networks in the style of the report.

    Attributes:
        lines: how each selected configuration is drawn.
        synthetic: the data are simulated.
        step: the length of a step as text, such as 1h; None where steps have no length in time.
        day: steps in a day.
    """

    lines: Mapping[str, LineStyle]
    synthetic: bool
    step: str | None
    day: float

    @classmethod
    def of(cls, evaluation: Evaluation, windows: AnyWindows) -> "ViewPainter":
        """The painter for the report of an evaluation."""
        step = evaluation.window.get("step")
        return cls(assign_line_styles(evaluation.rows), evaluation.synthetic, step, windows.shape.day)

    def paint(self, view: View, subject: str, styles: Sequence[LineStyle] | None = None) -> Picture:
        """Draw a view as a picture for the page and a file.

        Args:
            subject: what the view shows, such as a trial.
            styles: of the lines, in order; None: a default style for each.
        """
        title = f"{view.title} of {subject}"
        with use_matplotlib(CHART_STYLE):
            figure, width = self.draw(
                view, styles or [LineStyle(color, dash) for dash, color in product(DASHES, COLORS)]
            )
            svg = render_svg(figure, f"{title}. {view.caption}", self.synthetic)
            file = io.BytesIO()
            # The file needs a title, above the figure; on the page, the title is text.
            figure.text(
                8 / width,
                1.01,
                f"{title} (simulated data)" if self.synthetic else title,
                color=INK,
                size=12,
                weight="bold",
                va="bottom",
            )
            figure.savefig(
                file, dpi=144, facecolor="white", bbox_inches="tight", pad_inches=0.1, metadata={"Software": None}
            )
        return Picture(view.title, view.caption, width, svg, file.getvalue())

    def draw(self, view: View, styles: Sequence[LineStyle]) -> tuple[Figure, int]:
        """The figure of a view, and its width in pixels."""
        panels, rows, columns = view.values.shape
        layout = _lay_out(view)
        figure = Figure(figsize=(layout.width / 72, layout.height / 72))
        values = view.values.detach().double().cpu().numpy()
        positions = list(product(range(layout.down), range(layout.across)))[:panels]
        for i, (row, column) in enumerate(positions):
            axes = figure.add_axes(layout.panel_box(row, column))
            if view.kind == "map":
                _draw_map(axes, view, values[i])
            elif view.kind == "bars":
                axes.bar(view.x.first + np.arange(columns), values[i, 0], width=0.8, color=COLORS[0])
                axes.set_ylim(0, 1.05 * float(values.max()) or 1)
            else:
                _draw_lines(axes, view, values[i], styles)
            if view.kind != "map":
                axes.set_xlim(view.x.first - 0.6, view.x.first + columns - 0.4)
            if view.mark:
                axes.axvline(view.mark[0], color=GREY, linestyle=(0, (4, 3)), linewidth=1.2)
                axes.annotate(view.mark[1], (view.mark[0], 1), (4, -12), ("data", "axes fraction"), "offset points")
            if name := view.panels[i]:
                maximum = f" · up to {values[i].max():.2g}" if view.kind == "map" else ""
                axes.set_title(name + maximum, loc="left", size=10.5, color=INK, pad=5)
            is_lowest, is_leftmost = i + layout.across >= panels, column == 0
            self._format_axis(axes.xaxis, view.x, columns, layout.panel_width // 60, is_lowest)
            if layout.has_row_names:
                axes.set_yticks(view.y.first + np.arange(rows), view.names)
                _label_axis(axes.yaxis, view.y.name, is_leftmost)
            elif view.kind == "map":
                self._format_axis(axes.yaxis, view.y, rows, layout.panel_height // 25, is_leftmost)
            else:
                _label_axis(axes.yaxis, view.y.name, is_leftmost)
                if not view.log:
                    are_whole = bool((values == values.round()).all())
                    axes.yaxis.set_major_locator(MaxNLocator(3 if view.kind == "bars" else 5, integer=are_whole))
        return figure, layout.width

    def _format_axis(self, axis: Axis, scale: ViewAxis, n: int, max_ticks: int, is_labelled: bool) -> None:
        """Put ticks at whole numbers, or at whole days where steps are counted.

        Args:
            n: rows or columns along the axis.
            max_ticks: the number of ticks for which there is room.
        """
        day = round(self.day)
        if scale.unit == STEPS and day == self.day and n > day > 1:
            axis.set_major_locator(MultipleLocator(day * -(-n // (min(max_ticks, 8) * day))))
        else:
            axis.set_major_locator(MaxNLocator(min(max_ticks, 6), integer=True, min_n_ticks=1))
        step_unit = f"in steps of {self.step}" if self.step else ""
        unit = step_unit if scale.unit == STEPS else scale.unit
        _label_axis(axis, f"{scale.name}, {unit}" if unit else scale.name, is_labelled)


def _draw_map(axes: Axes, view: View, values_YX: NDArray[np.float64]) -> None:
    """Draw a matrix as an image. White is 0; the darkest shade is the panel's own maximum, as panels differ widely."""
    rows, columns = values_YX.shape
    down, across = -(-rows // MAX_DRAWN_CELLS), -(-columns // MAX_DRAWN_CELLS)
    cells = torch.from_numpy(values_YX)[None, None]
    cells_YX = torch.nn.functional.avg_pool2d(cells, (down, across), ceil_mode=True)[0, 0].numpy()
    right, low = view.x.first - 0.5 + cells_YX.shape[1] * across, view.y.first - 0.5 + cells_YX.shape[0] * down
    axes.imshow(
        cells_YX,
        cmap=MAP_COLORS,
        vmin=0,
        vmax=float(cells_YX.max()) or 1,
        aspect="auto",
        interpolation="none",
        extent=(view.x.first - 0.5, right, low, view.y.first - 0.5),
    )
    axes.grid(False)
    axes.spines[:].set_visible(True)


def _label_axis(axis: Axis, name: str, is_labelled: bool) -> None:
    """Label an axis at the edge of the picture; the axes of inner panels have no text."""
    axis.set_tick_params(label1On=is_labelled)
    if is_labelled:
        axis.set_label_text(name)


def _draw_lines(axes: Axes, view: View, values_YX: NDArray[np.float64], styles: Sequence[LineStyle]) -> None:
    """Draw each row of a panel as a line, and a legend above the panel."""
    positions = view.x.first + np.arange(values_YX.shape[1])
    positive = values_YX[values_YX > 0]
    log = view.log and positive.size > 0
    for i, (name, values_X) in enumerate(zip(view.names, values_YX, strict=True)):
        style = styles[i % len(styles)]
        drawn_X = np.where(values_X > 0, values_X, np.nan) if log else values_X
        # A line through a single point is invisible.
        marker = "o" if len(positions) == 1 else ""
        axes.plot(positions, drawn_X, color=style.color, linestyle=style.style, marker=marker, label=name)
    if log:
        axes.set_yscale("log")
        if positive.max() < 100 * positive.min():
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        else:
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"10{_raise_digits(value)}"))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.set_ylim(bottom=min(0.0, float(values_YX.min())))
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(-0.01, 1.09 if any(view.panels) else 0.99),
        ncols=LEGEND_COLUMNS,
        frameon=False,
        fontsize=10.5,
        columnspacing=1.6,
    )


def _raise_digits(power_of_ten: float) -> str:
    """The exponent of a power of ten in superscript digits.

    Mathematical typesetting is off, because a name may contain a $.
    """
    return str(round(math.log10(power_of_ten))).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
