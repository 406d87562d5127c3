"""The grid: every combination of an architecture's hyperparameters, once a seed."""

import itertools
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from architectures import REGISTRY, Axes
from problems.errors import RecastError
from stages.settings import FILE, Grid, explained, meant


@dataclass(frozen=True)
class Configuration:
    """An architecture with its hyperparameters: a row of the leaderboard.

    Attributes:
        architecture: its name in the registry.
        hyperparameters: every axis with its value, defaults too.
        varied: the axes that the grid lists, which tell this configuration from its neighbours.
    """

    architecture: str
    hyperparameters: Axes
    varied: tuple[str, ...]

    @property
    def label(self) -> str:
        """A name, unique in the grid: gru units=32 learning_rate=0.001."""
        values = self.hyperparameters.model_dump()
        return " ".join([self.architecture, *(f"{axis}={_short(values[axis])}" for axis in self.varied)])


def _short(value: Any) -> str:
    """A value in six digits, or in as many as it takes to tell it from all others."""
    if isinstance(value, float) and float(f"{value:g}") == value:
        return f"{value:g}"
    return f"[{', '.join(map(_short, value))}]" if isinstance(value, tuple) else str(value)


def configurations(grid: Grid) -> list[Configuration]:
    """All configurations of the grid, in its order.

    Raises:
        RecastError: an architecture that is not registered, an axis it does not have, or a value out of range.
    """
    found = []
    for name, axes in grid.architectures.items():
        if name not in REGISTRY:
            raise RecastError(
                f"{FILE}: grid.architectures.{name}: no such architecture{meant(name, REGISTRY)}; "
                f"known are {', '.join(sorted(REGISTRY))}"
            )
        hyperparameters = REGISTRY[name].Hyperparameters
        if unknown := [axis for axis in axes if axis not in hyperparameters.model_fields]:
            raise RecastError(
                f"{FILE}: grid.architectures.{name}.{unknown[0]}: {name} has no such axis"
                f"{meant(unknown[0], hyperparameters.model_fields)}; "
                f"it has {', '.join(hyperparameters.model_fields) or 'none'}"
            )
        for values in itertools.product(*axes.values()):
            try:
                chosen = hyperparameters.model_validate(dict(zip(axes, values, strict=True)), strict=True)
            except ValidationError as error:
                raise RecastError(explained(error, FILE, hyperparameters, f"grid.architectures.{name}")) from None
            found.append(Configuration(name, chosen, tuple(axes)))
    return found


def check(grid: Grid) -> None:
    """
    Raises:
        RecastError: see `configurations`.
    """
    configurations(grid)
