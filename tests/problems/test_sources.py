"""Where rows come from: downloads over a real local server, local files, and the simulated station."""

import hashlib
import io
import socket
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tenacity import wait_none

from problems.errors import RecastError, Unreachable
from problems.files import download as downloading
from problems.files import tables
from problems.files.download import checksum_file, download, verify_checksum
from problems.files.public_files import find_local_file, link_files_of_folder
from problems.files.raw_store import replace_with_links
from problems.source import PLACE_COLUMN
from problems.sources.jena import ARCHIVE_VARIABLE, JenaSource
from problems.sources.nyc import NycSource
from problems.sources.questions import QuestionsSource
from problems.sources.station import StationSource, derive_quantities, simulate_rows
from problems.sources.table import TableSource

HEADER = (
    "Date Time,p (mbar),T (degC),Tpot (K),Tdew (degC),rh (%),VPmax (mbar),VPact (mbar),VPdef (mbar),sh (g/kg),"
    "H2OC (mmol/mol),rho (g/m**3),wv (m/s),max. wv (m/s),wd (deg)"
)
ROW = "01.01.2009 00:{:02}:00,996.52,-8.02,265.40,-8.90,93.30,3.33,3.11,0.22,1.94,3.12,1307.75,1.03,1.75,152.30"
CSV = "\n".join([HEADER, *(ROW.format(minute) for minute in range(0, 60, 10))]) + "\n"


def pack_zip(text: str = CSV, name: str = "rows.csv") -> bytes:
    """A zip archive with one member."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, text)
    return buffer.getvalue()


def ignore_progress(received: int, total: int | None) -> None:
    """A progress that nobody watches."""


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (ARCHIVE_VARIABLE, "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(downloading, "RETRY_WAIT", wait_none())


@pytest.fixture
def store(tmp_path: Path) -> Path:
    folder = tmp_path / "raw" / "weather"
    folder.mkdir(parents=True)
    return folder


class Mirror:
    """A local web server that serves one file, and answers requests in the ways that a test sets."""

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.etag = '"first"'
        self.answers: list[Callable[[BaseHTTPRequestHandler], None]] = []
        self.asked: list[dict[str, str]] = []
        mirror = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                mirror.asked.append(dict(self.headers))
                (mirror.answers.pop(0) if mirror.answers else mirror.give)(self)

            def log_message(self, format: str, *args: Any) -> None:
                """Keep the test's output clean."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/archive.zip"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def give(self, request: BaseHTTPRequestHandler, sent: int | None = None) -> None:
        """The file, or the rest of it where the request's version is the right one; cut after `sent` bytes."""
        start = 0
        if request.headers.get("If-Range") == self.etag:
            start = int(request.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        request.send_response(206 if start else 200)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(self.body) - 1}/{len(self.body)}")
        request.send_header("Content-Length", str(len(self.body) - start))
        request.send_header("ETag", self.etag)
        request.end_headers()
        request.wfile.write(self.body[start:][:sent])
        request.close_connection = True

    def cut(self, request: BaseHTTPRequestHandler) -> None:
        """A connection that breaks in the middle of the file."""
        self.give(request, sent=len(self.body) // 2)

    def busy(self, request: BaseHTTPRequestHandler) -> None:
        request.send_error(503)

    def page(self, request: BaseHTTPRequestHandler) -> None:
        """A network's login page, with status 200."""
        body = b"<!DOCTYPE html><html>Please sign in</html>"
        request.send_response(200)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    running = Mirror(pack_zip() + bytes(300_000))
    yield running
    running.server.shutdown()
    running.server.server_close()


def test_download_records_what_came(mirror: Mirror, tmp_path: Path) -> None:
    reported: list[tuple[int, int | None]] = []
    download([mirror.url], tmp_path / "a.zip", lambda received, total: reported.append((received, total)), magic=b"PK")
    assert (tmp_path / "a.zip").read_bytes() == mirror.body
    assert checksum_file(tmp_path / "a.zip").read_text().split() == [hashlib.sha256(mirror.body).hexdigest(), "a.zip"]
    assert reported[-1] == (len(mirror.body), len(mirror.body))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.zip", "a.zip.sha256"]
    verify_checksum(tmp_path / "a.zip")
    (tmp_path / "a.zip").write_bytes(b"PK")
    with pytest.raises(RecastError, match=r"a\.zip: the file is not what was downloaded"):
        verify_checksum(tmp_path / "a.zip")


def test_a_cut_connection_is_resumed(mirror: Mirror, tmp_path: Path) -> None:
    mirror.answers = [mirror.cut]
    download([mirror.url], tmp_path / "a.zip", ignore_progress)
    assert (tmp_path / "a.zip").read_bytes() == mirror.body
    assert mirror.asked[1]["Range"] == f"bytes={len(mirror.body) // 2}-"


def test_a_later_call_continues_from_the_part(mirror: Mirror, tmp_path: Path) -> None:
    mirror.answers = [mirror.cut]
    with pytest.raises(Unreachable):
        download([mirror.url], tmp_path / "a.zip", ignore_progress, attempts=1)
    assert (tmp_path / "a.zip.part").stat().st_size == len(mirror.body) // 2
    assert not (tmp_path / "a.zip").exists()
    download([mirror.url], tmp_path / "a.zip", ignore_progress, attempts=1)
    assert (tmp_path / "a.zip").read_bytes() == mirror.body
    assert "Range" in mirror.asked[1]


def test_a_part_of_another_version_is_not_continued(mirror: Mirror, tmp_path: Path) -> None:
    mirror.answers = [mirror.cut]
    with pytest.raises(Unreachable):
        download([mirror.url], tmp_path / "a.zip", ignore_progress, attempts=1)
    mirror.body, mirror.etag = b"PK" + bytes(range(256)) * 500, '"second"'
    download([mirror.url], tmp_path / "a.zip", ignore_progress, attempts=1)
    assert (tmp_path / "a.zip").read_bytes() == mirror.body


@pytest.mark.parametrize("content_range", [None, "bytes 0-9/10", "bytes 7-300/301"])
def test_a_wrong_range_starts_again(mirror: Mirror, tmp_path: Path, content_range: str | None) -> None:
    def wrong(request: BaseHTTPRequestHandler) -> None:
        request.send_response(206)
        if content_range:
            request.send_header("Content-Range", content_range)
        request.send_header("Content-Length", "3")
        request.end_headers()
        request.wfile.write(b"bad")

    mirror.answers = [mirror.cut, wrong]
    download([mirror.url], tmp_path / "a.zip", ignore_progress)
    assert (tmp_path / "a.zip").read_bytes() == mirror.body


def test_a_busy_server_is_asked_again(mirror: Mirror, tmp_path: Path) -> None:
    mirror.answers = [mirror.busy, mirror.busy]
    download([mirror.url], tmp_path / "a.zip", ignore_progress, attempts=3)
    assert (tmp_path / "a.zip").exists()
    assert len(mirror.asked) == 3


def test_a_web_page_is_refused_and_the_next_mirror_asked(mirror: Mirror, tmp_path: Path) -> None:
    mirror.answers = [mirror.page]
    download([mirror.url, mirror.url], tmp_path / "a.zip", ignore_progress, magic=b"PK")
    assert (tmp_path / "a.zip").read_bytes() == mirror.body
    mirror.answers = [mirror.page]
    with pytest.raises(Unreachable, match="answered with a web page, not with a zip file"):
        download([mirror.url], tmp_path / "b.zip", ignore_progress, magic=b"PK")
    assert not list(tmp_path.glob("b.zip*.part"))
    assert not (tmp_path / "b.zip").exists()


def test_an_unexpected_checksum_is_refused(mirror: Mirror, tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match=f"its sha256 is .*, expected {'0' * 64}"):
        download([mirror.url], tmp_path / "a.zip", ignore_progress, sha256="0" * 64)
    download([mirror.url], tmp_path / "a.zip", ignore_progress, sha256=hashlib.sha256(mirror.body).hexdigest().upper())


def test_unreachable_names_every_mirror_and_the_fix_at_once(mirror: Mirror, store: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{free.getsockname()[1]}/archive.zip"
    mirror.answers = [lambda request: request.send_error(404)]
    began = time.monotonic()
    with pytest.raises(Unreachable) as raised:
        JenaSource(kind="jena", mirrors=(closed, mirror.url)).fetch(store, ignore_progress, attempts=5)
    assert time.monotonic() - began < 3
    message = str(raised.value).splitlines()
    assert len(message) == 4
    assert closed in message[1]
    assert "refused" in message[1]
    assert mirror.url in message[2]
    assert "404" in message[2]
    assert "JENA_ARCHIVE" in message[3]
    assert len(mirror.asked) == 1


def test_jena_downloads_once_and_verifies_later(mirror: Mirror, store: Path) -> None:
    mirror.body = pack_zip()
    source = JenaSource(kind="jena", mirrors=(mirror.url,))
    source.fetch(store, ignore_progress, 1)
    source.fetch(store, ignore_progress, 1)
    assert len(mirror.asked) == 1
    (store / "archive.zip").write_bytes(pack_zip(CSV + CSV))
    with pytest.raises(RecastError, match="not what was downloaded"):
        source.fetch(store, ignore_progress, 1)


def read_jena(source: JenaSource, store: Path, tmp_path: Path) -> pl.DataFrame:
    """What a source reads, without the places."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    return source.read(store, scratch).frame.drop(PLACE_COLUMN).collect()


def test_jena_prefers_the_variable_then_the_setting(
    tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "rows.csv.zip").write_bytes(pack_zip())
    (tmp_path / "b.csv").write_text(CSV)
    source = JenaSource(kind="jena", path=str(tmp_path / "b.csv"), mirrors=("http://127.0.0.1:1/x.zip",))
    source.fetch(store, ignore_progress, 1)
    assert [file.name for file in store.iterdir()] == ["b.csv"]
    assert (store / "b.csv").readlink() == tmp_path / "b.csv"
    monkeypatch.setenv(ARCHIVE_VARIABLE, str(tmp_path / "a"))
    source.fetch(store, ignore_progress, 1)
    assert [file.name for file in store.iterdir()] == ["rows.csv.zip"]
    monkeypatch.delenv(ARCHIVE_VARIABLE)
    # Neither is set: what is there stays.
    plain = JenaSource(kind="jena", mirrors=("http://127.0.0.1:1/x.zip",))
    plain.fetch(store, ignore_progress, 1)
    rows = read_jena(plain, store, tmp_path)
    assert rows.columns == HEADER.split(",")
    assert rows.height == 6
    assert [file.name for file in store.iterdir()] == ["rows.csv.zip"], "reading leaves the store as it is"


def test_jena_spans_eight_years_unless_the_file_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    assert JenaSource(kind="jena").longest_span == timedelta(days=2922)
    assert JenaSource(kind="jena", path="x.csv").longest_span is None
    monkeypatch.setenv(ARCHIVE_VARIABLE, "x.csv")
    assert JenaSource(kind="jena").longest_span is None


def test_a_missing_or_ambiguous_local_file_names_the_setting(
    tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RecastError, match=r"problems\.weather\.source\.path: there is no file or folder .*gone\.csv"):
        JenaSource(kind="jena", path=str(tmp_path / "gone.csv")).fetch(store, ignore_progress, 1)
    (tmp_path / "rows.txt").write_text(CSV)
    with pytest.raises(RecastError, match=r"problems\.weather\.source\.path: ~nobody-here/a\.csv: Could not determine"):
        JenaSource(kind="jena", path="~nobody-here/a.csv").fetch(store, ignore_progress, 1)
    with pytest.raises(RecastError, match=r"rows\.txt is neither a \.csv nor a \.zip file"):
        JenaSource(kind="jena", path=str(tmp_path / "rows.txt")).fetch(store, ignore_progress, 1)
    folder = tmp_path / "two"
    folder.mkdir()
    monkeypatch.setenv(ARCHIVE_VARIABLE, str(folder))
    with pytest.raises(RecastError, match=r"variable JENA_ARCHIVE: .* found: none"):
        JenaSource(kind="jena").fetch(store, ignore_progress, 1)
    (folder / "a.csv").touch()
    (folder / "b.zip").touch()
    with pytest.raises(RecastError, match=r"found: a\.csv, b\.zip"):
        JenaSource(kind="jena").fetch(store, ignore_progress, 1)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.zip", pack_zip()[:-40], "cut short or not a zip archive"),
        ("rows.zip", b"", "cut short or not a zip archive"),
        ("rows.zip", b"\n<html>sign in</html>", "a web page"),
        ("rows.csv", b"<!DOCTYPE html>", "a web page"),
        ("rows.csv", b"", "the file is empty"),
        ("rows.zip", pack_zip(name="readme.txt"), r"must hold one \.csv file, found: none"),
    ],
)
def test_a_broken_archive_is_named(tmp_path: Path, store: Path, name: str, content: bytes, message: str) -> None:
    (store / name).write_bytes(content)
    with pytest.raises(RecastError, match=f"{name}: {message}"):
        read_jena(JenaSource(kind="jena"), store, tmp_path)


def encrypt_zip() -> bytes:
    """An archive whose member is marked as encrypted."""
    archive = bytearray(pack_zip())
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        archive[archive.index(signature) + flags] |= 1
    return bytes(archive)


def test_an_archive_that_cannot_or_must_not_be_unpacked_is_named(
    tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (store / "rows.zip").write_bytes(encrypt_zip())
    with pytest.raises(RecastError, match=r"rows\.zip: rows\.csv cannot be unpacked \(.*encrypted"):
        read_jena(JenaSource(kind="jena"), store, tmp_path)
    monkeypatch.setattr(tables, "HARMLESS_BYTES", 1)
    (store / "rows.zip").write_bytes(pack_zip(CSV + "0" * 500_000))
    (tmp_path / "scratch").rmdir()
    with pytest.raises(RecastError, match=r"rows\.zip: it unpacks to more than 200 times its size"):
        read_jena(JenaSource(kind="jena"), store, tmp_path)


def test_a_damaged_member_is_named(tmp_path: Path, store: Path) -> None:
    damaged = bytearray(pack_zip())
    damaged[60:70] = bytes(10)
    (store / "rows.zip").write_bytes(damaged)
    with pytest.raises(RecastError, match=r"rows\.zip: cut short or not a zip archive"):
        read_jena(JenaSource(kind="jena"), store, tmp_path)


def test_the_store_never_loses_a_file_put_there_by_hand(tmp_path: Path, store: Path) -> None:
    (tmp_path / "a.csv").write_text(CSV)
    (store / "mine.csv").write_text(CSV)
    with pytest.raises(RecastError, match=r"mine\.csv: neither a link nor a download"):
        replace_with_links(store, [tmp_path / "a.csv"])
    replace_with_links(store, [store / "mine.csv"])
    assert (store / "mine.csv").read_text() == CSV
    assert not (store / "mine.csv").is_symlink()


def test_the_folder_of_an_unknown_user_is_named(store: Path) -> None:
    message = r"problems\.weather\.source\.path: ~nobody-here/x: Could not determine home directory"
    with pytest.raises(RecastError, match=message):
        find_local_file(store, "~nobody-here/x", ("",))
    with pytest.raises(RecastError, match=message):
        link_files_of_folder(store, "~nobody-here/x", ["a"])


def test_a_link_replaces_a_download(tmp_path: Path, store: Path) -> None:
    (store / "a.csv").write_text("old")
    (store / "a.csv.sha256").write_text("0 a.csv")
    (tmp_path / "a.csv").write_text(CSV)
    replace_with_links(store, [tmp_path / "a.csv"])
    assert [file.name for file in store.iterdir()] == ["a.csv"]
    assert (store / "a.csv").read_text() == CSV


def test_a_table_is_a_file_a_folder_or_a_pattern(tmp_path: Path, store: Path) -> None:
    folder = tmp_path / "plant"
    folder.mkdir()
    (folder / "a-1.csv").write_text("when;load\n2020-01-01;1\n")
    (folder / "a-2.csv").write_text("load;when\n2;2020-01-02\n")
    (folder / "notes.md").write_text("not a table")
    for path in (folder, folder / "a-*.csv"):
        source = TableSource(kind="table", path=str(path), time="when", separator=";")
        source.fetch(store, ignore_progress, 1)
        read = source.read(store, tmp_path)
        assert read.frame.select("when", "load", PLACE_COLUMN).collect().rows() == [
            ("2020-01-01", "1", f"{tmp_path}/plant/a-1.csv, line 2"),
            ("2020-01-02", "2", f"{tmp_path}/plant/a-2.csv, line 2"),
        ]
    (folder / "a-2.csv").write_text("when;power\n2020-01-01;1\n")
    with pytest.raises(RecastError, match="differ in their columns: only one has load, power"):
        source.read(store, tmp_path)
    with pytest.raises(RecastError, match=r"problems\.weather\.source\.path: .* names no CSV or Parquet file"):
        TableSource(kind="table", path=str(tmp_path / "*.parquet"), time="when").fetch(store, ignore_progress, 1)


def test_nyc_is_in_metric_units(tmp_path: Path, store: Path) -> None:
    source = NycSource(kind="nyc")
    source.fetch(store, ignore_progress, 1)
    rows = source.read(store, tmp_path)
    first = rows.frame.head(1).collect().row(0, named=True)
    assert (rows.time, rows.series) == ("time_hour", "origin")
    assert first["origin"] == "EWR"
    assert first["time_hour"] == "2013-01-01T06:00:00Z"
    assert (first["T (degC)"], first["wv (m/s)"], first["visib (km)"]) == (3.9, 4.63, 16.09)
    ranges = rows.frame.select(pl.col(pl.Float64).max()).collect().row(0, named=True)
    assert ranges["T (degC)"] < 40
    assert 1000 < ranges["p (mbar)"] < 1060
    assert ranges["wv (m/s)"] == 468.66, "the known outlier is left for the problem's sentinels"


def test_a_station_is_physically_consistent() -> None:
    rows = pl.concat(simulate_rows(20_000, timedelta(hours=1), seed=3))
    assert rows.columns == ["time", *HEADER.split(",")[1:]]
    values = {name: rows[name].to_numpy() for name in rows.columns}
    again = derive_quantities(values["T (degC)"], values["p (mbar)"], values["rh (%)"])
    for name, computed in again.items():
        np.testing.assert_allclose(values[name], computed, atol=0.0051, err_msg=name)
    assert (values["Tdew (degC)"] <= values["T (degC)"] + 0.01).all()
    assert (values["max. wv (m/s)"] >= values["wv (m/s)"]).all()
    assert (values["wv (m/s)"] >= 0).all()
    assert ((values["wd (deg)"] >= 0) & (values["wd (deg)"] <= 360)).all()
    assert ((values["rh (%)"] >= 12) & (values["rh (%)"] <= 100)).all()


def test_a_station_has_jenas_climate() -> None:
    rows = pl.concat(simulate_rows(8 * 8766, timedelta(hours=1), seed=0))
    T = pl.col("T (degC)")
    mean, deviation = rows.select(T.mean(), T.std().alias("deviation")).row(0)
    assert 8.5 < mean < 10.5
    assert 7 < deviation < 9
    by_month = rows.group_by(pl.col("time").dt.month()).agg(T.mean()).sort(T)["time"]
    assert by_month[0] in (1, 2)
    assert by_month[-1] in (7, 8)
    by_hour = rows.group_by(pl.col("time").dt.hour()).agg(T.mean()).sort(T)["time"]
    assert by_hour[0] in (1, 2, 3, 4)
    assert by_hour[-1] in (14, 15)
    tomorrow = rows.select((T.shift(-24) - T).abs().mean()).item()
    assert 2.2 < tomorrow < 2.8, "the last temperature forecasts Jena's next day to 2.57 degC"


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(2, 400), chunk=st.integers(1, 500), seed=st.integers(0, 9))
def test_a_stations_rows_do_not_depend_on_the_chunks(rows: int, chunk: int, seed: int) -> None:
    whole = pl.concat(simulate_rows(rows, timedelta(minutes=10), seed))
    assert pl.concat(simulate_rows(rows, timedelta(minutes=10), seed, chunk)).equals(whole)
    assert pl.concat(simulate_rows(rows + 7, timedelta(minutes=10), seed)).head(rows).equals(whole)
    assert not pl.concat(simulate_rows(rows, timedelta(minutes=10), seed + 1)).equals(whole)


def test_a_station_is_as_long_as_it_says(tmp_path: Path, store: Path) -> None:
    source = StationSource.model_validate({"kind": "station", "years": 0.01, "cadence": "1h"})
    assert source.synthetic
    times = source.read(store, tmp_path).frame.select("time").collect()["time"]
    assert len(times) == 87
    assert times[-1] - times[0] == source.longest_span
    assert not list(store.iterdir())
    for length in ({}, {"rows": 10, "years": 1}, {"rows": 1}, {"years": 1e-9}):
        with pytest.raises(ValidationError):
            StationSource.model_validate({"kind": "station", **length})


@pytest.mark.parametrize(("episodes", "rows"), [(100_000_000, 1000), (100_000_000, 6)])
def test_questions_after_the_year_9999_are_refused(episodes: int, rows: int) -> None:
    with pytest.raises(ValidationError, match=r"episodes times rows is too large: .* year 9999"):
        QuestionsSource(kind="questions", episodes=episodes, rows=rows)
