"""The look of the charts on all pages, and their conversion to SVG: the same figure gives the same bytes."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, product
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure

from stages.evaluation.baseline import BASELINE
from stages.evaluation.leaderboard import LeaderboardRow

INK, GREY, OBSERVED, FAINT = "#1f2933", "#66707b", "#b4bcc5", "#e4e7eb"
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
"""The palette of Okabe and Ito, which colour-blind people can distinguish, without its yellow, which is too pale."""
DASHES: tuple[tuple[float, ...], ...] = ((), (6, 2), (2, 2))

CHART_STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "axes.labelcolor": "#52606d",
    "axes.labelsize": 11,
    "axes.linewidth": 0.8,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "font.size": 11,
    "grid.color": FAINT,
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
    "svg.fonttype": "none",  # text stays text: that is small, and in the page's font
    "text.parse_math": False,  # a configuration may contain a $
    "xtick.color": "#52606d",
    "xtick.major.size": 0,
    "ytick.color": "#52606d",
    "ytick.major.size": 0,
}
"""Settings of matplotlib, for `use_matplotlib`."""


@dataclass(frozen=True)
class LineStyle:
    """How a configuration is drawn in every chart.

    Attributes:
        dash: the lengths of dashes and gaps, as in SVG; empty for a solid line.
    """

    color: str
    dash: tuple[float, ...] = ()

    @property
    def style(self) -> Any:
        """The dash in the form that matplotlib expects."""
        return (0, self.dash) if self.dash else "-"


def assign_line_styles(rows: Sequence[LeaderboardRow]) -> dict[str, LineStyle]:
    """The style of each selected configuration. It follows from the architecture, so a new rank keeps the colour."""
    architectures = sorted({row.architecture for row in rows} - {BASELINE})
    styles = cycle(LineStyle(color, dash) for dash, color in product(DASHES, COLORS))
    by_architecture = {BASELINE: LineStyle(GREY, (4, 3)), **dict(zip(architectures, styles, strict=False))}
    return {row.configuration: by_architecture[row.architecture] for row in rows if row.selected}


@dataclass(frozen=True)
class Frame:
    """What charts of one kind have in common: axes, grid, text, and lines that are the same in all of them.

    It is drawn once and is on the page once, in the first of the charts; the others refer to it.

    Attributes:
        name: the identifier on the page.
        content: in SVG.
    """

    name: str
    content: str

    def place(self, is_first: bool) -> str:
        """The frame within a chart, in SVG."""
        return f'<g id="{self.name}">{self.content}</g>' if is_first else f'<use href="#{self.name}"/>'


def render_frame(figure: Figure, axes: Axes, name: str) -> Frame:
    """Draw what is in a chart so far as a frame, and empty the chart for the lines of its own.

    Args:
        name: an identifier that is unique on the page.
    """
    _, content = _save_svg(figure, name)
    for line in list(axes.lines):
        line.remove()
    axes.set_axis_off()
    return Frame(name, content)


def render_svg(
    figure: Figure, about: str, synthetic: bool, frame: Frame | None = None, is_first: bool = True
) -> Markup:
    """The figure as an SVG element that fills the available width.

    Args:
        about: a description for people who cannot see the picture; it must be unique on the page.
        synthetic: the data are simulated.
        frame: is drawn below the figure.
        is_first: the chart is the first one with this frame.

    Raises:
        ValueError: matplotlib wrote an SVG without a viewBox.
    """
    view_box, content = _save_svg(figure, about)
    label = f"Simulated data. {about}" if synthetic else about
    below = frame.place(is_first) if frame else ""
    return Markup(
        '<svg role="img" aria-label="{}" viewBox="{}" xmlns:xlink="http://www.w3.org/1999/xlink">{}{}</svg>'
    ).format(label, view_box, Markup(below), Markup(content))


def _save_svg(figure: Figure, about: str) -> tuple[str, str]:
    """The viewBox of a figure in SVG, and its content.

    Args:
        about: salts the identifiers, which must differ from those of the other charts on the page.
    """
    file = io.StringIO()
    no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({"svg.hashsalt": about}):
        figure.savefig(file, format="svg", metadata=no_metadata)
    element = file.getvalue()
    element = element[element.index("<svg") :]
    view_box = re.search(r'viewBox="([^"]*)"', element)
    if view_box is None:
        raise ValueError(f"{about}: matplotlib wrote an SVG without a viewBox")
    content = element[element.index(">") + 1 : element.rindex("</svg>")]
    content = re.sub(r'<g id="[^"]*"', "<g", content)
    return view_box[1], re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), content)


def format_date_axis(axes: Axes) -> None:
    """Write the times below the chart in the way people do."""
    # matplotlib.dates has no type hints. The time zone is given because the default depends on the user's settings.
    locator = AutoDateLocator(tz="UTC", minticks=4, maxticks=12)  # type: ignore[no-untyped-call]
    formatter = ConciseDateFormatter(  # type: ignore[no-untyped-call]
        locator,
        tz="UTC",
        formats=["%Y", "%b %Y", "%d %b", "%H:%M", "%H:%M", "%H:%M:%S"],
        zero_formats=["", "%Y", "%d %b", "%d %b", "%H:%M", "%H:%M"],
        show_offset=False,
    )
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(formatter)


def create_chart(width: int, height: int, left: int = 46, bottom: int = 40) -> tuple[Figure, Axes]:
    """A figure with one chart; sizes are in pixels. The margins are fixed, so that charts below each other line up."""
    figure = Figure(figsize=(width / 72, height / 72))
    axes = figure.add_axes((left / width, bottom / height, 1 - (left + 10) / width, 1 - (bottom + 8) / height))
    return figure, axes


@dataclass(frozen=True)
class Chart:
    """A chart with its caption.

    Attributes:
        line: how the configuration is drawn that all of the chart shows; None where it shows several.
    """

    caption: str
    svg: Markup
    line: LineStyle | None = None
