"""A problem for a file of anyone's: the section of params.yaml that seems right, tried on the file by the stages."""

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq

from problems.errors import RecastError
from problems.problem import Problem
from problems.source import TimeZone, written
from problems.table import files, link_only
from project.settings.loading import overlay_settings
from project.settings.parsing import parse_settings
from stages.ingest import Quality, ingest
from stages.normalize import normalize
from stages.table_discovery.columns import Inspection, inspect, unit_of
from stages.window import window

SPLIT = {"train": 0.7, "validation": 0.15}
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
REGULAR = 0.7
"""The share of rows that must follow the one before by the cadence: of business days, with gaps at weekends, 0.8 do."""


@dataclass(frozen=True)
class Proposal:
    """A problem that runs.

    Attributes:
        section: as it is to be written under `problems`.
        guesses: what to say beside a key, by its place in the section.
        questions: what could not be told for certain.
        quality: of the rows.
        windows: how many there are, by split.
    """

    name: str
    section: dict[str, Any]
    guesses: dict[tuple[str, ...], str]
    inspection: Inspection
    quality: Quality
    windows: dict[str, int]
    questions: list[str] = field(default_factory=list)


def propose(
    path: str,
    name: str | None = None,
    target: str | None = None,
    unit: str | None = None,
    time: Sequence[str] = (),
    series: str | None = None,
    time_zone: str | None = None,
) -> Proposal:
    """Look at a file, a folder of them or a pattern, and try the stages on it up to its windows.

    Args:
        name: of the problem; None: from the file's name.
        target: the column to forecast; None: the only number, or the first of several, and a question.
        unit: of the target; None: from the column's name.
        time, series: see `inspect`.
        time_zone: of times that are written without one; None: UTC.

    Raises:
        RecastError: the file cannot be read as a table of a problem; the message names the place and the mend.
    """
    found = inspect(path, time, series, target)
    name = name or _name(files(path, "FILE")[0] if len(files(path, "FILE")) == 1 else Path(path))
    questions = [*found.questions]
    guesses: dict[tuple[str, ...], str] = {}
    if target is None:
        target = found.numbers[0]
        if len(found.numbers) > 1:
            others = ", ".join(each for each in found.numbers if each != target)
            guesses["table", "target"] = f"a guess; it could also be {others}"
            questions.append(f"Is {target!r} what is to be forecast? It could also be {others} (--target)")
    elif target not in found.numbers:
        raise RecastError(f"--target {target!r} is no column of numbers; those are {', '.join(found.numbers)}")
    if unit is None and (unit := unit_of(target)) is None:
        unit = ""
        guesses["table", "unit"] = f"what is {target} measured in?"
        questions.append(f"In which unit is {target!r}? (--unit)")
    for column, values in found.sentinels.items():
        shown = ", ".join(f"{value:g}" for value in values)
        questions.append(f"Does {shown} in {column!r} stand for a missing value? (table.sentinels)")
    if time_zone is not None:
        try:
            TypeAdapter(TimeZone).validate_python(time_zone)
        except ValidationError as error:
            raise RecastError(f"--time-zone {time_zone!r}: {error.errors()[0]['msg']}") from None
        found.source.update(time_zone=time_zone, repeated_hour="in order")
        guesses["source", "repeated_hour"] = "when the clock is set back, the row that stands first is the earlier"
    section: dict[str, Any] = {
        "title": "",
        "source": found.source,
        "table": {"features": found.numbers, "target": target, "unit": unit},
        "split": SPLIT,
        "window": {"lookback": "1d", "step": "1d", "delay": "1d"},
    }
    if found.sentinels:
        section["table"]["sentinels"] = found.sentinels
    with tempfile.TemporaryDirectory() as scratch:
        return _tried(name, section, guesses, questions, found, Path(scratch))


def _name(path: Path) -> str:
    stem = path.name.partition(".")[0] if path.suffix else path.name
    return re.sub(r"[^a-z0-9]+", "_", stem.lower()).strip("_") or "table"


def _tried(
    name: str,
    section: dict[str, Any],
    guesses: dict[tuple[str, ...], str],
    questions: list[str],
    found: Inspection,
    scratch: Path,
) -> Proposal:
    """The section with all that depends on the cadence, after the stages have run on it in the folder `scratch`."""
    store, ingested, normalized, windowed = (scratch / part / name for part in ("raw", "ingest", "normalize", "window"))
    for folder in (store, ingested.parent, normalized.parent, windowed.parent):
        folder.mkdir(parents=True)
    link_only(store, files(section["source"]["path"], "FILE"))
    quality = ingest(Problem.model_validate(section), store, ingested)
    cadence = timedelta(seconds=quality.cadence_seconds)
    _check_regular(section["source"]["path"], quality, cadence)
    if repeated := sum(each.duplicates for each in quality.series.values()):
        questions.append(
            f"Rows that repeat a time: {repeated:,}; the first of each is kept. Is that right? Several series may be "
            "mixed (--series), or a clock may have been set back (--time-zone)"
        )
    section["table"]["fill"] = written(3 * cadence)
    shortest = min(each.rows for each in quality.series.values()) * cadence * SPLIT["train"]
    section["table"] |= _seasons(cadence, shortest)
    lookback, step, delay = _lengths(cadence)
    while True:
        section["window"] = {"lookback": written(lookback), "step": written(step), "delay": written(delay)}
        section["title"] = f"{section['table']['target']}, {written(delay)} ahead"
        problem = Problem.model_validate(section)
        normalize(problem, "standard", ingested, normalized)
        try:
            windows = window(problem, 1, normalized, windowed).windows
        except RecastError:
            # Rows are missing too often for windows as long as this.
            if max(lookback, delay) == step:
                raise
            lookback, delay = (max(each // 2 // step, 1) * step for each in (lookback, delay))
            continue
        break
    guesses["window",] = "guesses"
    questions.append(
        f"How far ahead is to be forecast, and from how far back? Taken: {written(delay)} from {written(lookback)}, in "
        f"steps of {written(step)} (window)"
    )
    return Proposal(name, section, guesses, found, quality, windows, questions)


def _check_regular(path: str, quality: Quality, cadence: timedelta) -> None:
    """
    Raises:
        RecastError: the rows do not come at equal steps.
    """
    rows = sum(each.rows for each in quality.series.values())
    odd = sum(each.gaps + each.off_cadence for each in quality.series.values())
    if odd > (1 - REGULAR) * rows:
        raise RecastError(
            f"{path}: the rows come at unequal steps: most often every {written(cadence)}, but {odd / rows:.0%} do "
            "not (months are of unequal length too). Recast forecasts from rows at equal steps: bring the table to "
            "some first"
        )


def _seasons(cadence: timedelta, trained: timedelta) -> dict[str, Any]:
    """Harmonics of the time: of a day where rows are hours apart, of a year where half of one is trained on."""
    day = 2 if cadence <= 3 * HOUR else 1 if cadence < 12 * HOUR else 0
    year = 2 if trained >= 730 * DAY else 1 if trained >= 180 * DAY else 0
    climatology = {"climatology": {"year": year, "day": day}}
    return climatology | ({"calendar": {"year": min(year, 1), "day": min(day, 1)}} if year or day else {})


def _lengths(cadence: timedelta) -> tuple[timedelta, timedelta, timedelta]:
    """How far back, in which steps and how far ahead, as is usual for rows that far apart."""
    for longest, lookback, delay in (
        (29 * MINUTE, DAY, HOUR),
        (3 * HOUR, 5 * DAY, DAY),
        (12 * HOUR, 14 * DAY, DAY),
        (DAY, 28 * DAY, 7 * DAY),
        (7 * DAY, 364 * DAY, 28 * DAY),
    ):
        if cadence <= longest:
            # At most 288 steps: rows of a minute are read every fifth.
            step = cadence * max(1, -(-5 * MINUTE // cadence))
            delay = max(round(delay / step), 1) * step
            return max(round(lookback / step), 1) * step, step, delay
    return 24 * cadence, cadence, cadence


def write(proposal: Proposal, settings: Path) -> None:
    """Add the problem to the file of the settings, guesses as comments, and to what the pipeline runs.

    Raises:
        RecastError: the file declares a problem of that name, or is no settings. Nothing is written then.
    """
    declared = parse_settings(settings)
    if proposal.name in declared.problems:
        raise RecastError(f"{settings}: problems.{proposal.name} is there already; choose another --name, or remove it")
    yaml = YAML()
    section = _commented(proposal.section)
    for (*outer, key), guess in proposal.guesses.items():
        inner = section
        for each in outer:
            inner = inner[each]
        inner.yaml_add_eol_comment(guess, key)
    with tempfile.TemporaryDirectory() as scratch:
        part = Path(scratch) / f"{proposal.name}.yaml"
        with part.open("w", encoding="utf-8") as out:
            yaml.dump({"run": _commented([*declared.run, proposal.name]), "problems": {proposal.name: section}}, out)
        overlay_settings(part, settings)


def _commented(value: Any) -> Any:
    """Mappings that can hold comments; lists and small mappings in one line."""
    if isinstance(value, dict):
        mapping = CommentedMap({key: _commented(each) for key, each in value.items()})
        if len(str(value)) < 80 and not any(isinstance(each, dict) for each in value.values()):
            mapping.fa.set_flow_style()
        return mapping
    if isinstance(value, list | tuple):
        listed = CommentedSeq(value)
        listed.fa.set_flow_style()
        return listed
    return value
