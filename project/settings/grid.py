"""The grid: every combination of an architecture's hyperparameters, block by block, once a seed."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from architectures import REGISTRY, Axes, TrainedAxes
from problems.errors import RecastError
from project.paths import PARAMS
from project.settings.explaining import explain_errors
from project.settings.sections import Block, Grid
from project.spelling import did_you_mean


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
    def family(self) -> str:
        """What it is compared within: its architecture; an ensemble, which has several times the weights, apart."""
        is_ensemble = isinstance(self.hyperparameters, TrainedAxes) and self.hyperparameters.members > 1
        return f"{self.architecture} ensemble" if is_ensemble else self.architecture

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
        RecastError: an architecture that is not registered, an axis it does not have, a value out of range, or a
            configuration that is listed twice.
    """
    found: dict[str, Configuration] = {}
    for name in grid.architectures:
        if name not in REGISTRY:
            raise RecastError(
                f"{PARAMS}: grid.architectures.{name}: no such architecture{did_you_mean(name, REGISTRY)}; "
                f"known are {', '.join(sorted(REGISTRY))}"
            )
        blocks = grid.blocks(name)
        for i, block in enumerate(blocks):
            place = f"grid.architectures.{name}" + (f".{i}" if len(blocks) > 1 else "")
            for each in _product(name, block, place):
                if each.label in found:
                    raise RecastError(f"{PARAMS}: {place}: {each.label} is in two of the blocks; leave it in one")
                found[each.label] = each
    return list(found.values())


def _product(name: str, block: Block, place: str) -> Iterator[Configuration]:
    """Every combination of a block's values.

    Raises:
        RecastError: an axis that the architecture does not have, or a value out of range.
    """
    hyperparameters = REGISTRY[name].Hyperparameters
    if unknown := [axis for axis in block if axis not in hyperparameters.model_fields]:
        raise RecastError(
            f"{PARAMS}: {place}.{unknown[0]}: {name} has no such axis"
            f"{did_you_mean(unknown[0], hyperparameters.model_fields)}; it has "
            f"{', '.join(hyperparameters.model_fields) or 'none'}"
        )
    for values in itertools.product(*block.values()):
        try:
            chosen = hyperparameters.model_validate(dict(zip(block, values, strict=True)), strict=True)
        except ValidationError as error:
            raise RecastError(explain_errors(error, PARAMS, hyperparameters, place)) from None
        yield Configuration(name, chosen, tuple(block))


def check_grid(grid: Grid) -> None:
    """
    Raises:
        RecastError: see `configurations`.
    """
    configurations(grid)
