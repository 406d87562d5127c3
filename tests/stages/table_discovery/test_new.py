"""`recast new`: the problem that it proposes for any file, and its messages where it cannot propose one."""

import gzip
import itertools
import math
import os
import random
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from problems.errors import RecastError
from problems.problem import Problem
from project.settings.parsing import parse_settings
from stages.ingest import ingest
from stages.table_discovery.columns import parse_unit
from stages.table_discovery.inspection import SAMPLE_ROWS, inspect_file
from stages.table_discovery.proposal import Proposal, propose_problem
from tests.support.checkout import Checkout

START = datetime(2019, 11, 27)
HOUR = timedelta(hours=1)


def make_csv(
    rows: int = 400,
    step: timedelta = HOUR,
    written: str = "%Y-%m-%d %H:%M:%S",
    header: str = "when,level,flow",
    separator: str = ",",
) -> str:
    """A CSV file of the time and two numbers."""
    lines = [header]
    for i in range(rows):
        values = (f"{math.sin(i / 7):.3f}", f"{i % 13 * 1.5:.1f}")
        lines.append(separator.join([(START + i * step).strftime(written), *values]))
    return "\n".join(lines) + "\n"


def propose_for(folder: Path, text: str | bytes, name: str = "river.csv", **keys: Any) -> Proposal:
    file = folder / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return propose_problem(str(file), **keys)


def get_refusal(folder: Path, text: str | bytes, **keys: Any) -> str:
    with pytest.raises(RecastError) as raised:
        propose_for(folder, text, **keys)
    return str(raised.value)


def test_a_plain_file_wants_no_more_than_its_path(tmp_path: Path) -> None:
    proposal = propose_for(tmp_path, make_csv())
    assert proposal.name == "river"
    assert proposal.section["source"] == {"kind": "table", "path": str(tmp_path / "river.csv"), "time": "when"}
    assert proposal.section["table"]["features"] == ["level", "flow"]
    assert proposal.section["table"]["target"] == "level"
    assert proposal.section["window"] == {"lookback": "30h", "step": "1h", "delay": "6h"}, "more is not there to test"
    assert proposal.windows["test"] == 60 - 30 - 6 + 1
    assert any(
        "Is 'level' the column to forecast? It could also be flow" in question for question in proposal.questions
    )
    assert any("What unit" in question for question in proposal.questions)


def test_what_is_said_is_not_asked(tmp_path: Path) -> None:
    proposal = propose_for(tmp_path, make_csv(), target="flow", unit="m³/s", name="river.csv")
    assert proposal.section["table"]["target"] == "flow"
    assert proposal.section["table"]["unit"] == "m³/s"
    assert not any("unit" in question or "forecast? It" in question for question in proposal.questions)


WRITTEN = ["%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%SZ", "%Y/%m/%d %H:%M", "%Y%m%d%H%M", "epoch s", "epoch ms"]
WRITTEN += ["%d.%m.%Y %H:%M", "%d/%m/%Y %H:%M", "%m/%d/%Y %I:%M %p", "%m/%d/%y %H:%M", "%d %b %Y %H:%M:%S"]
DIALECTS = st.fixed_dictionaries(
    {
        "separator": st.sampled_from([",", ";", "\t", "|"]),
        "decimal": st.sampled_from([".", ","]),
        "encoding": st.sampled_from(["utf-8", "cp1252", "utf-16", "utf-8-sig"]),
        "written": st.sampled_from(WRITTEN),
        "preamble": st.integers(0, 2),
        "groups": st.sampled_from([1, 3]),
        "missing": st.sampled_from(["", "NA", "-", "nil", "-9999"]),
        "step": st.sampled_from([timedelta(minutes=10), HOUR, timedelta(hours=3)]),
    }
)


@settings(max_examples=25, deadline=None)
@given(dialect=DIALECTS)
def test_the_table_that_was_written_is_the_table_that_is_read(
    dialect: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """However it is written, the section that is proposed reads it back, value by value."""
    folder = tmp_path_factory.mktemp("dialect")
    separator, decimal = dialect["separator"], dialect["decimal"]
    if separator == decimal:
        separator = ";"
    rows = 500
    expected = []
    lines = ["Pegel an der Brücke, geprüft"] * dialect["preamble"]
    lines.append(separator.join(["Zeit", "Ort", "Höhe (m)", "Abfluss"]))
    for group, i in itertools.product(range(dialect["groups"]), range(rows)):
        moment = START + i * dialect["step"]
        height, flow = math.sin(i / 7) + group, None if i % 50 == 7 else i % 13 * 1.5 + 0.25
        seconds = round((moment - datetime(1970, 1, 1)).total_seconds())
        epochs = {"epoch s": str(seconds), "epoch ms": str(seconds * 1000)}
        written = epochs.get(dialect["written"]) or moment.strftime(dialect["written"])
        cells = [f"{height:.3f}", dialect["missing"] if flow is None else f"{flow:.2f}"]
        lines.append(separator.join([written, f"Ort{group}", *(cell.replace(".", decimal) for cell in cells)]))
        expected.append((f"Ort{group}" if dialect["groups"] > 1 else "all", moment, round(height, 3), flow))

    proposal = propose_for(folder, ("\n".join(lines) + "\n").encode(dialect["encoding"]), "pegel.csv")
    problem = Problem.model_validate(proposal.section)
    (folder / "raw" / "pegel").mkdir(parents=True)
    problem.source.fetch(folder / "raw" / "pegel", lambda come, total: None, 1)
    ingest(problem, folder / "raw" / "pegel", folder / "ingest" / "pegel")
    read = pl.read_parquet(folder / "ingest" / "pegel" / "table.parquet")
    assert problem.table.features == ("Höhe (m)", "Abfluss")
    assert problem.table.unit == "m"
    assert read.select("series", "time", "Höhe (m)", "Abfluss").rows() == expected


@pytest.mark.parametrize(
    ("written", "rival"), [("%d/%m/%Y", "%m/%d/%Y"), ("%m/%d/%Y", "%d/%m/%Y"), ("%m/%d/%y", "%d/%m/%y")]
)
def test_day_and_month_are_told_by_what_makes_the_steps_regular(tmp_path: Path, written: str, rival: str) -> None:
    """Every number of the first twelve days could be a day or a month; only one order leaves no holes."""
    lines = ["d,x"]
    for i in range(40):
        lines.append(f"{(datetime(2021, 2, 1) + i * timedelta(days=1)).strftime(written)},{i % 7}")
    few = inspect_file(write_csv(tmp_path, "\n".join(lines[:13]) + "\n"))
    assert few.source["time_format"] == written, rival
    assert propose_for(tmp_path, "\n".join(lines) + "\n").section["source"]["time_format"] == written


def test_what_reads_either_way_is_asked(tmp_path: Path) -> None:
    days = [(1, 1), (2, 2), (3, 3), (4, 5), (5, 4)]
    inspection = inspect_file(
        write_csv(tmp_path, "d,x\n" + "".join(f"{a:02d}/{b:02d}/2021,{a + b * b}\n" for a, b in days))
    )
    assert any("'d' written as" in question for question in inspection.questions), inspection.questions


def write_csv(folder: Path, text: str) -> str:
    (folder / "some.csv").write_text(text, encoding="utf-8")
    return str(folder / "some.csv")


def test_columns_that_say_nothing_are_left_out_and_why(tmp_path: Path) -> None:
    lines = ["row,t,station,x,always"]
    lines += [f"{i},2021-01-01T{i:02d}:00:00,north,{i % 5},7" for i in range(24)]
    inspection = inspect_file(write_csv(tmp_path, "\n".join(lines) + "\n"))
    assert {column.name: column.role for column in inspection.columns} == {
        "row": "not used: counts the rows",
        "t": "time",
        "station": "not used: text",
        "x": "number",
        "always": "not used: always the same",
    }


def test_a_date_and_a_clock_are_one_time(tmp_path: Path) -> None:
    lines = ["Date;Time;kW"] + [
        f"{moment:%d/%m/%Y};{moment:%H:%M:%S};{moment.hour % 5 + 0.5}"
        for moment in (START + i * HOUR for i in range(300))
    ]
    source = propose_for(tmp_path, "\n".join(lines) + "\n").section["source"]
    assert source["time"] == ["Date", "Time"]
    assert source["time_format"] == "%d/%m/%Y %H:%M:%S"


def test_a_number_that_could_be_a_time_is_none_unless_it_is_called_so(tmp_path: Path) -> None:
    text = "id,x\n" + "".join(f"{1_600_000_000 + 3600 * i},{i % 7}\n" for i in range(50))
    with pytest.raises(RecastError, match=r"no column holds times .* the columns are id, x"):
        inspect_file(write_csv(tmp_path, text))
    inspection = inspect_file(write_csv(tmp_path, text), time=["id"])
    assert inspection.source["time_format"] == "epoch s"


@pytest.mark.parametrize(
    ("step", "window"),
    [
        (timedelta(minutes=1), {"lookback": "1d", "step": "5m", "delay": "1h"}),
        (timedelta(minutes=10), {"lookback": "1d", "step": "10m", "delay": "1h"}),
        (HOUR, {"lookback": "5d", "step": "1h", "delay": "1d"}),
        (timedelta(days=1), {"lookback": "28d", "step": "1d", "delay": "7d"}),
        (timedelta(days=7), {"lookback": "364d", "step": "7d", "delay": "28d"}),
    ],
)
def test_windows_are_as_long_as_is_usual_for_the_cadence(
    tmp_path: Path, step: timedelta, window: dict[str, str]
) -> None:
    proposal = propose_for(tmp_path, make_csv(12_000 if step < HOUR else 1200, step))
    assert proposal.section["window"] == window


def test_gaps_make_windows_shorter(tmp_path: Path) -> None:
    """As of a stock exchange: no row on Saturdays and Sundays."""
    days = [datetime(2015, 1, 1) + i * timedelta(days=1) for i in range(1500)]
    text = "date,price\n" + "".join(f"{day:%Y-%m-%d},{i % 17}\n" for i, day in enumerate(days) if day.weekday() < 5)
    proposal = propose_for(tmp_path, text)
    assert proposal.section["window"] == {"lookback": "3d", "step": "1d", "delay": "1d"}
    assert min(proposal.windows.values()) > 30


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("t,x\n", "no row after the header"),
        ("one column\n1\n2\n", "none of the separators"),
        ("2021-01-01,1\n2021-01-02,2\n", "no column of numbers|not a header"),
        ("1,2\n3,4\n", "not a header, which names every column once"),
        ("t,t\n2021-01-01,4\n", "not a header, which names every column once"),
        ("a,b\nx,1\ny,2\n", "no column holds times"),
        ("t,b\n2021-01-01,x\n2021-01-02,y\n", "no column of numbers.*'b' is not used: text"),
        ("date,clock,x\n" + "".join(f"2021-01-01,{h:02d}:00,{h}\n" for h in range(1, 25)), "24:00 is not a time"),
    ],
)
def test_what_is_no_table_of_a_problem_is_refused(tmp_path: Path, text: str, message: str) -> None:
    assert re.search(message, get_refusal(tmp_path, text)), get_refusal(tmp_path, text)


HOURS = make_csv(rows=100).splitlines()


@pytest.mark.parametrize(
    ("lines", "pattern"),
    [
        ([*HOURS[:50], "yesterday,1,2", *HOURS[50:]], "river.csv, line 51: column 'when' holds 'yesterday', and most"),
        ([*HOURS, "Total,17,2"], "river.csv, line 102: column 'when' holds 'Total'"),
        ([HOURS[0], "UTC,m,m3/s", *HOURS[1:]], "river.csv, line 2: column 'when' holds 'UTC'"),
        ([*HOURS[:50], ",1,2", *HOURS[50:]], "river.csv, line 51: column 'when' is empty"),
        ([*HOURS[:50], "2021-01-01,1,2,3", *HOURS[51:]], "river.csv, line 51: there are 4 cells, and the header has 3"),
        (
            [*HOURS[:50], f'"{HOURS[50]}', *HOURS[51:]],
            "river.csv, line 51: a quotation mark opens a text that does not",
        ),
        ([*HOURS[:50], "2021-01-01,inf,2", *HOURS[51:]], "river.csv, line 51: column 'level' holds 'inf'"),
        (
            ["when,flow,flow", *HOURS[1:]],
            "river.csv, line 1: not a header, which names every column once: when, flow, flow",
        ),
        ([HOURS[0], *(f"{line}," for line in HOURS[1:])], "line 1 has fewer cells than most lines, which have 4"),
        (HOURS[:2], "no column of numbers.*'level' is not used: always the same"),
        (HOURS[:3], "2 rows are too few for the split"),
        ([HOURS[0], HOURS[1], HOURS[1].replace("0.000", "0.1")], "river: too few rows"),
    ],
)
def test_what_is_wrong_in_a_table_is_named_by_its_place(tmp_path: Path, lines: list[str], pattern: str) -> None:
    message = get_refusal(tmp_path, "\n".join(lines) + "\n")
    assert re.search(pattern, message), message
    assert not re.search(r"tmp\w+/raw", message), "the user's file, not the copy that was tried"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (make_csv().replace("\n", "\r").encode(), "its lines end with a carriage return alone"),
        (b"PK\x03\x04" + bytes(range(256)), "a spreadsheet or a zip archive"),
    ],
)
def test_what_is_no_text_with_lines_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    assert message in get_refusal(tmp_path, content)


def test_lines_with_nothing_on_them_are_no_rows(tmp_path: Path) -> None:
    proposal = propose_for(tmp_path, make_csv().replace("\n2019-12", "\n\n2019-12", 1) + ",,\n,,\n\n")
    assert proposal.quality.rows_read == 400


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_is_known_without_its_mark(tmp_path: Path, encoding: str) -> None:
    assert propose_for(tmp_path, make_csv().encode(encoding)).section["source"]["encoding"] == encoding


def test_a_header_is_found_below_lines_of_as_many_cells(tmp_path: Path) -> None:
    """As spreadsheets write them."""
    source = propose_for(tmp_path, "Gauge,,\nHeight,3.5,m\n,,\n" + make_csv()).section["source"]
    assert source["skip_lines"] == 3
    assert source["time"] == "when"


def test_spaces_may_stand_between_the_columns(tmp_path: Path) -> None:
    text = make_csv(written="%Y-%m-%dT%H:%M", header="when  level flow", separator="   ").replace("\n2019", "\n 2019")
    proposal = propose_for(tmp_path, text)
    assert proposal.section["source"] == {
        "kind": "table",
        "path": str(tmp_path / "river.csv"),
        "time": "when",
        "separator": " ",
    }
    assert proposal.quality.rows_read == 400
    message = get_refusal(tmp_path, text.replace(" 18.0", " 18.0 9", 1))
    assert "river.csv, line 14: there are 4 cells, and the header has 3" in message


@pytest.mark.parametrize(
    ("header", "written", "time"),
    [
        ("Year,Month,Day,Hour,Minute,x", "%Y,{0.month},{0.day},{0.hour},0", ["Year", "Month", "Day", "Hour", "Minute"]),
        ("no,year,month,day,hour,x", "{1},%Y,{0.month},{0.day},{0.hour}", ["year", "month", "day", "hour"]),
        ("date,hr,x", "%Y-%m-%d,{0.hour}", ["date", "hr"]),
        ("at,x", "%Y%m%d:%H%M", "at"),
    ],
)
def test_a_time_may_be_spread_over_columns(tmp_path: Path, header: str, written: str, time: str | list[str]) -> None:
    moments = [START + i * HOUR for i in range(200)]
    lines = [f"{moment.strftime(written).format(moment, i)},{i % 7}" for i, moment in enumerate(moments)]
    proposal = propose_for(tmp_path, "\n".join([header, *lines]) + "\n")
    assert proposal.section["source"]["time"] == time
    assert proposal.section["table"]["features"] == ["x"]
    assert proposal.quality.series["all"].first == str(START)
    assert proposal.quality.series["all"].gaps == 0


@pytest.mark.parametrize(
    ("separator", "cell", "role"),
    [
        (",", '"{:,}"', "not used: thousands are grouped, as in '1,000'; save the numbers without grouping"),
        (";", "{:_}", "not used: thousands are grouped, as in '1.000'; save the numbers without grouping"),
        (";", "{:_},5", "not used: thousands are grouped, as in '1.000,5'; save the numbers without grouping"),
    ],
)
def test_numbers_with_thousands_set_apart_are_not_misread(tmp_path: Path, separator: str, cell: str, role: str) -> None:
    decimal = "," if separator == ";" else "."
    lines = [separator.join(["t", "x", "y"])]
    for i in range(100):
        big = cell.format(1000 + 31 * i).replace("_", ".")
        lines.append(separator.join([str(START + i * HOUR), big, f"{i % 7}{decimal}25"]))
    inspection = inspect_file(write_csv(tmp_path, "\n".join(lines) + "\n"))
    assert {column.name: column.role for column in inspection.columns} == {"t": "time", "x": role, "y": "number"}


def test_decimal_commas_that_could_set_thousands_apart_are_asked(tmp_path: Path) -> None:
    lines = [f"{START + i * HOUR};{i % 7 + 1},{i % 5}25" for i in range(100)]
    inspection = inspect_file(write_csv(tmp_path, "\n".join(["t;x", *lines]) + "\n"))
    assert inspection.source["decimal"] == ","
    assert any("Is the comma in 1,025 a decimal comma?" in question for question in inspection.questions)


def test_a_text_that_is_taken_for_a_missing_value_is_asked(tmp_path: Path) -> None:
    proposal = propose_for(tmp_path, make_csv().replace(",0.000,", ",0.0.0,", 1))
    assert any(
        "Does '0.0.0' stand for a missing value? (source.null_values)" in question for question in proposal.questions
    )


def test_columns_that_are_mostly_empty_or_parts_of_the_time_are_left_out(tmp_path: Path) -> None:
    lines = ["t,month,gust,never,x"]
    moments = [START + i * HOUR for i in range(400)]
    lines += [f"{moment},{moment.month},{'' if i % 5 else i % 7},,{i % 13}" for i, moment in enumerate(moments)]
    text = "\n".join(lines) + "\n"
    proposal = propose_for(tmp_path, text)
    assert [column.role for column in proposal.inspection.columns] == [
        "time",
        "not used: a part of the time",
        "not used: has no value in 80% of the rows",
        "not used: empty",
        "number",
    ]
    assert proposal.section["table"]["target"] == "x"
    assert inspect_file(write_csv(tmp_path, text), target="gust").numbers == ["gust", "x"], (
        "unless it is what is wanted"
    )


def test_local_times_with_a_clock_set_back_want_their_zone(tmp_path: Path) -> None:
    moments = [datetime(2020, 10, 15, tzinfo=UTC) + i * HOUR for i in range(400)]
    text = "when,x\n" + "".join(
        f"{moment.astimezone(ZoneInfo('Europe/Berlin')):%d.%m.%Y %H:%M},{i % 7}\n" for i, moment in enumerate(moments)
    )
    assert any(
        "or a clock may have been set back (--time-zone)" in question
        for question in propose_for(tmp_path, text).questions
    )
    proposal = propose_for(tmp_path, text, time_zone="Europe/Berlin")
    assert proposal.section["source"]["repeated_hour"] == "in order"
    assert proposal.quality.series["all"].gaps == 0
    assert proposal.quality.rows_kept == 400
    assert "--time-zone 'Berlin': " in get_refusal(tmp_path, text, time_zone="Berlin")
    spring = text.replace(".10.2020", ".03.2020").replace(".11.2020", ".04.2020")
    assert "does not exist in Europe/Berlin" in get_refusal(tmp_path, spring, time_zone="Europe/Berlin")


def test_a_folder_may_hold_names_in_capitals_and_must_hold_one_kind_of_table(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    lines = make_csv().splitlines(keepends=True)
    (tmp_path / "a" / "ONE.CSV").write_text("".join(lines[:200]))
    (tmp_path / "a" / "TWO.CSV").write_text("".join([lines[0], *lines[200:]]))
    assert propose_problem(str(tmp_path / "a")).quality.rows_read == 400
    (tmp_path / "a" / "TWO.CSV").write_text("".join(["when,level,stage\n", *lines[200:]]))
    with pytest.raises(
        RecastError, match=r"a/ONE\.CSV and .*a/TWO\.CSV differ in their columns: only one has flow, stage"
    ):
        propose_problem(str(tmp_path / "a"))


def test_months_are_refused_for_they_differ_in_length(tmp_path: Path) -> None:
    text = "month,x\n" + "".join(f"{2000 + i // 12}-{i % 12 + 1:02d}-01,{i % 7}\n" for i in range(120))
    assert "most often every 31d, but" in get_refusal(tmp_path, text)
    assert "months differ in length" in get_refusal(tmp_path, text)


def test_a_wrong_option_lists_the_right_ones(tmp_path: Path) -> None:
    assert "the columns of numbers are level, flow" in get_refusal(tmp_path, make_csv(), target="lvl")
    assert "there is no column 'at'; the columns are when, level, flow" in get_refusal(
        tmp_path, make_csv(), time=["at"]
    )


@pytest.mark.parametrize(
    ("name", "unit"),
    [("T (degC)", "°C"), ("temperature (celsius)", "°C"), ("power [kW]", "kW"), ("wv (m/s)", "m/s"), ("count", None)],
)
def test_a_unit_stands_in_brackets_after_the_name(name: str, unit: str | None) -> None:
    assert parse_unit(name) == unit


def test_from_a_file_to_a_leaderboard(fresh: Checkout) -> None:
    fresh.file("river.csv").write_text(make_csv(), encoding="utf-8")
    before = fresh.file("params.yaml").read_text()
    printed = fresh.recast("new", "river.csv", "--dry-run")
    assert "Assumed: 6h from 30h" in printed
    assert "level" in printed
    assert fresh.file("params.yaml").read_text() == before

    fresh.recast("new", "river.csv", "--target", "flow")
    written = parse_settings(fresh.file("params.yaml"))
    assert written.run == ("demo", "river")
    assert written.problems["river"].table.target == "flow"
    assert "what unit is flow in?" in fresh.file("params.yaml").read_text()
    failed = fresh.recast("new", "river.csv", status=1)
    assert "problems.river exists already; choose another --name" in failed
    assert "Traceback" not in failed

    board = fresh.recast("run", "river")
    for part in ("flow, 6h ahead (river)", "persistence", "gru units=4", "report.html"):
        assert part in board


def test_lines_that_are_comments_are_no_rows(tmp_path: Path) -> None:
    """As below the header of a logger's file: units, and who made it. Places are counted as an editor counts them."""
    header, *rows = make_csv().splitlines()
    text = "\n".join([header, "#,m,m³/s", "# by the waterworks, after calibration", *rows]) + "\n"
    proposal = propose_for(tmp_path, text)
    assert proposal.section["source"]["comment"] == "#"
    assert proposal.quality.rows_read == 400
    message = get_refusal(tmp_path, text.replace(",18.0", ",inf", 1))
    assert "river.csv, line 16: column 'flow' holds 'inf'" in message


def test_names_that_begin_like_comments_are_none(tmp_path: Path) -> None:
    lines = ["well,when,level"]
    lines += [f"#{i % 2},{START + i // 2 * HOUR},{math.sin(i / 7):.3f}" for i in range(600)]
    proposal = propose_for(tmp_path, "\n".join(lines) + "\n")
    assert proposal.section["source"]["series"] == "well"
    assert "comment" not in proposal.section["source"]


def test_a_marker_far_below_the_sample_is_found(tmp_path: Path) -> None:
    lines = make_csv(rows=SAMPLE_ROWS + 50).splitlines()
    lines[-3] = lines[-3].rpartition(",")[0] + ",missing"
    proposal = propose_for(tmp_path, "\n".join(lines) + "\n")
    assert proposal.section["source"]["null_values"][-1] == "missing"
    assert proposal.quality.columns["flow"].nulls == 1


def test_a_column_that_changes_only_below_the_sample_is_used(tmp_path: Path) -> None:
    lines = [f"{line},{'state' if i == 0 else int(i > SAMPLE_ROWS) + int(i > SAMPLE_ROWS + 9)}"
             for i, line in enumerate(make_csv(rows=SAMPLE_ROWS + 50).splitlines())]  # fmt: skip
    proposal = propose_for(tmp_path, "\n".join(lines) + "\n")
    assert proposal.section["table"]["features"] == ["level", "flow", "state"]
    always = ["state" if i == 0 else "1" for i in range(len(lines))]
    lines = [f"{line.rpartition(',')[0]},{cell}" for line, cell in zip(lines, always, strict=True)]
    assert propose_for(tmp_path, "\n".join(lines) + "\n").section["table"]["features"] == ["level", "flow"]


BOMB = gzip.compress(b"\0" * (8 << 20))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("river.csv", b"x" * (2 << 20), "its first line has more than 1,048,576 bytes"),
        ("river.csv", b"x," * (1 << 20), "its first line has more than 1,048,576 bytes"),
        ("river.csv.gz", BOMB, "its first line has more than 1,048,576 bytes"),
        ("river.csv.gz", BOMB[:-20], "its first line has more than 1,048,576 bytes|not a whole gzip file"),
        ("river.csv.gz", b"when,x\n", "not a whole gzip file"),
        ("river.csv", b"\xff\xfe \x00\n\x00 \x00\n\x00", "its first 2 lines are empty"),
        ("river.csv", ("a,b\n" + "x" * 200_000 + ",1\n").encode(), "no column holds times|no columns"),
        ("river.parquet", b"PAR1" * 9, "not a readable table"),
    ],
)
def test_what_cannot_be_a_table_is_refused_in_a_short_message(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    refusal = get_refusal(tmp_path, content, name=name)
    assert re.search(message, refusal), refusal
    assert len(refusal) < 1000


def test_numbers_near_the_largest_one_are_refused(tmp_path: Path) -> None:
    header, *rows = make_csv().splitlines()
    lines = [re.sub(",[-.0-9]+,", f",{i % 7 + 1}e300,", row) for i, row in enumerate(rows)]
    message = get_refusal(tmp_path, "\n".join([header, *lines]))
    assert "river.csv, line 2: column 'level' holds '1e300', which is too large" in message


@pytest.mark.parametrize("name", ["n" * 300, "../river", "River", "", "a/b", "~"])
def test_a_name_that_no_folder_can_have_is_refused_at_once(tmp_path: Path, name: str) -> None:
    (tmp_path / "river.csv").write_text(make_csv())
    with pytest.raises(RecastError, match="write at most 100 small letters, digits and _"):
        propose_problem(str(tmp_path / "river.csv"), name)


def test_the_name_of_a_file_may_be_longer_than_that_of_a_problem(tmp_path: Path) -> None:
    file = tmp_path / f"{'n' * 240}.csv"
    file.write_text(make_csv())
    assert propose_problem(str(file)).name == "n" * 100


def test_a_name_that_is_not_text_is_refused(tmp_path: Path) -> None:
    file = tmp_path / os.fsdecode(b"caf\xe9.csv")
    file.write_text(make_csv())
    with pytest.raises(RecastError, match="this name has bytes that are not UTF-8; rename the file or the folder"):
        propose_problem(str(file))


def write_daily(folder: Path, days: int, values: list[float]) -> Proposal:
    lines = [f"{START + i * timedelta(days=1):%Y-%m-%d},{values[i]:.2f}" for i in range(days)]
    return propose_for(folder, "\n".join(["day,level", *lines]) + "\n", "levels.csv")


@pytest.mark.parametrize(("days", "years"), [(400, 0), (900, 1), (1500, 2)])
def test_a_yearly_cycle_is_proposed_where_the_training_rows_show_it(tmp_path: Path, days: int, years: int) -> None:
    noise = random.Random(0)
    turns = [2 * math.pi * i / 365.25 for i in range(days)]
    values = [10 * math.sin(turn) + 4 * math.sin(2 * turn) + noise.gauss(0, 1) for turn in turns]
    proposal = write_daily(tmp_path, days, values)
    table = proposal.section["table"]
    assert table["climatology"] == {"year": years, "day": 0}
    assert ("calendar" in table) == bool(years)
    guess = proposal.guesses.get(("table", "climatology"), "")
    assert guess == ("" if years else "no yearly cycle: the training rows cover less than a year")


def test_no_yearly_cycle_is_proposed_where_the_validation_rows_do_not_show_it(tmp_path: Path) -> None:
    noise = random.Random(0)
    level, values = 0.0, []
    for _ in range(1500):
        level += noise.gauss(0.1, 1)
        values.append(level)
    proposal = write_daily(tmp_path, 1500, values)
    assert proposal.section["table"]["climatology"] == {"year": 0, "day": 0}
    assert "calendar" not in proposal.section["table"]
    assert "no yearly cycle" in proposal.guesses["table", "climatology"]
