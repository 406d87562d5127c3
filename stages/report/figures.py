"""How every picture of the report looks, and how it becomes a part of the page: the same figure, the same bytes."""

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

from stages.evaluation.leaderboard import BASELINE, Row

INK, GREY, OBSERVED, FAINT = "#1f2933", "#66707b", "#b4bcc5", "#e4e7eb"
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
"""Okabe and Ito's palette, told apart by the colour-blind; its yellow cannot be seen on white."""
DASHES: tuple[tuple[float, ...], ...] = ((), (6, 2), (2, 2))

STYLE = {
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
    "svg.fonttype": "none",  # text stays text: small, and in the page's font
    "text.parse_math": False,  # a configuration may hold a $
    "xtick.color": "#52606d",
    "xtick.major.size": 0,
    "ytick.color": "#52606d",
    "ytick.major.size": 0,
}
"""Of matplotlib, for `drawing`."""


@dataclass(frozen=True)
class Line:
    """How a configuration is drawn in every chart; `dash` as in SVG, empty for a solid line."""

    color: str
    dash: tuple[float, ...] = ()

    @property
    def style(self) -> Any:
        """The dash as matplotlib takes it."""
        return (0, self.dash) if self.dash else "-"


def lines_of(rows: Sequence[Row]) -> dict[str, Line]:
    """How each selected configuration is drawn: by its architecture, so that a change of rank changes no colour."""
    architectures = sorted({row.architecture for row in rows} - {BASELINE})
    looks = cycle(Line(color, dash) for dash, color in product(DASHES, COLORS))
    by_architecture = {BASELINE: Line(GREY, (4, 3)), **dict(zip(architectures, looks, strict=False))}
    return {row.configuration: by_architecture[row.architecture] for row in rows if row.selected}


def svg(figure: Figure, about: str, synthetic: bool) -> Markup:
    """The figure as an element of the page that fills the width it is given.

    Args:
        about: the picture in words, for those who do not see it; no other of the page has the same.
        synthetic: the data are simulated.
    """
    file = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    # The words salt the identifiers, which must not be those of another chart in the page.
    with matplotlib.rc_context({"svg.hashsalt": about}):
        figure.savefig(file, format="svg", metadata=nothing)
    drawn = file.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    box = re.search(r'viewBox="([^"]*)"', drawn)
    assert box is not None
    inside = drawn[drawn.index(">") + 1 :]
    inside = re.sub(r'<g id="[^"]*"', "<g", inside)
    inside = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), inside)
    said = f"Simulated data. {about}" if synthetic else about
    return Markup('<svg role="img" aria-label="{}" viewBox="{}" xmlns:xlink="http://www.w3.org/1999/xlink">').format(
        said, box[1]
    ) + Markup(inside)


def date_axis(axes: Axes) -> None:
    """Write times below the chart as people do."""
    # matplotlib.dates has no types. The zone is named because the default one is a user's setting.
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


def canvas(width: int, height: int, left: int = 46, bottom: int = 40) -> tuple[Figure, Axes]:
    """A figure of so many pixels with one chart; its margins are fixed, so that charts below each other line up."""
    figure = Figure(figsize=(width / 72, height / 72))
    axes = figure.add_axes((left / width, bottom / height, 1 - (left + 10) / width, 1 - (bottom + 8) / height))
    return figure, axes
