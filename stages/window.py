"""Stage window: the rows at which a forecast can be made, as ranges of rows, never as copies of them."""

from dataclasses import asdict
from datetime import timedelta
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from architectures.shape import WindowShape
from problems.durations import format_duration
from problems.errors import RecastError
from problems.problem import Problem, SequenceProblem
from problems.split import SPLITS
from project import paths
from project.atomic import replace_folder, write_json
from project.command import run_stage
from project.settings.parsing import parse_settings
from stages.sequences.cut import cut_sequences
from stages.sequences.reading import WINDOWS_FILE
from stages.tables.table import CHUNK_ROWS, Series, Table, read_observed, read_times, read_values
from stages.tables.windows import Ranges, TableWindows


def window(problem: Problem, stride: int, normalized: Path, out: Path) -> TableWindows:
    """Write the ranges of each split's windows, and what a window is, into the folder `out`.

    A window is left out when rows are missing anywhere from its first input to its target, when the target was not
    observed (whether or not it was filled), when any value from the first input to the last (also between two inputs)
    is null, or when its inputs (its target too, unless the split allows it) leave the split.

    Args:
        out: a folder whose last part is the problem's name, which messages mention.

    Raises:
        RecastError: a length is not a whole number of rows, or a split has no window.
    """
    table = Table.read(normalized)
    setting = f"problems.{out.name}.window"
    lookback, step, delay = (
        _count_steps(problem, name, table.cadence, setting) for name in ("lookback", "step", "delay")
    )
    if not problem.split.delay_from_row:
        delay -= step
    breaks, nulls, unobserved = _find_flaws(
        read_values(normalized), read_times(normalized), read_observed(normalized), table
    )

    windows: dict[str, Ranges] = {}
    lost_to_gaps, lost_to_nulls = {}, {}
    for split in SPLITS:
        possible = np.array(
            [_bound_windows(problem, series, split, lookback, delay) for series in table.series], dtype=np.int64
        )
        possible = possible[possible[:, 0] < possible[:, 1]]
        # A break before row b spoils every window whose rows, row - lookback to row + delay, lie on both sides of it.
        unbroken = subtract_ranges(possible, np.stack([breaks - delay, breaks + lookback], axis=1))
        missing_targets = [unobserved - (delay - step * later) for later in range(problem.window.leads)]
        spoilt = np.concatenate(
            [
                np.stack([nulls + step, nulls + lookback + 1], axis=1),
                *(np.stack([rows, rows + 1], axis=1) for rows in missing_targets),
            ]
        )
        windows[split] = subtract_ranges(unbroken, spoilt)
        lost_to_gaps[split] = count_rows(possible) - count_rows(unbroken)
        lost_to_nulls[split] = count_rows(unbroken) - count_rows(windows[split])
        if not count_rows(windows[split]):
            raise RecastError(
                f"{split}: no window fits. There are {sum(series.rows for series in table.series):,} rows every "
                f"{format_duration(timedelta(seconds=table.cadence))}; a window takes {lookback + delay + 1:,} "
                f"consecutive rows, gaps cost {lost_to_gaps[split]:,} windows, and nulls {lost_to_nulls[split]:,}. "
                f"Shorten {setting}.lookback or {setting}.delay, or fix the data "
                f"(problems.{out.name}.table.fill fills inputs that are null, but not targets)"
            )
    about = TableWindows(
        lookback=lookback,
        step=step,
        delay=delay,
        stride=stride,
        windows={split: count_rows(rows) for split, rows in windows.items()},
        lost_to_gaps=lost_to_gaps,
        lost_to_nulls=lost_to_nulls,
        table=table.sha256,
        shape=WindowShape(
            steps=lookback // step,
            features=len(table.preparation.features),
            target=table.preparation.target_index,
            horizon=(delay + step) / step,
            day=86400 / table.cadence / step,
            climatology=table.preparation.climatology_indices,
            derived=len(table.preparation.features) - len(problem.table.features),
            leads=problem.window.leads,
        ),
    )
    with replace_folder(out) as folder:
        for split, rows in windows.items():
            np.save(folder / f"{split}.npy", rows, allow_pickle=False)
        write_json(folder / WINDOWS_FILE, asdict(about))
    return about


def count_rows(rows: Ranges) -> int:
    """The number of rows in the ranges."""
    return int((rows[:, 1] - rows[:, 0]).sum())


def subtract_ranges(rows: Ranges, spoilt: Ranges) -> Ranges:
    """The rows that are in `rows` but in no range of `spoilt`, which may overlap and be in any order."""
    # Sweep over the ends of all ranges, and keep what is inside `rows` and outside every range of `spoilt`.
    ends = np.concatenate([rows.ravel(), spoilt.ravel()])
    step_in = np.concatenate([np.tile([1, -1], len(rows)), np.zeros(spoilt.size, dtype=np.int64)])
    step_out = np.concatenate([np.zeros(rows.size, dtype=np.int64), np.tile([1, -1], len(spoilt))])
    order = np.argsort(ends, kind="stable")
    ends = ends[order]
    is_kept = (np.cumsum(step_in[order]) > 0) & (np.cumsum(step_out[order]) == 0)
    remaining = np.stack([ends[:-1], ends[1:]], axis=1)[is_kept[:-1] & (ends[:-1] < ends[1:])]
    if not len(remaining):
        return np.empty((0, 2), dtype=np.int64)
    # Neighbours that touch become one range.
    is_apart = np.ones(len(remaining), dtype=bool)
    is_apart[1:] = remaining[1:, 0] > remaining[:-1, 1]
    first = np.flatnonzero(is_apart)
    last = np.append(first[1:], len(remaining)) - 1
    return np.stack([remaining[first, 0], remaining[last, 1]], axis=1)


def _count_steps(problem: Problem, name: str, cadence: float, setting: str) -> int:
    """A length of the windows, in rows.

    Raises:
        RecastError: it is not a whole number of rows.
    """
    length: timedelta = getattr(problem.window, name)
    rows, rest = divmod(length, timedelta(seconds=cadence))
    if rest:
        raise RecastError(
            f"{setting}.{name}: {format_duration(length)} is not a whole number of rows, which come every "
            f"{format_duration(timedelta(seconds=cadence))}"
        )
    return rows


def _bound_windows(problem: Problem, series: Series, split: str, lookback: int, delay: int) -> tuple[int, int]:
    """The range of rows at which a window of the split could lie if no row were missing."""
    rule = problem.split
    begin, end = {
        "train": (0, series.train),
        "validation": (series.train + rule.skipped_rows, series.validation),
        "test": (series.validation + rule.skipped_rows, series.rows),
    }[split]
    last = min(end if rule.targets_may_cross else end - delay, series.rows - delay - rule.skipped_rows)
    return series.first + begin + lookback, series.first + last


def _find_flaws(
    values_NF: NDArray[np.float32], times_N: NDArray[np.datetime64], observed_N: NDArray[np.bool_], table: Table
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Rows that do not follow the row before them, rows with a null, and rows whose target was not observed."""
    breaks = [np.array([series.first for series in table.series[1:]], dtype=np.int64)]
    nulls, unobserved = [], []
    cadence = np.timedelta64(round(table.cadence * 1000), "ms")
    for begin in range(0, len(times_N), CHUNK_ROWS):
        steps = np.diff(times_N[max(begin - 1, 0) : begin + CHUNK_ROWS])
        breaks.append(np.flatnonzero(steps != cadence) + max(begin, 1))
        span = slice(begin, begin + CHUNK_ROWS)
        nulls.append(np.flatnonzero(np.isnan(values_NF[span]).any(axis=1)) + begin)
        unobserved.append(np.flatnonzero(~observed_N[span]) + begin)
    return np.unique(np.concatenate(breaks)), np.concatenate(nulls), np.concatenate(unobserved)


def main(problem: str) -> None:
    """Find the rows at which a forecast of the problem can be made, split by split."""
    settings = parse_settings()
    declared = settings.problem(problem)
    normalized, out = paths.stage_folder("normalize", problem), paths.stage_folder("window", problem)
    if isinstance(declared, SequenceProblem):
        cut_sequences(declared, normalized, out)
    else:
        window(declared, settings.window.stride, normalized, out)


if __name__ == "__main__":
    run_stage(main)
