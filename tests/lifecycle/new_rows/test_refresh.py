"""New rows: from a folder, a real local server and a database; into the raw store, once, whatever happens."""

import copy
import json
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from tenacity import wait_none
from typer.testing import CliRunner

from lifecycle.new_rows import quarantine, refresh
from lifecycle.new_rows.known_table import KnownTable, open_known_table
from lifecycle.new_rows.quarantine import Arrival, Breach
from lifecycle.new_rows.row_age import judge_age
from lifecycle.new_rows.unchecked_rows import find_unchecked_rows
from problems.errors import RecastError, Unreachable
from problems.files import download as downloading
from problems.files import web_copy
from problems.files.raw_store import INCREMENTS_FOLDER, list_increments
from problems.sources.table import TableSource
from project import paths
from project.settings.parsing import parse_settings
from project.settings.sections import Settings
from stages.fetching import fetch
from stages.ingest import ingest
from tests.support import checkout
from tests.support.checkout import SETTINGS, Checkout, write_table

HEADER = b"time,T (degC),p (mbar)\n"
Make = Callable[..., Settings]


def ignore_progress(received: int, total: int | None) -> None:
    """A progress that nobody watches."""


def fetch_new(settings: Settings) -> Arrival | None:
    return refresh.fetch_increment("demo", settings, ignore_progress)


def accept_new(settings: Settings) -> Arrival:
    """Fetch what is new, and accept it."""
    arrival = fetch_new(settings)
    assert arrival is not None
    quarantine.accept_increment(arrival)
    return arrival


def ingest_table(settings: Settings) -> pl.DataFrame:
    """Ingest the raw store, increments included."""
    declared = settings.problem("demo")
    ingest(declared, paths.raw_folder("demo"), Path("out"))  # type: ignore[arg-type]
    return pl.read_parquet("out/table.parquet")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(downloading, "RETRY_WAIT", wait_none())
    for name in ("JENA_ARCHIVE", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def lines() -> list[bytes]:
    """A header and 900 rows, of which `demo.csv` has the first 600."""
    write_table(Path("all.csv"), 900)
    found = Path("all.csv").read_bytes().splitlines(keepends=True)
    Path("demo.csv").write_bytes(b"".join(found[:601]))
    Path("incoming").mkdir()
    return found


@pytest.fixture
def settings() -> Make:
    """The small settings, with keys of the problem replaced."""

    def make(**keys: Any) -> Settings:
        document = copy.deepcopy(SETTINGS)
        document["problems"]["demo"] |= {"fresh": {"kind": "folder", "path": "incoming"}} | keys
        return Settings.model_validate_json(json.dumps(document), strict=True)

    return make


def change_line(line: bytes, value: float) -> bytes:
    """A row with its temperature changed."""
    time, _, pressure = line.split(b",")
    return b",".join([time, str(value).encode(), pressure])


def test_an_increment_holds_the_header_and_the_lines_that_are_not_known(lines: list[bytes], settings: Make) -> None:
    file = Path("incoming/month.csv")
    file.write_bytes(b"".join([lines[0], *lines[580:700]]))
    arrival = accept_new(settings())
    assert (arrival.rows, arrival.known, arrival.corrected, arrival.late) == (99, 21, 0, 0)
    assert (arrival.first, arrival.last) == ("2020-01-26 00:00:00", "2020-01-30 02:00:00")
    (stored,) = list_increments(paths.raw_folder("demo") / INCREMENTS_FOLDER)
    assert stored.name == f"0001-{arrival.sha256[:8]}.csv"
    assert stored.read_bytes() == b"".join([lines[0], *lines[601:700]])
    assert fetch_new(settings()) is None
    with file.open("ab") as grown:
        grown.writelines(lines[700:720])
    assert accept_new(settings()).rows == 20
    assert ingest_table(settings()).height == 719
    assert fetch_new(settings()) is None


def test_late_and_corrected_rows_are_new_and_the_newest_wins(lines: list[bytes], settings: Make) -> None:
    file = Path("incoming/month.csv")
    file.write_bytes(b"".join([lines[0], *lines[601:650], *lines[660:700]]))
    accept_new(settings())
    file.write_bytes(b"".join([lines[0], change_line(lines[10], 77), *lines[601:650], *lines[655:700]]))
    arrival = accept_new(settings())
    assert (arrival.rows, arrival.corrected, arrival.late) == (6, 1, 5)
    file.write_bytes(
        b"".join([lines[0], change_line(lines[10], 77), *lines[601:650], *lines[655:699], change_line(lines[699], 7)])
    )
    arrival = accept_new(settings())
    assert (arrival.rows, arrival.corrected, arrival.late) == (1, 1, 0)
    # Corrected twice, and back to what it was: what the source says now counts.
    for value in (78.0, 77.0, 78.0):
        file.write_bytes(b"".join([lines[0], change_line(lines[10], value), *lines[601:650], *lines[655:699]]))
        assert (accept_new(settings()).rows, fetch_new(settings())) == (1, None)
        row = ingest_table(settings()).filter(pl.col("time") == datetime(2020, 1, 1, 9))
        assert row["T (degC)"].to_list() == [value]
    assert ingest_table(settings()).height == 699 - 5


def test_a_line_without_an_end_waits_until_it_is_whole(lines: list[bytes], settings: Make) -> None:
    file = Path("incoming/month.csv")
    file.write_bytes(b"".join([lines[0], *lines[601:603], lines[603][:-4]]))
    assert accept_new(settings()).rows == 2
    # Nor is half a line taken when the same refresh asks again, as it does until there is nothing.
    assert fetch_new(settings()) is None
    file.write_bytes(b"".join([lines[0], *lines[601:605]])[:-1])
    assert accept_new(settings()).rows == 1
    assert fetch_new(settings()) is None
    # The file is as it was: its last line is not being written.
    assert accept_new(settings()).rows == 1
    assert fetch_new(settings()) is None
    assert ingest_table(settings()).height == 604


def test_what_is_added_to_half_a_line_corrects_its_row(lines: list[bytes], settings: Make) -> None:
    file, time = Path("incoming/month.csv"), lines[601].split(b",")[0]
    file.write_bytes(b"".join([lines[0], time, b",12.34,1000"])[: -len(b"4,1000")])
    assert fetch_new(settings()) is None
    # A logger that buffers what it writes has stopped within a line, and goes on later.
    assert (accept_new(settings()).rows, fetch_new(settings()), fetch_new(settings())) == (1, None, None)
    file.write_bytes(b"".join([lines[0], time, b",12.34,1000\n", *lines[602:604]]))
    arrival = accept_new(settings())
    assert (arrival.rows, arrival.corrected, fetch_new(settings())) == (3, 1, None)
    table = ingest_table(settings())
    assert (table.height, table["T (degC)"][600], table["p (mbar)"][600]) == (603, 12.34, 1000)


def test_half_a_line_that_comes_while_a_file_is_looked_at_waits(
    lines: list[bytes], settings: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = Path("incoming/month.csv")
    file.write_bytes(b"".join([lines[0], *lines[601:603]]))
    assert (accept_new(settings()).rows, fetch_new(settings())) == (2, None)

    def unpack_and_grow(source: TableSource, arrived: Path, scratch: Path) -> Path:
        if arrived == file:
            file.write_bytes(b"".join([lines[0], *lines[601:604]])[:-4])
        return arrived

    monkeypatch.setattr(TableSource, "unpack", unpack_and_grow)
    assert fetch_new(settings()) is None


def test_comments_are_not_rows(lines: list[bytes], settings: Make) -> None:
    source = {"kind": "table", "path": "demo.csv", "time": "time", "comment": "#", "encoding": "utf-8-sig"}
    declared = settings(source=source)
    file = Path("incoming/month.csv")
    file.write_bytes(
        b"".join(
            [lines[0], b"# begun anew\n", *lines[590:620], b'"#,a",b\n', *lines[620:630], b"# all, of, it, so far\n"]
        )
    )
    arrival = accept_new(declared)
    assert (arrival.rows, arrival.known, fetch_new(declared)) == (29, 11, None)
    (stored,) = list_increments(paths.raw_folder("demo") / INCREMENTS_FOLDER)
    assert stored.read_bytes() == b"".join([lines[0], *lines[601:630]])
    with file.open("ab") as grown:
        grown.writelines([b"# more\n", *lines[630:640]])
    assert (accept_new(declared).rows, fetch_new(declared)) == (10, None)
    with file.open("ab") as grown:
        grown.write(b"# no more\n")
    assert fetch_new(declared) is None
    assert ingest_table(declared).height == 639


def test_of_overlapping_files_the_last_counts_whichever_has_changed(lines: list[bytes], settings: Make) -> None:
    first, second = Path("incoming/a.csv"), Path("incoming/b.csv")
    first.write_bytes(b"".join([lines[0], *lines[601:640]]))
    second.write_bytes(b"".join([lines[0], *lines[630:660]]))
    assert (accept_new(settings()).rows, fetch_new(settings())) == (59, None)
    # What the first file says of a time that the second one has.
    first.write_bytes(b"".join([lines[0], *lines[601:635], change_line(lines[635], 9), *lines[636:640]]))
    assert fetch_new(settings()) is None
    with first.open("ab") as grown:
        grown.write(change_line(lines[640], 9))
    assert fetch_new(settings()) is None
    Path("incoming/aa.csv").write_bytes(b"".join([lines[0], change_line(lines[641], 9)]))
    assert fetch_new(settings()) is None
    second.write_bytes(b"".join([lines[0], *lines[630:659], change_line(lines[659], 7)]))
    assert (accept_new(settings()).corrected, fetch_new(settings())) == (1, None)


def test_the_same_rows_in_several_files_and_a_file_that_shrinks(lines: list[bytes], settings: Make) -> None:
    Path("incoming/a.csv").write_bytes(b"".join([lines[0], *lines[601:640]]))
    Path("incoming/b.csv").write_bytes(b"".join([lines[0], *lines[630:660], b"\n", b"\n"]))
    assert accept_new(settings()).rows == 59
    Path("incoming/a.csv").write_bytes(lines[0])
    Path("incoming/b.csv").write_bytes(b"".join([lines[0], *lines[630:640]]))
    assert fetch_new(settings()) is None
    assert ingest_table(settings()).height == 659
    Path("incoming/a.csv").write_bytes(b"")
    Path("incoming/b.csv").unlink()
    assert fetch_new(settings()) is None


def test_lines_that_are_known_are_compared_again_only_where_something_has_changed(
    lines: list[bytes], settings: Make
) -> None:
    file = Path("incoming/month.csv")
    file.write_bytes(b"".join([lines[0], *lines[590:700]]))
    first = accept_new(settings())
    assert fetch_new(settings()) is None
    file.write_bytes(b"".join([lines[0], *lines[590:710]]))
    grown = accept_new(settings())
    assert (grown.rows, grown.known) == (10, 0)
    assert fetch_new(settings()) is None
    # The store is another one, as after a git checkout and a dvc checkout.
    list_increments(paths.raw_folder("demo") / INCREMENTS_FOLDER)[0].unlink()
    again = accept_new(settings())
    assert (again.rows, again.known, again.late) == (first.rows, 21, 99)
    assert fetch_new(settings()) is None
    file.write_bytes(b"".join([lines[0], change_line(lines[595], 9), *lines[596:710]]))
    corrected = accept_new(settings())
    assert (corrected.rows, corrected.corrected) == (1, 1)
    shutil.rmtree(paths.STATE)
    assert fetch_new(settings()) is None


def test_files_with_other_columns_are_other_increments(lines: list[bytes], settings: Make) -> None:
    Path("incoming/a.csv").write_bytes(b"".join([lines[0], *lines[601:640]]))
    wider = [b"p (mbar),rain,time,T (degC)\n"]
    for line in lines[630:660]:
        time, T, p = line.strip().split(b",")
        wider.append(b",".join([p, b"0", time, T]) + b"\n")
    Path("incoming/b.csv").write_bytes(b"".join(wider))
    assert (accept_new(settings()).rows, accept_new(settings()).rows, fetch_new(settings())) == (29, 30, None)
    assert ingest_table(settings()).height == 659


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"when,T (degC),p (mbar)\n2020-01-26T00:00:00,1,2\n", "there is no column 'time'"),
        (b"time,T (degC),p (mbar)\n2020-01-26T00:00:00,1,2,3,4\n", "there are 5 cells, and the header has 3"),
        (b'time,T (degC),p (mbar)\n2020-01-26T00:00:00,"1\n1",2\n', "a text in quotation marks"),
    ],
)
def test_a_file_that_is_not_such_a_table_is_an_error(
    content: bytes, message: str, lines: list[bytes], settings: Make
) -> None:
    Path("incoming/a.csv").write_bytes(content)
    with pytest.raises(RecastError, match=message):
        fetch_new(settings())
    assert not (paths.raw_folder("demo") / INCREMENTS_FOLDER).exists()


def test_a_folder_that_is_not_there(lines: list[bytes], settings: Make) -> None:
    with pytest.raises(RecastError, match=r"fresh\.path: there is no file or folder nowhere"):
        fetch_new(settings(fresh={"kind": "folder", "path": "nowhere"}))
    with pytest.raises(RecastError, match=r"fresh\.path: there is no file or folder nowhere"):
        fetch_new(settings(fresh={"kind": "folder", "path": "nowhere/*/*.csv"}))
    assert fetch_new(settings(fresh={"kind": "folder", "path": "incoming/*.csv"})) is None
    assert fetch_new(settings(fresh={"kind": "folder", "path": "incoming/*/*.csv"})) is None


def test_a_folder_of_a_user_that_is_not_there(lines: list[bytes], settings: Make) -> None:
    with pytest.raises(RecastError, match=r"fresh\.path: ~nobody-here/incoming: Could not determine home"):
        fetch_new(settings(fresh={"kind": "folder", "path": "~nobody-here/incoming"}))


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_brackets_in_the_name_of_a_file_are_not_a_pattern(suffix: str, lines: list[bytes], settings: Make) -> None:
    rows = pl.read_csv("all.csv", try_parse_dates=True)
    for name, part in (("own[1]", rows.head(600)), ("incoming/new[1]", rows.slice(600, 20))):
        part.write_parquet(f"{name}.parquet")
        part.write_csv(f"{name}.csv")
    source = {"kind": "table", "path": f"own[1].{suffix}", "time": "time"}
    for path in (f"incoming/*.{suffix}", f"incoming/new[1].{suffix}"):
        shutil.rmtree(paths.raw_folder("demo"), ignore_errors=True)
        declared = settings(source=source, fresh={"kind": "folder", "path": path})
        assert (accept_new(declared).rows, fetch_new(declared)) == (20, None)
        assert ingest_table(declared).height == 620


def test_a_file_that_is_not_an_increment_is_named(lines: list[bytes], settings: Make) -> None:
    foreign = paths.raw_folder("demo") / INCREMENTS_FOLDER / "2020-notes.csv"
    foreign.parent.mkdir(parents=True)
    foreign.write_bytes(b"".join([lines[0], *lines[601:640]]))
    with pytest.raises(RecastError, match=r"data/raw/demo/fresh/2020-notes\.csv: not an increment.*move the file"):
        fetch_new(settings())


@pytest.mark.parametrize(
    ("source", "fresh"), [("own", "own"), ("own/*.csv", "own"), ("own", "own/b*.csv"), ("own/a.csv", "own")]
)
def test_a_file_is_not_both_the_sources_own_and_one_of_new_rows(
    source: str, fresh: str, lines: list[bytes], settings: Make
) -> None:
    Path("own").mkdir()
    Path("demo.csv").rename("own/a.csv")
    declared = settings(
        source={"kind": "table", "path": source, "time": "time"}, fresh={"kind": "folder", "path": fresh}
    )
    Path("own/b.csv").write_bytes(b"".join([lines[0], *lines[601:640]]))
    with pytest.raises(RecastError, match=r"problems\.demo\.source\.path and problems\.demo\.fresh\.path both name"):
        fetch("demo", declared)
    with pytest.raises(RecastError, match="would not be checked"):
        fetch_new(declared)


def test_a_kill_at_any_point_loses_and_doubles_nothing(lines: list[bytes], settings: Make) -> None:
    Path("incoming/a.csv").write_bytes(b"".join([lines[0], *lines[601:640]]))
    first = fetch_new(settings())  # killed before it was checked
    again = fetch_new(settings())
    assert first == again is not None
    path = quarantine.accept_increment(again)  # killed before it was told
    assert quarantine.accept_increment(again) == path
    assert fetch_new(settings()) is None
    with pytest.raises(RecastError, match="no longer there"):
        quarantine.quarantine_increment(again, [])
    Path("incoming/a.csv").write_bytes(b"".join([lines[0], *lines[601:660]]))
    second = fetch_new(settings())
    assert second is not None
    # Killed between the reasons and the rows.
    reasons = paths.quarantine_folder("demo") / second.pending.with_suffix(".json").name
    reasons.parent.mkdir(parents=True)
    reasons.write_text("{}")
    second = fetch_new(settings())
    assert second is not None
    file = quarantine.quarantine_increment(second, [Breach("drift", "T (degC)", "too warm", {"mean": 80.0})])
    assert quarantine.quarantine_increment(second, [Breach("drift", "T (degC)", "too warm", {"mean": 80.0})]) == file
    assert fetch_new(settings()) is None
    assert ingest_table(settings()).height == 639


def test_what_is_in_quarantine_is_known_until_it_is_dropped(lines: list[bytes], settings: Make) -> None:
    file = Path("incoming/a.csv")
    file.write_bytes(b"".join([lines[0], *lines[601:640]]))
    arrival = fetch_new(settings())
    assert arrival is not None
    quarantine.quarantine_increment(arrival, [Breach("stuck", "p (mbar)", "stays", {})])
    (quarantined,) = quarantine.list_quarantine("demo")
    assert (quarantined.arrival["rows"], quarantined.breaches[0]["rule"]) == (39, "stuck")
    with file.open("ab") as grown:
        grown.writelines(lines[640:650])
    assert accept_new(settings()).rows == 10
    assert accepted_names("demo") == ["0002"]
    quarantine.release_increment("demo", quarantined.file.stem, settings())
    assert accepted_names("demo") == ["0001", "0002"]
    assert [time.isoformat() for time in quarantine.read_accepted_times("demo")] == ["2020-01-26T00:00:00"]
    assert ingest_table(settings()).height == 649
    with file.open("ab") as grown:
        grown.write(b"2020-02-10T00:00:00,warm,1000\n")
    wrong = fetch_new(settings())
    assert wrong is not None
    name = quarantine.quarantine_increment(wrong, []).stem
    with pytest.raises(RecastError, match="'warm', which is not a finite number"):
        quarantine.release_increment("demo", name, settings())
    quarantine.drop_increment("demo", name)
    again = fetch_new(settings())
    assert again is not None
    assert again.sha256 == wrong.sha256
    with pytest.raises(RecastError, match="no increment 7; there are: none"):
        quarantine.drop_increment("demo", "7")


def accepted_names(problem: str) -> list[str]:
    return [file.name.partition("-")[0] for file in list_increments(paths.raw_folder(problem) / INCREMENTS_FOLDER)]


def test_parquet_files_grow_too(lines: list[bytes], settings: Make) -> None:
    rows = pl.read_csv("all.csv", try_parse_dates=True)
    rows.head(600).write_parquet("demo.parquet")
    grown = settings(source={"kind": "table", "path": "demo.parquet", "time": "time"})
    rows.slice(590, 30).write_parquet("incoming/a.parquet")
    assert accept_new(grown).rows == 20
    assert fetch_new(grown) is None
    assert pl.read_parquet(list_increments(paths.raw_folder("demo") / INCREMENTS_FOLDER)[0]).equals(rows.slice(600, 20))
    assert ingest_table(grown).height == 620
    Path("incoming/b.parquet").write_bytes(Path("incoming/a.parquet").read_bytes()[:500])
    with pytest.raises(RecastError, match=r"b\.parquet: not a whole Parquet file"):
        fetch_new(grown)


def test_the_stations_running_file_joins_an_hourly_archive(settings: Make) -> None:
    columns = ["p (mbar)", "T (degC)"]
    hours = [datetime(2016, 12, 1) + timedelta(hours=i) for i in range(240)]
    old = [f"{time:%d.%m.%Y %H:%M:%S},{990 + i % 7},{i % 24}.50" for i, time in enumerate(hours)]
    Path("base.csv").write_text("\n".join([",".join(["Date Time", *columns]), *old, ""]))
    start = hours[-1] + timedelta(minutes=10)
    new = [f"{start + i * timedelta(minutes=10):%d.%m.%Y %H:%M:%S},1,{i % 24}.25,990,0" for i in range(100)]
    head = b"Date Time,SWDR (W/m\xb2),T (degC),p (mbar),PAR (\xb5mol/m\xb2/s)\r\n"
    Path("incoming").mkdir()
    Path("incoming/mpi_roof.csv").write_bytes(head + "".join(f"{line}\r\n" for line in new).encode())
    declared = settings(
        source={"kind": "jena", "path": "base.csv"},
        table={"features": columns, "target": "T (degC)", "unit": "°C", "cadence": "1h", "thin": True},
    )
    arrival = accept_new(declared)
    assert (arrival.rows, fetch_new(declared)) == (100, None)
    assert list_increments(paths.raw_folder("demo") / INCREMENTS_FOLDER)[0].read_bytes().startswith(head)
    times = ingest_table(declared)["time"]
    assert len(times) == 240 + 16
    assert times.diff().drop_nulls().unique().to_list() == [timedelta(hours=1)]


def test_the_second_of_two_equal_hours_comes_alone(settings: Make) -> None:
    clock = ["00:00", "01:00", "02:00", "02:00", "03:00"]
    shown = [f"2020-10-25 {hour},{i},1000\n" for i, hour in enumerate(clock)]
    Path("demo.csv").write_text("".join(["time,T (degC),p (mbar)\n", *shown[:2]]))
    Path("incoming").mkdir()
    source = {"path": "demo.csv", "time": "time", "time_zone": "Europe/Berlin", "repeated_hour": "in order"}
    declared = settings(source={"kind": "table", **source})
    for end in (3, 4, 5):
        Path("incoming/a.csv").write_text("".join(["time,T (degC),p (mbar)\n", *shown[:end]]))
        accept_new(declared)
        assert fetch_new(declared) is None
    found = ingest_table(declared)
    assert found["time"].dt.hour().to_list() == [22, 23, 0, 1, 2]
    assert found["T (degC)"].to_list() == [0, 1, 2, 3, 4]


class Station:
    """A web server on this machine with one file that is written on."""

    def __init__(self, body: bytes) -> None:
        self.body, self.broken = body, False
        self.asked: list[tuple[int, int]] = []
        self.last_path = ""
        station = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                station.answer(self)

            def log_message(self, format: str, *args: Any) -> None:
                """Keep the test's output clean."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/roof.csv"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """As RFC 9110 says: first whether it is another version, then which part; note the status and the bytes."""
        self.last_path = request.path
        etag = f'"{hash(self.body)}"'
        if request.headers.get("If-None-Match") == etag:
            self.asked.append((304, 0))
            request.send_response(304)
            request.end_headers()
            return
        start = int((request.headers.get("Range") or "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        if request.headers.get("If-Range") not in (None, etag):
            start = 0
        status = 200 if not request.headers.get("Range") else 206 if start < len(self.body) else 416
        body = self.body[start:] if status != 416 else b""
        self.asked.append((status, len(body)))
        request.send_response(status)
        request.send_header("ETag", etag)
        request.send_header("Content-Length", str(len(body)))
        if status == 206:
            request.send_header("Content-Range", f"bytes {start}-{len(self.body) - 1}/{len(self.body)}")
        request.end_headers()
        request.wfile.write(body[: len(body) // 2] if self.broken else body)
        request.close_connection = True


@pytest.fixture
def station(lines: list[bytes]) -> Iterator[Station]:
    running = Station(b"".join([lines[0], *lines[590:700]]))
    yield running
    running.server.shutdown()
    running.server.server_close()


def test_a_server_is_asked_for_what_is_new_only(
    station: Station, lines: list[bytes], settings: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web_copy, "COMPARED_BYTES", 100)
    declared = settings(fresh={"kind": "http", "url": station.url})
    assert accept_new(declared).rows == 99
    assert station.asked.pop() == (200, len(station.body))
    assert fetch_new(declared) is None
    assert station.asked.pop() == (304, 0)
    station.body += b"".join(lines[700:720])
    assert accept_new(declared).rows == 20
    assert station.asked.pop() == (206, 100 + sum(map(len, lines[700:720])))
    # Corrected near its end: it has not only grown.
    station.body = station.body.replace(lines[719], change_line(lines[719], 60.5))
    arrival = accept_new(declared)
    assert (arrival.rows, arrival.corrected) == (1, 1)
    assert [status for status, _ in station.asked] == [206, 200]
    # The half-year ends and the file begins anew.
    station.asked.clear()
    station.body = b"".join([lines[0], *lines[720:730]])
    assert accept_new(declared).rows == 10
    assert [status for status, _ in station.asked] == [416, 200]
    assert ingest_table(declared).height == 729


def test_a_server_that_breaks_off_or_is_down_changes_nothing(
    station: Station, lines: list[bytes], settings: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web_copy, "COMPARED_BYTES", 100)
    declared = settings(fresh={"kind": "http", "url": station.url})
    station.broken = True
    with pytest.raises(Unreachable, match=r"roof\.csv"):
        fetch_new(declared)
    station.broken = False
    assert accept_new(declared).rows == 99
    station.body += b"".join(lines[700:720])
    station.broken = True
    with pytest.raises(Unreachable, match=r"fresh\.url, or try again later"):
        fetch_new(declared)
    station.broken = False
    assert accept_new(declared).rows == 20
    station.body = b"<!DOCTYPE html><html>Please sign in</html>"
    with pytest.raises(Unreachable, match="web page"):
        fetch_new(declared)
    station.server.shutdown()
    station.server.server_close()
    with pytest.raises(Unreachable, match="could not be fetched"):
        fetch_new(declared)
    assert ingest_table(declared).height == 719


def test_a_database_is_asked_for_what_comes_after_the_last_known_row(lines: list[bytes], settings: Make) -> None:
    rows = [line.decode().strip().split(",") for line in lines[1:]]
    with sqlite3.connect("plant.db") as connection:
        connection.execute('create table air (time text, "T (degC)" real, "p (mbar)" real)')
        connection.executemany("insert into air values (?, ?, ?)", rows[:600])
    source = {"kind": "database", "address": "sqlite:///plant.db", "query": "select * from air;", "time": "time"}
    plain = settings(source=source, fresh={"kind": "query"})
    assert fetch_new(plain) is None
    with sqlite3.connect("plant.db") as connection:
        connection.executemany("insert into air values (?, ?, ?)", rows[600:650])
        connection.execute('update air set "T (degC)" = 50 where time = ?', rows[599][:1])
    assert accept_new(plain).rows == 50
    assert fetch_new(plain) is None
    overlapping = settings(source=source, fresh={"kind": "query", "overlap": "3d"})
    assert (accept_new(overlapping).corrected, fetch_new(overlapping)) == (1, None)
    own = settings(source=source, fresh={"kind": "query", "query": "select * from air where time > :after"})
    with sqlite3.connect("plant.db") as connection:
        connection.executemany("insert into air values (?, ?, ?)", rows[650:651])
    assert accept_new(own).rows == 1
    assert ingest_table(own).height == 651
    wrong = settings(source=source, fresh={"kind": "query", "query": "select * from water"})
    with pytest.raises(RecastError, match=r"fresh\.query: .* refuses it: no such table: water"):
        fetch_new(wrong)


def insert_readings(times: Sequence[str], first: float = 0) -> None:
    """A database whose time column holds these texts."""
    with sqlite3.connect("plant.db") as connection:
        connection.execute('create table if not exists air (time text, "T (degC)" real, "p (mbar)" real)')
        connection.executemany(
            "insert into air values (?, ?, 1000)", [(time, first + i) for i, time in enumerate(times)]
        )


def query_settings(settings: Make, fresh_query: str | None = None, **source: Any) -> Settings:
    """A problem whose new rows a query brings from `plant`."""
    known = {"kind": "database", "address": "sqlite:///plant.db", "query": "select * from air", "time": "time"}
    return settings(source=known | source, fresh={"kind": "query", "query": fresh_query})


def test_a_query_that_ends_in_a_comment_is_asked_for_what_is_new(settings: Make) -> None:
    insert_readings(["2020-01-30", "2020-01-31"])
    declared = query_settings(settings, query="select * from air -- all")
    assert fetch_new(declared) is None
    insert_readings(["2020-02-01"])
    assert (accept_new(declared).rows, fetch_new(declared)) == (1, None)
    with sqlite3.connect("plant.db") as connection:
        connection.execute("drop table air")
    with pytest.raises(RecastError, match=r"problems\.demo\.source\.query: .* refuses it: no such table: air"):
        fetch_new(declared)


@pytest.mark.parametrize(
    ("time_format", "times"),
    [
        ("%d.%m.%Y %H:%M", ["30.01.2020 00:00", "31.01.2020 00:00"]),
        ("%y-%m-%d", ["20-01-30", "20-01-31"]),
        ("%Y-%m-%dT%H:%M%z", ["2020-03-29T01:00+01:00", "2020-03-29T03:00+02:00"]),
        (None, ["2020-03-29T01:00:00+01:00", "2020-03-29T03:00:00+02:00"]),
        (None, ["2020-01-30T00:00", "2020-01-30 01:00"]),
        ("epoch s", ["1580342400", "1580346000"]),
    ],
)
def test_text_times_that_do_not_sort_are_not_asked_for_as_if_they_did(
    time_format: str | None, times: list[str], settings: Make
) -> None:
    insert_readings(times)
    with pytest.raises(RecastError, match=r"problems\.demo\.fresh: the query's column 'time' .*write fresh\.query"):
        fetch_new(query_settings(settings, time_format=time_format))
    assert fetch_new(query_settings(settings, "select * from air", time_format=time_format)) is None


@pytest.mark.parametrize(
    ("time_format", "times"),
    [
        (None, ["2020-01-30T00:00:00Z", "2020-01-30T01:00:00Z", "2020-02-01T00:00:00Z"]),
        (None, ["2020-01-30", "2020-01-31", "2020-02-01"]),
        ("%F %T", ["2020-01-30 00:00:00", "2020-01-31 00:00:00", "2020-02-01 00:00:00"]),
        ("%Y/%m/%d %H", ["2020/01/30 00", "2020/01/31 00", "2020/02/01 00"]),
    ],
)
def test_text_times_with_the_year_first_are_asked_for(
    time_format: str | None, times: list[str], settings: Make
) -> None:
    insert_readings(times[:2])
    declared = query_settings(settings, time_format=time_format)
    assert fetch_new(declared) is None
    insert_readings(times[2:])
    assert (accept_new(declared).rows, fetch_new(declared)) == (1, None)


def test_a_query_brings_again_what_was_dropped(settings: Make) -> None:
    hours = [f"2020-01-01T{hour:02d}:00:00" for hour in range(24)]
    insert_readings(hours[:5])
    declared = query_settings(settings)
    assert fetch_new(declared) is None

    def into_quarantine() -> str:
        arrival = fetch_new(declared)
        assert arrival is not None
        return quarantine.quarantine_increment(arrival, []).stem

    insert_readings(hours[5:8], first=50)
    wrong = into_quarantine()
    insert_readings(hours[8:10])
    worse = into_quarantine()
    insert_readings(hours[10:12])
    assert (accept_new(declared).rows, fetch_new(declared)) == (2, None)
    with sqlite3.connect("plant.db") as connection:
        connection.execute('update air set "T (degC)" = 5 where "T (degC)" >= 50')
    # What lies there holds the query back, so what is mended comes by itself.
    mended = fetch_new(declared)
    assert mended is not None
    assert (mended.rows, mended.first) == (3, "2020-01-01 05:00:00")
    quarantine.drop_increment("demo", wrong)
    quarantine.drop_increment("demo", worse)
    dropped = fetch_new(declared)
    assert dropped is not None
    assert (dropped.rows, dropped.first) == (5, "2020-01-01 05:00:00")
    quarantine.accept_increment(dropped)
    assert fetch_new(declared) is None
    assert list(paths.quarantine_folder("demo").iterdir()) == []
    assert ingest_table(declared).height == 12


def test_what_was_accepted_can_be_taken_back_and_accepted_again(lines: list[bytes], settings: Make) -> None:
    declared = settings()
    Path("incoming/a.csv").write_bytes(b"".join([lines[0], *lines[601:650]]))
    name = accept_new(declared).pending.stem
    Path("incoming/a.csv").write_bytes(b"".join([lines[0], *lines[601:700]]))
    accept_new(declared)
    ingest_table(declared)
    with pytest.raises(RecastError, match=r"no increment 0009-00000000; there are: 0001-\w+, 0002-"):
        quarantine.undo_increment("demo", "0009-00000000", "anna", declared)
    moved = quarantine.undo_increment("demo", name, "anna", declared)
    assert quarantine.undo_increment("demo", f"{name}.csv", "anna", declared) == moved, "as after a kill"
    (undone,) = quarantine.list_quarantine("demo")
    assert (undone.file, undone.arrival["rows"]) == (moved, 49)
    assert [breach["rule"] for breach in undone.breaches] == ["undone"]
    assert "taken back by anna" in undone.breaches[0]["message"]
    assert fetch_new(declared) is None, "its rows do not come again"
    with open_known_table(declared.problem("demo"), paths.raw_folder("demo"), Path("out")) as known:  # type: ignore[arg-type]
        assert known.table.collect().height == 650, "what was ingested of it is not known any more"
    quarantine.release_increment("demo", name, declared)
    assert ingest_table(declared).height == 699
    assert quarantine.read_accepted_times("demo") == [], "it broke no rule"


def test_rows_that_were_added_to_the_source_itself_are_unchecked(lines: list[bytes], settings: Make) -> None:
    declared, store = settings(), paths.raw_folder("demo")
    Path("incoming/a.csv").write_bytes(b"".join([lines[0], *lines[601:650]]))
    accept_new(declared)
    problem: Any = declared.problem("demo")
    assert find_unchecked_rows(problem, store, Path("out")) is None
    ingest_table(declared)
    assert find_unchecked_rows(problem, store, Path("out")) is None
    with Path("demo.csv").open("ab") as own:
        own.writelines(lines[650:660])
    unchecked = find_unchecked_rows(problem, store, Path("out"))
    assert unchecked is not None
    assert (unchecked.files, unchecked.rows, str(unchecked.first)) == (("demo.csv",), 10, "2020-01-28 01:00:00")
    assert "10 rows from 2020-01-28 01:00:00 to 2020-01-28 10:00:00" in unchecked.describe("demo")
    ingest_table(declared)
    assert find_unchecked_rows(problem, store, Path("out")) is None


def test_the_newest_rows_are_those_that_ingest_would_write() -> None:
    """Hourly rows, then rows every ten minutes, of which one came late and one is a correction."""
    hour = datetime(2020, 1, 1)

    def table(moments: Sequence[datetime], value: float) -> pl.DataFrame:
        frame = pl.DataFrame({"time": moments, "series": "all", "a": [value] * len(moments)})
        return frame.with_columns(pl.col("time").cast(pl.Datetime("ms")))

    known = KnownTable(table([hour + timedelta(hours=i) for i in range(48)], 1.0).lazy(), timedelta(hours=1), False)
    assert known.read_newest(5, thin=True)["time"][0] == hour + timedelta(hours=43)
    late = [hour + timedelta(hours=20, minutes=10), hour + timedelta(hours=46)]
    later = [hour + timedelta(hours=47, minutes=10 * i) for i in range(1, 13)]
    grown = known.with_rows(table(late, 2.0)).with_rows(table(later, 3.0)).with_rows(table(later[-1:], 4.0))
    newest = grown.read_newest(5, thin=True)
    assert newest["time"].to_list() == [hour + timedelta(hours=i) for i in range(43, 50)]
    assert newest["a"].to_list() == [1, 1, 1, 2, 1, 3, 4]


def test_the_newest_row_is_that_of_the_series_that_is_behind(settings: Make) -> None:
    declared: Any = settings().problem("demo")
    now, hour = datetime(2020, 2, 1, 12), timedelta(hours=1)
    age = judge_age(declared, {"a": now, "b": now - 4 * hour, "ended": now - timedelta(days=6)}, hour, now)
    assert (age.series, age.age, age.limit, age.is_stale) == ("b", 4 * hour, 3 * hour, True)
    assert age.describe() == "2020-02-01 08:00 UTC, 4.0 h old, at most 3h"
    patient: Any = settings(fresh={"kind": "folder", "path": "incoming", "max_age": "5h"}).problem("demo")
    assert not judge_age(patient, {"b": now - 4 * hour}, hour, now).is_stale
    archive: Any = settings(fresh=None).problem("demo")
    assert not judge_age(archive, {"b": now - timedelta(days=900)}, hour, now).is_stale, "no row is expected"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"problems__demo__fresh": {"kind": "query"}}, "fresh cannot be query where the source is table"),
        ({"problems__demo__fresh": {"kind": "ftp"}}, "fresh.kind: must be one of http, folder, query"),
        ({"problems__demo__fresh": {"kind": "http", "url": "station/roof.csv"}}, "must be http://... or https://..."),
        ({"problems__demo__fresh": {"kind": "http"}}, "fresh.url: missing"),
        ({"problems__demo__fresh": {"kind": "folder", "path": "x", "glob": "y"}}, "glob: unknown key"),
        ({"problems__demo__table__thin": True}, "cadence must be given where thin is true"),
        ({"problems__demo__contract": {"drift": -1}}, "contract.drift: must be above 0"),
        ({"problems__demo__contract": {"ranges": {"rain": [0, 1]}}}, "contract has ranges for 'rain'"),
        ({"problems__demo__contract": {"ranges": {"p (mbar)": [2, 1]}}}, "the minimum, 2, is above the maximum, 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    made = Checkout(tmp_path, {})
    made.settings()
    made.settings(**change)
    with pytest.raises(RecastError) as refused:
        parse_settings()
    assert message in str(refused.value)


def test_the_commands_tell_what_came_and_have_dvc_track_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows import dag
    from flows.cli import app

    made = checkout.make_checkout(tmp_path / "checkout")
    monkeypatch.chdir(made.root)
    write_table(Path("all.csv"), 900)
    lines = Path("all.csv").read_bytes().splitlines(keepends=True)

    def recast(*arguments: str) -> tuple[int, str]:
        ended = CliRunner().invoke(app, arguments)
        return ended.exit_code, ended.output

    assert isinstance(CliRunner().invoke(app, ["refresh"]).exception, RecastError)
    made.settings(problems__demo__fresh={"kind": "folder", "path": "incoming"})
    Path("incoming").mkdir()
    status, printed = recast("refresh")
    assert (status, "nothing new" in printed) == (0, True)
    # Half a line is not taken however often one refresh, or a dry run before it, looks at it.
    Path("incoming/a.csv").write_bytes(b"".join([lines[0], *lines[590:700], lines[700][:-4]]))
    status, printed = recast("refresh", "--dry-run")
    assert (status, "would be accepted" in printed, paths.raw_folder("demo").joinpath(INCREMENTS_FOLDER).exists()) == (
        0,
        True,
        False,
    )
    status, printed = recast("refresh")
    assert (status, "99" in printed, "accepted: 0001-" in printed) == (0, True, True)
    noted = Path("data/raw/demo/fresh.dvc").read_text()
    assert "nfiles: 1" in noted
    assert not dag.track_folder(Path("data/raw/demo/fresh"))
    Path("incoming/a.csv").write_bytes(b"".join([lines[0], *lines[590:700]]))
    warm = [change_line(line, 80 + i % 5) for i, line in enumerate(lines[700:760])]
    Path("incoming/b.csv").write_bytes(b"".join([lines[0], *warm]))
    status, printed = recast("refresh", "--dry-run")
    assert (status, "would be put into quarantine" in printed) == (4, True)
    status, printed = recast("refresh")
    assert (status, "in quarantine: 0002-" in printed, "T (degC)" in printed) == (4, True, True)
    assert Path("data/raw/demo/fresh.dvc").read_text() == noted
    assert recast("refresh")[0] == 0
    (name,) = [increment.file.stem for increment in quarantine.list_quarantine("demo")]
    assert name in recast("quarantine")[1]
    assert recast("quarantine", "--accept", name)[0] == 0
    assert "nfiles: 2" in Path("data/raw/demo/fresh.dvc").read_text()
    assert "Nothing is in quarantine" in recast("quarantine")[1]
    # Git keeps the note and not the rows; DVC finds it, and brings the rows back.
    listed = made.run("git", "status", "--short", "--untracked-files=all", "data")
    assert listed.split() == ["??", "data/raw/demo/fresh.dvc"]
    shutil.rmtree("data/raw/demo/fresh")
    with dag.open_repository() as repo:
        stages = [stage.addressing for stage in dag.stages_in_order(repo, ["demo"])]
        assert stages[:2] == ["data/raw/demo/fresh.dvc", "ingest@demo"]
    with pytest.raises(RecastError, match=r"dvc checkout data/raw/demo/fresh\.dvc"):
        dag.track_folder(Path("data/raw/demo/fresh"))


def test_the_flow_and_dvc_agree_on_what_increments_make_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows import dag
    from flows.pipeline import RAN, TRACKED, UP_TO_DATE, stage_task

    made = checkout.make_checkout(tmp_path / "grown")
    monkeypatch.chdir(made.root)
    last = Path("demo.csv").read_text().splitlines()[-1].partition(",")[2]
    folder = paths.raw_folder("demo") / INCREMENTS_FOLDER
    folder.mkdir()
    (folder / "0001-00000000.csv").write_text(f"time,T (degC),p (mbar)\n2020-01-26T00:00:00,{last}\n")
    assert dag.track_folder(folder)
    # A refresh that was killed before DVC knew of its rows.
    (folder / "0002-00000000.csv").write_text(f"time,T (degC),p (mbar)\n2020-01-26T01:00:00,{last}\n")
    other = made.copy(tmp_path / "other")
    names = ["data/raw/demo/fresh.dvc", "ingest@demo"]
    assert dag.stale_stages(["demo"])[:2] == names
    assert [stage_task.fn(name, names, False).name for name in names] == [TRACKED, RAN]
    assert [stage_task.fn(name, names, False).name for name in names] == [UP_TO_DATE, UP_TO_DATE]
    assert json.loads(Path("data/ingest/demo/quality.json").read_text())["rows_kept"] == 602
    # The same by DVC alone.
    other.dvc("repro", "--quiet", "ingest@demo")
    assert read_lock_entry(made, "ingest@demo") == read_lock_entry(other, "ingest@demo")
    assert Path(f"{folder}.dvc").read_text() == other.file(f"{folder}.dvc").read_text()


def read_lock_entry(made: Checkout, stage: str) -> Any:
    """Read the entry of a stage in dvc.lock."""
    from ruamel.yaml import YAML

    return YAML(typ="safe").load(made.file("dvc.lock").read_text())["stages"][stage]


def test_a_secret_of_an_address_is_used_and_never_shown(
    station: Station, settings: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN", "hunter2")
    monkeypatch.setenv("FOLDER", "folder-s3cret")
    url = station.url.replace("roof.csv", "${FOLDER}/roof.csv?station=7&token=${TOKEN}")
    declared = settings(fresh={"kind": "http", "url": url})
    assert accept_new(declared).rows == 99
    assert station.last_path == "/folder-s3cret/roof.csv?station=7&token=hunter2"
    station.server.shutdown()
    station.server.server_close()
    with pytest.raises(
        Unreachable, match=r"/\$\{FOLDER\}/roof\.csv\?station=7&token=.* could not be fetched"
    ) as raised:
        fetch_new(declared)
    monkeypatch.delenv("TOKEN")
    with pytest.raises(RecastError, match=r"fresh\.url: the environment has no variable TOKEN; set it"):
        fetch_new(declared)
    written = b"".join(file.read_bytes() for file in Path().rglob("*") if file.is_file())
    for secret in ("hunter2", "s3cret"):
        assert secret not in str(raised.value)
        assert secret.encode() not in written
