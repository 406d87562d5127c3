"""Inside the networks: pictures of what the best trial of each architecture does with a few test windows."""

import io
import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import numpy as np
import torch
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, MultipleLocator, NullLocator
from numpy.typing import NDArray
from torch import Tensor

from architectures.combined import Embedded, Ensemble, Part, Residual
from architectures.network import Network
from architectures.recurrent import Recurrent
from architectures.view import STEPS, Scale, View
from project.atomic import write_json
from stages.evaluation.leaderboard import Evaluation
from stages.evaluation.selection import INSIDE, best_trials, pictures_of
from stages.report.drawing import drawing
from stages.report.figures import COLORS, DASHES, GREY, INK, STYLE, Line, lines_of, svg
from stages.report.gradients import state_gradients, vanishing
from stages.tables.table import Table, times
from stages.tables.windows import AnyWindows, read_windows
from stages.training import batches
from stages.training.batches import Batches, Data
from stages.training.networks import load_network
from stages.training.objectives import objective
from stages.training.trials import Trial

WINDOWS = 3
"""Test windows that a network is looked at with."""
GRADIENT_WINDOWS = 64
"""Test windows that the norms of gradients are means over."""
DRAWN_CELLS = 160
"""Rows and columns of a map that are drawn at most; of more, neighbours are averaged."""
PAGE = 1180
"""Pixels across the page."""
SIDE_BY_SIDE = 4
"""Panels in a row at most: in more, there is no room for their words."""
LEGEND_COLUMNS = 6
NAMED_ROWS = 30
"""Of a map, at most."""
SHADES = "Blues"


@dataclass(frozen=True)
class Picture:
    """A view as it is shown.

    Attributes:
        width: pixels at which its words are as large as the page's.
        png: the same as a file, with its title.
    """

    title: str
    caption: str
    width: int
    svg: Markup
    png: bytes


@dataclass(frozen=True)
class Looked:
    """A trial that was looked at, and its pictures."""

    trial: Trial
    pictures: list[Picture]

    @property
    def subjects(self) -> list[str]:
        """What the pictures show, each named once."""
        return list(dict.fromkeys(picture.title.partition(",")[0] for picture in self.pictures))


@dataclass(frozen=True)
class Inside:
    """What there is to be seen.

    Attributes:
        windows: when the target of each window that was looked at is, and of which series.
        of_all: pictures that compare architectures, by file name.
        failed: what could not be looked at, and why.
    """

    windows: list[str] = field(default_factory=list)
    of_all: dict[str, Picture] = field(default_factory=dict)
    networks: list[Looked] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)

    def write(self, evaluated: Path) -> None:
        """Write the pictures, and `pictures.json`, what each shows, into the folder of the evaluation's results.

        The second is there also where there are no pictures: DVC wants no output that is missing or empty.
        """
        folder = evaluated / INSIDE
        files = {folder / name: picture for name, picture in self.of_all.items()}
        for looked in self.networks:
            for i, picture in enumerate(looked.pictures, 1):
                words = re.sub(r"\W+", "_", picture.title.lower()).strip("_")
                files[pictures_of(evaluated, looked.trial) / f"{i}_{words}.png"] = picture
        for file, picture in files.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(picture.png)
        shown = {
            file.relative_to(folder).as_posix(): {"title": each.title, "caption": each.caption}
            for file, each in files.items()
        }
        write_json(folder / "pictures.json", {"windows": self.windows, "pictures": shown})


def look(evaluation: Evaluation, trials: Sequence[Trial], normalized: Path, windowed: Path) -> Inside:
    """Look at the best trial of each architecture. What cannot be shown is told, and hides nothing else."""
    windowing = read_windows(windowed)
    test = batches.read(normalized, windowed, torch.device("cpu"))["test"]
    few, many = _spread(test, WINDOWS), _spread(test, GRADIENT_WINDOWS)
    shown, batch = test.at(few), test.at(many)
    pen = Pen.of(evaluation, windowing)
    inside = Inside(_names(test, few, normalized))
    aim = objective(windowing, trials[0].train)
    norms: dict[str, Tensor] = {}
    for row, trial in best_trials(evaluation.rows, trials):
        network = load_network(trial, windowing)
        with _told(inside, trial.label), torch.no_grad():
            network.forget()
            own, seen_BTF, _ = proper(network, shown.x_BTF, shown.y_BSK)
            views = own.views(seen_BTF)
            if pictures := [pen.picture(view, of=trial.label) for view in views]:
                inside.networks.append(Looked(trial, pictures))
        # In double precision, for what has all but vanished is too small for single.
        network.forget()
        own, seen_BTF, y_BSK = proper(network.double(), batch.x_BTF, batch.y_BSK)
        # Where each step has an answer, each state has one at hand, and no gradient has far to go.
        if isinstance(own, Recurrent) and not windowing.shape.each:
            with _told(inside, f"{trial.label}, gradients"):
                norms[row.architecture] = state_gradients(own, seen_BTF, y_BSK, aim.loss)
    if norms:
        with _told(inside, "vanishing gradients"):
            colors = {row.architecture: line for row in evaluation.rows if (line := pen.lines.get(row.configuration))}
            looks = [colors[architecture] for architecture in norms]
            picture = pen.picture(vanishing(norms, len(many)), of="all recurrent architectures", looks=looks)
            inside.of_all["vanishing_gradients.png"] = picture
    return inside


def proper(network: Network, x_BTF: Tensor, y_BSK: Tensor) -> tuple[Network, Tensor, Tensor]:
    """The network that the architecture is, without what `combined` puts around it: of an ensemble the first member.

    Args:
        x_BTF, y_BSK: windows and targets.

    Returns:
        The network, the steps of the windows that it sees, and what it is to forecast, which its baseline leaves;
        numbers in the network's precision.
    """
    dtype = next((weight.dtype for weight in network.parameters()), torch.float32)
    y_BSK = y_BSK.to(dtype)
    if x_BTF.is_floating_point():
        x_BTF = x_BTF.to(dtype)
    if isinstance(network, Residual):
        with torch.no_grad():
            y_BSK = y_BSK - network.baseline(x_BTF)[..., :1]
        network = network.network
    if isinstance(network, Part):
        x_BTF, network = network.part(x_BTF), network.network
    if isinstance(network, Ensemble):
        network = next(each for each in network.members if isinstance(each, Network))
    if isinstance(network, Embedded):
        x_BTF, network = network.embed(x_BTF).to(dtype), network.network
    return network, x_BTF, y_BSK


@contextmanager
def _told(inside: Inside, what: str) -> Iterator[None]:
    """Whatever a network's own code for pictures raises is told, in the log and in the report."""
    try:
        yield
    except Exception as error:
        reason = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
        logging.getLogger(__name__).warning("%s cannot be shown: %s", what, reason)
        inside.failed.append((what, reason))


def _spread(data: Data, n: int) -> Tensor:
    """The positions of at most n windows, each in the middle of one of n equal parts."""
    n = min(n, len(data))
    return (torch.arange(n) * 2 + 1) * len(data) // (2 * n)


def _names(test: Data, positions_B: Tensor, normalized: Path) -> list[str]:
    """What each window that is looked at is."""
    if isinstance(test, Batches):
        return _targets(normalized, test.targets(test.rows(positions_B))[:, -1].numpy())
    return [f"piece {position + 1:,}" for position in positions_B.tolist()]


def _targets(normalized: Path, rows_B: NDArray[np.int64]) -> list[str]:
    """When the targets in these rows of the table are, and of which series where there are several."""
    series = Table.read(normalized).series
    found = []
    for row, moment in zip(rows_B, np.datetime_as_string(times(normalized)[rows_B], unit="m"), strict=True):
        (name,) = (each.name for each in series if each.first <= row < each.first + each.rows)
        found.append(str(moment).replace("T", " ") + (f" ({name})" if len(series) > 1 else ""))
    return found


@dataclass(frozen=True)
class Pen:
    """Draws views in the manner of the report.

    Attributes:
        lines: how each selected configuration is drawn.
        synthetic: the data are simulated.
        step: a step's length in time, where steps have one.
        day: steps a day.
    """

    lines: Mapping[str, Line]
    synthetic: bool
    step: str | None
    day: float

    @classmethod
    def of(cls, evaluation: Evaluation, windowing: AnyWindows) -> "Pen":
        """The one for an evaluation's report."""
        step = evaluation.window.get("step")
        return cls(lines_of(evaluation.rows), evaluation.synthetic, step, windowing.shape.day)

    def picture(self, view: View, of: str, looks: Sequence[Line] | None = None) -> Picture:
        """
        Args:
            of: what it shows.
            looks: how each of its lines is drawn; None: as one comes after the other.
        """
        about = f"{view.title} of {of}"
        with drawing(STYLE):
            figure, width = self.draw(view, looks or [Line(color, dash) for dash, color in product(DASHES, COLORS)])
            page = svg(figure, f"{about}. {view.caption}", self.synthetic)
            file = io.BytesIO()
            title = f"{about} (simulated data)" if self.synthetic else about
            # Beyond the figure, where the page has its own words.
            figure.text(8 / width, 1.01, title, color=INK, size=12, weight="bold", va="bottom")
            figure.savefig(
                file, dpi=144, facecolor="white", bbox_inches="tight", pad_inches=0.1, metadata={"Software": None}
            )
        return Picture(view.title, view.caption, width, page, file.getvalue())

    def draw(self, view: View, looks: Sequence[Line]) -> tuple[Figure, int]:
        """The figure, and its width in pixels."""
        panels, rows, columns = view.values.shape
        across = min(view.columns, panels, SIDE_BY_SIDE)
        down = -(-panels // across)
        left, bottom, gap = 60, 44, 26
        # Of more, no one would read the names.
        named = view.kind == "map" and 0 < len(view.names) <= NAMED_ROWS
        top = 24 if any(view.panels) else 8
        if view.kind == "lines":
            # The legend is above the panel's name.
            top += 6 + 16 * -(-len(view.names) // LEGEND_COLUMNS)
        elif named:
            left = 40 + 9 * max(map(len, view.names))
        wide = (PAGE - left - 10 - gap * (across - 1)) // across
        if view.kind == "lines":
            wide, high = min(wide, 720), 230
        elif view.kind == "bars":
            wide, high = min(wide, 720), 70 if down > 1 else 140
        elif named:
            wide, high = min(wide, 230), 20 * rows
        elif 2 * rows > columns:
            wide = high = min(wide, 230)
        else:
            wide, high = min(wide, 520), min(170, max(100, 12 * rows))
        width = left + across * wide + (across - 1) * gap + 10
        height = bottom + down * (high + top)
        figure = Figure(figsize=(width / 72, height / 72))
        values = view.values.detach().double().cpu().numpy()
        for i, (row, column) in enumerate(list(product(range(down), range(across)))[:panels]):
            at = (left + column * (wide + gap), height - (row + 1) * (high + top))
            axes = figure.add_axes((at[0] / width, at[1] / height, wide / width, high / height))
            if view.kind == "map":
                self._map(axes, view, values[i])
            elif view.kind == "bars":
                axes.bar(view.x.first + np.arange(columns), values[i, 0], width=0.8, color=COLORS[0])
                axes.set_ylim(0, 1.05 * float(values.max()) or 1)
            else:
                _lines(axes, view, values[i], looks)
            if view.kind != "map":
                axes.set_xlim(view.x.first - 0.6, view.x.first + columns - 0.4)
            if view.mark:
                axes.axvline(view.mark[0], color=GREY, linestyle=(0, (4, 3)), linewidth=1.2)
                axes.annotate(view.mark[1], (view.mark[0], 1), (4, -12), ("data", "axes fraction"), "offset points")
            if name := view.panels[i]:
                most = f" · up to {values[i].max():.2g}" if view.kind == "map" else ""
                axes.set_title(name + most, loc="left", size=10.5, color=INK, pad=5)
            self._axis(axes.xaxis, view.x, columns, wide // 60, i + across >= panels)
            if named:
                axes.set_yticks(view.y.first + np.arange(rows), view.names)
                _name(axes.yaxis, view.y.name, column == 0)
            elif view.kind == "map":
                self._axis(axes.yaxis, view.y, rows, high // 25, column == 0)
            else:
                _name(axes.yaxis, view.y.name, column == 0)
                if not view.log:
                    whole = bool((values == values.round()).all())
                    axes.yaxis.set_major_locator(MaxNLocator(3 if view.kind == "bars" else 5, integer=whole))
        return figure, width

    def _map(self, axes: Axes, view: View, values_YX: NDArray[np.float64]) -> None:
        """A matrix as an image from 0, white, to the panel's largest value: two panels may be of quite other sizes."""
        rows, columns = values_YX.shape
        down, across = -(-rows // DRAWN_CELLS), -(-columns // DRAWN_CELLS)
        cells = torch.from_numpy(values_YX)[None, None]
        cells_YX = torch.nn.functional.avg_pool2d(cells, (down, across), ceil_mode=True)[0, 0].numpy()
        right, low = view.x.first - 0.5 + cells_YX.shape[1] * across, view.y.first - 0.5 + cells_YX.shape[0] * down
        axes.imshow(
            cells_YX,
            cmap=SHADES,
            vmin=0,
            vmax=float(cells_YX.max()) or 1,
            aspect="auto",
            interpolation="none",
            extent=(view.x.first - 0.5, right, low, view.y.first - 0.5),
        )
        axes.grid(False)
        axes.spines[:].set_visible(True)

    def _axis(self, axis: Axis, scale: Scale, n: int, ticks: int, outer: bool) -> None:
        """Ticks at whole numbers, whole days apart where steps are counted; words where the panel is an outer one.

        Args:
            n: rows or columns along it.
            ticks: for which there is room.
        """
        day = round(self.day)
        if scale.unit == STEPS and day == self.day and n > day > 1:
            axis.set_major_locator(MultipleLocator(day * -(-n // (min(ticks, 8) * day))))
        else:
            axis.set_major_locator(MaxNLocator(min(ticks, 6), integer=True, min_n_ticks=1))
        of_time = f"in steps of {self.step}" if self.step else ""
        unit = of_time if scale.unit == STEPS else scale.unit
        _name(axis, f"{scale.name}, {unit}" if unit else scale.name, outer)


def _name(axis: Axis, name: str, outer: bool) -> None:
    axis.set_tick_params(label1On=outer)
    if outer:
        axis.set_label_text(name)


def _lines(axes: Axes, view: View, values_YX: NDArray[np.float64], looks: Sequence[Line]) -> None:
    places = view.x.first + np.arange(values_YX.shape[1])
    positive = values_YX[values_YX > 0]
    log = view.log and positive.size > 0
    for i, (name, values_X) in enumerate(zip(view.names, values_YX, strict=True)):
        line = looks[i % len(looks)]
        shown_X = np.where(values_X > 0, values_X, np.nan) if log else values_X
        # A line through one point is not seen.
        marker = "o" if len(places) == 1 else ""
        axes.plot(places, shown_X, color=line.color, linestyle=line.style, marker=marker, label=name)
    if log:
        axes.set_yscale("log")
        if positive.max() < 100 * positive.min():
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        else:
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"10{_exponent(value)}"))
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


def _exponent(power_of_ten: float) -> str:
    """In small raised figures, which need no mathematical typesetting: that is off, for a name may hold a $."""
    return str(round(math.log10(power_of_ten))).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
