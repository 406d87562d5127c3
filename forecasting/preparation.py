"""What turns observations into what a network reads, and its answers back: columns, scaling, climatology.

It is fitted to the training rows alone, and goes with a network wherever that forecasts: to the test rows, beside a
challenger on newer rows, and into service.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import polars as pl
from numpy.typing import NDArray

from forecasting.climatology import Climatology, waves
from problems.columns import CLIMATOLOGY, Table, ahead, derived_names
from problems.errors import RecastError

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Preparation:
    """
    Attributes:
        table: the columns that are declared, and what is added to them.
        horizon: from the last input to the last target.
        center, scale: by column; value = normalised * scale + center, in the columns' own units.
        climatologies: the coefficients of each series'; empty where the problem has none.
    """

    table: Table
    horizon: timedelta
    center: tuple[float, ...]
    scale: tuple[float, ...]
    climatologies: Mapping[str, tuple[float, ...]]

    @property
    def features(self) -> tuple[str, ...]:
        """The columns in order: declared, known in advance, of the calendar, of the climatology."""
        return self.table.features + derived_names(self.table)

    @property
    def target(self) -> int:
        """Index of the column that is forecast."""
        return self.table.features.index(self.table.target)

    @property
    def climatology(self) -> tuple[int, int] | None:
        """Indices of the target's climatology at the row's time and at a horizon after it; None: there is none."""
        return (len(self.features) - 2, len(self.features) - 1) if self.table.climatology else None

    def normalized(self, rows: pl.DataFrame, series: str) -> Values:
        """Rows of one series as a network reads them: (N, F), NaN where nothing is known.

        Args:
            rows: `time`, the declared columns, and what is known in advance as it is at the targets.

        Raises:
            RecastError: the series was not among those of the training rows, and has no climatology.
        """
        measured_NK = rows.select(*self.table.features, *map(ahead, self.table.known)).to_numpy()
        return self.scaled(measured_NK, rows["time"].to_numpy(), series)

    def scaled(self, measured_NK: Values, moments_N: NDArray[np.datetime64], series: str) -> Values:
        """The same (N, F), of the columns (N, K) in their own units and the rows' times."""
        raw = np.hstack([measured_NK, self._derived(moments_N, series)])
        normalized: Values = (raw - np.array(self.center)) / np.array(self.scale)
        return normalized

    def _derived(self, moments_N: NDArray[np.datetime64], series: str) -> Values:
        """The columns (N, K) that are computed from the time of a row alone."""
        columns = [np.empty((len(moments_N), 0))]
        if self.table.calendar:
            columns.append(waves(moments_N, self.table.calendar))
        if self.table.climatology:
            if series not in self.climatologies:
                raise RecastError(
                    f"series {series}: there is no climatology of it, as it was not among the training rows; known are "
                    f"{', '.join(self.climatologies)}"
                )
            climatology = Climatology(self.table.climatology, np.array(self.climatologies[series]))
            ahead_N = moments_N + np.timedelta64(self.horizon)
            columns.append(climatology.at(np.concatenate([moments_N, ahead_N])).reshape(2, -1).T)
        return np.hstack(columns)

    @property
    def of_target(self) -> tuple[float, float]:
        """The center and scale of the target, in its unit."""
        return self.center[self.target], self.scale[self.target]


def of_derived(table: Table, center: Values, scale: Values) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The center and scale of every column, from those of the declared ones.

    What is known in advance is scaled as the feature that it is of, the climatology as the target; the calendar's
    columns, from -1 to 1, stay as they are.
    """
    target = table.features.index(table.target)
    of = [table.features.index(name) for name in table.known]
    as_target = [name in CLIMATOLOGY for name in derived_names(table)[len(of) :]]
    return (
        (*center.tolist(), *center[of].tolist(), *np.where(as_target, center[target], 0.0).tolist()),
        (*scale.tolist(), *scale[of].tolist(), *np.where(as_target, scale[target], 1.0).tolist()),
    )
