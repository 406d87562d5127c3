"""Pictures of a network at work, as data: the architectures make them, `stages/report` draws them."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor


@dataclass(frozen=True)
class ViewAxis:
    """An axis of a view.

    Attributes:
        name: what is counted or measured along it.
        unit: empty for a pure number. `STEPS` stands for the inputs of a window; the drawing knows their length in
            time.
        first: the number of the first row or column.
    """

    name: str
    unit: str = ""
    first: int = 0


STEPS = "steps"


def input_axis(steps: int) -> ViewAxis:
    """The axis of a window's T steps: the last, after which the forecast is made, is 0, the one before it -1."""
    return ViewAxis("input, counted back from the last", STEPS, 1 - steps)


@dataclass(frozen=True)
class View:
    """A picture of a network at work.

    Attributes:
        title: what the picture shows, in a few words.
        caption: how to read it, for a student.
        kind: map: each panel is a matrix, drawn as an image with its first row at the top and a shade for each value,
            from 0 up; lines: each row of a panel is a line over its columns; bars: each panel has one row, each column
            of it is a bar.
        values: (P, Y, X), finite: panels, rows, columns.
        x: the axis of the columns.
        y: the axis of the rows of a map, or of the values of lines and bars.
        panels: P names, one for each panel; a single panel needs no name.
        names: Y names, of the lines, or of the rows of a map if they have names.
        columns: how many panels are side by side; the others follow below.
        log: whether lines are drawn on a logarithmic axis, which leaves zeros out.
        mark: a column, counted as x counts it, at which a line is drawn from top to bottom, and its label.
    """

    title: str
    caption: str
    kind: Literal["map", "lines", "bars"]
    values: Tensor
    x: ViewAxis
    y: ViewAxis
    panels: tuple[str, ...] = ("",)
    names: tuple[str, ...] = ()
    columns: int = 1
    log: bool = False
    mark: tuple[float, str] | None = None

    def __post_init__(self) -> None:
        """
        Raises:
            ValueError: the values do not fit the other attributes.
        """
        shape = tuple(self.values.shape)
        rows = {"map": len(self.names) or None, "lines": len(self.names), "bars": 1}[self.kind]
        if len(shape) != 3 or shape[0] != len(self.panels) or rows not in (None, shape[1]) or 0 in shape:
            raise ValueError(
                f"{self.title}: values of shape {shape} for {len(self.panels)} panels of {self.kind} with "
                f"{len(self.names)} names"
            )
        if self.kind == "bars" and self.names:
            raise ValueError(f"{self.title}: bars have no names")
        if not self.values.isfinite().all():
            raise ValueError(f"{self.title}: a value is not finite")


def name_windows(windows: int) -> tuple[str, ...]:
    """Names for the B windows that a network is shown with, in their order."""
    return tuple(f"window {b + 1}" for b in range(windows))
