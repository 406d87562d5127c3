"""The evidence for a decision: what the challenger and the champion forecast for the same windows, and their errors.

The windows are the newest there are: the test windows of the challenger's split, without those that the champion was
trained or selected on. Both models are the stored ones, and forecast as if they served: from rows in their own units,
through the preparation that was fitted to each one's own training rows. Where there is no champion, the challenger is
compared with persistence.
"""

from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from architectures import REGISTRY, Axes
from forecasting.about import About
from forecasting.forecaster import Forecaster
from learning.measures import NUMBER_MEASURES, Measure
from learning.objectives import Objective
from problems.durations import format_duration
from project import paths
from stages.evaluation.baseline import BASELINE
from stages.evaluation.forecasts import Targets
from stages.evaluation.metrics import Errors
from stages.tables.table import Table, read_times, read_values
from stages.tables.windows import TableWindows, read_ranges

MAX_DRAWN_WINDOWS = 1000
"""A decision stores the forecasts of at most so many windows, to be drawn."""

ForecastValues = NDArray[np.float64]

(_MAE,) = (measure for measure in NUMBER_MEASURES if measure.name == "mae")


@dataclass(frozen=True)
class ComparedWindows:
    """The test windows (N) of the challenger's split, by what is to be forecast.

    Attributes:
        series_N: the position of each window's series in `table.series`.
    """

    targets: Targets
    series_N: NDArray[np.int64]
    table: Table

    def window_keys(self) -> list[tuple[str, np.datetime64]]:
        """The series and the last target time of each window: its name, whichever network forecasts it."""
        names = [self.table.series[position].name for position in self.series_N]
        return list(zip(names, self.targets.times_NL[:, -1], strict=True))

    def select(self, is_chosen_N: NDArray[np.bool_]) -> "ComparedWindows":
        """The chosen ones of these windows."""
        targets = Targets(
            self.targets.observed_NL[is_chosen_N],
            self.targets.rows_NL[is_chosen_N],
            self.targets.times_NL[is_chosen_N],
        )
        return replace(self, targets=targets, series_N=self.series_N[is_chosen_N])


@dataclass(frozen=True)
class ModelForecasts:
    """What a model forecasts for the windows (N), in the target's unit; NaN where it has no inputs.

    Attributes:
        point_NL: the forecast that errors are computed from: the median, where quantiles are forecast.
        outputs_NLO: the forecasts of `quantiles`; where these are empty, whatever the model's outputs are.
        is_baseline: nothing in it is trained.
    """

    point_NL: ForecastValues
    outputs_NLO: ForecastValues
    quantiles: tuple[float, ...]
    is_baseline: bool

    def select(self, is_chosen_N: NDArray[np.bool_]) -> "ModelForecasts":
        """The forecasts for the chosen ones of the windows."""
        return replace(self, point_NL=self.point_NL[is_chosen_N], outputs_NLO=self.outputs_NLO[is_chosen_N])

    def forecasts_quantiles(self, quantiles: tuple[float, ...]) -> bool:
        """Whether there are forecasts of these quantiles. A baseline has none, whatever the shape of its outputs."""
        return not quantiles or (not self.is_baseline and set(quantiles) <= set(self.quantiles))

    def at_quantiles(self, quantiles: tuple[float, ...]) -> ForecastValues:
        """The forecasts (N, L, O) of these quantiles."""
        return self.outputs_NLO[:, :, [self.quantiles.index(quantile) for quantile in quantiles]]


def read_test_windows(problem: str) -> ComparedWindows:
    """The test windows of the split that params.yaml declares now."""
    normalized, windowed = paths.stage_folder("normalize", problem), paths.stage_folder("window", problem)
    table = Table.read(normalized)
    rows_N = np.concatenate([np.arange(first, until) for first, until in read_ranges(windowed, "test")])
    rows_NL = rows_N[:, None] + np.array(TableWindows.read(windowed).leads)
    center, scale = table.preparation.target_scaling
    observed_NL = (
        read_values(normalized)[:, table.preparation.target_index][rows_NL].astype(np.float64) * scale + center
    )
    series_N = np.searchsorted([series.first for series in table.series], rows_N, side="right") - 1
    return ComparedWindows(Targets(observed_NL, rows_NL, read_times(normalized)[rows_NL]), series_N, table)


def make_persistence(forecaster: Forecaster) -> Forecaster:
    """The model that a first champion has to beat, for the same windows as those of `forecaster`."""
    about = replace(forecaster.about, architecture=BASELINE, levels=(), reaches={})
    return Forecaster(about, REGISTRY[BASELINE](about.shape, Axes()))


def find_mismatch(challenger: About, champion: About) -> str | None:
    """Why the forecasts of the two cannot be compared, as a clause; None: they can."""
    first, second = challenger.preparation, champion.preparation
    if first is None or second is None or first.table.target != second.table.target:
        return "they forecast other columns"
    if challenger.unit != champion.unit:
        return f"the champion's unit is {champion.unit}, the challenger's {challenger.unit}"
    if challenger.cadence != champion.cadence:
        cadences = [format_duration(timedelta(seconds=about.cadence)) for about in (champion, challenger)]
        return f"the champion's rows come every {cadences[0]}, the challenger's every {cadences[1]}"
    if challenger.lead_names != champion.lead_names:
        leads = [", ".join(about.lead_names) for about in (champion, challenger)]
        return f"the champion forecasts {leads[0]} ahead, the challenger {leads[1]}"
    return None


def read_window_rows(problem: str, windows: ComparedWindows, models: tuple[About, About]) -> pl.DataFrame:
    """The rows that both models need for the windows, in their own units."""
    since = windows.targets.times_NL[:, -1].min() - np.timedelta64(max(_input_span(about) for about in models))
    names = [series.name for series in windows.table.series]
    return (
        pl.scan_parquet(paths.stage_folder("ingest", problem) / "table.parquet")
        .filter(pl.col("time") >= since.item(), pl.col("series").is_in(names))
        .collect(engine="streaming")
    )


def _input_span(about: About) -> timedelta:
    """From the first row that a forecast may need to its last target, with the rows that nulls are filled from."""
    fill = (about.preparation.table.fill if about.preparation else None) or timedelta(0)
    return timedelta(seconds=(about.window_rows + about.horizon_rows + 1) * about.cadence) + fill


def forecast_test_windows(forecaster: Forecaster, rows: pl.DataFrame, windows: ComparedWindows) -> ModelForecasts:
    """A model's forecasts of the windows.

    Raises:
        RecastError: the rows lack a column that the network reads, or have a series that it does not know.
    """
    forecasts = forecaster.forecast_windows(forecaster.window_builder.build(rows, all_windows=True))
    position_by_key = {
        key: position for position, key in enumerate(zip(forecasts.series_K, forecasts.targets_KL[:, -1], strict=True))
    }
    position_N = np.array([position_by_key.get(key, -1) for key in windows.window_keys()])
    has_inputs_N = position_N >= 0
    point_NL: ForecastValues = np.full(windows.targets.observed_NL.shape, np.nan)
    outputs_NLO: ForecastValues = np.full((*point_NL.shape, forecasts.outputs_KLO.shape[-1]), np.nan)
    point_NL[has_inputs_N] = forecasts.forecast_KL[position_N[has_inputs_N]]
    outputs_NLO[has_inputs_N] = forecasts.outputs_KLO[position_N[has_inputs_N]]
    about = forecaster.about
    return ModelForecasts(
        point_NL, outputs_NLO, about.quantiles, is_baseline=not REGISTRY[about.architecture].trainable
    )


def choose_measure(
    objective: Objective, challenger: ModelForecasts, champion: ModelForecasts
) -> tuple[Measure, str | None]:
    """The measure to compare both by, and a sentence that says so where it could have been another.

    It is the selection measure of the challenger's objective if both models forecast what it is computed from, else
    the MAE. A baseline gives a single number. By the pinball loss almost any quantiles would beat it, so a model is
    compared with a baseline by the MAE.
    """
    measure = objective.selection_measure
    if objective.quantiles and (challenger.is_baseline or champion.is_baseline):
        return _MAE, f"A baseline forecasts no quantiles, so both are compared by {_MAE.title}, not {measure.title}."
    has_other_loss = not champion.is_baseline and set(champion.quantiles) != set(objective.quantiles)
    if all(model.forecasts_quantiles(objective.quantiles) for model in (challenger, champion)):
        if not has_other_loss:
            return measure, None
        return measure, (
            f"The champion was trained with another loss; both are compared by {measure.title}, the measure that "
            "selects by the settings of the challenger."
        )
    quantiles = ", ".join(f"{quantile:g}" for quantile in objective.quantiles)
    return _MAE, (
        f"The champion was trained with another loss and does not forecast the quantiles {quantiles}, so both are "
        f"compared by {_MAE.title} instead of {measure.title}."
    )


def compute_errors(
    measure: Measure, quantiles: tuple[float, ...], forecasts: ModelForecasts, observed_NL: ForecastValues
) -> Errors:
    """The scores (N, L) that a measure of forecasts of these quantiles averages, in the target's unit."""
    if measure.name == _MAE.name:
        errors_NL: Errors = np.abs(forecasts.point_NL - observed_NL)
        return errors_NL
    outputs_NLO = forecasts.at_quantiles(quantiles)
    scores: Errors = measure.score(torch.from_numpy(outputs_NLO), torch.from_numpy(observed_NL)[:, :, None]).numpy()
    return scores


def sample_stretch(
    targets: Targets, challenger_NL: ForecastValues, champion_NL: ForecastValues, window_K: NDArray[np.int64]
) -> dict[str, list[Any]]:
    """Both forecasts along some windows at the last lead, thinned to what can be drawn."""
    chosen = window_K[:: -(-len(window_K) // MAX_DRAWN_WINDOWS)]
    lines = {"observed": targets.observed_NL, "challenger": challenger_NL, "champion": champion_NL}
    return {
        "time": np.datetime_as_string(targets.times_NL[chosen, -1], unit="s").tolist(),
        **{name: [round(value, 4) for value in line_NL[chosen, -1].tolist()] for name, line_NL in lines.items()},
    }
