"""The grid: every combination of an architecture's hyperparameters, block by block."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from architectures import REGISTRY, Axes, TrainedAxes
from problems.errors import RecastError
from project.paths import PARAMS
from project.settings.explaining import explain_errors
from project.settings.sections import Grid, GridBlock
from project.spelling import did_you_mean


@dataclass(frozen=True)
class Configuration:
    """An architecture with its hyperparameters: a row of the leaderboard.

    Attributes:
        architecture: its name in the registry.
        hyperparameters: every axis with its value, including defaults.
        varied: the axes that the grid lists, which distinguish this configuration from the others.
    """

    architecture: str
    hyperparameters: Axes
    varied: tuple[str, ...]

    @property
    def family(self) -> str:
        """The group in which it is compared: its architecture. Ensembles, with several times the weights, are apart."""
        is_ensemble = isinstance(self.hyperparameters, TrainedAxes) and self.hyperparameters.members > 1
        return f"{self.architecture} ensemble" if is_ensemble else self.architecture

    @property
    def label(self) -> str:
        """A name, unique in the grid: gru units=32 learning_rate=0.001."""
        values = self.hyperparameters.model_dump()
        return " ".join([self.architecture, *(f"{axis}={_format_axis_value(values[axis])}" for axis in self.varied)])


def _format_axis_value(value: Any) -> str:
    """A value with six digits, or with as many as it takes to distinguish it from every other value."""
    if isinstance(value, float) and float(f"{value:g}") == value:
        return f"{value:g}"
    return f"[{', '.join(map(_format_axis_value, value))}]" if isinstance(value, tuple) else str(value)


def expand_grid(grid: Grid) -> list[Configuration]:
    """All configurations of the grid, in its order.

    Raises:
        RecastError: an architecture is not registered, does not have an axis, has a value out of range, or has a
            configuration twice.
    """
    by_label: dict[str, Configuration] = {}
    for name in grid.architectures:
        if name not in REGISTRY:
            raise RecastError(
                f"{PARAMS}: grid.architectures.{name}: no such architecture{did_you_mean(name, REGISTRY)}; "
                f"the architectures are {', '.join(sorted(REGISTRY))}"
            )
        blocks = grid.blocks(name)
        for i, block in enumerate(blocks):
            place = f"grid.architectures.{name}" + ("" if isinstance(grid.architectures[name], dict) else f".{i}")
            for configuration in _expand_block(name, block, place):
                label = configuration.label
                if label in by_label:
                    raise RecastError(f"{PARAMS}: {place}: {label} is in two of the blocks; leave it in one")
                by_label[label] = configuration
    return list(by_label.values())


def _expand_block(name: str, block: GridBlock, place: str) -> Iterator[Configuration]:
    """Every combination of a block's values.

    Raises:
        RecastError: the architecture does not have an axis, or a value is out of range.
    """
    hyperparameters = REGISTRY[name].Hyperparameters
    if unknown := [axis for axis in block if axis not in hyperparameters.model_fields]:
        raise RecastError(
            f"{PARAMS}: {place}.{unknown[0]}: {name} has no such axis"
            f"{did_you_mean(unknown[0], hyperparameters.model_fields)}; it has "
            f"{', '.join(hyperparameters.model_fields) or 'none'}"
        )
    for values in itertools.product(*block.values()):
        combination = dict(zip(block, values, strict=True))
        try:
            chosen = hyperparameters.model_validate(combination, strict=True)
        except ValidationError as error:
            raise RecastError(explain_errors(error, combination, PARAMS, hyperparameters, place)) from None
        yield Configuration(name, chosen, tuple(block))


def check_grid(grid: Grid) -> None:
    """Check the architectures of the grid and their axes.

    Raises:
        RecastError: see `expand_grid`.
    """
    expand_grid(grid)
