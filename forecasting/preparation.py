"""How observations become what a network reads, and its answers become forecasts: columns, scaling, climatology.

It is fitted to the training rows alone, and is used with the network wherever that forecasts: on the test rows, beside
a challenger on newer rows, and in service.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import polars as pl

from forecasting.arrays import Times, Values
from forecasting.climatology import Climatology, compute_harmonics
from problems.columns import CLIMATOLOGY_COLUMNS, TableSettings, derived_columns, target_time_column
from problems.errors import RecastError


@dataclass(frozen=True)
class Preparation:
    """
    Attributes:
        table: the declared columns, and what is added to them.
        horizon: from the last input to the last target.
        center, scale: by column: value = normalized * scale + center, in the column's own unit.
        climatologies: the coefficients of the climatology of each series; empty where the problem has none.
    """

    table: TableSettings
    horizon: timedelta
    center: tuple[float, ...]
    scale: tuple[float, ...]
    climatologies: Mapping[str, tuple[float, ...]]

    @property
    def features(self) -> tuple[str, ...]:
        """The columns in order: declared, known in advance, of the calendar, of the climatology."""
        return self.table.features + derived_columns(self.table)

    @property
    def target_index(self) -> int:
        """The index of the column that is forecast."""
        return self.table.features.index(self.table.target)

    @property
    def target_scaling(self) -> tuple[float, float]:
        """The center and the scale of the target, in its unit."""
        return self.center[self.target_index], self.scale[self.target_index]

    @property
    def climatology_indices(self) -> tuple[int, int] | None:
        """The indices of the target's climatology at the row's time and a horizon later; None: there is none."""
        return (len(self.features) - 2, len(self.features) - 1) if self.table.climatology else None

    def normalize_rows(self, rows: pl.DataFrame, series: str) -> Values:
        """Rows of one series as a network reads them: (N, F), NaN where nothing is known.

        Args:
            rows: `time`, the declared columns, and what is known in advance as it is at the targets.

        Raises:
            RecastError: the problem has climatologies, but none of this series, which was not among the training rows.
        """
        values_NK = rows.select(*self.table.features, *map(target_time_column, self.table.known)).to_numpy()
        return self.normalize_values(values_NK, rows["time"].to_numpy(), series)

    def normalize_values(self, values_NK: Values, times_N: Times, series: str) -> Values:
        """The same (N, F) as `normalize_rows`, from the columns (N, K) in their own units and the rows' times."""
        raw_NF = np.hstack([values_NK, self._derive_columns(times_N, series)])
        normalized_NF: Values = (raw_NF - np.array(self.center)) / np.array(self.scale)
        return normalized_NF

    def describe_missing_climatology(self, series: str) -> str:
        """The message about a series that was not among the training rows."""
        return (
            f"series {series} has no climatology, because it was not among the training rows, whose series were "
            f"{', '.join(self.climatologies)}"
        )

    def _derive_columns(self, times_N: Times, series: str) -> Values:
        """The columns (N, K) that follow from the time of a row alone."""
        columns = [np.empty((len(times_N), 0))]
        if self.table.calendar:
            columns.append(compute_harmonics(times_N, self.table.calendar))
        if self.table.climatology:
            if series not in self.climatologies:
                raise RecastError(self.describe_missing_climatology(series))
            climatology = Climatology(self.table.climatology, np.array(self.climatologies[series]))
            targets_N = times_N + np.timedelta64(self.horizon)
            columns.append(climatology.values_at(np.concatenate([times_N, targets_N])).reshape(2, -1).T)
        return np.hstack(columns)


def extend_scaling(table: TableSettings, center: Values, scale: Values) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The center and the scale of every column, from those of the declared columns.

    A column that is known in advance is scaled as the feature that it repeats, the climatology as the target. The
    columns of the calendar, from -1 to 1, stay as they are.
    """
    target = table.features.index(table.target)
    known = [table.features.index(name) for name in table.known]
    is_climatology = [name in CLIMATOLOGY_COLUMNS for name in derived_columns(table)[len(known) :]]
    return (
        (*center.tolist(), *center[known].tolist(), *np.where(is_climatology, center[target], 0.0).tolist()),
        (*scale.tolist(), *scale[known].tolist(), *np.where(is_climatology, scale[target], 1.0).tolist()),
    )
