"""The description of a forecaster, which is stored with it."""

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from architectures import WindowShape
from forecasting.preparation import Preparation
from problems.durations import format_duration


@dataclass(frozen=True)
class About:
    """What a forecaster consists of, and what it was trained with.

    The fields are the keys of `model.json`. Those after `preparation` describe windows of tables; a forecaster of
    sequences does not set them.

    Attributes:
        problem: its name in params.yaml.
        key: the trial's key; the trial lies in trials/<problem>/<key>.
        objective: the kind of its answers, as in the problem.
        unit: the target's unit.
        synthetic: whether it was trained on simulated data.
        code, data: digests of the source that trained it and of what it was trained on, as in the trial's key.
        commit: the commit that was checked out when it was trained; "" where that is not known.
        quantiles: the quantiles that the outputs are forecasts of; empty where the output is a single number.
        preparation: how rows become what the network reads; None: the network reads windows of sequences as they are.
        cadence: seconds between rows.
        lookback, step, delay: in rows; see `stages.tables.windows.TableWindows`.
        leads: for each target, the rows to it from the row after the window's inputs, by which a window is named.
        series: the names of the series in the training rows.
        levels: the levels of the intervals around a forecast.
        reaches: by level, the half width of the interval at each lead, in the target's unit. A level that is not in it
            has two of the quantiles as its ends.
        ranges: the least and the greatest value of each declared column in the training rows, in its unit.
    """

    problem: str
    key: str
    architecture: str
    hyperparameters: dict[str, Any]
    shape: WindowShape
    objective: str
    unit: str
    synthetic: bool
    code: str
    data: str
    commit: str
    quantiles: tuple[float, ...] = ()
    preparation: Preparation | None = None
    cadence: float = 0.0
    lookback: int = 0
    step: int = 0
    delay: int = 0
    leads: tuple[int, ...] = ()
    series: tuple[str, ...] = ()
    levels: tuple[float, ...] = ()
    reaches: dict[float, tuple[float, ...]] = field(default_factory=dict)
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def window_rows(self) -> int:
        """The number of consecutive rows that a window spans, from its first input to its last."""
        return self.lookback - self.step + 1

    @property
    def horizon_rows(self) -> int:
        """Rows from the last input to the last target."""
        return self.step + self.delay

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that rows must have beside `time` and `series`."""
        return self.preparation.table.features if self.preparation else ()

    @property
    def median_output(self) -> int:
        """The position of the output that is the forecast itself: the median, where quantiles are forecast."""
        return self.quantiles.index(0.5) if self.quantiles else 0

    @property
    def lead_names(self) -> tuple[str, ...]:
        """The time from the last input to each target, in the form in which params.yaml has durations."""
        return tuple(format_duration(timedelta(seconds=(self.step + lead) * self.cadence)) for lead in self.leads)
