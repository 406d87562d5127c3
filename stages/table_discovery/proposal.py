"""A problem proposed for a file: the section of params.yaml that seems right, after the stages have run on it."""

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

from problems.columns import Harmonics
from problems.durations import format_duration
from problems.errors import RecastError
from problems.files.raw_store import replace_with_links
from problems.files.tables import find_data_files
from problems.problem import Problem
from problems.source import TimeZone
from problems.wording import shorten
from project.settings.loading import overlay_settings
from project.settings.parsing import parse_settings
from project.settings.sections import MAX_NAME_CHARACTERS, ProblemName
from stages.ingest import ingest
from stages.normalize import make_climatology_error, normalize
from stages.table_discovery.columns import parse_unit
from stages.table_discovery.inspection import Inspection, inspect_file
from stages.tables.quality import Quality
from stages.tables.seasons import YEAR, measure_seasons, measure_training_time
from stages.tables.table import read_observed
from stages.window import window

SPLIT = {"train": 0.7, "validation": 0.15}
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
REGULAR_SHARE = 0.7
"""The share of rows that must follow the row before by one cadence. Of business days, with gaps at weekends, 0.8 do."""


@dataclass(frozen=True)
class Proposal:
    """A proposed problem, on which the stages up to `window` have run.

    Attributes:
        section: the problem's section under `problems`.
        guesses: comments on keys whose values are guesses, by the path of the key in the section.
        inspection: what was found in the file.
        quality: the report on the rows' quality.
        windows: number of windows, by split.
        questions: what could not be decided for certain, and what was assumed.
    """

    name: str
    section: dict[str, Any]
    guesses: dict[tuple[str, ...], str]
    inspection: Inspection
    quality: Quality
    windows: dict[str, int]
    questions: list[str] = field(default_factory=list)


def propose_problem(
    path: str,
    name: str | None = None,
    target: str | None = None,
    unit: str | None = None,
    time: Sequence[str] = (),
    series: str | None = None,
    time_zone: str | None = None,
) -> Proposal:
    """Inspect a file, a folder of files or a pattern, and run the stages up to `window` on it.

    Args:
        name: the problem's name; None: derived from the file's name.
        target: the column to forecast; None: the first column of numbers, and a question if there are several.
        unit: the target's unit; None: derived from the column's name.
        time, series: see `inspect_file`.
        time_zone: the time zone of times that are written without one; None: UTC.

    Raises:
        RecastError: the file cannot be read as the table of a problem; the message names the place and the fix.
    """
    if name is not None:
        _check_name(name)
    inspection = inspect_file(path, time, series, target)
    name = name or _derive_name(
        find_data_files(path, "FILE")[0] if len(find_data_files(path, "FILE")) == 1 else Path(path)
    )
    questions = [*inspection.questions]
    guesses: dict[tuple[str, ...], str] = {}
    if target is None:
        target = inspection.numbers[0]
        if len(inspection.numbers) > 1:
            others = ", ".join(column for column in inspection.numbers if column != target)
            guesses["table", "target"] = f"a guess; it could also be {others}"
            questions.append(f"Is {target!r} the column to forecast? It could also be {others} (--target)")
    elif target not in inspection.numbers:
        raise RecastError(
            f"--target {target!r} is not a column of numbers; the columns of numbers are "
            f"{', '.join(inspection.numbers)}"
        )
    if unit is None and (unit := parse_unit(target)) is None:
        unit = ""
        guesses["table", "unit"] = f"what unit is {target} in?"
        questions.append(f"What unit is {target!r} in? (--unit)")
    for column, values in inspection.sentinels.items():
        sentinels = ", ".join(f"{value:g}" for value in values)
        questions.append(f"Does {sentinels} in {column!r} stand for a missing value? (table.sentinels)")
    if time_zone is not None:
        try:
            TypeAdapter(TimeZone).validate_python(time_zone)
        except ValidationError as error:
            raise RecastError(f"--time-zone {time_zone!r}: {error.errors()[0]['msg']}") from None
        inspection.source.update(time_zone=time_zone, repeated_hour="in order")
        guesses["source", "repeated_hour"] = "when the clock is set back, the row that comes first is the earlier one"
    section: dict[str, Any] = {
        "title": "",
        "source": inspection.source,
        "table": {"features": inspection.numbers, "target": target, "unit": unit},
        "split": SPLIT,
        "window": {"lookback": "1d", "step": "1d", "delay": "1d"},
    }
    if inspection.sentinels:
        section["table"]["sentinels"] = inspection.sentinels
    with tempfile.TemporaryDirectory() as scratch:
        return _try_section(name, section, guesses, questions, inspection, Path(scratch))


def _derive_name(path: Path) -> str:
    """A problem's name from that of its file."""
    stem = path.name.partition(".")[0] if path.suffix else path.name
    return re.sub(r"[^a-z0-9]+", "_", stem.lower()).strip("_")[:MAX_NAME_CHARACTERS] or "table"


def _check_name(name: str) -> None:
    """Check the name of a problem.

    Raises:
        RecastError: params.yaml cannot have a problem of this name.
    """
    try:
        TypeAdapter(ProblemName).validate_python(name)
    except ValidationError:
        raise RecastError(
            f"--name {shorten(name)!r}: write at most {MAX_NAME_CHARACTERS} small letters, digits and _, because it "
            "names folders"
        ) from None


def _try_section(
    name: str,
    section: dict[str, Any],
    guesses: dict[tuple[str, ...], str],
    questions: list[str],
    inspection: Inspection,
    scratch: Path,
) -> Proposal:
    """Run the stages on the section in the folder `scratch`, and add the settings that depend on the cadence."""
    store, ingested, normalized, out = (scratch / part / name for part in ("raw", "ingest", "normalize", "window"))
    for folder in (store, ingested.parent, normalized.parent, out.parent):
        folder.mkdir(parents=True)
    replace_with_links(store, find_data_files(section["source"]["path"], "FILE"))
    quality = ingest(Problem.model_validate(section), store, ingested)
    cadence = timedelta(seconds=quality.cadence_seconds)
    _check_regular(section["source"]["path"], quality, cadence)
    if repeated := sum(series.duplicates for series in quality.series.values()):
        questions.append(
            f"Rows that repeat a time: {repeated:,}; the first of each time is kept. Is that right? Several series may "
            "be mixed (--series), or a clock may have been set back (--time-zone)"
        )
    section["table"]["fill"] = format_duration(3 * cadence)
    section["table"] |= _describe_harmonics(0, cadence)
    _normalize_declared_columns(Problem.model_validate(section), ingested, normalized)
    lookback, step, delay = _choose_lengths(cadence)
    while True:
        section["window"] = {
            "lookback": format_duration(lookback),
            "step": format_duration(step),
            "delay": format_duration(delay),
        }
        section["title"] = f"{section['table']['target']}, {format_duration(delay)} ahead"
        try:
            windows = window(Problem.model_validate(section), 1, normalized, out).windows
        except RecastError:
            # Rows are missing too often for windows of this length.
            if max(lookback, delay) == step:
                raise
            lookback, delay = (max(length // 2 // step, 1) * step for length in (lookback, delay))
            continue
        break
    trained = measure_training_time(normalized)
    year = _choose_year(cadence, trained, normalized, out)
    section["table"] |= _describe_harmonics(year, cadence)
    if not year:
        guesses["table", "climatology"] = f"no yearly cycle: {_explain_no_year(trained)}"
    guesses["window",] = "guesses"
    questions.append(
        f"How far ahead should Recast forecast, and from how far back? Assumed: {format_duration(delay)} "
        f"from {format_duration(lookback)}, in steps of {format_duration(step)} (window)"
    )
    return Proposal(name, section, guesses, inspection, quality, windows, questions)


def _normalize_declared_columns(problem: Problem, ingested: Path, out: Path) -> None:
    """Normalize the table without the calendar and the climatology, which decide no window and take most of the time.

    Raises:
        RecastError: `normalize` would refuse the whole problem.
    """
    declared = problem.table.model_copy(update={"calendar": None, "climatology": None})
    table = normalize(problem.model_copy(update={"table": declared}), "standard", ingested, out)
    observed_N = read_observed(out)
    for series in table.series:
        if problem.table.climatology and not observed_N[series.first : series.first + series.train].any():
            raise make_climatology_error(series.name, problem.table.target, out.name)


def _check_regular(path: str, quality: Quality, cadence: timedelta) -> None:
    """Check that the rows come at equal steps.

    Raises:
        RecastError: too many of them do not.
    """
    rows = sum(series.rows for series in quality.series.values())
    irregular = sum(series.gaps + series.off_cadence for series in quality.series.values())
    if irregular > (1 - REGULAR_SHARE) * rows:
        raise RecastError(
            f"{path}: the rows come at unequal steps: most often every {format_duration(cadence)}, but "
            f"{irregular / rows:.0%} do not (months differ in length too). Recast forecasts from rows at equal steps; "
            "resample the table to equal steps first"
        )


def _describe_harmonics(year: int, cadence: timedelta) -> dict[str, Any]:
    """The settings of climatology and calendar.

    Args:
        year: the harmonics of a year.
    """
    day = _choose_day(cadence)
    climatology = {"climatology": {"year": year, "day": day}}
    return climatology | ({"calendar": {"year": min(year, 1), "day": min(day, 1)}} if year or day else {})


def _choose_day(cadence: timedelta) -> int:
    return 2 if cadence <= 3 * HOUR else 1 if cadence < 12 * HOUR else 0


def _choose_year(cadence: timedelta, trained: timedelta, normalized: Path, windowed: Path) -> int:
    """The harmonics of a year that describe the validation rows best; 0 where the training rows do not teach the cycle.

    The rows have to show it as a whole: otherwise the waves oscillate freely after them, and may hit the validation
    rows by chance.

    Args:
        trained: the time that the training rows cover.
    """
    day = _choose_day(cadence)
    errors = {
        year: measure_seasons(Harmonics(year=year, day=day), normalized, windowed)
        for year in range(min(trained // YEAR, 2) + 1)
    }
    usable = {year: error for year, error in errors.items() if error and not (year and error.is_misleading)}
    return min(usable, key=lambda year: usable[year].climatology, default=0)


def _explain_no_year(trained: timedelta) -> str:
    return (
        "the training rows cover less than a year"
        if trained < YEAR
        else "it describes the validation rows worse than the mean of the training rows"
    )


def _choose_lengths(cadence: timedelta) -> tuple[timedelta, timedelta, timedelta]:
    """Lookback, step and delay of the windows, as is usual for this cadence."""
    for longest, lookback, delay in (
        (29 * MINUTE, DAY, HOUR),
        (3 * HOUR, 5 * DAY, DAY),
        (12 * HOUR, 14 * DAY, DAY),
        (DAY, 28 * DAY, 7 * DAY),
        (7 * DAY, 364 * DAY, 28 * DAY),
    ):
        if cadence <= longest:
            # At most 288 steps: of rows every minute, a window has every fifth.
            step = cadence * max(1, -(-5 * MINUTE // cadence))
            delay = max(round(delay / step), 1) * step
            return max(round(lookback / step), 1) * step, step, delay
    return 24 * cadence, cadence, cadence


def write_proposal(proposal: Proposal, settings: Path) -> None:
    """Add the problem to the settings file, with guesses as comments, and to the problems that the pipeline runs.

    Raises:
        RecastError: the file already declares a problem of that name, or it is not a valid settings file. Then nothing
            is written.
    """
    declared = parse_settings(settings)
    if proposal.name in declared.problems:
        raise RecastError(f"{settings}: problems.{proposal.name} exists already; choose another --name, or remove it")
    yaml = YAML()
    section = _make_commented(proposal.section)
    for (*outer, key), guess in proposal.guesses.items():
        inner = section
        for outer_key in outer:
            inner = inner[outer_key]
        inner.yaml_add_eol_comment(guess, key)
    with tempfile.TemporaryDirectory() as scratch:
        part = Path(scratch) / f"{proposal.name}.yaml"
        with part.open("w", encoding="utf-8") as out:
            yaml.dump(
                {"run": _make_commented([*declared.run, proposal.name]), "problems": {proposal.name: section}}, out
            )
        overlay_settings(part, settings)


def _make_commented(value: Any) -> Any:
    """The value as YAML that can hold comments, with lists and small mappings on one line."""
    if isinstance(value, dict):
        mapping = CommentedMap({key: _make_commented(inner) for key, inner in value.items()})
        if len(str(value)) < 80 and not any(isinstance(inner, dict) for inner in value.values()):
            mapping.fa.set_flow_style()
        return mapping
    if isinstance(value, list | tuple):
        sequence = CommentedSeq(value)
        sequence.fa.set_flow_style()
        return sequence
    return value
