"""Whether the training rows teach the seasons: the time that they cover, and the errors of a climatology of them.

The calendar and the climatology are inputs of the networks. If the training rows cover half a year, their yearly cycle
has values later that no network has seen, and what it answers to them has nothing to do with the months that follow.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from forecasting.climatology import Climatology
from problems.columns import Harmonics
from stages.tables.table import Series, Table, read_observed, read_times, read_values
from stages.tables.windows import TableWindows, read_ranges

MAX_ROWS = 50_000
"""Rows of a series, evenly spaced, that a climatology is fitted to and compared with: enough for a mean error."""
FAR_WORSE = 2.0
"""How many times the error of persistence is far worse."""
MISFIT = 1.5
"""How many times its error on the training rows a climatology has on rows that it does not describe. A short lead makes
persistence good, and a climatology far worse than that, however well the seasons are known."""


YEAR = timedelta(days=365)


@dataclass(frozen=True)
class SeasonErrors:
    """The MAE of a climatology and of persistence, in the target's unit.

    Attributes:
        training: of the climatology, on the training rows that it is fitted to.
        climatology, persistence: on the validation windows, at the last lead.
    """

    training: float
    climatology: float
    persistence: float

    @property
    def is_misleading(self) -> bool:
        """Whether the climatology is far worse than persistence because it does not describe the validation rows."""
        return self.climatology > FAR_WORSE * self.persistence and self.climatology > MISFIT * self.training


def measure_training_time(normalized: Path) -> timedelta:
    """The time that the training rows of a series cover; the shortest, where there are several."""
    table, times_N = Table.read(normalized), read_times(normalized)
    covered = [times_N[series.first + series.train - 1] - times_N[series.first] for series in table.series]
    return timedelta(seconds=table.cadence + min(time / np.timedelta64(1, "s") for time in covered))


def measure_seasons(harmonics: Harmonics, normalized: Path, windowed: Path) -> SeasonErrors | None:
    """The errors of a climatology that is fitted to the training rows, and of persistence, on the validation windows.

    Args:
        normalized, windowed: the folders of the stages `normalize` and `window`.

    Returns:
        None where a series has no target in its training rows.
    """
    table, windows = Table.read(normalized), TableWindows.read(windowed)
    times_N = read_times(normalized)
    target_N = read_values(normalized)[:, table.preparation.target_index]
    is_observed_N = read_observed(normalized)
    errors: list[tuple[NDArray[np.float64], ...]] = []
    for series, rows_K in _list_windows(table, windowed):
        train = np.arange(series.first, series.first + series.train)[:: _choose_stride(series.train)]
        train = train[is_observed_N[train]]
        train_K = target_N[train].astype(np.float64)
        climatology = Climatology.fit(harmonics, [(times_N[train], train_K)])
        if climatology is None:
            return None
        rows_K = rows_K[:: _choose_stride(len(rows_K))]
        target_K = target_N[rows_K + windows.delay].astype(np.float64)
        errors.append(
            (
                np.abs(climatology.values_at(times_N[train]) - train_K),
                np.abs(climatology.values_at(times_N[rows_K + windows.delay]) - target_K),
                np.abs(target_N[rows_K - windows.step] - target_K),
            )
        )
    scale = table.preparation.target_scaling[1]
    return SeasonErrors(*(float(np.concatenate(part).mean()) * scale for part in zip(*errors, strict=True)))


def _choose_stride(rows: int) -> int:
    """n, where every n-th row is used, so that at most MAX_ROWS are."""
    return -(-rows // MAX_ROWS) or 1


def _list_windows(table: Table, windowed: Path) -> Iterator[tuple[Series, NDArray[np.int64]]]:
    """The series that have validation windows, each with the rows by which its windows are named."""
    rows_K = np.concatenate([np.arange(first, until) for first, until in read_ranges(windowed, "validation")])
    for series in table.series:
        own_K = rows_K[(rows_K >= series.first) & (rows_K < series.first + series.rows)]
        if len(own_K):
            yield series, own_K
