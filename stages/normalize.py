"""Stage normalize: a table in float32, scaled by its training rows only; later stages map it into memory."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import TypeAdapter

from forecasting.climatology import Climatology
from forecasting.filling import fill_forward
from forecasting.preparation import Preparation, extend_scaling
from problems.columns import Scale, target_time_column
from problems.errors import RecastError
from problems.problem import Problem, SequenceProblem
from project import paths
from project.atomic import replace_folder
from project.command import run_stage
from project.settings.parsing import parse_settings
from stages.sequences.encode import encode_sequences
from stages.tables.ingested import TABLE_FILE, read_cadence
from stages.tables.table import CHUNK_ROWS, Series, Table


@dataclass(frozen=True)
class _Extract:
    """The rows of a series that its split uses.

    Attributes:
        series: their place in the table that is written.
        begin: their first row in the ingested table.
    """

    series: Series
    begin: int


def normalize(
    problem: Problem, scale: Scale, ingested: Path, out: Path, preparation: Preparation | None = None
) -> Table:
    """Write the table, the times, which targets were observed and a description of them into the folder `out`.

    The lecture's rule (row D2): mean and deviation of the training rows, the deviation that of the population.
    Nulls are filled forward up to `problem.table.fill` within a stretch without gaps, from the past only. A filled
    value may be an input, but `window` forecasts no filled target.
    Columns of the calendar stay as they are, from -1 to 1; columns of the climatology are scaled as the target is.

    Args:
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
    digest = hashlib.sha256()
    with replace_folder(out) as folder:
        shape = (rows, len(preparation.features))
        table = np.lib.format.open_memmap(folder / "table.npy", mode="w+", dtype=np.float32, shape=shape)
        time = np.lib.format.open_memmap(folder / "time.npy", mode="w+", dtype="datetime64[ms]", shape=(rows,))
        observed = np.lib.format.open_memmap(folder / "observed.npy", mode="w+", dtype=np.bool_, shape=(rows,))
        for name, first, chunk, observed_N in _read_chunks(problem, frame, extracts, cadence):
            span = slice(first, first + len(chunk))
            time[span] = chunk["time"].to_numpy()
            table[span] = preparation.normalize_rows(chunk, name)
            observed[span] = observed_N
            digest.update(table[span].tobytes())
        for begin in range(0, rows, CHUNK_ROWS):
            digest.update(time[begin : begin + CHUNK_ROWS].tobytes())
        table.flush()
        time.flush()
        observed.flush()
        about = Table(preparation, cadence.total_seconds(), problem.source.synthetic, all_series, digest.hexdigest())
        (folder / "table.json").write_bytes(TypeAdapter(Table).dump_json(about, indent=1))
    return about


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
            raise RecastError(
                f"series {extract.series.name}: {target!r} has no value in the training rows that a climatology "
                f"could be fitted to; leave the series out, move problems.{problem_name}.split or remove "
                f"problems.{problem_name}.table.climatology"
            )
        yield extract.series.name, climatology


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
    for extract in extracts:
        train = extract.series.train
        for begin in range(0, train, CHUNK_ROWS):
            rows = frame.slice(extract.begin + begin, min(CHUNK_ROWS, train - begin)).select(features)
            piece = rows.collect(engine="streaming").to_numpy()
            is_known = ~np.isnan(piece)
            more = is_known.sum(axis=0)
            center = np.where(is_known, piece, 0).sum(axis=0) / np.maximum(more, 1)
            both = np.maximum(known + more, 1)
            squares += np.square(np.where(is_known, piece - center, 0)).sum(axis=0)
            squares += np.square(center - mean) * known * more / both
            mean += (center - mean) * more / both
            known += more
            lowest, highest = np.fmin(lowest, np.fmin.reduce(piece)), np.fmax(highest, np.fmax.reduce(piece))
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
    # A column that is constant in training has no scale of its own; rounding may make its deviation differ from 0.
    centers, scales = extend_scaling(problem.table, center, np.where(highest > lowest, deviation, 1.0))
    climatologies = {
        name: tuple(climatology.coefficients.tolist())
        for name, climatology in _fit_climatologies(problem, frame, extracts, problem_name)
    }
    return Preparation(problem.table, problem.horizon, centers, scales, climatologies)


def _read_chunks(
    problem: Problem, frame: pl.LazyFrame, extracts: list[_Extract], cadence: timedelta
) -> Iterator[tuple[str, int, pl.DataFrame, NDArray[np.bool_]]]:
    """The table in pieces of at most `CHUNK_ROWS` rows of one series.

    What is known in advance also stands in the row one horizon earlier. Rows may be missing between the two; no window
    spans such a gap.

    Yields:
        The name of the series, the piece's first row in the table that is written, the piece with its nulls filled,
        and whether the target of each of its rows was observed, before nulls were filled.
    """
    limit = problem.table.fill // cadence if problem.table.fill else 0
    horizon = problem.horizon // cadence if problem.table.known else 0
    for extract in extracts:
        series = extract.series
        for begin in range(0, series.rows, CHUNK_ROWS):
            before = min(limit, begin)
            length = min(CHUNK_ROWS, series.rows - begin)
            after = min(horizon, series.rows - begin - length)
            chunk = frame.slice(extract.begin + begin - before, before + length + after).collect(engine="streaming")
            observed_N = chunk[problem.table.target][before : before + length].is_not_null().to_numpy()
            if limit:
                starts_N = chunk.select((pl.col("time").diff() != cadence).fill_null(True)).to_series().to_numpy()
                filled_NC = fill_forward(chunk.select(problem.table.features).to_numpy(), starts_N, limit)
                chunk = chunk.with_columns(pl.from_numpy(filled_NC, problem.table.features, orient="row").get_columns())
            shifted = [pl.col(name).shift(-horizon).alias(target_time_column(name)) for name in problem.table.known]
            yield series.name, series.first + begin, chunk.with_columns(shifted).slice(before, length), observed_N


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
