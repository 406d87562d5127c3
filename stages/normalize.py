"""Stage normalize: a table in float32, scaled by its training rows only; later stages map it into memory."""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import TypeAdapter

from forecasting.climatology import BLOCK_ROWS, Climatology
from forecasting.filling import fill_forward
from forecasting.preparation import Preparation, extend_scaling
from problems.columns import Scale, target_time_column
from problems.errors import RecastError
from problems.problem import Problem, SequenceProblem
from project import paths
from project.atomic import replace_folder
from project.command import run_stage
from project.settings.parsing import parse_settings
from stages.array_files import open_array
from stages.sequences.encode import encode_sequences
from stages.sequences.reading import DESCRIPTION_FILE
from stages.tables.ingested import TABLE_FILE, read_cadence
from stages.tables.table import CHUNK_ROWS, Series, Table, read_times

_THREADS = min(os.cpu_count() or 1, 4)
"""Pieces of the table that are normalized at once; NumPy and Polars let other threads run while they work."""

_PIECE_ROWS = 4 * BLOCK_ROWS
"""Rows of a piece: as many as a row group of the ingested table has. They must be a multiple of the climatology's
blocks, whose last rows are computed in another order and may differ in their last digit.
"""


@dataclass(frozen=True)
class _Extract:
    """The rows of a series that its split uses.

    Attributes:
        series: their place in the table that is written.
        begin: their first row in the ingested table.
    """

    series: Series
    begin: int


@dataclass(frozen=True)
class _Piece:
    """Consecutive rows of a series, from the row `begin` of its extract."""

    extract: _Extract
    begin: int
    rows: int


@dataclass(frozen=True)
class _NormalizedPiece:
    """The rows of a piece as they are written."""

    values_NF: NDArray[np.float32]
    times_N: NDArray[np.datetime64]
    observed_N: NDArray[np.bool_]


def normalize(
    problem: Problem, scale: Scale, ingested: Path, out: Path, preparation: Preparation | None = None
) -> Table:
    """Write the table, the times, which targets were observed and a description of them into the folder `out`.

    Nulls are filled forward up to `problem.table.fill` within a stretch without gaps, from the past only. A filled
    value may be an input, but `window` forecasts no filled target.
    Columns of the calendar stay as they are, from -1 to 1; columns of the climatology are scaled as the target is.

    Args:
        scale: standard: mean and deviation of the training rows, as in the lecture (row D2), the deviation that of the
            population; range: their least value and their range; none: values stay as they are.
        out: a folder whose last part is the problem's name, which messages mention.
        preparation: the preparation of a network that was trained before, to be applied again; None: fit one here.

    Raises:
        RecastError: a series is too short for the split, or a column has no value in the training rows.
    """
    frame = pl.scan_parquet(ingested / TABLE_FILE)
    cadence = read_cadence(ingested)
    extracts = list(_split_series(problem, frame, cadence, out.name))
    preparation = preparation or _fit_preparation(problem, scale, frame, extracts, out.name)

    all_series = tuple(extract.series for extract in extracts)
    rows = sum(series.rows for series in all_series)
    pieces = (
        _Piece(extract, begin, min(_PIECE_ROWS, extract.series.rows - begin))
        for extract in extracts
        for begin in range(0, extract.series.rows, _PIECE_ROWS)
    )
    digest = hashlib.sha256()
    with replace_folder(out) as folder:
        with (
            open_array(folder / "table.npy", np.float32, (rows, len(preparation.features))) as table,
            open_array(folder / "time.npy", "datetime64[ms]", (rows,)) as time,
            open_array(folder / "observed.npy", np.bool_, (rows,)) as observed,
        ):
            normalize_piece = partial(_normalize_piece, problem, frame, cadence, preparation)
            for piece in _normalize_in_order(normalize_piece, pieces):
                table.write(piece.values_NF.data)
                digest.update(piece.values_NF.data)
                time.write(piece.times_N.view(np.int64).data)
                observed.write(piece.observed_N.data)
        times_N = read_times(folder)
        for begin in range(0, rows, CHUNK_ROWS):
            digest.update(times_N[begin : begin + CHUNK_ROWS].view(np.int64).data)
        # In another unit the values are the same once they are scaled, but the errors are not.
        digest.update(np.array([preparation.center, preparation.scale]).tobytes())
        about = Table(preparation, cadence.total_seconds(), problem.source.synthetic, all_series, digest.hexdigest())
        (folder / DESCRIPTION_FILE).write_bytes(TypeAdapter(Table).dump_json(about, indent=1))
    return about


def _normalize_in_order(
    normalize_piece: Callable[[_Piece], _NormalizedPiece], pieces: Iterable[_Piece]
) -> Iterator[_NormalizedPiece]:
    """Normalize the pieces in several threads, and yield them in order. Only a few are in memory at any time."""
    waiting: deque[Future[_NormalizedPiece]] = deque()
    with ThreadPoolExecutor(_THREADS) as threads:
        for piece in pieces:
            waiting.append(threads.submit(normalize_piece, piece))
            if len(waiting) > _THREADS + 1:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _normalize_piece(
    problem: Problem, frame: pl.LazyFrame, cadence: timedelta, preparation: Preparation, piece: _Piece
) -> _NormalizedPiece:
    """Read the rows of a piece, fill their nulls, and scale them.

    What is known in advance also stands in the row one horizon earlier. Rows may be missing between the two; no window
    spans such a gap.
    """
    limit = problem.table.fill // cadence if problem.table.fill else 0
    horizon = problem.horizon // cadence if problem.table.known else 0
    series = piece.extract.series
    before = min(limit, piece.begin)
    after = min(horizon, series.rows - piece.begin - piece.rows)
    read = frame.slice(piece.extract.begin + piece.begin - before, before + piece.rows + after)
    chunk = read.collect(engine="streaming")
    observed_N = chunk[problem.table.target][before : before + piece.rows].is_not_null().to_numpy()
    if limit:
        starts_N = chunk.select((pl.col("time").diff() != cadence).fill_null(True)).to_series().to_numpy()
        filled_NC = fill_forward(chunk.select(problem.table.features).to_numpy(), starts_N, limit)
        chunk = chunk.with_columns(pl.from_numpy(filled_NC, problem.table.features, orient="row").get_columns())
    shifted = [pl.col(name).shift(-horizon).alias(target_time_column(name)) for name in problem.table.known]
    chunk = chunk.with_columns(shifted).slice(before, piece.rows)
    values_NF = np.ascontiguousarray(preparation.normalize_rows(chunk, series.name), dtype=np.float32)
    return _NormalizedPiece(values_NF, chunk["time"].to_numpy(), observed_N)


def _fit_climatologies(
    problem: Problem, frame: pl.LazyFrame, extracts: list[_Extract], problem_name: str
) -> Iterator[tuple[str, Climatology]]:
    """The climatology of each series, fitted to its training rows; nothing where the problem declares none.

    Raises:
        RecastError: a series has no target in its training rows.
    """
    harmonics, target = problem.table.climatology, problem.table.target
    if harmonics is None:
        return
    for extract in extracts:
        train = extract.series.train
        pieces = (
            frame.slice(extract.begin + begin, min(CHUNK_ROWS, train - begin))
            .select("time", target)
            .collect(engine="streaming")
            for begin in range(0, train, CHUNK_ROWS)
        )
        climatology = Climatology.fit(
            harmonics, ((piece["time"].to_numpy(), piece[target].to_numpy()) for piece in pieces)
        )
        if climatology is None:
            raise make_climatology_error(extract.series.name, target, problem_name)
        yield extract.series.name, climatology


def make_climatology_error(series: str, target: str, problem_name: str) -> RecastError:
    """The error for a series whose training rows have no target that a climatology could be fitted to."""
    return RecastError(
        f"series {series}: {target!r} has no value in the training rows that a climatology could be fitted to; leave "
        f"the series out, move problems.{problem_name}.split or remove problems.{problem_name}.table.climatology"
    )


def _split_series(problem: Problem, frame: pl.LazyFrame, cadence: timedelta, problem_name: str) -> Iterator[_Extract]:
    """The rows of each series that its split uses, with their cuts, in the table's order.

    Raises:
        RecastError: a series is too short for the split.
    """
    first_ingested = first = 0
    by_series = frame.group_by("series", maintain_order=True).agg(pl.len(), pl.col("time").max())
    for name, rows, last in by_series.collect(engine="streaming").iter_rows():
        time = frame.slice(first_ingested, rows).select("time")

        def before(moment: datetime, time: pl.LazyFrame = time) -> int:
            return int(time.select((pl.col("time") < moment).sum()).collect(engine="streaming").item())

        try:
            cuts = problem.split.find_cuts(rows, cadence, last, before)
        except RecastError as error:
            # A split does not know its problem; its messages begin with its own key.
            raise RecastError(f"series {name}: problems.{problem_name}.{error}") from None
        if not cuts.are_apart:
            raise RecastError(
                f"series {name}: {rows:,} rows are too few for the split; lengthen the data or change "
                f"problems.{problem_name}.split"
            )
        begin, train, validation, end = cuts
        series = Series(name, first, end - begin, train - begin, validation - begin)
        yield _Extract(series, first_ingested + begin)
        first_ingested += rows
        first += end - begin


def _fit_preparation(
    problem: Problem, scale: Scale, frame: pl.LazyFrame, extracts: list[_Extract], problem_name: str
) -> Preparation:
    """Center and deviation by column, and the climatologies, from the training rows alone.

    Raises:
        RecastError: a column has no value in the training rows.
    """
    # Piece by piece and in order (Chan, Golub & LeVeque 1983): Polars adds up in any order, which changes last digits.
    features = problem.table.features
    known, mean, squares = np.zeros(len(features)), np.zeros(len(features)), np.zeros(len(features))
    lowest, highest = np.full(len(features), np.inf), np.full(len(features), -np.inf)
    with ThreadPoolExecutor(1) as background, ThreadPoolExecutor(_THREADS) as threads:
        fitted = background.submit(lambda: dict(_fit_climatologies(problem, frame, extracts, problem_name)))
        for extract in extracts:
            train = extract.series.train
            for begin in range(0, train, CHUNK_ROWS):
                rows = frame.slice(extract.begin + begin, min(CHUNK_ROWS, train - begin)).select(features)
                columns = rows.collect(engine="streaming").get_columns()
                figures = np.array([*threads.map(_measure_column, columns)])
                added, center, piece_squares, piece_lowest, piece_highest = figures.T
                total = np.maximum(known + added, 1)
                squares += piece_squares
                squares += np.square(center - mean) * known * added / total
                mean += (center - mean) * added / total
                known += added
                lowest, highest = np.fmin(lowest, piece_lowest), np.fmax(highest, piece_highest)
    for name, count in zip(features, known, strict=True):
        if not count:
            raise RecastError(
                f"column {name!r} has no value in the training rows; remove it from "
                f"problems.{problem_name}.table.features or move problems.{problem_name}.split"
            )
    center, deviation = {
        "standard": (mean, np.sqrt(squares / known)),
        "range": (lowest, highest - lowest),
        "none": (np.zeros_like(mean), np.ones_like(mean)),
    }[scale]
    # A column that is constant in training has no scale of its own, even if rounding makes its deviation differ from 0.
    # The same holds for one whose values differ by less than 1e-160, because the squares are 0.
    has_scale = (highest > lowest) & (deviation > 0)
    centers, scales = extend_scaling(problem.table, center, np.where(has_scale, deviation, 1.0))
    climatologies = {name: tuple(climatology.coefficients.tolist()) for name, climatology in fitted.result().items()}
    return Preparation(problem.table, problem.horizon, centers, scales, climatologies)


def _measure_column(cells: pl.Series) -> tuple[int, float, float, float, float]:
    """Number of the known cells, their mean, the sum of squared deviations from it, the lowest, and the highest."""
    cells_N = cells.to_numpy()
    is_known_N = ~np.isnan(cells_N)
    known = int(np.count_nonzero(is_known_N))
    if known < len(cells_N):
        center = float(np.where(is_known_N, cells_N, 0).sum()) / max(known, 1)
        deviations_N = np.where(is_known_N, cells_N - center, 0)
    else:
        center = float(cells_N.sum()) / max(known, 1)
        deviations_N = cells_N - center
    squares = float(np.square(deviations_N).sum())
    return known, center, squares, float(np.fmin.reduce(cells_N)), float(np.fmax.reduce(cells_N))


def main(problem: str) -> None:
    """Scale a problem's table by its training rows and write it for memory-mapping."""
    settings = parse_settings()
    declared = settings.problem(problem)
    ingested, out = paths.stage_folder("ingest", problem), paths.stage_folder("normalize", problem)
    if isinstance(declared, SequenceProblem):
        encode_sequences(declared, ingested, out)
    else:
        normalize(declared, declared.table.scale or settings.normalize.scale, ingested, out)


if __name__ == "__main__":
    run_stage(main)
