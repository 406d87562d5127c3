"""A trained network with all that stands between observations and forecasts: rows in their own units in, forecasts out.

The model that MLflow stores, the comparison of champion and challenger, forecasts by file and the service use this one
class. It is stored with its own source (`stages.tracking.packaging`), so it imports little of Recast, and nothing is
pickled.
"""

import hashlib
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file
from torch import Tensor

from architectures import REGISTRY, Network, WindowShape
from architectures.combined import build
from forecasting.preparation import Preparation
from problems.errors import RecastError
from problems.source import written

ABOUT, WEIGHTS, EXAMPLE, ANSWER = "model.json", "weights.safetensors", "example", "answer"
"""The files of a stored forecaster; the last two are Parquet, or of sequences, one safetensors file of both."""

TOLERANCE = 1e-5
"""How far a forecast may be from the stored one, in the target's unit, or where that is greater, in its deviation."""

NUMBERS = 1 << 24
AT_ONCE = 1024
"""Windows forecast at once: at most so many, and of long windows, fewer."""

FIRST_TIME, LAST_TIME = np.datetime64("0001-01-01", "ms"), np.datetime64("9999-01-01", "ms")
"""What Python can write as a time lies between them."""

Values = NDArray[np.float64]
Times = NDArray[np.datetime64]


class InputError(RecastError):
    """No forecast can be made from what was given; the message names the column, the row, and what is allowed."""


@dataclass(frozen=True)
class About:
    """What a forecaster is made of, and what it was made from.

    Attributes:
        problem: its name in params.yaml.
        key: of the trial; it names trials/<problem>/<key>.
        objective: what an answer is, as of the problem.
        unit: the target's.
        synthetic: it was trained on simulated data.
        code, data: hashes of the source that trained it and of what it was trained on, as in the trial's key.
        commit: that was checked out when it was trained; "" where that is not known.
        quantiles: what the outputs are forecasts of; none where they are one number.
        preparation: of rows for the network; None: windows of sequences come in as they are, and none of the following
            is set.
        cadence: seconds between rows.
        lookback, step, delay: rows; see `stages.tables.windows.Windowing`.
        leads: rows from a window's own, the one after its inputs, to each of its targets.
        series: those of the training rows.
        levels: of the intervals around a forecast.
        reaches: by level, how far an interval reaches to each side, lead by lead, in the target's unit; of a level
            that has none the ends are among the quantiles.
        ranges: the least and the greatest value of each declared column in the training rows.
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
    def rows(self) -> int:
        """How many rows in a row, up to the last input, a window takes."""
        return self.lookback - self.step + 1

    @property
    def horizon(self) -> int:
        """Rows from the last input to the last target."""
        return self.step + self.delay

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that rows must have beside `time` and `series`."""
        return self.preparation.table.features if self.preparation else ()

    @property
    def lead_names(self) -> tuple[str, ...]:
        """From the last input to each target, as params.yaml writes a length of time."""
        return tuple(written(timedelta(seconds=(self.step + lead) * self.cadence)) for lead in self.leads)


@dataclass(frozen=True)
class Windows:
    """Windows of one series, ready for the network.

    Attributes:
        times_N: of the rows, to the millisecond.
        table_NF: the rows as the network reads them.
        last_K: the row of each window's last input.
    """

    series: str
    times_N: Times
    table_NF: NDArray[np.float32]
    last_K: NDArray[np.int64]


@dataclass(frozen=True)
class WindowForecasts:
    """Forecasts by window and lead, in the target's unit.

    Attributes:
        origins_K, targets_KL: times of the last inputs, and of what is forecast.
        ends: by level, the low and the high ends (K, L) of the intervals.
        inputs_K: the SHA-256 of the values that each window's network has read.
    """

    series_K: list[str]
    origins_K: Times
    targets_KL: Times
    forecast_KL: Values
    ends: dict[float, tuple[Values, Values]]
    inputs_K: list[str]


class Forecaster:
    """A network, and what it needs to forecast from a user's rows. Threads may share it."""

    def __init__(self, about: About, network: Network, example: pl.DataFrame | None = None) -> None:
        """
        Args:
            example: rows of a window, as a user has them.
        """
        self.about = about
        self.example = pl.DataFrame() if example is None else example
        self._network = network.eval()
        self._ranges = np.array([about.ranges[name] for name in about.columns]).reshape(-1, 2).T
        # A network may note what it sees on its way.
        self._lock = threading.Lock()

    @classmethod
    def load(cls, folder: Path) -> Self:
        """A forecaster as it was stored: an MLflow model's folder, or the artifacts in it.

        The stored example must give the stored forecast, so that weights are not used under code that means something
        else by them.

        Raises:
            RecastError: it is none, or this code forecasts otherwise; the message names the commit to check out.
        """
        stored = folder
        while not (stored / ABOUT).exists() and (stored / "artifacts").is_dir():
            stored /= "artifacts"
        try:
            about = TypeAdapter(About).validate_json((stored / ABOUT).read_bytes())
        except (FileNotFoundError, ValueError) as error:
            raise RecastError(
                f"{stored / ABOUT}: no forecaster that this version of Recast has stored "
                f"({str(error).splitlines()[0]}); `recast run` or `recast rebuild-mlflow` stores the models again"
            ) from None
        try:
            hyperparameters = REGISTRY[about.architecture].Hyperparameters.model_validate(about.hyperparameters)
            network = build(about.architecture, hyperparameters, about.shape)
            network.load_state_dict(load_file(stored / WEIGHTS) if (stored / WEIGHTS).exists() else {})
        except (KeyError, RuntimeError, ValueError) as error:
            raise _changed(about, " ".join(str(error).split())) from None
        rows = stored / f"{EXAMPLE}.parquet"
        forecaster = cls(about, network, pl.read_parquet(rows) if rows.exists() else None)
        forecaster._check(stored)
        return forecaster

    def write(self, folder: Path, example: pl.DataFrame | NDArray[Any]) -> None:
        """Write what `load` reads into a folder, with the forecast from an example: rows, or windows of sequences."""
        (folder / ABOUT).write_bytes(TypeAdapter(About).dump_json(self.about, indent=1))
        if weights := self._network.state_dict():
            save_file(weights, folder / WEIGHTS)
        if isinstance(example, pl.DataFrame):
            example.write_parquet(folder / f"{EXAMPLE}.parquet")
            self.forecast(example).write_parquet(folder / f"{ANSWER}.parquet")
        else:
            tensors = {EXAMPLE: torch.from_numpy(example), ANSWER: torch.from_numpy(self.answer(example))}
            save_file({name: each.contiguous() for name, each in tensors.items()}, folder / f"{EXAMPLE}.safetensors")

    def _check(self, stored: Path) -> None:
        """
        Raises:
            RecastError: the stored example does not give the stored forecast.
        """
        if self.about.preparation is None:
            tensors = load_file(stored / f"{EXAMPLE}.safetensors")
            found, wanted = self.answer(tensors[EXAMPLE].numpy()), tensors[ANSWER].numpy()
            tolerance = TOLERANCE
        else:
            answer = pl.read_parquet(stored / f"{ANSWER}.parquet")
            numbers = [name for name, dtype in answer.schema.items() if dtype == pl.Float64]
            again = self.forecast(self.example)
            if missing := set(numbers) - set(again.columns):
                raise _changed(self.about, f"it no longer gives {sorted(missing)}")
            found, wanted = again.select(numbers).to_numpy(), answer.select(numbers).to_numpy()
            tolerance = TOLERANCE * max(1.0, self.about.preparation.of_target[1])
        if found.shape != wanted.shape:
            raise _changed(self.about, f"its forecasts have the shape {found.shape}, not {wanted.shape}")
        # What is no number is no agreement either.
        if not (difference := float(np.abs(found - wanted).max())) <= tolerance:
            raise _changed(self.about, f"a forecast differs by {difference:.3g} from the stored one")

    # Rows of tables

    def forecast(self, rows: pl.DataFrame, all_windows: bool = False) -> pl.DataFrame:
        """Forecasts from rows in their own units, in any order.

        Args:
            rows: `time` (UTC), `series` where there are several, and the columns that the problem declares, null or a
                sentinel where nothing is known. Where columns are known in advance, rows up to the last target follow,
                in which the others are null. Other columns are ignored.
            all_windows: from every complete window; else from the one of each series that ends at its last row, which
                must be complete.

        Returns:
            A row a series, origin and lead: `series`, `origin` (time of the last input), `target_time`, `lead`,
            `forecast`, `low_<level>` and `high_<level>` for each level, in the target's unit; `inputs`, a hash of what
            the network has read.

        Raises:
            InputError: a column is missing or no numbers; or no forecast can be made: it names row and column.
        """
        return self.tabled(self.answered(self.windows(rows, all_windows)))

    def newest(self, rows: pl.DataFrame) -> pl.DataFrame:
        """The rows that the newest complete window of each series takes; a series without one has none.

        Raises:
            InputError: a column is missing or no numbers.
        """
        about, table = self.about, self._tidied(rows)
        before = about.rows - 1 + self._carried
        after = about.horizon if self._known else 0
        parts = []
        for each in self.windows(rows, all_windows=True):
            mine = table.filter(pl.col("series") == each.series)
            last = int(each.last_K[-1]) if len(each.last_K) else None
            if last is not None:
                part = mine.slice(max(0, last - before), min(before, last) + 1 + after)
                others = [name for name in about.columns if name not in self._known]
                later = pl.col("time") > each.times_N[last].item()
                parts.append(part.with_columns(pl.when(~later).then(pl.col(others))) if after else part)
        return pl.concat(parts) if parts else table.clear()

    def windows(self, rows: pl.DataFrame, all_windows: bool = False) -> list[Windows]:
        """The windows of each series in the rows; see `forecast`."""
        table = self._tidied(rows)
        if table.is_empty():
            raise InputError(f"there are no rows; a window takes {self._length}")
        return [
            self.windows_of(
                str(series), part["time"].to_numpy(), part.select(self.about.columns).to_numpy(), all_windows
            )
            for (series,), part in table.group_by("series", maintain_order=True)
        ]

    def windows_of(self, series: str, times_N: Times, values_NC: Values, all_windows: bool = False) -> Windows:
        """The windows of one series; see `forecast`.

        Args:
            times_N: to the millisecond, in UTC.
            values_NC: the columns `about.columns`, NaN or a sentinel of the problem where nothing is known.

        Raises:
            InputError: the times do not rise, a value is infinite, or the window at the end is not complete.
        """
        about, prepared = self.about, self._prepared
        values_NC = self._measured(values_NC)
        cadence = np.timedelta64(round(1000 * about.cadence), "ms")
        steps_N = np.diff(times_N)
        if (steps_N <= np.timedelta64(0)).any() or np.isnat(times_N).any():
            at = int(np.argmax(np.isnat(times_N) | np.append(False, steps_N <= np.timedelta64(0))))
            raise InputError(
                f"series {series}: time {_moment(times_N[at])} does not come after the one before it, "
                f"{_moment(times_N[max(0, at - 1)])}; each row must be later than the last"
            )
        ahead = round(1000 * about.horizon * about.cadence)
        if len(times_N) and (times_N[0] < FIRST_TIME or times_N[-1] > LAST_TIME - np.timedelta64(ahead, "ms")):
            raise InputError(
                f"series {series}: the times are from {_moment(times_N[0])} to {_moment(times_N[-1])}; they, and what "
                "is forecast from them, must be in the years 1 to 9998"
            )
        if (infinite_NC := np.isinf(values_NC)).any():
            row, column = np.argwhere(infinite_NC)[0]
            raise InputError(
                f"series {series}: column {about.columns[column]!r} is infinite at {_moment(times_N[row])}; "
                "leave out what is not known"
            )
        if prepared.climatologies and series not in prepared.climatologies:
            raise InputError(
                f"series {series}: there is no climatology of it, as it was not among the training rows; known are "
                f"{', '.join(prepared.climatologies)}"
            )
        breaks_N: NDArray[np.bool_] = np.concatenate([[True], steps_N != cadence])
        known = [about.columns.index(name) for name in self._known]
        others = np.delete(values_NC, known, axis=1)
        # Rows that hold nothing but what is known in advance come after the origin.
        measured = np.flatnonzero(~np.isnan(others).all(axis=1)) if known else np.arange(len(times_N))
        last = int(measured[-1]) if len(measured) else -1
        filled_NC = _filled(values_NC, breaks_N, self._carried)
        ahead_NK = np.full((len(times_N), len(known)), np.nan)
        if len(times_N) > about.horizon and known:
            ahead_NK[: -about.horizon] = filled_NC[about.horizon :, known]
        # What float32 cannot hold gives a forecast that is no number.
        with np.errstate(over="ignore"):
            table_NF = prepared.scaled(np.hstack([filled_NC, ahead_NK]), times_N, series).astype(np.float32)
        after = about.horizon if known else 0
        if all_windows:
            last_K = _complete(breaks_N, np.logical_or.reduce(np.isnan(table_NF), axis=1), about.rows, after)
            return Windows(series, times_N, table_NF, last_K[last_K <= last])
        self._require_complete(series, times_N, breaks_N, table_NF, last, after)
        return Windows(series, times_N, table_NF, np.array([last]))

    def answered(self, windows: Sequence[Windows]) -> WindowForecasts:
        """The forecasts from windows, in their order."""
        about, prepared = self.about, self._prepared
        center, scale = prepared.of_target
        offsets_T = np.arange(about.shape.steps) * about.step - (about.rows - 1)
        found, inputs_K = [], []
        for x_BTF in self._gathered(windows, offsets_T):
            with self._lock, torch.inference_mode():
                y_BSO = ANSWERS["value"](self._network(torch.from_numpy(x_BTF)).float()).double().numpy()
            found.append(y_BSO * scale + center)
            inputs_K += [hashlib.sha256(x_TF.tobytes()).hexdigest() for x_TF in x_BTF]
        outputs = about.shape.outputs
        y_KSO = np.concatenate(found) if found else np.empty((0, about.shape.leads, outputs))
        forecast_KL = y_KSO[:, :, about.quantiles.index(0.5) if about.quantiles else 0]
        ends: dict[float, tuple[Values, Values]] = {}
        for level in about.levels:
            if level in about.reaches:
                reach_L = np.array(about.reaches[level])
                ends[level] = (forecast_KL - reach_L, forecast_KL + reach_L)
            else:
                low, high = (about.quantiles.index(end) for end in quantile_ends(about.quantiles, level))
                ends[level] = (y_KSO[:, :, low], y_KSO[:, :, high])
        origins_K = np.concatenate([np.empty(0, "datetime64[ms]"), *(each.times_N[each.last_K] for each in windows)])
        ahead_L = np.array([round(1000 * (about.step + lead) * about.cadence) for lead in about.leads])
        return WindowForecasts(
            [each.series for each in windows for _ in each.last_K],
            origins_K,
            origins_K[:, None] + ahead_L.astype("timedelta64[ms]"),
            forecast_KL,
            ends,
            inputs_K,
        )

    def tabled(self, forecasts: WindowForecasts) -> pl.DataFrame:
        """Forecasts as a table; see `forecast`."""
        windows, leads = forecasts.forecast_KL.shape
        repeated = np.repeat(np.arange(windows), leads)
        return pl.DataFrame(
            {
                "series": pl.Series(forecasts.series_K, dtype=pl.String).gather(repeated),
                "origin": pl.Series(forecasts.origins_K, dtype=pl.Datetime("ms")).gather(repeated),
                "target_time": pl.Series(forecasts.targets_KL.ravel(), dtype=pl.Datetime("ms")),
                "lead": pl.Series(list(self.about.lead_names) * windows, dtype=pl.String),
                "forecast": forecasts.forecast_KL.ravel(),
                **{
                    f"{end}_{level:g}": ends_KL.ravel()
                    for level, both in forecasts.ends.items()
                    for end, ends_KL in zip(("low", "high"), both, strict=True)
                },
                "inputs": pl.Series(forecasts.inputs_K, dtype=pl.String).gather(repeated),
            }
        )

    def implausible(self, values_NC: Values) -> str | None:
        """What is wrong with values that are far outside the training rows', as in another unit; None: nothing.

        Far is more than the width of the training rows' range below or above it. A column that never changed in
        training says nothing.
        """
        values_NC = self._measured(values_NC)
        low_C, high_C = self._ranges
        width_C = np.where(high_C > low_C, high_C - low_C, np.inf)
        far_NC = (values_NC < low_C - width_C) | (values_NC > high_C + width_C)
        if not far_NC.any():
            return None
        row, column = np.argwhere(far_NC)[0]
        return (
            f"column {self.about.columns[column]!r} holds {values_NC[row, column]:g}, far outside "
            f"{low_C[column]:g} to {high_C[column]:g}, the range of the training rows: is it in another unit?"
        )

    def _measured(self, values_NC: Values) -> Values:
        """The values, NaN where a sentinel of the problem stands for a missing one: as `ingest` reads them."""
        sentinels = self._prepared.table.sentinels
        if not sentinels:
            return values_NC
        missing_NC = [np.isin(values_NC[:, i], sentinels.get(name, ())) for i, name in enumerate(self.about.columns)]
        return np.where(np.stack(missing_NC, axis=1), np.nan, values_NC)

    @property
    def _prepared(self) -> Preparation:
        if self.about.preparation is None:
            raise InputError(f"{self.about.problem} is a problem of sequences: it takes windows, not rows")
        return self.about.preparation

    @property
    def _known(self) -> tuple[str, ...]:
        """The columns that are known in advance."""
        return self._prepared.table.known

    @property
    def _carried(self) -> int:
        """Over how many rows in a row a value is carried."""
        fill = self._prepared.table.fill
        return fill // timedelta(seconds=self.about.cadence) if fill else 0

    @property
    def _length(self) -> str:
        every = written(timedelta(seconds=self.about.cadence))
        return f"{self.about.rows:,} rows, one every {every}"

    def _tidied(self, rows: pl.DataFrame) -> pl.DataFrame:
        """`time`, `series` and the declared columns, in the order of series and time.

        Raises:
            InputError: a column is missing, or does not hold what it should.
        """
        columns, series = self._prepared.table.features, self.about.series
        if missing := [name for name in ("time", *columns) if name not in rows.columns]:
            raise InputError(
                f"there is no column {', '.join(map(repr, missing))}; needed are time, {', '.join(columns)}"
            )
        if "series" not in rows.columns:
            if len(series) > 1:
                raise InputError(f"there is no column 'series', which says of which a row is: {', '.join(series)}")
            rows = rows.with_columns(series=pl.lit(series[0]))
        if not isinstance(rows.schema["time"], pl.Datetime | pl.Date):
            raise InputError(f"column 'time' holds {rows.schema['time']}, not times")
        time = pl.col("time")
        if getattr(rows.schema["time"], "time_zone", None):
            time = time.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
        for name in columns:
            if not (rows.schema[name].is_numeric() or rows.schema[name] in (pl.Boolean, pl.Null)):
                raise InputError(f"column {name!r} holds {rows.schema[name]}, not numbers")
        table = rows.select(
            time.cast(pl.Datetime("ms")),
            pl.col("series").cast(pl.String),
            *(pl.col(name).cast(pl.Float64).fill_null(float("nan")) for name in columns),
        )
        for name in ("time", "series"):
            if nulls := table[name].null_count():
                raise InputError(f"column {name!r} is empty in {nulls:,} rows")
        return table.sort("series", "time", maintain_order=True)

    def _require_complete(
        self,
        series: str,
        times_N: Times,
        breaks_N: NDArray[np.bool_],
        table_NF: NDArray[np.float32],
        last: int,
        after: int,
    ) -> None:
        """
        Raises:
            InputError: the window whose last input is the row `last` is not complete.
        """
        about = self.about
        first = last - about.rows + 1
        if last < 0:
            raise InputError(f"series {series}: no row holds a value; a window takes {self._length}")
        begin = max(first, 0) + 1
        gaps = begin + np.flatnonzero(breaks_N[begin : last + 1])
        if len(gaps):
            at = int(gaps[-1])
            raise InputError(
                f"series {series}: after {_moment(times_N[at - 1])} comes {_moment(times_N[at])}; a window takes "
                f"{self._length}, up to {_moment(times_N[last])}"
            )
        if first < 0:
            raise InputError(f"series {series}: {last + 1:,} rows are too few; a window takes {self._length}")
        missing = last + after + 1 > len(times_N) or breaks_N[last + 1 : last + after + 1].any()
        if missing:
            raise InputError(
                f"series {series}: what is known in advance ({', '.join(self._known)}) must be given in {after:,} rows "
                f"after {_moment(times_N[last])}, the last that holds anything else, as far as the forecast reaches"
            )
        empty = np.argwhere(np.isnan(table_NF[first : last + 1]))
        if len(empty):
            row, column = empty[0]
            fill = self._prepared.table.fill
            carried = f"; the last value is carried over at most {written(fill)}" if fill else ""
            raise InputError(
                f"series {series}: column {self._prepared.features[column]!r} has no value at "
                f"{_moment(times_N[first + row])}, which the window up to {_moment(times_N[last])} needs{carried}"
            )

    def _gathered(self, windows: Sequence[Windows], offsets_T: NDArray[np.int64]) -> Iterator[NDArray[np.float32]]:
        """The windows (B, T, F), so many at a time."""
        size = max(1, min(AT_ONCE, NUMBERS // (len(offsets_T) * max(64, self.about.shape.features))))
        held: list[NDArray[np.float32]] = []
        count = 0
        for each in windows:
            for begin in range(0, len(each.last_K), size):
                rows_BT = each.last_K[begin : begin + size, None] + offsets_T
                if count + len(rows_BT) > size:
                    yield np.concatenate(held)
                    held, count = [], 0
                held.append(each.table_NF[rows_BT])
                count += len(rows_BT)
        if held:
            yield np.concatenate(held)

    # Windows of sequences

    def answer(self, windows: NDArray[Any]) -> Values:
        """Answers (B, S, O) to windows (B, T, F) of numbers or codes, without the dimensions that are one.

        S are steps where each is answered; O classes or labels.
        """
        about = self.about
        x_BTF = torch.from_numpy(windows.astype(np.float32 if about.shape.codes is None else np.int64))
        with self._lock, torch.inference_mode():
            self._network.forget()
            y_BSO: Values = ANSWERS[about.objective](self._network(x_BTF).double()).numpy()
        y_BS = y_BSO[:, :, 0] if about.shape.outputs == 1 else y_BSO
        return y_BS if about.shape.each or about.shape.leads > 1 else y_BS[:, 0]


ANSWERS: dict[str, Callable[[Tensor], Tensor]] = {
    # Quantiles that cross are sorted; of one number there is nothing to sort.
    "value": lambda y_BSO: y_BSO.sort(dim=2)[0],
    "binary": torch.sigmoid,
    "labels": torch.sigmoid,
    "classes": lambda y_BSO: y_BSO.softmax(dim=2),
}
"""What a network's outputs say."""


def quantile_ends(quantiles: tuple[float, ...], level: float) -> tuple[float, ...]:
    """Those of the quantiles that are the ends of an interval of this level; nothing, unless both are there."""
    ends = [[q for q in quantiles if math.isclose(q, end)] for end in ((1 - level) / 2, (1 + level) / 2)]
    return (ends[0][0], ends[1][0]) if all(ends) else ()


def _filled(values_NC: Values, breaks_N: NDArray[np.bool_], limit: int) -> Values:
    """The last value carried forward over nulls, at most `limit` rows, and over no break: as `normalize` does."""
    is_known_NC = ~np.isnan(values_NC)
    if not limit or is_known_NC.all():
        return values_NC
    row_N1 = np.arange(len(values_NC))[:, None]
    last_NC = np.maximum.accumulate(np.where(is_known_NC, row_N1, -1), axis=0)
    begin_N1 = np.maximum.accumulate(np.where(breaks_N[:, None], row_N1, 0), axis=0)
    may_NC = (last_NC >= begin_N1) & (row_N1 - last_NC <= limit)
    return np.where(may_NC, np.take_along_axis(values_NC, np.maximum(last_NC, 0), axis=0), np.nan)


def _complete(breaks_N: NDArray[np.bool_], nulls_N: NDArray[np.bool_], rows: int, after: int) -> NDArray[np.int64]:
    """The last inputs of windows of so many rows without a null, in which, and in `after` rows on, none is missing."""
    last_K = np.arange(rows - 1, len(breaks_N) - after)
    broken, null = (np.concatenate([[0], np.cumsum(each)]) for each in (breaks_N, nulls_N))
    is_whole_K = broken[last_K + after + 1] == broken[last_K - rows + 2]
    complete_K: NDArray[np.int64] = last_K[is_whole_K & (null[last_K + 1] == null[last_K - rows + 1])]
    return complete_K


def _moment(time: np.datetime64) -> str:
    """A time, to the minute where that is all of it."""
    if np.isnat(time):
        return "(none)"
    unit = "m" if time == time.astype("datetime64[m]") else "ms"
    return str(np.datetime_as_string(time, unit=unit))  # type: ignore[call-overload]


def _changed(about: About, what: str) -> RecastError:
    where = f"git checkout {about.commit.removesuffix('-dirty')}" if about.commit else "check out the commit it is of"
    return RecastError(
        f"{about.problem} {about.key}, {about.architecture}: this code is not the one that the model was trained with: "
        f"{what}. To use the model: {where}; or train again: recast run {about.problem}"
    )
