"""A trained network with all that is needed to forecast with it: rows in their own units in, forecasts out.

The model that MLflow stores, the comparison of champion and challenger, forecasts of a file and the service all use
this one class. Its source is stored with the model (`stages.tracking.packaging`), so it imports only a small part of
Recast, and nothing is pickled.
"""

import hashlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from architectures import REGISTRY, Network, TrainedAxes
from architectures.combined import build_network
from forecasting.about import About
from forecasting.arrays import Times, Values
from forecasting.quantiles import find_interval_outputs
from forecasting.windows import WindowBuilder, Windows
from learning.answers import ANSWER_KINDS
from problems.errors import RecastError

ABOUT_FILE, WEIGHTS_FILE = "model.json", "weights.safetensors"
EXAMPLE_NAME, ANSWER_NAME = "example", "answer"
"""Of a forecaster of tables, the names of two Parquet files; of sequences, the names of tensors in one file."""

TOLERANCE = 1e-5
"""How far a forecast may be from the stored one: in the target's unit, or in its deviation if that is greater."""

NUMBERS_AT_ONCE = 1 << 24
WINDOWS_AT_ONCE = 1024
"""The largest number of windows that the network reads at once; of long windows it reads fewer."""


class DamagedModel(RecastError):
    """A file of a stored forecaster is missing, or is not as it was written."""


@dataclass(frozen=True)
class WindowForecasts:
    """Forecasts by window and lead, in the target's unit.

    Attributes:
        origins_K, targets_KL: the times of the last inputs, and the times that are forecast.
        ends: by level, the low and the high ends (K, L) of the intervals.
        inputs_K: the SHA-256 of the values that the network has read of each window.
        outputs_KLO: the forecasts of `About.quantiles`; where these are empty, whatever the network's outputs are.
    """

    series_K: list[str]
    origins_K: Times
    targets_KL: Times
    forecast_KL: Values
    ends: dict[float, tuple[Values, Values]]
    inputs_K: list[str]
    outputs_KLO: Values


class Forecaster:
    """A network, and what it needs to forecast from a user's rows. Threads may share it."""

    def __init__(self, about: About, network: Network, example: pl.DataFrame | None = None) -> None:
        """
        Args:
            example: the rows of a window, as a user has them.
        """
        self.about = about
        self.example = pl.DataFrame() if example is None else example
        self._network = network.eval()
        # A network may store values while it computes, such as the state that it carries over.
        self._lock = threading.Lock()

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Load a stored forecaster from an MLflow model's folder, or from the artifacts in it.

        The stored example must give the stored forecast, so that weights are not used with code in which they mean
        something else.

        Raises:
            DamagedModel: a file cannot be read.
            RecastError: the folder has no forecaster, or this code makes other forecasts with it; the message names
                the commit to check out.
        """
        stored = folder
        while not (stored / ABOUT_FILE).exists() and (stored / "artifacts").is_dir():
            stored /= "artifacts"
        try:
            about = TypeAdapter(About).validate_json((stored / ABOUT_FILE).read_bytes())
        except (FileNotFoundError, ValueError) as error:
            raise RecastError(
                f"{stored / ABOUT_FILE}: not a forecaster that this version of Recast has stored "
                f"({str(error).splitlines()[0]}); `recast run` or `recast rebuild-mlflow` stores the models again"
            ) from None
        try:
            hyperparameters = REGISTRY[about.architecture].Hyperparameters.model_validate(about.hyperparameters)
            network = build_network(about.architecture, hyperparameters, about.shape)
            # Earlier versions of Recast stored nothing for a baseline, which gave one number for every quantile.
            if (stored / WEIGHTS_FILE).exists() or isinstance(hyperparameters, TrainedAxes):
                network.load_state_dict(
                    _load_tensors(stored / WEIGHTS_FILE) if (stored / WEIGHTS_FILE).exists() else {}
                )
        except (KeyError, RuntimeError, ValueError) as error:
            raise _changed_code_error(about, " ".join(str(error).split())) from None
        rows = stored / f"{EXAMPLE_NAME}.parquet"
        forecaster = cls(about, network, _read_rows(rows) if rows.exists() else None)
        forecaster._check_example(stored)
        return forecaster

    def write(self, folder: Path, example: pl.DataFrame | NDArray[Any]) -> None:
        """Write what `load` reads into a folder, with the forecast from an example: rows, or windows of sequences."""
        (folder / ABOUT_FILE).write_bytes(TypeAdapter(About).dump_json(self.about, indent=1))
        if weights := self._network.state_dict():
            save_file(weights, folder / WEIGHTS_FILE)
        if isinstance(example, pl.DataFrame):
            example.write_parquet(folder / f"{EXAMPLE_NAME}.parquet")
            self.forecast(example).write_parquet(folder / f"{ANSWER_NAME}.parquet")
        else:
            tensors = {EXAMPLE_NAME: torch.from_numpy(example), ANSWER_NAME: torch.from_numpy(self.answer(example))}
            contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
            save_file(contiguous, folder / f"{EXAMPLE_NAME}.safetensors")

    def _check_example(self, stored: Path) -> None:
        """
        Raises:
            DamagedModel: the example cannot be read.
            RecastError: it does not give the stored forecast.
        """
        if self.about.preparation is None:
            tensors = _load_tensors(stored / f"{EXAMPLE_NAME}.safetensors")
            actual, expected = self.answer(tensors[EXAMPLE_NAME].numpy()), tensors[ANSWER_NAME].numpy()
            tolerance = TOLERANCE
        else:
            answer = _read_rows(stored / f"{ANSWER_NAME}.parquet")
            numbers = [name for name, dtype in answer.schema.items() if dtype == pl.Float64]
            forecasts = self.forecast(self.example)
            if missing := set(numbers) - set(forecasts.columns):
                raise _changed_code_error(self.about, f"it no longer gives {sorted(missing)}")
            actual, expected = forecasts.select(numbers).to_numpy(), answer.select(numbers).to_numpy()
            tolerance = TOLERANCE * max(1.0, self.about.preparation.target_scaling[1])
        if actual.shape != expected.shape:
            raise _changed_code_error(self.about, f"its forecasts have the shape {actual.shape}, not {expected.shape}")
        # Not "> tolerance": NaN must be an error too.
        if not (difference := float(np.abs(actual - expected).max())) <= tolerance:
            raise _changed_code_error(self.about, f"a forecast differs by {difference:.3g} from the stored one")

    @cached_property
    def window_builder(self) -> WindowBuilder:
        """The builder of the windows that this forecaster reads.

        Raises:
            InputError: this is a forecaster of sequences, which takes windows, not rows.
        """
        return WindowBuilder(self.about)

    def forecast(self, rows: pl.DataFrame, all_windows: bool = False) -> pl.DataFrame:
        """Forecasts from rows in their own units, in any order.

        Args:
            rows: `time` (UTC), `series` where there are several, and the columns that the problem declares, with null
                or a sentinel where a value is not known. Where columns are known in advance, rows up to the last
                target follow, in which the other columns are null. Columns that are not declared are ignored.
            all_windows: forecast from every complete window; otherwise from one window of each series, the one that
                ends at its last row, which must be complete.

        Returns:
            A row for each series, origin and lead: `series`, `origin` (time of the last input), `target_time`, `lead`,
            `forecast`, `low_<level>` and `high_<level>` for each level, in the target's unit; and `inputs`, a hash of
            the values that the network has read.

        Raises:
            InputError: a column is missing or does not hold numbers, or a window is not complete: the message names
                row and column.
        """
        return self.tabulate(self.forecast_windows(self.window_builder.build(rows, all_windows)))

    def forecast_windows(self, windows: Sequence[Windows]) -> WindowForecasts:
        """The forecasts from windows, in their order."""
        about = self.about
        center, scale = self.window_builder.preparation.target_scaling
        offsets_T = np.arange(about.shape.steps) * about.step - (about.window_rows - 1)
        batches, inputs_K = [], []
        for x_BTF in self._iterate_batches(windows, offsets_T):
            with self._lock, torch.inference_mode():
                outputs_BSO = self._network(torch.from_numpy(x_BTF)).float()
                y_BSO = ANSWER_KINDS["value"].decode(outputs_BSO).double().numpy()
            batches.append(y_BSO * scale + center)
            inputs_K += [hashlib.sha256(x_TF.tobytes()).hexdigest() for x_TF in x_BTF]
        y_KSO = np.concatenate(batches) if batches else np.empty((0, about.shape.leads, about.shape.outputs))
        origins_K = np.concatenate([np.empty(0, "datetime64[ms]"), *(part.times_N[part.last_K] for part in windows)])
        ahead_L = np.array([round(1000 * (about.step + lead) * about.cadence) for lead in about.leads])
        return WindowForecasts(
            [part.series for part in windows for _ in part.last_K],
            origins_K,
            origins_K[:, None] + ahead_L.astype("timedelta64[ms]"),
            y_KSO[:, :, about.median_output],
            self._interval_ends(y_KSO),
            inputs_K,
            y_KSO,
        )

    def _interval_ends(self, y_KSO: Values) -> dict[float, tuple[Values, Values]]:
        """By level, the low and the high ends (K, L) of the intervals around forecasts."""
        about = self.about
        forecast_KL = y_KSO[:, :, about.median_output]
        ends: dict[float, tuple[Values, Values]] = {}
        for level in about.levels:
            if level in about.reaches:
                reach_L = np.array(about.reaches[level])
                ends[level] = (forecast_KL - reach_L, forecast_KL + reach_L)
            elif outputs := find_interval_outputs(about.quantiles, level):
                low, high = outputs
                ends[level] = (y_KSO[:, :, low], y_KSO[:, :, high])
            else:
                raise RecastError(
                    f"{about.problem} {about.key}: {ABOUT_FILE} has neither reaches nor quantiles for the level "
                    f"{level:g}"
                )
        return ends

    def tabulate(self, forecasts: WindowForecasts) -> pl.DataFrame:
        """Forecasts as a table; see `forecast`."""
        windows, leads = forecasts.forecast_KL.shape
        window_of_row = np.repeat(np.arange(windows), leads)
        return pl.DataFrame(
            {
                "series": pl.Series(forecasts.series_K, dtype=pl.String).gather(window_of_row),
                "origin": pl.Series(forecasts.origins_K, dtype=pl.Datetime("ms")).gather(window_of_row),
                "target_time": pl.Series(forecasts.targets_KL.ravel(), dtype=pl.Datetime("ms")),
                "lead": pl.Series(list(self.about.lead_names) * windows, dtype=pl.String),
                "forecast": forecasts.forecast_KL.ravel(),
                **{
                    f"{end}_{level:g}": ends_KL.ravel()
                    for level, both_ends in forecasts.ends.items()
                    for end, ends_KL in zip(("low", "high"), both_ends, strict=True)
                },
                "inputs": pl.Series(forecasts.inputs_K, dtype=pl.String).gather(window_of_row),
            }
        )

    def _iterate_batches(
        self, windows: Sequence[Windows], offsets_T: NDArray[np.int64]
    ) -> Iterator[NDArray[np.float32]]:
        """The inputs of the windows (B, T, F), in batches of limited size.

        Args:
            offsets_T: the rows of a window's inputs, counted from its last input.
        """
        size = max(1, min(WINDOWS_AT_ONCE, NUMBERS_AT_ONCE // (len(offsets_T) * max(64, self.about.shape.features))))
        batch: list[NDArray[np.float32]] = []
        count = 0
        for part in windows:
            for begin in range(0, len(part.last_K), size):
                rows_BT = part.last_K[begin : begin + size, None] + offsets_T
                if count + len(rows_BT) > size:
                    yield np.concatenate(batch)
                    batch, count = [], 0
                batch.append(part.table_NF[rows_BT])
                count += len(rows_BT)
        if batch:
            yield np.concatenate(batch)

    def answer(self, windows: NDArray[Any]) -> Values:
        """Answers (B, S, O) to windows (B, T, F) of sequences, numbers or codes; dimensions of size one are left out.

        S are the steps, where each step is answered; O are classes or labels.
        """
        about = self.about
        x_BTF = torch.from_numpy(windows.astype(np.float32 if about.shape.codes is None else np.int64))
        with self._lock, torch.inference_mode():
            self._network.forget()
            y_BSO: Values = ANSWER_KINDS[about.objective].decode(self._network(x_BTF).double()).numpy()
        y_BS = y_BSO[:, :, 0] if about.shape.outputs == 1 else y_BSO
        return y_BS if about.shape.each or about.shape.leads > 1 else y_BS[:, 0]


def _load_tensors(file: Path) -> dict[str, torch.Tensor]:
    """The tensors in a file of a stored forecaster, by name.

    Raises:
        DamagedModel: it cannot be read.
    """
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise DamagedModel(f"{file}: cannot be read ({error}); store the model again, or restore the file") from error


def _read_rows(file: Path) -> pl.DataFrame:
    """The rows in a file of a stored forecaster.

    Raises:
        DamagedModel: it cannot be read.
    """
    try:
        return pl.read_parquet(file)
    # Damaged Parquet files make Polars panic.
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        raise DamagedModel(f"{file}: cannot be read ({error}); store the model again, or restore the file") from error


def _changed_code_error(about: About, difference: str) -> RecastError:
    """The error of a model whose weights do not fit this code."""
    fix = (
        f"git checkout {about.commit.removesuffix('-dirty')}"
        if about.commit
        else "check out the commit that trained it"
    )
    return RecastError(
        f"{about.problem} {about.key}, {about.architecture}: this code is not the code that the model was trained with"
        f": {difference}. To use the model: {fix}; or train again: recast run {about.problem}"
    )
