"""What there is to be looked at of a network at work; `stages/report/views.py` draws it."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor


@dataclass(frozen=True)
class Scale:
    """An axis of a view.

    Attributes:
        name: what is counted or measured along it.
        unit: of what; empty for a pure number. `STEPS` is a window's inputs, whose length in time the drawing knows.
        first: the number of the first row or column.
    """

    name: str
    unit: str = ""
    first: int = 0


STEPS = "steps"


def input_steps(steps: int) -> Scale:
    """The axis of a window's T steps: the last, of which the forecast is made, is 0, the one before it -1."""
    return Scale("input, counted back from the last", STEPS, 1 - steps)


@dataclass(frozen=True)
class View:
    """What there is to be looked at of a network at work, for a picture.

    Attributes:
        title: what is shown, in a few words.
        caption: how it is read, for a student.
        kind: map: a panel is a matrix as an image, its first row at the top, one shade a value, from 0 up; lines: each
            row of a panel is a line over its columns; bars: a panel has one row, each column a bar.
        values: (P, Y, X), finite: panels, rows, columns.
        x, y: of the columns; and of the rows of a map, or of the values of lines and bars.
        panels: P names, one a panel; nothing: there is one, which needs no name.
        names: Y names, of lines; of the rows of a map, where they have any.
        columns: panels side by side; the others follow below.
        log: lines are drawn over a logarithmic axis, on which zeros are left out.
        mark: a column, as x counts it, at which a line is drawn across, and what it says.
    """

    title: str
    caption: str
    kind: Literal["map", "lines", "bars"]
    values: Tensor
    x: Scale
    y: Scale
    panels: tuple[str, ...] = ("",)
    names: tuple[str, ...] = ()
    columns: int = 1
    log: bool = False
    mark: tuple[float, str] | None = None

    def __post_init__(self) -> None:
        """
        Raises:
            ValueError: the values are not what is said of them.
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


def window_names(windows: int) -> tuple[str, ...]:
    """Names of the windows (B) that a network is looked at with, in their order."""
    return tuple(f"window {b + 1}" for b in range(windows))
