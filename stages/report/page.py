"""The report: an evaluation as one HTML page, which needs no network and no other files.

The page is an output of DVC, so the same evaluation gives the same bytes: the page has no date and no random
identifiers, and a user's matplotlibrc does not affect its charts.
"""

from pathlib import Path
from typing import Any

from markupsafe import Markup

from problems.errors import RecastError
from project.atomic import replace_file
from stages.evaluation.leaderboard import Evaluation, Spread, read_leaderboard
from stages.evaluation.number_format import choose_decimals, format_number, format_percent, format_signed
from stages.evaluation.phrasing import choose_error_decimals, phrase_verdict
from stages.report.charts import (
    MONTHS,
    draw_confusions,
    draw_forecasts,
    draw_groups,
    draw_leads,
    draw_learning_curves,
    draw_seeds,
)
from stages.report.drawing import use_matplotlib
from stages.report.figures import (
    CHART_STYLE,
    assign_line_styles,
)
from stages.report.pictures import NetworkPictures
from stages.report.templates import load_template
from stages.sequences.ingest import SequenceQuality

MAX_LISTED_GAPS = 100


def render_report(evaluation: Evaluation, pictures: NetworkPictures | None = None) -> str:
    """The report as an HTML page; the same evaluation gives the same bytes.

    Args:
        pictures: the pictures of the networks; None: the page says how to draw them.
    """
    lines = assign_line_styles(evaluation.rows)
    template = load_template("report.html.jinja", Path(__file__).parent)
    with use_matplotlib(CHART_STYLE):
        return template.render(
            evaluation=evaluation,
            verdict=phrase_verdict(evaluation),
            best=evaluation.find_row(evaluation.best),
            split=_describe_split(evaluation.split),
            lines=lines,
            decimals=choose_error_decimals(evaluation),
            leads=draw_leads(evaluation, lines),
            confusions=draw_confusions(evaluation, lines),
            curves=draw_learning_curves(evaluation, lines),
            seeds=draw_seeds(evaluation, lines),
            hours=draw_groups(evaluation, "hour of day", [str(hour) for hour in range(24)], evaluation.hours, lines),
            months=draw_groups(evaluation, "month", MONTHS, evaluation.months, lines),
            forecasts=draw_forecasts(evaluation, lines),
            pictures=pictures,
            gaps=_list_gaps(evaluation.quality),
            max_listed_gaps=MAX_LISTED_GAPS,
            sequences=SequenceQuality(**evaluation.quality).described if "sequences" in evaluation.quality else "",
            choose_decimals=choose_decimals,
            format_number=format_number,
            format_signed=format_signed,
            format_percent=format_percent,
            format_significant=_format_significant,
            format_spread=_format_spread,
        )


def rewrite_report(evaluated: Path) -> Path:
    """Write the report of an evaluation again, from its leaderboard; return its file.

    Args:
        evaluated: the folder of the stage `evaluate`.

    Raises:
        RecastError: the stage has not run, or another version of Recast wrote the leaderboard.
    """
    evaluation = read_leaderboard(evaluated)
    if evaluation is None:
        raise RecastError(f"{evaluated} has no leaderboard.json, so there is nothing to report: recast run")
    with replace_file(evaluated / "report.html") as temporary:
        temporary.write_text(render_report(evaluation), encoding="utf-8")
    return evaluated / "report.html"


def _describe_split(split: dict[str, Any]) -> str:
    """How the rows are split, in words."""
    match split:
        case {"kind": "lecture"}:
            return "as in the lecture"
        case {"kind": "fractions", "train": train, "validation": validation}:
            parts = (f"{100 * part:.4g}" for part in (train, validation, 1 - train - validation))
            return "{} % training, {} % validation, {} % test".format(*parts).replace(" %", "\N{NO-BREAK SPACE}%")
        case {"kind": "given", "validation": share}:
            if share is None:
                return "as in the source"
            return (
                f"as in the source; where it has no validation sequences, {format_percent(share)} of the training "
                "sequences are used for validation"
            )
        case {"kind": "dates", "validation_from": validation, "test_from": test}:
            first, last = split.get("train_from"), split.get("test_until")
            training = f"training from {_format_time(first)}, " if first else ""
            end = f" until {_format_time(last)}" if last else ""
            return f"{training}validation from {_format_time(validation)}, test from {_format_time(test)}{end}"
        case {"kind": "recent", "train": train, "validation": validation, "test": test}:
            training = f"the {train} before that" if train else "all rows before that"
            return f"the last {test} for test, the {validation} before that for validation, {training} for training"
    return ", ".join(f"{name} {value}" for name, value in split.items())


def _format_time(text: str) -> str:
    """An ISO time as people read it; midnight is shown as a date."""
    return text.replace("T", " ").removesuffix("Z").removesuffix(" 00:00:00")


def _format_significant(value: float) -> str:
    """A number of any size with at most six significant digits."""
    return f"{value:.6g}".replace("-", "\N{MINUS SIGN}")


def _format_spread(spread: Spread, digits: int) -> Markup:
    """Mean and deviation as a line in a table's cell; the style aligns the means of a column."""
    deviation = "" if spread.deviation is None else f"± {format_number(spread.deviation, digits)}"
    return Markup('{} <span class="deviation">{}</span>').format(format_number(spread.mean, digits), deviation)


def _list_gaps(quality: dict[str, Any]) -> list[dict[str, Any]]:
    """The gaps that `ingest` listed, with their series."""
    series = quality.get("series", {})
    return [{"series": name, **gap} for name, summary in series.items() for gap in summary["listed"]]
