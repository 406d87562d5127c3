"""Forecasts of numbers and the observed targets: intervals, errors by hour and month, and a stretch to draw."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from forecasting.quantiles import find_interval_outputs
from learning.conformal import conformal_half_width
from stages.evaluation.leaderboard import Fan, Interval, Spread
from stages.evaluation.metrics import Errors, coverage
from stages.tables.table import Series

TargetValues = NDArray[np.float64]


@dataclass(frozen=True)
class Targets:
    """The targets of a split, by window and lead.

    Attributes:
        observed_NL: in the target's unit.
        rows_NL: the row of the table in which each target is; for sequences, the number of the window.
        times_NL: the time of each target; empty where the data have no clock.
    """

    observed_NL: TargetValues
    rows_NL: NDArray[np.int64]
    times_NL: NDArray[np.datetime64]


@dataclass(frozen=True)
class Forecasts:
    """The forecasts of one configuration, by seed, window, lead and quantile, in the target's unit.

    Attributes:
        validation_SNLO, test_SNLO: the forecasts of each split; one output where no quantiles are forecast.
        quantiles: the quantiles that the outputs forecast.
    """

    validation_SNLO: TargetValues
    test_SNLO: TargetValues
    quantiles: tuple[float, ...]

    def point(self, forecasts_SNLO: TargetValues) -> TargetValues:
        """The point forecasts (S, N, L), from which errors are computed: the medians, where quantiles are forecast."""
        return forecasts_SNLO[..., self.quantiles.index(0.5) if self.quantiles else 0]


@dataclass(frozen=True)
class Band:
    """The intervals of a level around a configuration's test forecasts; their ends by seed, window and lead."""

    interval: Interval
    low_SNL: TargetValues
    high_SNL: TargetValues

    def cut_fan(self, stretch: slice) -> Fan:
        """The ends along a stretch of the windows, at the longest lead, averaged over seeds."""
        low_N, high_N = (ends[:, stretch, -1].mean(axis=0) for ends in (self.low_SNL, self.high_SNL))
        return Fan(self.interval.level, low_N.tolist(), high_N.tolist())


def build_bands(forecasts: Forecasts, validation: Targets, test: Targets, levels: Sequence[float]) -> list[Band]:
    """The intervals around the test forecasts, and the share of the targets that they contain.

    Where a network forecasts the quantiles at both ends of an interval, these are its ends. The ends of any other
    interval are symmetric around the forecast, and its validation errors determine the width, lead by lead. A level
    that needs more validation windows than there are is left out.
    """
    bands = []
    point_SNL = forecasts.point(forecasts.test_SNLO)
    for level in sorted(levels):
        ends = find_interval_outputs(forecasts.quantiles, level)
        if ends:
            low_SNL, high_SNL = (forecasts.test_SNLO[..., end] for end in ends)
        else:
            errors_SNL = forecasts.point(forecasts.validation_SNLO) - validation.observed_NL
            half_widths = [
                [conformal_half_width(errors_N, level) for errors_N in errors_NL.T] for errors_NL in errors_SNL
            ]
            # All seeds and leads have the same windows: there are enough for all of them, or for none.
            if any(half_width is None for seed_widths in half_widths for half_width in seed_widths):
                continue
            half_width_SNL = np.array(half_widths, dtype=np.float64)[:, None, :]
            low_SNL, high_SNL = point_SNL - half_width_SNL, point_SNL + half_width_SNL
        center_SNL, half_width_SNL = (low_SNL + high_SNL) / 2, (high_SNL - low_SNL) / 2
        coverages = [
            coverage(center_NL - test.observed_NL, half_width_NL)
            for center_NL, half_width_NL in zip(center_SNL, half_width_SNL, strict=True)
        ]
        width = Spread.of([float(2 * half_width_NL.mean()) for half_width_NL in half_width_SNL])
        interval = Interval(level, width, Spread.of(coverages), forecast=bool(ends))
        bands.append(Band(interval, low_SNL, high_SNL))
    return bands


def average_absolute_errors(forecasts: Forecasts, test: Targets) -> Errors:
    """The absolute errors (N, L) on test, averaged over seeds."""
    errors_NL: Errors = np.abs(forecasts.point(forecasts.test_SNLO) - test.observed_NL).mean(axis=0)
    return errors_NL


def average_by_hour(test: Targets, error_NL: Errors) -> list[float | None]:
    """The mean error by the target's hour of day (24)."""
    hours_NL = test.times_NL.astype("datetime64[h]").astype(np.int64) % 24
    return _average_by_group(hours_NL.ravel(), error_NL.ravel(), 24)


def average_by_month(test: Targets, error_NL: Errors) -> list[float | None]:
    """The mean error by the target's month (12)."""
    months_NL = test.times_NL.astype("datetime64[M]").astype(np.int64) % 12
    return _average_by_group(months_NL.ravel(), error_NL.ravel(), 12)


def _average_by_group(group_N: NDArray[np.int64], error_N: Errors, groups: int) -> list[float | None]:
    """The mean error by group; None for a group without windows."""
    sums = np.bincount(group_N, weights=error_N, minlength=groups)
    counts = np.bincount(group_N, minlength=groups)
    return [float(total / n) if n else None for total, n in zip(sums, counts, strict=True)]


def number_moments(test: Targets, cadence: float) -> NDArray[np.int64]:
    """The time of the last target of each window, as a whole number of rows from a fixed origin.

    Rows of two series count as one moment also where their clocks differ by a part of the cadence.

    Args:
        cadence: the time between rows, in seconds.
    """
    moments_N: NDArray[np.int64] = test.times_NL[:, -1].astype("datetime64[ms]").astype(np.int64)
    return moments_N // round(1000 * cadence)


def choose_stretch(test: Targets, series: Sequence[Series], length: int) -> tuple[str, slice]:
    """The stretch of forecasts that is drawn: the name of the first series with test windows, and the first of them.

    Args:
        length: the largest number of windows.
    """
    rows_N = test.rows_NL[:, -1]
    first = next(candidate for candidate in series if rows_N[0] < candidate.first + candidate.rows)
    return first.name, slice(0, min(length, int(np.searchsorted(rows_N, first.first + first.rows))))


def tabulate_stretch(test: Targets, forecasts: dict[str, Forecasts], stretch: slice) -> dict[str, list[Any]]:
    """The columns `time`, `observed` and the mean forecast of each configuration at the longest lead."""
    times_N = test.times_NL[stretch, -1]
    units: tuple[Literal["m", "s", "ms"], ...] = ("m", "s", "ms")
    unit = next(unit for unit in units if (times_N == times_N.astype(f"datetime64[{unit}]")).all())
    return {
        "time": np.datetime_as_string(times_N, unit=unit).tolist(),
        "observed": test.observed_NL[stretch, -1].tolist(),
        **{
            label: values.point(values.test_SNLO)[:, stretch, -1].mean(axis=0).tolist()
            for label, values in forecasts.items()
        },
    }
