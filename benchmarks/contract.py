"""The data contract's default rules on real series: how many correct and corrupted pieces they refuse.

Hourly Jena: each month of 2010 to 2016 is compared with the rows before it, as it is and corrupted: T stuck for a day,
T in degrees Fahrenheit, the clock an hour ahead or behind, and half of its rows missing. The same is done with every
fourth week, as it is and with a clock that was set wrong at the beginning of the week.

Changes: pieces of an hour, a day, ten days and thirty days, at moments spread evenly over each series, are compared
with all rows before them by the rule `change` alone, as they are (false alarms) and with every column converted to
other units (detections; each column is judged by itself). The series are hourly Jena, the three of `nyc`, and, if the
environment variable STATION_FILE names it, the running file of the station in Jena, every ten minutes and thinned.
"""

import json
import os
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl

from lifecycle.new_rows.change_rules import find_changes
from lifecycle.new_rows.contract import find_breaches
from lifecycle.new_rows.known_table import KnownTable, join_marked
from problems.contract import Contract
from problems.errors import RecastError
from problems.problem import Problem
from project import paths
from project.settings.loading import load_settings
from stages.ingest import ingest
from stages.tables.ingested import TABLE_FILE, read_cadence

PROBLEM = "jena"
STATION_FILE = "STATION_FILE"
UNCHANGED = "as they are"
FROM, TO = datetime(2010, 1, 1), datetime(2017, 1, 1)
HOUR = timedelta(hours=1)

PIECES = {"an hour": HOUR, "a day": 24 * HOUR, "ten days": 240 * HOUR, "thirty days": 720 * HOUR}
"""The lengths of the pieces whose changes are judged."""
FALSE_ALARM_MOMENTS, DETECTION_MOMENTS = 60, 12
"""How many pieces of each length are judged as they are, and how many in other units."""
LEAST_KNOWN = timedelta(days=60)
"""The rows before the first piece cover at least this time."""

UNITS: dict[str, dict[str, tuple[float, float]]] = {
    "degC": {"°F": (1.8, 32), "K": (1, 273.15)},
    "K": {"°C": (1, -273.15), "°F": (1.8, -459.67)},
    "mbar": {"Pa": (100, 0), "kPa": (0.1, 0), "mmHg": (0.750062, 0)},
    "%": {"a fraction": (0.01, 0)},
    "g/kg": {"kg/kg": (0.001, 0)},
    "mmol/mol": {"mol/mol": (0.001, 0)},
    "g/m**3": {"kg/m³": (0.001, 0)},
    "m/s": {"km/h": (3.6, 0), "knots": (1.943844, 0)},
    "deg": {"radians": (0.0174533, 0)},
    "mm": {"inches": (1 / 25.4, 0)},
    "km": {"m": (1000, 0), "miles": (0.621371, 0)},
    "ppm": {"a fraction": (1e-6, 0)},
}
"""By the unit in a column's name: other units, with the factor and the offset of the conversion."""

Corruption = Callable[[pl.DataFrame], pl.DataFrame]


@dataclass(frozen=True)
class RealSeries:
    """Ingested rows of a real source.

    Attributes:
        rows: as `ingest` has written them, of one series or of several.
    """

    name: str
    rows: pl.DataFrame
    features: list[str]
    cadence: timedelta


def run(quick: bool) -> dict[str, Any]:
    """Replay what the pipeline has ingested, and the other series.

    Raises:
        RecastError: it has ingested nothing, or another kind of problem.
    """
    table, problem = paths.stage_folder("ingest", PROBLEM) / TABLE_FILE, load_settings().problem(PROBLEM)
    if not table.exists() or not isinstance(problem, Problem):
        raise RecastError(
            f"{table} does not exist; make it: recast fetch {PROBLEM} && python -m stages.ingest {PROBLEM}"
        )
    quality = json.loads((table.parent / "quality.json").read_text(encoding="utf-8"))
    rows = pl.read_parquet(table).filter(pl.col("time") < TO)
    cadence, target = timedelta(seconds=quality["cadence_seconds"]), problem.target
    corruptions: dict[str, Corruption] = {
        UNCHANGED: lambda month: month,
        "T stuck for a day": lambda month: _stick_for_a_day(month, target),
        "T in Fahrenheit": lambda month: month.with_columns(pl.col(target) * 1.8 + 32),
        "clock an hour ahead": lambda month: month.with_columns(pl.col("time") + HOUR),
        "clock an hour behind": lambda month: month.with_columns(pl.col("time") - HOUR),
        "every second row missing": lambda month: month.gather_every(2),
        "half of the rows missing, at random": lambda month: month.sample(fraction=0.5, seed=0).sort("time"),
        "first half missing": lambda month: month.tail(month.height // 2),
    }
    clocks = {name: corruptions[name] for name in (UNCHANGED, "clock an hour ahead", "clock an hour behind")}
    stride = 12 if quick else 1
    with tempfile.TemporaryDirectory() as folder:
        jena = RealSeries("Jena, hourly", rows, list(problem.table.features), cadence)
        series = [jena, *_ingest_others(Path(folder))]
        return {
            "rows": f"{rows.height:,} every {quality['cadence']}, {problem.title}",
            "months": _count_refusals(problem, rows, cadence, corruptions, list(_split_rows(rows, "1mo"))[::stride]),
            "weeks": _count_refusals(problem, rows, cadence, clocks, list(_split_rows(rows, "1w"))[:: 4 * stride]),
            "false alarms of the rule change": {
                each.name: _count_false_alarms(each, FALSE_ALARM_MOMENTS // stride) for each in series
            },
            **{
                f"detections by the rule change: {each.name}": _count_detections(each, DETECTION_MOMENTS // stride)
                for each in series
            },
        }


def _ingest_others(folder: Path) -> Iterator[RealSeries]:
    """Ingest the real series beside Jena's."""
    nyc = load_settings().problem("nyc")
    if isinstance(nyc, Problem):
        yield _ingest(nyc, "nyc, three airports, hourly", folder / "nyc")
    if file := os.environ.get(STATION_FILE):
        with Path(file).open("rb") as content:
            header = content.readline().decode("utf-8", errors="replace").strip().split(",")
        for cadence, name in (("10m", "Jena 2024, every ten minutes"), ("1h", "Jena 2024, thinned to hours")):
            station = Problem.model_validate_json(
                json.dumps(
                    {
                        "title": name,
                        "source": {
                            "kind": "table",
                            "path": file,
                            "time": "Date Time",
                            "time_format": "%d.%m.%Y %H:%M:%S",
                        },
                        "table": {
                            "features": header[1:],
                            "target": header[2],
                            "unit": "°C",
                            "cadence": cadence,
                            "thin": cadence == "1h",
                            "sentinels": {column: [-9999.0] for column in header[1:]},
                        },
                        "split": "half",
                        "window": {"lookback": "5d", "step": "1h", "delay": "24h"},
                    }
                )
            )
            yield _ingest(station, name, folder / cadence)


def _ingest(problem: Problem, name: str, folder: Path) -> RealSeries:
    """Fetch and ingest a source into a folder."""
    store = folder / "raw"
    store.mkdir(parents=True)
    problem.source.fetch(store, lambda received, total: None, attempts=1)
    ingest(problem, store, folder / "table")
    table = pl.read_parquet(folder / "table" / TABLE_FILE)
    return RealSeries(name, table, list(problem.table.features), read_cadence(folder / "table"))


def _pick_pieces(series: RealSeries, length: timedelta, count: int) -> Iterator[tuple[KnownTable, pl.DataFrame]]:
    """Pieces of a length at moments spread evenly over a series, each with the rows before it."""
    times = series.rows["time"]
    first, last = times.min(), times.max()
    if not isinstance(first, datetime) or not isinstance(last, datetime):
        raise TypeError(f"{series.name} has no times")
    room = last - length - (first + LEAST_KNOWN)
    for i in range(count):
        begin = first + LEAST_KNOWN + room * i / count
        known = series.rows.filter(pl.col("time") < begin)
        yield (
            KnownTable(known.lazy(), series.cadence, first=False),
            series.rows.filter(pl.col("time").is_between(begin, begin + length, closed="left")),
        )


def _find_refused_columns(series: RealSeries, known: KnownTable, new: pl.DataFrame) -> set[str]:
    """The columns that change more than the contract allows by default."""
    limit = Contract().change
    if limit is None:
        raise TypeError("the rule is switched off by default")
    changes = find_changes(series.features, join_marked(known.table, new), series.cadence, [])
    return {name for _, name, found in changes if any(change.strength > limit for change in found)}


def _count_false_alarms(series: RealSeries, count: int) -> dict[str, str]:
    """How many pieces of each length are refused as they are, and for which columns."""
    cells: dict[str, str] = {}
    for title, length in PIECES.items():
        columns: Counter[str] = Counter()
        refused = judged = 0
        for known, new in _pick_pieces(series, length, count):
            if not new.is_empty():
                found = _find_refused_columns(series, known, new)
                columns.update(found)
                refused, judged = refused + bool(found), judged + 1
        names = ", ".join(f"{name} {number}" for name, number in columns.most_common(3))
        cells[title] = f"{refused} of {judged}" + (f" ({names})" if names else "")
    return cells


def _count_detections(series: RealSeries, count: int) -> dict[str, dict[str, str]]:
    """Of how many pieces of each length a column in another unit is refused, by column and unit."""
    conversions = {name: UNITS.get(_unit_of(name), {}) for name in series.features}
    titles = sorted({(name, unit) for name, units in conversions.items() for unit in units}, key=str)
    table: dict[str, dict[str, str]] = {f"{name} in {unit}": {} for name, unit in titles}
    most = max((len(units) for units in conversions.values()), default=0)
    for title, length in PIECES.items():
        found: Counter[str] = Counter()
        judged = 0
        for known, new in _pick_pieces(series, length, count):
            if new.is_empty():
                continue
            judged += 1
            # Columns are judged by themselves, so one piece holds all of them in another unit.
            for i in range(most):
                units = {name: list(units.items())[i] for name, units in conversions.items() if i < len(units)}
                converted = new.with_columns(
                    pl.col(name) * factor + offset for name, (_, (factor, offset)) in units.items()
                )
                refused = _find_refused_columns(series, known, converted)
                found.update(f"{name} in {unit}" for name, (unit, _) in units.items() if name in refused)
        for row, cells in table.items():
            cells[title] = f"{found[row]} of {judged}"
    return table


def _unit_of(column: str) -> str:
    """The unit that stands in parentheses in a column's name."""
    match = re.search(r"\((.*)\)", column)
    return match[1] if match else ""


def _split_rows(rows: pl.DataFrame, every: str) -> Iterator[tuple[datetime, pl.DataFrame]]:
    """The rows from `FROM` on, by month or week, each with its beginning."""
    groups = rows.filter(pl.col("time") >= FROM).group_by_dynamic("time", every=every, start_by="datapoint")
    yield from ((begin, piece) for (begin,), piece in groups)  # type: ignore[misc]


def _stick_for_a_day(month: pl.DataFrame, column: str) -> pl.DataFrame:
    """The month with a column that does not change on its tenth day."""
    is_stuck = pl.int_range(pl.len()).is_between(9 * 24, 10 * 24 - 1)
    return month.with_columns(
        pl.when(is_stuck).then(pl.col(column).get(9 * 24)).otherwise(pl.col(column)).alias(column)
    )


def _count_refusals(
    problem: Problem,
    rows: pl.DataFrame,
    cadence: timedelta,
    corruptions: dict[str, Corruption],
    pieces: list[tuple[datetime, pl.DataFrame]],
) -> dict[str, dict[str, str]]:
    """How many pieces are refused by corruption, by which rules, and which pieces are judged wrongly."""
    refused: dict[str, int] = dict.fromkeys(corruptions, 0)
    rules: dict[str, Counter[str]] = {name: Counter() for name in corruptions}
    mistakes: dict[str, list[str]] = {name: [] for name in corruptions}
    for begin, piece in pieces:
        known = KnownTable(rows.filter(pl.col("time") < begin).lazy(), cadence, first=False)
        for name, corrupt in corruptions.items():
            breached = {breach.rule for breach in find_breaches(problem, corrupt(piece), known)}
            refused[name] += bool(breached)
            rules[name].update(breached)
            if bool(breached) == (name == UNCHANGED):
                mistakes[name].append(f"{begin:%Y-%m-%d}")
    return {
        name: {
            "refused": f"{refused[name]} of {len(pieces)}",
            "by": ", ".join(f"{rule} {count}" for rule, count in rules[name].most_common()),
            "wrong": ", ".join(mistakes[name][:5]) + (" ..." if len(mistakes[name]) > 5 else ""),
        }
        for name in corruptions
    }
