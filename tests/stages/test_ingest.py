"""What ingest makes of a problem's rows: one typed, sorted table, a true report, and errors that name the cell."""

import errno
import gzip
import hashlib
import json
import math
import os
import tempfile
import zipfile
from dataclasses import asdict
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from problems.errors import RecastError
from problems.files import tables
from problems.problem import Problem
from problems.sources.jena import ARCHIVE_VARIABLE
from problems.sources.table import TableSource
from stages.ingest import ingest
from stages.tables import tabulation
from stages.tables.polars_errors import explain_polars_errors
from stages.tables.quality import LISTED_GAPS, Quality

START = datetime(2020, 1, 1)
JENA = [
    "p (mbar)",
    "T (degC)",
    "Tpot (K)",
    "Tdew (degC)",
    "rh (%)",
    "VPmax (mbar)",
    "VPact (mbar)",
    "VPdef (mbar)",
    "sh (g/kg)",
    "H2OC (mmol/mol)",
    "rho (g/m**3)",
    "wv (m/s)",
    "max. wv (m/s)",
    "wd (deg)",
]


@pytest.fixture(autouse=True)
def _no_archive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ARCHIVE_VARIABLE, raising=False)


def make_problem(source: dict[str, Any], features: list[str], **keys: Any) -> Problem:
    """A problem whose target is its first feature."""
    return Problem.model_validate(
        {
            "title": "test",
            "source": source,
            "table": {"features": features, "target": features[0], "unit": "°C", **keys},
            "split": "half",
            "window": {"lookback": "2h", "step": "1h", "delay": "1h"},
        }
    )


def run_ingest(declared: Problem, root: Path) -> tuple[pl.DataFrame, Quality]:
    """Fetch and ingest below `root`; the report on disk is the one returned."""
    store, out = root / "raw" / "weather", root / "ingest" / "weather"
    store.mkdir(parents=True, exist_ok=True)
    declared.source.fetch(store, lambda come, total: None, 1)
    quality = ingest(declared, store, out)
    assert sorted(file.name for file in out.iterdir()) == ["quality.json", "table.parquet"]
    assert json.loads((out / "quality.json").read_text()) == json.loads(json.dumps(asdict(quality)))
    return pl.read_parquet(out / "table.parquet"), quality


def ingest_csv(
    root: Path, text: str | bytes, features: tuple[str, ...] = ("x",), series: str | None = None, **keys: Any
) -> tuple[pl.DataFrame, Quality]:
    """Ingest a CSV file with the time in `t`."""
    file = root / "rows.csv"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    source = {"kind": "table", "path": str(file), "time": "t", "series": series, **keys.pop("source", {})}
    return run_ingest(make_problem(source, list(features), **keys), root)


def get_refusal(root: Path, text: str | bytes, **keys: Any) -> str:
    """The message with which a CSV file is refused; nothing is left of it."""
    with pytest.raises(RecastError) as raised:
        ingest_csv(root, text, **keys)
    assert not list((root / "ingest").iterdir())
    return str(raised.value)


def make_jena_csv(rows: int = 200) -> str:
    """The station's file: ten-minute rows with the fourteen columns."""
    lines = [",".join(["Date Time", *JENA])]
    for i in range(rows):
        written = (datetime(2009, 1, 1, 0, 10) + i * timedelta(minutes=10)).strftime("%d.%m.%Y %H:%M:%S")
        lines.append(",".join([written, *(f"{j + math.sin(i / 20):.2f}" for j in range(14))]))
    return "\n".join(lines) + "\n"


def test_jena_from_csv_and_zip_is_the_same_table(tmp_path: Path) -> None:
    text = make_jena_csv().replace("13.97", "-9999.00")
    (tmp_path / "jena.csv").write_text(text)
    with zipfile.ZipFile(tmp_path / "jena.csv.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("jena.csv", text)
    tables = []
    for name in ("jena.csv", "jena.csv.zip"):
        source = {"kind": "jena", "path": str(tmp_path / name)}
        declared = make_problem(source, ["T (degC)", "wd (deg)"], sentinels={"wd (deg)": [-9999]})
        table, quality = run_ingest(declared, tmp_path)
        assert table.schema == {
            "time": pl.Datetime("ms"),
            "series": pl.String(),
            "T (degC)": pl.Float64(),
            "wd (deg)": pl.Float64(),
        }
        assert quality.files == {name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()}
        tables.append(table)
    assert tables[0].equals(tables[1])
    assert tables[0]["time"][0] == datetime(2009, 1, 1, 0, 10)
    assert set(tables[0]["series"]) == {"all"}
    assert (quality.rows_read, quality.rows_kept, quality.cadence, quality.cadence_seconds) == (200, 200, "10m", 600)
    sentinels = text.count("-9999.00")
    assert quality.columns["wd (deg)"].sentinels == quality.columns["wd (deg)"].nulls == sentinels > 0
    assert quality.columns["wd (deg)"].min >= 12
    assert not quality.synthetic


def test_a_column_that_nobody_needs_may_be_undecodable(tmp_path: Path) -> None:
    text = "t,x,SWDR (W/m²)\n2020-01-01 00:00,1,²\n2020-01-01 01:00,2,3\n".encode("latin-1")
    table, _ = ingest_csv(tmp_path, text)
    assert table["x"].to_list() == [1, 2]


def test_nyc_is_three_series(tmp_path: Path) -> None:
    table, quality = run_ingest(
        make_problem({"kind": "nyc"}, ["T (degC)", "wv (m/s)"], sentinels={"wv (m/s)": [468.66]}), tmp_path
    )
    assert table.height == quality.rows_kept == 26_115
    assert list(quality.series) == ["EWR", "JFK", "LGA"]
    assert quality.cadence == "1h"
    assert [(series.rows, series.gaps) for series in quality.series.values()] == [(8703, 17), (8706, 14), (8706, 14)]
    assert quality.columns["wv (m/s)"].sentinels == 1
    assert quality.columns["wv (m/s)"].max < 30
    assert table.equals(table.sort("series", "time"))


def test_a_simulated_station_says_so(tmp_path: Path) -> None:
    declared = make_problem({"kind": "station", "rows": 1500, "cadence": "10s", "seed": 4}, JENA)
    table, quality = run_ingest(declared, tmp_path)
    first = {file.name: file.read_bytes() for file in (tmp_path / "ingest" / "weather").iterdir()}
    assert quality.synthetic
    assert quality.files == {}
    assert quality.cadence == "10s"
    assert table.columns == ["time", "series", *JENA]
    run_ingest(declared, tmp_path)
    assert first == {file.name: file.read_bytes() for file in (tmp_path / "ingest" / "weather").iterdir()}


def test_the_report_counts_what_was_mended(tmp_path: Path) -> None:
    text = (
        "t,x,y\n"
        "2020-01-01 00:00,1,\n"
        "2020-01-01 01:00,2, 5.5 \n"
        "2020-01-01 04:20,NaN,7\n"
        "2020-01-01 03:20,-9999,8\n"
        "2020-01-01 01:00,99,99\n"
        "2020-01-01 05:20,-9999.0,NA\n"
    )
    table, quality = ingest_csv(tmp_path, text, ("x", "y"), sentinels={"x": [-9999]})
    assert table["x"].to_list() == [1, 2, None, None, None]
    assert table["y"].to_list() == [None, 5.5, 8, 7, None]
    series = quality.series["all"]
    assert (quality.rows_read, quality.rows_kept) == (6, 5)
    assert (series.rows, series.duplicates, series.out_of_order, series.cadence) == (5, 1, 2, "1h")
    assert (series.first, series.last) == ("2020-01-01 00:00:00", "2020-01-01 05:20:00")
    assert (series.gaps, series.missing) == (1, 2)
    assert asdict(series.listed[0]) == {
        "after": "2020-01-01 01:00:00",
        "before": "2020-01-01 03:20:00",
        "missing": 2,
    }
    assert asdict(quality.columns["x"]) == {"nulls": 3, "sentinels": 2, "min": 1, "max": 2, "mean": 1.5}
    assert quality.columns["y"].nulls == 2


def test_gaps_are_listed_up_to_a_limit_and_all_counted(tmp_path: Path) -> None:
    hours = [hour for hour in range(300) if hour % 4]
    text = "t,x\n" + "".join(f"{(START + timedelta(hours=hour)).isoformat()},1\n" for hour in hours)
    series = ingest_csv(tmp_path, text)[1].series["all"]
    assert (series.gaps, series.missing, len(series.listed)) == (74, 74, LISTED_GAPS)


def test_parquet_keeps_its_types_and_zones_become_utc(tmp_path: Path) -> None:
    times = pl.datetime_range(START, START + timedelta(hours=3), "1h", time_zone="Europe/Berlin", eager=True)
    pl.DataFrame({"t": times, "s": ["b", "a", "b", "a"], "x": [1, 2, 3, 4]}).write_parquet(tmp_path / "a.parquet")
    source = {"kind": "table", "path": str(tmp_path / "a.parquet"), "time": "t", "series": "s"}
    table, _ = run_ingest(make_problem(source, ["x"]), tmp_path)
    assert table["series"].to_list() == ["a", "a", "b", "b"]
    assert table["time"][0] == START, "01:00 in Berlin's winter is midnight in UTC"
    assert table["x"].to_list() == [2.0, 4.0, 1.0, 3.0]


@pytest.mark.parametrize("written", ["%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M:%S.%f"])
def test_iso_times_need_no_format(tmp_path: Path, written: str) -> None:
    text = "t,x\n" + "".join(f"{(START + timedelta(hours=i)).strftime(written)},{i}\r\n" for i in range(3))
    table, _ = ingest_csv(tmp_path, text)
    assert table["time"].to_list() == [START + timedelta(hours=i) for i in range(3)]


def test_iso_times_may_be_written_in_several_ways(tmp_path: Path) -> None:
    times = ["2020-01-01T00:00:00", "2020-01-01 01:00", "2020-01-01 02:00:00.000", " 2020-01-01T03:00:00 "]
    text = "t,x\n" + "".join(f"{time},{i}\n" for i, time in enumerate(times)) + "2020-01-02,4\n,\n"
    table, quality = ingest_csv(tmp_path, text)
    assert table["time"].to_list() == [START + timedelta(hours=i) for i in (0, 1, 2, 3, 24)]
    assert quality.rows_read == 5
    zoned = "".join(f"{time.strip()}{'Z' if i else '+00'},{i}\n" for i, time in enumerate(times[2:], 2))
    table, _ = ingest_csv(tmp_path, "t,x\n2019-12-31T23:00:00-02:00,1\n" + zoned)
    assert table["time"].to_list() == [START + timedelta(hours=i) for i in (1, 2, 3)]


@pytest.mark.parametrize(
    "written",
    [
        "2020-01-01T{:02d}:00:00Z",
        "2020-01-01 {:02d}:00:00.0+00:00",
        "2020-01-01T{:02d}:00Z",
        "2020-01-01T{:02d}:00+00:00",
        "2020-01-01 {:02d}:00 +0000",
        "2020-01-01 {:02d}:00:00+00",
        "2020-01-01T{:02d}:30+00:30",
        "2019-12-31 {:02d}:30:00.000-23:30",
    ],
)
def test_iso_times_may_say_their_zone(tmp_path: Path, written: str) -> None:
    table, _ = ingest_csv(tmp_path, "t,x\n" + "".join(f"{written.format(i)},{i}\n" for i in range(3)))
    assert table["time"].to_list() == [START + timedelta(hours=i) for i in range(3)]


def test_each_time_may_have_a_zone_of_its_own(tmp_path: Path) -> None:
    table, _ = ingest_csv(
        tmp_path, "t,x\n2020-01-01T01:00:00+01:00,0\n2020-01-01T01:00:00Z,1\n2020-01-01T00:00:00-02:00,2\n"
    )
    assert table["time"].to_list() == [START + timedelta(hours=i) for i in range(3)]
    assert table["x"].to_list() == [0.0, 1.0, 2.0]


def test_times_with_and_without_a_zone_want_one(tmp_path: Path) -> None:
    text = "t,x\n2020-01-01T00:00:00Z,0\n2020-01-01T01:00:00,1\n2020-01-01T02:00:00Z,2\n"
    message = get_refusal(tmp_path, text)
    assert "line 3" in message
    assert "without a time zone, but 2 of the 3 rows have one; give the time zone" in message
    table, _ = ingest_csv(tmp_path, text.replace("01:00", "02:00", 1), source={"time_zone": "Europe/Berlin"})
    assert table["time"].to_list() == [START + timedelta(hours=i) for i in range(3)]


def test_local_times_become_utc(tmp_path: Path) -> None:
    text = "t,x\n" + "".join(f"29.03.2020 {hour}:30,{hour}\n" for hour in ("00", "01", "03", "04"))
    source = {"time_zone": "Europe/Berlin", "time_format": "%d.%m.%Y %H:%M"}
    table, quality = ingest_csv(tmp_path, text, source=source)
    assert table["time"].to_list() == [datetime(2020, 3, 28, 23, 30) + timedelta(hours=i) for i in range(4)]
    assert quality.series["all"].gaps == 0, "the clock left out an hour, the rows did not"


def test_an_hour_that_never_came_is_refused(tmp_path: Path) -> None:
    text = "t,x\n2020-03-29 01:30,0\n2020-03-29 02:30,1\n2020-03-29 03:30,2\n"
    message = get_refusal(tmp_path, text, source={"time_zone": "Europe/Berlin"})
    assert "line 3" in message
    assert "does not exist in Europe/Berlin" in message
    assert "1 such rows" in message


def test_an_hour_that_came_twice_wants_a_rule(tmp_path: Path) -> None:
    hours = ["01:30", "02:00", "02:30", "02:00", "02:30", "03:00"]
    text = "t,x\n" + "".join(f"2020-10-25 {hour},{i}\n" for i, hour in enumerate(hours))
    zone = {"time_zone": "Europe/Berlin"}
    message = get_refusal(tmp_path, text, source=zone)
    assert "line 3" in message
    assert "occurs twice" in message
    assert "repeated_hour: in order" in message
    table, quality = ingest_csv(tmp_path, text, source={**zone, "repeated_hour": "in order"})
    assert table["time"].to_list() == [datetime(2020, 10, 24, 23, 30) + timedelta(minutes=30 * i) for i in range(6)]
    assert table["x"].to_list() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert quality.series["all"].duplicates == 0


def test_each_series_has_an_hour_that_came_twice_of_its_own(tmp_path: Path) -> None:
    hours = ["01:00", "02:00", "02:00", "03:00"]
    text = "t,s,x\n" + "".join(f"2020-10-25 {hour},{name},{i}\n" for i, hour in enumerate(hours) for name in "ab")
    zone = {"time_zone": "Europe/Berlin", "repeated_hour": "in order"}
    table, quality = ingest_csv(tmp_path, text, source=zone, series="s")
    assert table["series"].to_list() == ["a"] * 4 + ["b"] * 4
    assert table["time"].to_list() == [datetime(2020, 10, 24, 23) + timedelta(hours=i) for i in range(4)] * 2
    assert table["x"].to_list() == [0.0, 1.0, 2.0, 3.0] * 2
    assert not any(series.duplicates for series in quality.series.values())


@pytest.mark.parametrize(("unit", "one"), [("epoch s", 1), ("epoch ms", 1000)])
@pytest.mark.parametrize("parquet", [False, True])
def test_times_may_be_counted_from_1970(tmp_path: Path, unit: str, one: int, parquet: bool) -> None:
    rows = pl.DataFrame({"t": [(1577836800 + 3600 * i) * one for i in range(3)], "x": [1.0, 2.0, 3.0]})
    file = tmp_path / ("a.parquet" if parquet else "a.csv")
    rows.write_parquet(file) if parquet else rows.write_csv(file)
    table, _ = run_ingest(
        make_problem({"kind": "table", "path": str(file), "time": "t", "time_format": unit}, ["x"]), tmp_path
    )
    assert table["time"].to_list() == [START + timedelta(hours=i) for i in range(3)]


def test_numbers_are_times_only_where_it_is_said_how(tmp_path: Path) -> None:
    pl.DataFrame({"t": [20200101, 20200102, 20200103], "x": [1.0, 2.0, 3.0]}).write_parquet(tmp_path / "a.parquet")
    source = {"kind": "table", "path": str(tmp_path / "a.parquet"), "time": "t"}
    with pytest.raises(RecastError, match="if they are times, say in time_format how they are written"):
        run_ingest(make_problem(source, ["x"]), tmp_path)
    table, _ = run_ingest(make_problem({**source, "time_format": "%Y%m%d"}, ["x"]), tmp_path)
    assert table["time"].to_list() == [START + timedelta(days=i) for i in range(3)]


def test_the_date_and_the_clock_may_be_two_columns(tmp_path: Path) -> None:
    text = "d;clock;x\n" + "".join(f"01/01/2020;{i}:00;{i},5\n" for i in range(3))
    source = {"time": ["d", "clock"], "time_format": "%d/%m/%Y %H:%M", "separator": ";", "decimal": ","}
    message = get_refusal(tmp_path, text, source={**source, "time": ["d", "hour"]})
    assert "there is no column 'hour'; correct problems.weather.source.time" in message
    table, _ = ingest_csv(tmp_path, text, source=source)
    assert table["time"].to_list() == [START + timedelta(hours=i) for i in range(3)]
    assert table["x"].to_list() == [0.5, 1.5, 2.5]


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16", "utf-8-sig", "utf-8"])
@pytest.mark.parametrize("packed", [False, True])
def test_text_may_be_in_any_encoding_after_a_preamble_and_packed(tmp_path: Path, encoding: str, packed: bool) -> None:
    text = "Größe, von der Station\nt,°C\n" + "".join(f"2020-01-01 0{i}:00,{i}\n" for i in range(3))
    file = tmp_path / ("a.csv.gz" if packed else "a.csv")
    file.write_bytes(gzip.compress(text.encode(encoding)) if packed else text.encode(encoding))
    source = {"kind": "table", "path": str(file), "time": "t", "encoding": encoding, "skip_lines": 1}
    table, _ = run_ingest(make_problem(source, ["°C"]), tmp_path)
    assert table["°C"].to_list() == [0.0, 1.0, 2.0]


def test_a_cell_is_named_by_its_line_also_after_a_preamble_in_another_encoding(tmp_path: Path) -> None:
    text = "Größe\nt,x\n2020-01-01 00:00,0\n2020-01-01 01:00,é\n".encode("latin-1")
    message = get_refusal(tmp_path, text, source={"encoding": "latin-1", "skip_lines": 1})
    assert "rows.csv, line 4: column 'x' holds 'é'" in message


@pytest.mark.parametrize("is_gzip", [False, True])
def test_a_packed_file_must_be_whole(tmp_path: Path, is_gzip: bool) -> None:
    rows = b"t,x\n2020-01-01,1\n" * 99
    file = tmp_path / "rows.csv.gz"
    file.write_bytes(gzip.compress(rows)[:-30] if is_gzip else rows)
    with pytest.raises(RecastError, match=r"rows\.csv\.gz: not a whole gzip file"):
        run_ingest(make_problem({"kind": "table", "path": str(file), "time": "t"}, ["x"]), tmp_path)


def test_bytes_that_are_not_in_the_encoding_are_named(tmp_path: Path) -> None:
    message = get_refusal(tmp_path, b"t,x\n2020-01-01,\x81\n", source={"encoding": "cp1252"})
    assert "not all of its bytes are cp1252" in message
    assert "correct encoding" in message


@pytest.mark.parametrize(
    ("key", "value", "fault"),
    [("time_zone", "Berlin", "no such time zone"), ("encoding", "latin-17", "no such encoding")],
)
def test_a_zone_and_an_encoding_must_exist(key: str, value: str, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        make_problem({"kind": "table", "path": "a.csv", "time": "t", key: value}, ["x"])


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_order_and_repetition_of_the_rows_do_not_matter(data: st.DataObject) -> None:
    keys = st.tuples(st.sampled_from("ab"), st.integers(0, 40))
    cells = st.sampled_from(["", "NaN", "7", "-1.5", "3"])
    rows = data.draw(st.dictionaries(keys, cells, min_size=4, max_size=30))
    assume(any(x in ("-1.5", "3") for x in rows.values()))
    lines = [f"{START + timedelta(hours=hour)},{name},{x}\n" for (name, hour), x in rows.items()]
    shuffled = data.draw(st.permutations(lines + data.draw(st.lists(st.sampled_from(lines), max_size=10))))
    tables = []
    for order in (sorted(lines), shuffled):
        with tempfile.TemporaryDirectory() as folder:
            text = "t,s,x\n" + "".join(order)
            table, quality = ingest_csv(Path(folder), text, series="s", sentinels={"x": [7]})
        tables.append(table)
    assert table.equals(tables[0])
    assert table.select("series", "time").rows() == sorted((name, START + timedelta(hours=h)) for name, h in rows)
    assert quality.rows_read == len(shuffled)
    assert quality.rows_kept == len(rows)
    assert sum(series.duplicates for series in quality.series.values()) == len(shuffled) - len(rows)
    assert quality.columns["x"].nulls == sum(x in ("", "NaN", "7") for x in rows.values())


CELLS = [
    "7",
    " 7",
    "7 ",
    "-1.5",
    "+4",
    ".5",
    "5.",
    "1e3",
    "1e400",
    "NaN",
    "NA",
    "",
    " ",
    '""',
    '" 3 "',
    "inf",
    "-",
    "1,5",
]


@settings(max_examples=60, deadline=None)
@given(
    cells=st.lists(st.sampled_from(CELLS), min_size=4, max_size=12),
    last=st.sampled_from(["", ",\n", ',""\n', "2020-01-02,1\n", "2020-01-09T00:00,1\n", "yesterday,1\n"]),
)
def test_a_cell_is_read_or_refused_the_same_whether_polars_parses_it_while_it_scans_or_not(
    cells: list[str], last: str
) -> None:
    """The fast way of reading is left where a cell is not plainly a number."""
    lines = [f'{START + timedelta(hours=i)},"{x}"' if x == "1,5" else f"{START + timedelta(hours=i)},{x}"
             for i, x in enumerate(cells)]  # fmt: skip
    text = "\n".join(["t,x", f"{START - timedelta(hours=1)},1", *lines, last])
    outcomes = []
    for is_fast in (True, False):
        with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
            if not is_fast:
                patch.setattr(TableSource, "read_parsed", lambda source, store, scratch, numbers: None)
            try:
                table, quality = ingest_csv(Path(folder), text, sentinels={"x": [7]})
                outcomes.append((table.to_dict(as_series=False), asdict(quality) | {"settings": ""}))
            except RecastError as error:
                outcomes.append(str(error).replace(folder, ""))
    assert outcomes[0] == outcomes[1]


HOURS = "t,x\n2020-01-01 00:00,1\n2020-01-01 01:00,2\n2020-01-01 02:00,3\n"


def test_a_missing_column_lists_what_is_there(tmp_path: Path) -> None:
    message = get_refusal(tmp_path, HOURS, features=("x", "temp"))
    assert "rows.csv: there is no column 'temp'; the columns are t, x." in message
    assert "there is no column 's'" in get_refusal(tmp_path, HOURS, series="s")
    assert "there is no column 'when'" in get_refusal(tmp_path, HOURS, source={"time": "when"})


@pytest.mark.parametrize(("written", "declared"), [(";", ","), (",", ";"), ("\t", ","), ("|", ";")])
def test_a_wrong_separator_is_named(tmp_path: Path, written: str, declared: str) -> None:
    message = get_refusal(tmp_path, HOURS.replace(",", written), source={"separator": declared})
    assert "rows.csv: there is no column 't'" in message
    assert f"is {written!r} the separator? (source.separator)" in message


@pytest.mark.parametrize("cell", ["n/a?", "1,5", "inf", "12 °C"])
def test_text_in_a_number_names_the_line(tmp_path: Path, cell: str) -> None:
    message = get_refusal(tmp_path, HOURS + f'2020-01-01 03:00,"{cell}"\n2020-01-01 04:00,bad\n')
    assert f"rows.csv, line 5: column 'x' holds {cell!r}, which is not a finite number" in message
    assert "2 such cells" in message


def test_undecodable_bytes_are_named(tmp_path: Path) -> None:
    bad = HOURS.encode() + b"2020-01-01 03:00,4\xb2\n"
    assert "rows.csv, line 5: column 'x' has bytes that are not UTF-8" in get_refusal(tmp_path, bad)
    header = HOURS.replace("x", "x²").encode("latin-1")
    assert "the header of column 'x²' has bytes that are not UTF-8" in get_refusal(tmp_path, header, features=("x²",))
    series = b"t,s,x\n2020-01-01 00:00,M\xfcnchen,1\n"
    assert "line 2: column 's', which names the series, has bytes" in get_refusal(tmp_path, series, series="s")


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("yesterday,4", "holds 'yesterday', which is not a time in ISO 8601"),
        (",4", "is empty"),
        ("2020-02-30 00:00,4", "holds '2020-02-30 00:00', which is not a time"),
    ],
)
def test_a_time_that_is_none_names_the_line(tmp_path: Path, line: str, fault: str) -> None:
    assert f"rows.csv, line 5: column 't' {fault}" in get_refusal(tmp_path, HOURS + line + "\n")


def test_a_wrong_time_format_is_named(tmp_path: Path) -> None:
    message = get_refusal(tmp_path, HOURS, source={"time_format": "%d.%m.%Y"})
    assert "line 2: column 't' holds '2020-01-01 00:00', which is not a time written as %d.%m.%Y" in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("t,x\n", "too few rows: 0"),
        (HOURS[:23], "too few rows: 1"),
        (HOURS[:23] + HOURS[4:23], "too few rows: 2"),
        (HOURS.replace("2\n", "2,2\n"), "rows.csv, line 3: there are 3 cells, and the header has 2; fix the file"),
        (HOURS.replace(",2", ',"2'), "rows.csv, line 3: a quotation mark opens a text that does not end as it should"),
    ],
)
def test_a_file_without_rows_enough_is_refused(tmp_path: Path, text: str, message: str) -> None:
    assert message in get_refusal(tmp_path, text)


def test_a_column_without_a_value_is_refused(tmp_path: Path) -> None:
    text = "t,x,y\n2020-01-01,1,-1\n2020-01-02,2,\n"
    message = get_refusal(tmp_path, text, features=("x", "y"), sentinels={"y": [-1]})
    assert "no row has a value in column 'y' (1 sentinels)" in message


def test_a_declared_cadence_must_be_the_rows(tmp_path: Path) -> None:
    assert ingest_csv(tmp_path, HOURS, cadence="1h")[1].cadence_declared
    with pytest.raises(
        RecastError, match=r"cadence 10m is declared, but most rows come every 1h; .*weather\.table\.cadence"
    ):
        ingest_csv(tmp_path, HOURS, cadence="10m")


def test_a_failure_leaves_the_former_table(tmp_path: Path) -> None:
    ingest_csv(tmp_path, HOURS)
    before = (tmp_path / "ingest" / "weather" / "table.parquet").read_bytes()
    with pytest.raises(RecastError):
        ingest_csv(tmp_path, HOURS + "x,x\n")
    assert (tmp_path / "ingest" / "weather" / "table.parquet").read_bytes() == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is always full")
def test_a_full_disk_is_said_as_the_system_says_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tabulation, "_sink", lambda frame, file: frame.sink_parquet("/dev/full", lazy=True))
    with pytest.raises(OSError, match="No space left on device") as raised:
        ingest_csv(tmp_path, HOURS)
    assert raised.value.filename == str(tmp_path / "ingest" / "weather")


def test_a_used_up_quota_is_not_reported_as_a_broken_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="quota exceeded"), explain_polars_errors(tmp_path / "raw", tmp_path):
        raise pl.exceptions.ComputeError(f"{os.strerror(errno.EDQUOT)} (os error 122)")


def test_a_column_of_text_may_have_any_name(tmp_path: Path) -> None:
    """Cells with spaces around them are not parsed while Polars scans the file."""
    rows = "".join(f"2020-01-01 {hour:02}:00, {hour}, {hour} \n" for hour in range(5))
    table, _ = ingest_csv(tmp_path, "t,zoned,no time\n" + rows, ("zoned", "no time"))
    assert table["zoned"].to_list() == table["no time"].to_list() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("number", ["1e300", "-1e39", "3.5e38", "1.7976931348623157e308"])
@pytest.mark.parametrize("parquet", [False, True])
def test_a_number_that_fits_into_no_network_names_the_line(tmp_path: Path, number: str, parquet: bool) -> None:
    """Squares of such numbers are infinite, and so would be the table that is made of them."""
    text = HOURS + f"2020-01-01 03:00,{number}\n2020-01-01 04:00,1e38\n"
    if parquet:
        file = tmp_path / "rows.parquet"
        pl.read_csv(text.encode()).write_parquet(file)
        with pytest.raises(RecastError) as raised:
            run_ingest(make_problem({"kind": "table", "path": str(file), "time": "t"}, ["x"]), tmp_path)
        message = str(raised.value)
        assert "rows.parquet, row 4: column 'x' holds" in message
    else:
        message = get_refusal(tmp_path, text)
        assert f"rows.csv, line 5: column 'x' holds '{number}'" in message
    assert "which is too large: a table holds numbers up to 3.4e+38; fix the cell, or leave it empty (1 such" in message


@pytest.mark.parametrize("number", ["1e300", "inf", "-1.7976931348623157e308"])
def test_a_sentinel_may_be_as_large_as_it_likes(tmp_path: Path, number: str) -> None:
    table, quality = ingest_csv(tmp_path, HOURS + f"2020-01-01 03:00,{number}\n", sentinels={"x": [float(number)]})
    assert table["x"].to_list() == [1, 2, 3, None]
    assert quality.columns["x"].sentinels == 1


@pytest.mark.parametrize(
    ("time", "source"),
    [
        ("-0001-01-01 00:00", {}),
        ("9999-12-31 23:59", {}),
        ("+99999-01-01T00:00:00Z", {}),
        ("1e18", {"time_format": "epoch s"}),
        ("1e300", {"time_format": "epoch s"}),
        ("nan", {"time_format": "epoch ms"}),
        ("-1e15", {"time_format": "epoch ms"}),
    ],
)
def test_a_time_that_no_calendar_has_names_the_line(tmp_path: Path, time: str, source: dict[str, str]) -> None:
    text = f"t,x\n0,1\n3600,2\n{time},3\n" if source else f"{HOURS}{time},3\n"
    message = get_refusal(tmp_path, text, source=source)
    assert f"rows.csv, line {4 if source else 5}: column 't' holds {time!r}, which is not a time" in message


@pytest.mark.parametrize("key", ["separator", "encoding", "skip_lines"])
def test_what_no_file_can_be_read_with_is_refused(key: str) -> None:
    values = {"separator": ["é", '"', "\n", "5", ""], "encoding": ["zlib", "hex", "a\0b"], "skip_lines": [2**63, -1]}
    for value in values[key]:
        with pytest.raises(ValueError, match=key):
            make_problem({"kind": "table", "path": "a.csv", "time": "t", key: value}, ["x"])


@pytest.mark.parametrize("path", ["~nobody_of_this_name/x.csv", "n" * 300, "a\0b", f"{'n' * 300}/*.csv", "n/" * 3000])
def test_a_path_where_no_file_can_be_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(
        RecastError, match=r"problems\.weather\.source\.path: .*correct it|names no CSV or Parquet file"
    ):
        run_ingest(make_problem({"kind": "table", "path": path, "time": "t"}, ["x"]), tmp_path)


@pytest.mark.parametrize("source", [{}, {"separator": " "}, {"encoding": "utf-16"}, {"skip_lines": 3}])
@pytest.mark.parametrize("content", [*(part * (2 << 20) for part in (b"x", b"x,", b"\0")), b"x\n" + b"y" * (2 << 20)])
def test_a_line_that_is_no_row_is_refused_in_a_short_message(
    tmp_path: Path, content: bytes, source: dict[str, Any]
) -> None:
    assert len(get_refusal(tmp_path, content, source=source)) < 5000


def test_a_file_that_unpacks_to_far_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "HARMLESS_BYTES", 1 << 16)
    file = tmp_path / "rows.csv.gz"
    file.write_bytes(gzip.compress(HOURS.encode() + b"\n" * (1 << 18)))
    with pytest.raises(RecastError, match=r"rows\.csv\.gz: it unpacks to more than 200 times its size"):
        run_ingest(make_problem({"kind": "table", "path": str(file), "time": "t"}, ["x"]), tmp_path)
    monkeypatch.setattr(tables, "HARMLESS_BYTES", 1 << 20)
    assert run_ingest(make_problem({"kind": "table", "path": str(file), "time": "t"}, ["x"]), tmp_path)
