"""normalize: a float32 table that is memory-mapped from then on, scaled by its training rows only."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import TypeAdapter

from forecasting.climatology import Climatology
from forecasting.preparation import Preparation, of_derived
from problems.columns import Scale, ahead
from problems.errors import RecastError
from problems.problem import Problem, SequenceProblem
from project import paths
from project.atomic import replaced_folder
from project.command import command
from project.settings.parsing import parse_settings
from stages.sequences.encode import encode
from stages.tables.table import CHUNK, Series, Table


@dataclass(frozen=True)
class _Kept:
    """The rows of a series that the split keeps: `at` is where they begin in what was ingested."""

    series: Series
    at: int


def normalize(
    problem: Problem, scale: Scale, ingested: Path, out: Path, preparation: Preparation | None = None
) -> Table:
    """Write the table, the times, which targets were observed and what is known of them into the folder `out`.

    The lecture's rule (row D2): mean and deviation of the training rows, the deviation that of the population.
    Nulls are filled forward up to `problem.table.fill` within a stretch without gaps, from the past only. A filled
    value may be an input; `window` makes no forecast of one.
    Columns of the calendar are as they are, from -1 to 1; those of the climatology are scaled as the target is.

    Args:
        out: its last part is the problem's name, which messages say.
        preparation: of a network that was trained before, whose columns these are to be; None: fitted here.

    Raises:
        RecastError: a series is too short for the split, or a column has no value in the training rows.
    """
    frame = pl.scan_parquet(ingested / "table.parquet")
    cadence = timedelta(seconds=json.loads((ingested / "quality.json").read_text(encoding="utf-8"))["cadence_seconds"])
    kept = list(_cut(problem, frame, cadence, out.name))
    prepared = preparation or _fitted(problem, scale, frame, kept, out.name)

    series = tuple(each.series for each in kept)
    rows = sum(each.rows for each in series)
    digest = hashlib.sha256()
    with replaced_folder(out) as folder:
        shape = (rows, len(prepared.features))
        table = np.lib.format.open_memmap(folder / "table.npy", mode="w+", dtype=np.float32, shape=shape)
        time = np.lib.format.open_memmap(folder / "time.npy", mode="w+", dtype="datetime64[ms]", shape=(rows,))
        known = np.lib.format.open_memmap(folder / "observed.npy", mode="w+", dtype=np.bool_, shape=(rows,))
        for name, first, chunk, observed_N in _chunks(problem, frame, kept, cadence):
            span = slice(first, first + len(chunk))
            time[span] = chunk["time"].to_numpy()
            table[span] = prepared.normalized(chunk, name)
            known[span] = observed_N
            digest.update(table[span].tobytes())
        for begin in range(0, rows, CHUNK):
            digest.update(time[begin : begin + CHUNK].tobytes())
        table.flush()
        time.flush()
        known.flush()
        about = Table(prepared, cadence.total_seconds(), problem.source.synthetic, series, digest.hexdigest())
        (folder / "table.json").write_bytes(TypeAdapter(Table).dump_json(about, indent=1))
    return about


def _climatologies(
    problem: Problem, frame: pl.LazyFrame, kept: list[_Kept], problem_name: str
) -> Iterator[tuple[str, Climatology]]:
    """The climatology of each series, fitted to its training rows; nothing where the problem has none.

    Raises:
        RecastError: a series has no target in them.
    """
    table = problem.table
    for each in kept if table.climatology else ():
        assert table.climatology
        train = each.series.train
        pieces = (
            frame.slice(each.at + begin, min(CHUNK, train - begin))
            .select("time", table.target)
            .collect(engine="streaming")
            for begin in range(0, train, CHUNK)
        )
        fitted = Climatology.fit(
            table.climatology, ((piece["time"].to_numpy(), piece[table.target].to_numpy()) for piece in pieces)
        )
        if fitted is None:
            raise RecastError(
                f"series {each.series.name}: {table.target!r} has no value in the training rows that a climatology "
                f"could be fitted to; leave the series out, move problems.{problem_name}.split or drop "
                f"problems.{problem_name}.table.climatology"
            )
        yield each.series.name, fitted


def _cut(problem: Problem, frame: pl.LazyFrame, cadence: timedelta, problem_name: str) -> Iterator[_Kept]:
    """The series in the table's order, each with its cuts, without the rows that the split leaves out.

    Raises:
        RecastError: a series is too short for the split.
    """
    at = first = 0
    by_series = frame.group_by("series", maintain_order=True).agg(pl.len(), pl.col("time").max())
    for name, rows, last in by_series.collect(engine="streaming").iter_rows():
        time = frame.slice(at, rows).select("time")

        def before(moment: datetime, time: pl.LazyFrame = time) -> int:
            return int(time.select((pl.col("time") < moment).sum()).collect(engine="streaming").item())

        try:
            cuts = problem.split.cuts(rows, cadence, last, before)
        except RecastError as error:
            # A split does not know whose it is; its messages begin with its key.
            raise RecastError(f"series {name}: problems.{problem_name}.{error}") from None
        if not cuts.are_apart:
            raise RecastError(
                f"series {name}: {rows:,} rows are too few for the split; lengthen the data or change "
                f"problems.{problem_name}.split"
            )
        begin, train, validation, end = cuts
        yield _Kept(Series(name, first, end - begin, train - begin, validation - begin), at + begin)
        at += rows
        first += end - begin


def _fitted(problem: Problem, scale: str, frame: pl.LazyFrame, kept: list[_Kept], problem_name: str) -> Preparation:
    """Center and deviation by column, and the climatologies, from the training rows alone.

    Raises:
        RecastError: a column has no value in them.
    """
    # Piece by piece and in order (Chan, Golub & LeVeque 1983): Polars adds up in any order, with other last digits.
    features = problem.table.features
    known, mean, squares = np.zeros(len(features)), np.zeros(len(features)), np.zeros(len(features))
    lowest, highest = np.full(len(features), np.inf), np.full(len(features), -np.inf)
    for each in kept:
        for begin in range(0, each.series.train, CHUNK):
            rows = frame.slice(each.at + begin, min(CHUNK, each.series.train - begin)).select(features)
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
                f"column {name!r} has no value in the training rows; drop it from "
                f"problems.{problem_name}.table.features or move problems.{problem_name}.split"
            )
    center, deviation = {
        "standard": (mean, np.sqrt(squares / known)),
        "range": (lowest, highest - lowest),
        "none": (np.zeros_like(mean), np.ones_like(mean)),
    }[scale]
    # A column that never changes in training has nothing to be scaled by; its deviation may be no 0 but rounding.
    centers, scales = of_derived(problem.table, center, np.where(highest > lowest, deviation, 1.0))
    climatologies = {
        name: tuple(each.coefficients.tolist()) for name, each in _climatologies(problem, frame, kept, problem_name)
    }
    return Preparation(problem.table, problem.horizon, centers, scales, climatologies)


def _chunks(
    problem: Problem, frame: pl.LazyFrame, kept: list[_Kept], cadence: timedelta
) -> Iterator[tuple[str, int, pl.DataFrame, NDArray[np.bool_]]]:
    """The table in pieces of at most CHUNK rows of one series: its name, the row each begins at, and it, nulls filled.

    The last is whether each row's target was there before that. What is known in advance stands also in the row a
    horizon before, where no row is missing between the two: a window that spans a gap is none.
    """
    limit = problem.table.fill // cadence if problem.table.fill else 0
    horizon = problem.horizon // cadence if problem.table.known else 0
    stretch = (pl.col("time").diff() != cadence).fill_null(True).cum_sum()
    for each in kept:
        series = each.series
        for begin in range(0, series.rows, CHUNK):
            before = min(limit, begin)
            length = min(CHUNK, series.rows - begin)
            after = min(horizon, series.rows - begin - length)
            chunk = frame.slice(each.at + begin - before, before + length + after).collect(engine="streaming")
            observed_N = chunk[problem.table.target][before : before + length].is_not_null().to_numpy()
            if limit:
                filled = pl.col(problem.table.features).forward_fill(limit).over(stretch)
                chunk = chunk.with_columns(filled)
            shifted = [pl.col(name).shift(-horizon).alias(ahead(name)) for name in problem.table.known]
            yield series.name, series.first + begin, chunk.with_columns(shifted).slice(before, length), observed_N


def main(problem: str) -> None:
    """Scale a problem's table by its training rows and write it for memory-mapping."""
    settings = parse_settings()
    declared = settings.problem(problem)
    ingested, out = paths.stage("ingest", problem), paths.stage("normalize", problem)
    if isinstance(declared, SequenceProblem):
        encode(declared, ingested, out)
    else:
        normalize(declared, declared.table.scale or settings.normalize.scale, ingested, out)


if __name__ == "__main__":
    command(main)
