"""window: which rows a forecast can be made at. Ranges of rows, never copies of them."""

from dataclasses import asdict
from datetime import timedelta
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from architectures.shape import WindowShape
from problems.errors import RecastError
from problems.problem import Problem, SequenceProblem
from problems.source import written
from problems.split import SPLITS
from project import paths
from project.atomic import replaced_folder, write_json
from project.command import command
from project.settings.parsing import parse_settings
from stages.sequences.cut import cut
from stages.sequences.reading import WINDOWS
from stages.tables.table import CHUNK, Series, Table, observed, times, values
from stages.tables.windows import Ranges, Windowing


def window(problem: Problem, stride: int, normalized: Path, out: Path) -> Windowing:
    """Write the ranges of each split's windows, and what a window is, into the folder `out`.

    A window is left out when rows are missing anywhere from its first input to its target, when the target was not
    observed (whether or not it was filled), when any value from the first input to the last (between two of them, too)
    is null, or when its inputs (its target too, unless the split allows it) leave the split.

    Args:
        out: its last part is the problem's name, which messages say.

    Raises:
        RecastError: a length that is no whole number of rows, or a split without a window.
    """
    table = Table.read(normalized)
    setting = f"problems.{out.name}.window"
    lookback, step, delay = (_rows(problem, name, table.cadence, setting) for name in ("lookback", "step", "delay"))
    if not problem.split.delay_from_row:
        delay -= step
    breaks, nulls, null_targets = _flaws(values(normalized), times(normalized), observed(normalized), table)

    found: dict[str, Ranges] = {}
    lost_to_gaps, lost_to_nulls = {}, {}
    for split in SPLITS:
        possible = np.array([_rows_of(problem, each, split, lookback, delay) for each in table.series], dtype=np.int64)
        possible = possible[possible[:, 0] < possible[:, 1]]
        # A break before row b spoils each window whose rows, row - lookback to row + delay, lie on both sides of it.
        unbroken = subtract(possible, np.stack([breaks - delay, breaks + lookback], axis=1))
        of_targets = [null_targets - (delay - step * later) for later in range(problem.window.leads)]
        spoilt = np.concatenate(
            [
                np.stack([nulls + step, nulls + lookback + 1], axis=1),
                *(np.stack([rows, rows + 1], axis=1) for rows in of_targets),
            ]
        )
        found[split] = subtract(unbroken, spoilt)
        lost_to_gaps[split] = count(possible) - count(unbroken)
        lost_to_nulls[split] = count(unbroken) - count(found[split])
        if not count(found[split]):
            raise RecastError(
                f"{split}: no window fits. {sum(each.rows for each in table.series):,} rows every "
                f"{written(timedelta(seconds=table.cadence))}; a window takes {lookback + delay + 1:,} rows in a row, "
                f"and gaps cost {lost_to_gaps[split]:,} windows, nulls {lost_to_nulls[split]:,}. "
                f"Shorten {setting}.lookback or {setting}.delay, or mend the data "
                f"(problems.{out.name}.table.fill, where inputs are null; a null target stays one)"
            )
    about = Windowing(
        lookback=lookback,
        step=step,
        delay=delay,
        stride=stride,
        windows={split: count(rows) for split, rows in found.items()},
        lost_to_gaps=lost_to_gaps,
        lost_to_nulls=lost_to_nulls,
        table=table.sha256,
        shape=WindowShape(
            steps=lookback // step,
            features=len(table.preparation.features),
            target=table.preparation.target,
            horizon=(delay + step) / step,
            day=86400 / table.cadence / step,
            climatology=table.preparation.climatology,
            derived=len(table.preparation.features) - len(problem.table.features),
            leads=problem.window.leads,
        ),
    )
    with replaced_folder(out) as folder:
        for split, rows in found.items():
            np.save(folder / f"{split}.npy", rows, allow_pickle=False)
        write_json(folder / WINDOWS, asdict(about))
    return about


def count(rows: Ranges) -> int:
    """How many rows the ranges hold."""
    return int((rows[:, 1] - rows[:, 0]).sum())


def subtract(rows: Ranges, spoilt: Ranges) -> Ranges:
    """The rows that are in `rows` and in none of `spoilt`, which may overlap and be in any order."""
    # Sweep over all ends: inside `rows` and outside every range of `spoilt`.
    ends = np.concatenate([rows.ravel(), spoilt.ravel()])
    step_in = np.concatenate([np.tile([1, -1], len(rows)), np.zeros(spoilt.size, dtype=np.int64)])
    step_out = np.concatenate([np.zeros(rows.size, dtype=np.int64), np.tile([1, -1], len(spoilt))])
    order = np.argsort(ends, kind="stable")
    at = ends[order]
    good = (np.cumsum(step_in[order]) > 0) & (np.cumsum(step_out[order]) == 0)
    left = np.stack([at[:-1], at[1:]], axis=1)[good[:-1] & (at[:-1] < at[1:])]
    # Neighbours that touch are one range.
    apart = np.ones(len(left), dtype=bool)
    apart[1:] = left[1:, 0] > left[:-1, 1]
    first = np.flatnonzero(apart)
    last = np.append(first[1:], len(left)) - 1
    return np.stack([left[first, 0], left[last, 1]], axis=1) if len(left) else np.empty((0, 2), dtype=np.int64)


def _rows(problem: Problem, name: str, cadence: float, setting: str) -> int:
    """A length of the windows in rows.

    Raises:
        RecastError: it is no whole number of them.
    """
    length: timedelta = getattr(problem.window, name)
    rows, rest = divmod(length, timedelta(seconds=cadence))
    if rest:
        raise RecastError(
            f"{setting}.{name}: {written(length)} is no whole number of rows, which come every "
            f"{written(timedelta(seconds=cadence))}"
        )
    return rows


def _rows_of(problem: Problem, series: Series, split: str, lookback: int, delay: int) -> tuple[int, int]:
    """The rows at which a window of the split could stand if no row were missing."""
    rule = problem.split
    begin, end = {
        "train": (0, series.train),
        "validation": (series.train + rule.skipped_rows, series.validation),
        "test": (series.validation + rule.skipped_rows, series.rows),
    }[split]
    last = min(end if rule.targets_may_cross else end - delay, series.rows - delay - rule.skipped_rows)
    return series.first + begin + lookback, series.first + last


def _flaws(
    table: NDArray[np.float32], moments: NDArray[np.datetime64], is_observed: NDArray[np.bool_], about: Table
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Rows that do not follow the one before, rows with a null, and rows whose target was not observed."""
    breaks = [np.array([each.first for each in about.series[1:]], dtype=np.int64)]
    nulls, null_targets = [], []
    cadence = np.timedelta64(round(about.cadence * 1000), "ms")
    for begin in range(0, len(moments), CHUNK):
        steps = np.diff(moments[max(begin - 1, 0) : begin + CHUNK])
        breaks.append(np.flatnonzero(steps != cadence) + max(begin, 1))
        span = slice(begin, begin + CHUNK)
        nulls.append(np.flatnonzero(np.isnan(table[span]).any(axis=1)) + begin)
        null_targets.append(np.flatnonzero(~is_observed[span]) + begin)
    return np.unique(np.concatenate(breaks)), np.concatenate(nulls), np.concatenate(null_targets)


def main(problem: str) -> None:
    """Find the rows at which a forecast of the problem can be made, by split."""
    settings = parse_settings()
    declared = settings.problem(problem)
    normalized, out = paths.stage("normalize", problem), paths.stage("window", problem)
    if isinstance(declared, SequenceProblem):
        cut(declared, normalized, out)
    else:
        window(declared, settings.window.stride, normalized, out)


if __name__ == "__main__":
    command(main)
