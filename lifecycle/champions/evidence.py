"""The evidence for a decision: what the challenger and the champion forecast for the same windows, and their errors.

The windows are the newest there are: the test windows of the challenger's split, without those that the champion was
trained or selected on. Both models are the stored ones, and forecast as if they served: from rows in their own units,
through the preparation that was fitted to each one's own training rows. Where there is no champion, the challenger is
compared with persistence.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from forecasting.about import About
from forecasting.forecaster import Forecaster
from forecasting.quantiles import DIGITS, list_interval_ends
from learning.measures import MAE, NUMBER_MEASURES, Measure
from learning.objectives import Objective
from problems.durations import format_duration
from problems.errors import RecastError
from project import paths
from stages.evaluation.answers import build_baseline
from stages.evaluation.baseline import BASELINE
from stages.evaluation.forecasts import Targets
from stages.evaluation.metrics import Errors
from stages.tables.table import Table, read_times, read_values
from stages.tables.windows import TableWindows, read_ranges, read_windows
from stages.training.reading import read_batches
from stages.training.trials import Trial

MAX_DRAWN_WINDOWS = 1000
"""A decision stores the forecasts of at most so many windows, to be drawn."""

ForecastValues = NDArray[np.float64]

(_MAE,) = (measure for measure in NUMBER_MEASURES if measure.name == MAE)


@dataclass(frozen=True)
class ComparedWindows:
    """The test windows (N) of the challenger's split, by what is to be forecast.

    Attributes:
        series_N: the position of each window's series in `table.series`.
        window: how the table is cut into windows.
    """

    targets: Targets
    series_N: NDArray[np.int64]
    table: Table
    window: TableWindows

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
        by_quantile: the forecasts (N, L) of quantiles. The quantile 0.5 is the forecast that errors are computed from;
            the others are outputs of the network or the ends of its intervals.
        trained: the quantiles that the network was trained to forecast; empty where it forecasts one number.
    """

    by_quantile: Mapping[float, ForecastValues]
    trained: tuple[float, ...]

    @property
    def point(self) -> ForecastValues:
        """The forecast (N, L) that errors are computed from."""
        return self.by_quantile[0.5]

    def select(self, is_chosen_N: NDArray[np.bool_]) -> "ModelForecasts":
        """The forecasts for the chosen ones of the windows."""
        return replace(
            self, by_quantile={quantile: values[is_chosen_N] for quantile, values in self.by_quantile.items()}
        )

    def forecasts_quantiles(self, quantiles: Sequence[float]) -> bool:
        """Whether there are forecasts of these quantiles."""
        return {round(quantile, DIGITS) for quantile in quantiles} <= self.by_quantile.keys()

    def at_quantiles(self, quantiles: Sequence[float]) -> ForecastValues:
        """The forecasts (N, L, O) of these quantiles."""
        return np.stack([self.by_quantile[round(quantile, DIGITS)] for quantile in quantiles], axis=2)


def read_test_windows(problem: str) -> ComparedWindows:
    """The test windows of the split that params.yaml declares now."""
    normalized, windowed = paths.stage_folder("normalize", problem), paths.stage_folder("window", problem)
    table = Table.read(normalized)
    rows_N = np.concatenate([np.arange(first, until) for first, until in read_ranges(windowed, "test")])
    window = TableWindows.read(windowed)
    rows_NL = rows_N[:, None] + np.array(window.leads)
    center, scale = table.preparation.target_scaling
    observed_NL = (
        read_values(normalized)[:, table.preparation.target_index][rows_NL].astype(np.float64) * scale + center
    )
    series_N = np.searchsorted([series.first for series in table.series], rows_N, side="right") - 1
    targets = Targets(observed_NL, rows_NL, read_times(normalized)[rows_NL])
    return ComparedWindows(targets, series_N, table, window)


def make_persistence(trial: Trial, forecaster: Forecaster) -> Forecaster:
    """The model that a first champion has to beat: the reference of the skill score in the challenger's leaderboard.

    Args:
        trial: the challenger.
        forecaster: its model.

    Raises:
        RecastError: persistence cannot forecast the target.
    """
    validation = read_batches(trial.normalized, trial.windowed, torch.device("cpu"))["validation"]
    network = build_baseline(read_windows(trial.windowed), trial, validation)
    if network is None:
        raise RecastError(f"{BASELINE} cannot forecast {trial.problem}, so nothing can be compared with it")
    about = replace(forecaster.about, architecture=BASELINE, hyperparameters={}, levels=(), reaches={})
    return Forecaster(about, network)


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

    def arrange(values_KL: ForecastValues) -> ForecastValues:
        values_NL: ForecastValues = np.full(windows.targets.observed_NL.shape, np.nan)
        values_NL[has_inputs_N] = values_KL[position_N[has_inputs_N]]
        return values_NL

    quantiles = forecaster.about.quantiles
    values = {0.5: forecasts.forecast_KL}
    for level, ends in forecasts.ends.items():
        values |= dict(zip(list_interval_ends(level), ends, strict=True))
    for output, quantile in enumerate(quantiles):
        values[round(quantile, DIGITS)] = forecasts.outputs_KLO[:, :, output]
    return ModelForecasts({quantile: arrange(values_KL) for quantile, values_KL in values.items()}, quantiles)


def choose_measure(
    objective: Objective, challenger: ModelForecasts, champion: ModelForecasts
) -> tuple[Measure, str | None]:
    """The measure to compare both by, and a sentence that says so where it could have been another.

    It is the selection measure of the challenger's objective if both models forecast what it is computed from, else
    the MAE.
    """
    measure = objective.selection_measure
    if all(model.forecasts_quantiles(objective.quantiles) for model in (challenger, champion)):
        if set(champion.trained) == set(objective.quantiles):
            return measure, None
        ends = "" if champion.trained else "; the ends of its intervals are taken for its quantiles"
        return measure, (
            f"The champion was trained with another loss; both are compared by {measure.title}, the measure that "
            f"selects by the settings of the challenger{ends}."
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
    if measure.name == MAE:
        errors_NL: Errors = np.abs(forecasts.point - observed_NL)
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
