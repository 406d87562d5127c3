"""The report: what a reader sees, in the usual case and at the edges."""

import html
import io
import math
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest

from problems.errors import RecastError
from project.atomic import write_json
from stages.evaluation import leaderboard
from stages.evaluation.bootstrap import Comparison
from stages.evaluation.leaderboard import Evaluation, Fan, Interval, LeaderboardRow, MeasureInfo, Spread
from stages.report.drawing import use_matplotlib
from stages.report.page import render_report
from stages.training.history import Epoch

GRU, LSTM, DENSE = "gru units=32", "lstm units=32", "dense units=64"
LUCKY = "lstm units=64"
SEASONAL = "seasonal_naive days=3"
HOSTILE = "<script>alert('$x_1$')</script> & \"Jena\""


MEASURES = [MeasureInfo("mae", "MAE", "°C", True, False), MeasureInfo("rmse", "RMSE", "°C", True, False)]


def spreads(errors: list[float]) -> dict[str, Spread]:
    """All measures of errors in °C, seed by seed."""
    factors = {"mae": 1.0, "mae_normalized": 1 / 8, "rmse": 1.3, "rmse_normalized": 1.3 / 8}
    return {name: Spread.of([factor * error for error in errors]) for name, factor in factors.items()}


def row(configuration: str, validation: list[float], test: list[float] | None = None, **changes: Any) -> LeaderboardRow:
    """A finished configuration by its MAE in °C, seed by seed; a deviation of the target is 8 °C."""
    row = LeaderboardRow(
        configuration=configuration,
        architecture=configuration.split()[0],
        source="D6, Cho et al. 2014",
        parameters=4513,
        finished_seeds=list(range(len(validation))),
        failed=[],
        selected=test is not None,
        validation=spreads(validation),
        test=spreads(test) if test else {},
        skill=1 - sum(test) / len(test) / 3.0 if test else None,
        intervals=[
            Interval(
                level, Spread.of([2 * reach + error for error in test]), Spread.of([level - 0.01] * len(test)), False
            )
            for level, reach in ((0.5, 1.5), (0.95, 5.0))
        ]
        if test
        else [],
    )
    return replace(row, **changes)


def unfinished(configuration: str, *reasons: str) -> LeaderboardRow:
    return replace(row(configuration, [1.0]), finished_seeds=[], failed=list(reasons), validation={}, parameters=None)


def history(start: float, end: float, epochs: int = 10) -> list[Epoch]:
    errors = [end + (start - end) * math.exp(-epoch / 2) for epoch in range(epochs)]
    return [Epoch(i + 1, error, {"mae": error, "rmse": 1.3 * error}) for i, error in enumerate(errors)]


def comparison(difference: float, low: float, high: float) -> Comparison:
    return Comparison(difference, low, high, level=0.95, better=0.973, block=168, resamples=2000)


def evaluation(**changes: Any) -> Evaluation:
    """Two weeks of hourly forecasts by seven configurations: one did not finish every seed, and one none."""
    rows: list[LeaderboardRow] = changes.pop("rows", None) or [
        row(GRU, [2.40, 2.42, 2.44], [2.441, 2.450, 2.459]),
        row("gru units=16", [2.45, 2.47, 2.46]),
        row(LSTM, [2.46, 2.50], [2.48, 2.50]),
        row(SEASONAL, [2.9], [2.92], source="Hyndman & Athanasopoulos 2021, 5.2", parameters=0),
        row("persistence", [2.95], [3.0], source="D4", parameters=0),
        row(LUCKY, [2.38, 2.39], failed=["seed 2: diverged in epoch 3: the training loss is nan"]),
        unfinished(DENSE, "seed 0: out of memory", "seed 1: out of memory"),
    ]
    selected = [row for row in rows if row.selected]
    hours = np.arange(14 * 24)
    observed = 5 + 4 * np.sin(hours * 2 * np.pi / 24) + 3 * np.sin(hours / 40)
    made = Evaluation(
        problem="jena",
        title="Temperature in Jena, 24 hours ahead",
        target="T (degC)",
        unit="°C",
        synthetic=False,
        split={"kind": "fractions", "train": 0.5, "validation": 0.25},
        window={"lookback": "5d", "step": "1h", "delay": "1d"},
        rows=rows,
        best=GRU,
        runner_up=LSTM,
        comparison=comparison(-0.0401, -0.0702, -0.0103),
        comparison_unit="°C",
        persistence_test=3.0,
        measures=MEASURES,
        leads={},
        lead_names=["1d"],
        confusion={},
        curves={
            row.configuration: {str(seed): history(0.37, 0.3 + seed / 400) for seed in row.finished_seeds}
            for row in selected
            if row.parameters
        },
        hours={row.configuration: [2.4 + math.sin(hour / 4) / 5 for hour in range(24)] for row in selected},
        months={row.configuration: [2.4, 2.5, 2.4, *[None] * 8, 2.6] for row in selected},
        forecasts={
            "time": [str(np.datetime64("2015-01-02T00:10") + np.timedelta64(int(hour), "h")) for hour in hours],
            "observed": observed.tolist(),
            **{row.configuration: (observed + 1 + i / 2).tolist() for i, row in enumerate(selected)},
        },
        forecasts_of="all",
        fans={
            row.configuration: [
                Fan(
                    interval.level,
                    (observed + 1 + i / 2 - interval.width.mean / 2).tolist(),
                    (observed + 1 + i / 2 + interval.width.mean / 2).tolist(),
                )
                for interval in reversed(row.intervals)
            ]
            for i, row in enumerate(selected)
        },
        quality=quality(),
        windows={
            "lookback": 120,
            "step": 1,
            "delay": 23,
            "stride": 1,
            "windows": {"train": 34876, "validation": 17365, "test": 17204},
            "lost_to_gaps": {"train": 143, "validation": 0, "test": 218},
            "lost_to_nulls": {"train": 0, "validation": 31, "test": 0},
            "table": "f" * 64,
        },
    )
    return replace(made, **changes)


def quality(*series: str) -> dict[str, Any]:
    """As stages/ingest.py writes it."""
    one = {
        "first": "2009-01-01 00:10:00",
        "last": "2016-12-31 23:50:00",
        "rows": 70038,
        "duplicates": 6,
        "out_of_order": 2,
        "cadence": "1h",
        "off_cadence": 0,
        "gaps": 1,
        "missing": 75,
        "listed": [{"after": "2016-10-25 09:40:00", "before": "2016-10-28 12:50:00", "missing": 75}],
    }
    return {
        "synthetic": False,
        "files": {"jena.csv": "ab" * 32},
        "rows_read": 70044,
        "rows_kept": 70038,
        "cadence": "1h",
        "cadence_seconds": 3600.0,
        "cadence_declared": False,
        "series": dict.fromkeys(series or ("all",), one),
        "columns": {
            "T (degC)": {"nulls": 0, "sentinels": 0, "min": -23.01, "max": 36.87, "mean": 9.44276},
            "wv (m/s)": {"nulls": 20, "sentinels": 20, "min": 0.0, "max": 13.59, "mean": 2.12846},
        },
    }


def read(page: str) -> str:
    """The page as a reader sees it: without markup, styles and script, spaces made plain."""
    body = page[page.index("<body>") :]
    body = re.sub(r"<(script|svg)\b.*?</\1>", " ", body, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", body)).split())


@pytest.fixture(scope="module")
def usual() -> str:
    return render_report(evaluation())


def table_row(page: str, configuration: str) -> str:
    """A row of the leaderboard as text."""
    rows = re.findall(r"<tr.*?</tr>", page, re.DOTALL)
    text = next(text for text in rows if f">{configuration}</span>" in text)
    return read(f"<body>{text}")


def test_says_what_was_forecast(usual: str):
    text = read(usual)
    assert "Temperature in Jena, 24 hours ahead" in text
    assert "T (degC), in °C" in text
    assert "50 % training, 25 % validation, 25 % test" in text
    assert "5d back, one input every 1h, 1d ahead" in text


@pytest.mark.parametrize(
    ("split", "words"),
    [
        ({"kind": "lecture"}, "as in the lecture"),
        (
            {"kind": "dates", "validation_from": "2015-01-01T00:00:00", "test_from": "2016-01-01T06:00:00"},
            "validation from 2015-01-01, test from 2016-01-01 06:00:00",
        ),
    ],
)
def test_says_how_the_series_is_split(split: dict[str, Any], words: str):
    assert words in read(render_report(evaluation(split=split)))


def test_the_best_its_error_and_its_skill(usual: str):
    text = read(usual)
    assert "Best: gru units=32" in text
    assert (
        "its MAE is 2.450 ± 0.009 °C (mean ± standard deviation over 3 seeds), 18.3 % lower than that of persistence "
        "(3.000 °C): skill score +0.183." in text
    )


@pytest.mark.parametrize(
    ("found", "words", "tile"),
    [
        (
            comparison(-0.0401, -0.0702, -0.0103),
            "It is better than the runner-up, lstm units=32; the difference is significant at the 95 % level: its "
            "error is 0.0401 °C smaller (95 % interval: 0.0103 to 0.0702 °C smaller).",
            "significant",
        ),
        (
            comparison(-0.0401, -0.0902, 0.0103),
            "Its difference from the runner-up, lstm units=32, is not significant at the 95 % level: its error is "
            "0.0401 °C smaller (95 % interval: from 0.0902 °C smaller to 0.0103 °C larger).",
            "not significant",
        ),
        (
            comparison(0.0401, 0.0103, 0.0702),
            "Validation selected it, but on the test rows the runner-up, lstm units=32, is better; the difference is "
            "significant at the 95 % level: the error of the selected one is 0.0401 °C larger (95 % interval: 0.0103 "
            "to 0.0702 °C larger).",
            "significant",
        ),
        (comparison(0.0, 0.0, 0.0), "The runner-up, lstm units=32, has the same errors.", "not significant"),
        (comparison(-5e-7, -9e-7, -1e-7), "The runner-up, lstm units=32, has the same errors.", "not significant"),
    ],
)
def test_the_difference_in_plain_words(found: Comparison, words: str, tile: str):
    text = read(render_report(evaluation(comparison=found)))
    assert words in text
    assert f"Difference between best and runner-up {tile} at the 95 % level" in text


def test_a_lower_test_error_than_that_of_the_chosen_one_is_admitted():
    rows = evaluation().rows
    rows[2] = row(LSTM, [2.46, 2.50], [2.30, 2.32])
    assert "The lowest test MAE is that of lstm units=32 (2.310 °C), but only validation errors select." in read(
        render_report(evaluation(rows=rows))
    )


def test_the_leaderboard_shows_every_configuration(usual: str):
    assert table_row(usual, GRU) == (
        "1 gru units=32 D6, Cho et al. 2014 4,513 3 "
        "2.420 ± 0.020 0.3025 ± 0.0025 3.146 ± 0.026 0.3933 ± 0.0033 "
        "2.450 ± 0.009 0.3062 ± 0.0011 3.185 ± 0.012 0.3981 ± 0.0015 +0.183"
    )
    assert table_row(usual, "gru units=16").endswith(
        "3 2.460 ± 0.010 0.3075 ± 0.0013 3.198 ± 0.013 0.3998 ± 0.0016 – – –"
    )
    assert table_row(usual, "persistence") == (
        "5 persistence D4 0 1 2.950 0.3688 3.835 0.4794 3.000 0.3750 3.900 0.4875 0.000"
    )


def test_what_failed_is_shown_with_its_reason(usual: str):
    assert table_row(usual, LUCKY).startswith(
        "– lstm units=64 not every seed finished D6, Cho et al. 2014 4,513 2 of 3 2.385 ± 0.007"
    )
    assert table_row(usual, DENSE).startswith("– dense units=64 did not finish")
    assert "lstm units=64 seed 2: diverged in epoch 3: the training loss is nan" in read(usual)
    assert "dense units=64 seed 1: out of memory" in read(usual)


def test_no_failure_is_said_too():
    assert "No trial failed." in read(render_report(evaluation(rows=[row(GRU, [2.4, 2.5], [2.4, 2.5])])))


def test_simulated_data_is_said_at_every_table_and_picture():
    page = render_report(evaluation(synthetic=True))
    assert "Simulated data. These rows were generated, not measured" in read(page)
    headed = re.findall(r"<(?:caption|figcaption)>.*?</(?:caption|figcaption)>", page, re.DOTALL)
    assert headed
    assert all("simulated data" in heading for heading in headed)
    pictures = re.findall(r'<svg role="img" aria-label="([^"]*)"', page)
    assert pictures
    assert all(label.startswith("Simulated data. ") for label in pictures)
    assert "imulated" not in read(render_report(evaluation()))


def test_a_chart_for_each_trained_and_each_selected_configuration(usual: str):
    said = re.findall(r'<svg role="img" aria-label="([^"]*)"', usual)
    assert "Validation MAE of gru units=32 by epoch, normalised, for seed 0, 1, 2: lowest 0.3008 in epoch 10" in said
    assert "Forecast of persistence and the observed T (degC): MAE 2.500\xa0°C in this stretch" in said
    assert len([label for label in said if "by epoch" in label]) == 2
    assert len([label for label in said if label.startswith("Forecast of")]) == 4
    assert len([label for label in said if label.startswith("Test MAE by")]) == 3


def test_a_change_of_rank_changes_no_colour():
    def colors(rows: list[LeaderboardRow]) -> set[tuple[str, str]]:
        legend = r'<li>\s*<svg class="swatch".*?stroke="(#\w+)".*?<span class="label">([^<]*)'
        return set(re.findall(legend, render_report(evaluation(rows=rows)), re.DOTALL))

    rows = evaluation().rows
    assert len(colors(rows)) == 4
    assert colors(rows) == colors(rows[::-1])


def test_the_data_with_its_flaws(usual: str):
    text = read(usual)
    assert "70,038 of 70,044 rows read were kept, one every 1h" in text
    assert "train 34,876 143 0" in text
    assert "all 2009-01-01 00:10:00 2016-12-31 23:50:00 70,038 6 2 0 1 75" in text
    assert "2016-10-25 09:40:00 2016-10-28 12:50:00 75" in text
    assert "wv (m/s) 20 20 0 2.12846 13.59" in text
    assert "abababab" in text


def test_several_series(usual: str):
    text = read(render_report(evaluation(quality=quality("EWR", "JFK", "LGA"), forecasts_of="EWR")))
    assert all(f"{name} 2009-01-01 00:10:00" in text for name in ("EWR", "JFK", "LGA"))
    assert "2015-01-02 00:10 to 2015-01-15 23:10: the first of the test windows of the series EWR" in text
    assert "blocks of 168 successive times, each time with the windows of all series" in text
    assert "the first of the test windows, on the table's clock" in read(usual)
    assert "with the windows of all series" not in read(usual)


def test_the_clock_of_hours_and_months_is_said(usual: str):
    assert (
        "on the table's clock: UTC if the times in the source have a time zone, otherwise as the source writes them"
        in read(usual)
    )


def test_nothing_trained():
    text = read(render_report(evaluation(rows=evaluation().rows[3:5], best=SEASONAL, runner_up="persistence")))
    assert "It is a baseline: no trained network was better on validation." in text
    assert "Learning curves" not in text


def test_persistence_is_the_best():
    text = read(
        render_report(
            evaluation(rows=[row("persistence", [2.9], [3.0])], best="persistence", runner_up=None, comparison=None)
        )
    )
    assert "3.000 °C (one trial); it is the reference of the skill score." in text


def test_one_seed_has_no_deviation():
    text = read(render_report(evaluation(rows=[row(GRU, [2.42], [2.45])])))
    assert "its MAE is 2.450 °C (one trial)" in text


def test_nothing_to_compare_with():
    text = read(render_report(evaluation(rows=evaluation().rows[:2], runner_up=None, comparison=None)))
    assert "There is no other architecture to compare it with." in text
    assert "significant" not in text


def test_nothing_finished():
    rows = [unfinished(DENSE, "seed 0: killed")]
    page = render_report(evaluation(rows=rows, best=None, runner_up=None, comparison=None))
    assert "No configuration finished" in read(page)
    assert "dense units=64 seed 0: killed" in read(page)
    assert 'role="img"' not in page


def test_nothing_finished_with_every_seed():
    rows = [row(LUCKY, [2.38], failed=["seed 1: killed"]), unfinished(DENSE, "seed 0: killed")]
    text = read(render_report(evaluation(rows=rows, best=None, runner_up=None, comparison=None)))
    assert "No configuration finished with every seed" in text
    assert "so none is ranked or tested" in text


def test_no_other_architecture_finished_with_every_seed():
    rows = [row(GRU, [2.4], [2.4]), row(LUCKY, [2.3], failed=["seed 1: killed"])]
    text = read(render_report(evaluation(rows=rows, runner_up=None, comparison=None)))
    assert "No other architecture finished with every seed, so there is nothing to compare it with." in text


def test_intervals_their_coverage_and_width(usual: str):
    text = read(usual)
    assert "94.0 %" in text.replace("\N{NO-BREAK SPACE}", " "), "of the level 0.95, on test"
    assert "12.450 ± 0.009" in text, "twice 5 and the test MAE, mean and deviation over seeds"


def test_without_intervals_there_is_no_word_of_them():
    bare = [replace(row, intervals=[]) for row in evaluation().rows]
    assert "Interval" not in read(render_report(evaluation(rows=bare)))


def test_a_perfect_persistence_has_no_skill():
    perfect = [row(GRU, [0.1], [0.1], skill=None)]
    assert "persistence has no error on these rows" in read(
        render_report(evaluation(rows=perfect, persistence_test=0.0))
    )


def broken(page: str) -> int:
    """In how many pieces the first forecast is drawn."""
    strip = page[page.index('aria-label="Forecast of') :]
    return max(path.count("M ") for path in re.findall(r'<path d="[^"]*"', strip[: strip.index("</svg>")]))


def test_a_hole_in_the_forecasts_is_not_bridged():
    made = evaluation()
    whole = render_report(made)
    holed = {name: values[:100] + values[160:] for name, values in made.forecasts.items()}

    assert broken(render_report(replace(made, forecasts=holed, fans={}))) == broken(whole) + 1


def test_a_forecast_between_two_holes_is_seen():
    made = evaluation()
    made = replace(made, rows=[replace(row, intervals=[]) for row in made.rows])  # whose shapes are no dots
    kept = [*range(100), 130, *range(160, 336)]
    holed = {name: [values[i] for i in kept] for name, values in made.forecasts.items()}

    def dots(page: str) -> int:
        strip = page[page.index('aria-label="Forecast of') :]
        return strip[: strip.index("</svg>")].count("<use ")

    assert dots(render_report(replace(made, forecasts=holed, fans={}))) == 2, "the observed one and the forecast"
    assert dots(render_report(replace(made, fans={}))) == 0


@pytest.mark.parametrize("cadence", ["100ms", "1s", "1m"])
def test_a_short_cadence_makes_no_holes(cadence: str):
    """Times in the strip are as fine as the rows."""
    step = {"100ms": np.timedelta64(100, "ms"), "1s": np.timedelta64(1, "s"), "1m": np.timedelta64(1, "m")}[cadence]
    made = evaluation()
    times = np.datetime64("2015-01-01T00:00:00.000") + np.arange(336) * step
    seconds = step / np.timedelta64(1, "s")
    page = render_report(
        replace(
            made,
            forecasts=made.forecasts | {"time": times.astype(str).tolist()},
            fans={},
            quality=made.quality | {"cadence_seconds": seconds},
        )
    )
    assert broken(page) == broken(render_report(made))


@pytest.mark.parametrize("field", ["problem", "title", "target", "unit"])
def test_text_is_text(field: str):
    page = render_report(evaluation(**{field: HOSTILE}))
    assert HOSTILE in read(page)
    assert "<script>alert" not in page


def test_names_in_charts_are_text():
    name = f"gru units={HOSTILE}"
    rows = [row(name, [2.4, 2.5], [2.4, 2.5], failed=[f"seed 2: {HOSTILE}"])]
    page = render_report(evaluation(rows=rows, best=name, runner_up=name))
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert('$x_1$')&lt;/script&gt;" in page


def test_the_page_needs_no_network(usual: str):
    namespaces = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert set(re.findall(r"https?://[^\"'\s<)]+", usual)) <= namespaces
    assert all(link.startswith(("#", "data:")) for link in re.findall(r'(?:href|src)="([^"]*)"', usual))
    assert all(link.startswith("#") for link in re.findall(r"url\(([^)]*)\)", usual))


def test_identifiers_are_unique(usual: str):
    identifiers = re.findall(r'\sid="([^"]*)"', usual)
    assert len(identifiers) == len(set(identifiers))


def test_the_same_evaluation_gives_the_same_bytes():
    page = render_report(evaluation())
    with matplotlib.rc_context({"lines.linewidth": 9, "timezone": "Asia/Tokyo", "svg.fonttype": "path"}):
        assert render_report(evaluation()) == page


def test_drawing_in_two_threads_gives_the_same_pictures():
    """As when the evaluations of two problems run side by side, and one logs learning curves."""
    from stages.tracking.trial_run import draw_learning_curve

    def curve() -> bytes:
        file = io.BytesIO()
        with use_matplotlib():
            draw_learning_curve("gru units=32 $x_1$ seed=0", history(0.4, 0.3)).savefig(file, format="rgba")
        return file.getvalue()

    def page() -> bytes:
        return render_report(evaluation()).encode()

    alone = [page(), curve()]
    with ThreadPoolExecutor(4) as threads:
        pages = [threads.submit(page) for _ in range(2)]
        curves = [threads.submit(curve) for _ in range(8)]
    assert all(future.result() == alone[0] for future in pages)
    assert all(future.result() == alone[1] for future in curves)


def test_a_leaderboard_of_another_version_is_named(tmp_path: Path):
    folder = tmp_path / "jena"
    write_json(folder / "leaderboard.json", {**asdict(evaluation()), "rows": [{"configuration": GRU}]})
    with pytest.raises(
        RecastError, match=r"written by another version of Recast, or is damaged \(rows\.0\..*recast run jena"
    ):
        leaderboard.read_leaderboard(folder)
    write_json(folder / "leaderboard.json", asdict(evaluation()))
    assert leaderboard.read_leaderboard(folder) == evaluation()
    assert leaderboard.read_leaderboard(tmp_path / "nyc") is None


def test_a_long_stretch_keeps_the_page_light():
    n = 30_000
    noise = np.random.default_rng(0).normal(size=n)
    time = (np.datetime64("2015-01-01T00:00") + np.arange(n) * np.timedelta64(1, "h")).astype(str).tolist()
    forecasts = {"time": time, "observed": noise.tolist()} | dict.fromkeys([GRU, LSTM, SEASONAL], (noise + 1).tolist())
    assert len(render_report(evaluation(forecasts=forecasts, fans={}))) < 1_500_000
