"""Forecasts of numbers against what was observed: intervals, errors by lead, by hour and month, a stretch to draw."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stages.evaluation.leaderboard import Fan, Interval, Spread
from stages.evaluation.metrics import Errors, conformal_reach, coverage
from stages.tables.table import Series

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Targets:
    """The targets (N, L) of a split by window and lead, in the target's unit.

    Attributes:
        rows_NL: of a table, the rows that they stand in.
        times_NL: when they are; no window has one where there is no clock.
    """

    observed_NL: Values
    rows_NL: NDArray[np.int64]
    times_NL: NDArray[np.datetime64]


@dataclass(frozen=True)
class Forecasts:
    """The forecasts of one configuration, by seed, window, lead and quantile, in the target's unit.

    Attributes:
        validation_SNLO, test_SNLO: of each split; one output where no quantiles are forecast.
        quantiles: what the outputs are.
    """

    validation_SNLO: Values
    test_SNLO: Values
    quantiles: tuple[float, ...]

    def point(self, forecasts_SNLO: Values) -> Values:
        """The forecasts (S, N, L) that errors are of: the medians, where quantiles are forecast."""
        return forecasts_SNLO[..., self.quantiles.index(0.5) if self.quantiles else 0]


@dataclass(frozen=True)
class Band:
    """The intervals of a level around a configuration's test forecasts, their ends (S, N, L) by seed, window, lead."""

    interval: Interval
    low_SNL: Values
    high_SNL: Values

    def fan(self, part: slice) -> Fan:
        """Along a stretch of the windows, at the last lead."""
        low_N, high_N = (ends[:, part, -1].mean(axis=0) for ends in (self.low_SNL, self.high_SNL))
        return Fan(self.interval.level, low_N.tolist(), high_N.tolist())


def bands(forecasts: Forecasts, validation: Targets, test: Targets, levels: Sequence[float]) -> list[Band]:
    """Intervals around the test forecasts, and what they hold.

    A network that forecasts both ends of an interval says itself where they are. Around any other forecast they are as
    wide as its errors on validation ask, lead by lead. There are none of a level for which these are too few.
    """
    found = []
    point_SNL = forecasts.point(forecasts.test_SNLO)
    for level in sorted(levels):
        ends = _ends(forecasts.quantiles, level)
        if ends:
            low_SNL, high_SNL = (forecasts.test_SNLO[..., end] for end in ends)
        else:
            errors_SNL = forecasts.point(forecasts.validation_SNLO) - validation.observed_NL
            reaches = [[conformal_reach(errors_N, level) for errors_N in errors_NL.T] for errors_NL in errors_SNL]
            # All seeds and leads have the same windows: they are enough for each, or for none.
            if any(reach is None for of_seed in reaches for reach in of_seed):
                continue
            reach_SNL = np.array(reaches, dtype=np.float64)[:, None, :]
            low_SNL, high_SNL = point_SNL - reach_SNL, point_SNL + reach_SNL
        center_SNL, reach_SNL = (low_SNL + high_SNL) / 2, (high_SNL - low_SNL) / 2
        held = [
            coverage(center_NL - test.observed_NL, reach_NL)
            for center_NL, reach_NL in zip(center_SNL, reach_SNL, strict=True)
        ]
        width = Spread.of([float(2 * reach_NL.mean()) for reach_NL in reach_SNL])
        found.append(Band(Interval(level, width, Spread.of(held), forecast=bool(ends)), low_SNL, high_SNL))
    return found


def _ends(quantiles: tuple[float, ...], level: float) -> tuple[int, int] | None:
    """Which outputs are the ends of an interval, if both are forecast."""
    places = [np.flatnonzero(np.isclose(quantiles, end)) for end in ((1 - level) / 2, (1 + level) / 2)]
    return (int(places[0][0]), int(places[1][0])) if all(each.size for each in places) else None


def absolute(forecasts: Forecasts, test: Targets) -> Errors:
    """Absolute errors (N, L) on test, means over seeds."""
    errors_NL: Errors = np.abs(forecasts.point(forecasts.test_SNLO) - test.observed_NL).mean(axis=0)
    return errors_NL


def by_hour(test: Targets, error_NL: Errors) -> list[float | None]:
    """Mean error by the target's hour of day (24)."""
    hours_NL = test.times_NL.astype("datetime64[h]").astype(np.int64) % 24
    return _by(hours_NL.ravel(), error_NL.ravel(), 24)


def by_month(test: Targets, error_NL: Errors) -> list[float | None]:
    """Mean error by the target's month (12)."""
    months_NL = test.times_NL.astype("datetime64[M]").astype(np.int64) % 12
    return _by(months_NL.ravel(), error_NL.ravel(), 12)


def _by(group_N: NDArray[np.int64], error_N: Errors, groups: int) -> list[float | None]:
    """Mean error by group; None for a group without windows."""
    sums = np.bincount(group_N, weights=error_N, minlength=groups)
    counts = np.bincount(group_N, minlength=groups)
    return [float(total / n) if n else None for total, n in zip(sums, counts, strict=True)]


def moments(test: Targets, cadence: float) -> NDArray[np.int64]:
    """When the last target of each window is, counted in rows.

    Rows of two series are of one moment also where they stand on different beats.
    """
    moments_N: NDArray[np.int64] = test.times_NL[:, -1].astype("datetime64[ms]").astype(np.int64)
    return moments_N // round(1000 * cadence)


def stretch(test: Targets, series: Sequence[Series], length: int) -> tuple[str, slice]:
    """The first `length` test windows of one series, and its name."""
    rows_N = test.rows_NL[:, -1]
    first = next(each for each in series if rows_N[0] < each.first + each.rows)
    return first.name, slice(0, min(length, int(np.searchsorted(rows_N, first.first + first.rows))))


def along(test: Targets, forecasts: dict[str, Forecasts], part: slice) -> dict[str, list[Any]]:
    """The stretch: `time`, `observed` and the mean forecast of each configuration, at the last lead."""
    times_N = test.times_NL[part, -1]
    units: tuple[Literal["m", "s", "ms"], ...] = ("m", "s", "ms")
    unit = next(unit for unit in units if (times_N == times_N.astype(f"datetime64[{unit}]")).all())
    return {
        "time": np.datetime_as_string(times_N, unit=unit).tolist(),
        "observed": test.observed_NL[part, -1].tolist(),
        **{label: each.point(each.test_SNLO)[:, part, -1].mean(axis=0).tolist() for label, each in forecasts.items()},
    }
