"""The service over HTTP with real requests: its answers, what it refuses, and which model answers."""

import asyncio
import json
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import hypothesis
import polars as pl
import pytest
import requests
import schemathesis
import uvicorn
from fastapi import Response
from prometheus_client.parser import text_string_to_metric_families
from schemathesis.specs.openapi.checks import positive_data_acceptance

from lifecycle import forecast_log
from lifecycle.champions import promotion, registry
from lifecycle.champions.history import Version, champion_folder, find_champion
from lifecycle.serving.api import MAX_BODY_BYTES, make_app
from lifecycle.serving.hosts import HostCheck
from lifecycle.serving.requests import RefusedRequest, parse_request
from lifecycle.serving.service import PendingRequest, Service
from problems.errors import RecastError
from project import paths
from project.settings.loading import load_settings
from stages.training.expansion import list_trials
from tests.support.champions import roll_back
from tests.support.checkout import Checkout
from tests.support.fuzzing import count_cases, limited_time
from tests.support.waiting import wait_until

Body = dict[str, Any]


@pytest.fixture(scope="module")
def versions(finished: Checkout, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Version]]:
    """The versions 1, 2 and 3 of a checkout in which this process works; the second is the champion."""
    with finished.copy(tmp_path_factory.mktemp("served") / "checkout").entered():
        trials = list_trials(load_settings(), "demo", paths.stage_folder("window", "demo"))
        registered = [registry.register_version(trial, {}) for trial in trials if registry.is_stored(trial)]
        promotion.promote("demo", registered[0], None)
        promotion.promote("demo", registered[1], None)
        yield registered


@pytest.fixture
def served_versions(versions: list[Version]) -> Iterator[list[Version]]:
    """The versions, with the second as the champion, and no forecast in the log."""
    shutil.rmtree(forecast_log.FORECASTS_FOLDER, ignore_errors=True)
    yield versions
    if find_champion("demo") != versions[1]:
        promotion.promote("demo", versions[1], None)


@contextmanager
def served(service: Service) -> Iterator[httpx.Client]:
    """A client of the service, which listens on loopback behind the server that `recast serve` has."""
    server = uvicorn.Server(uvicorn.Config(make_app(service), log_level="warning", access_log=False))
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        wait_until(lambda: server.started or not thread.is_alive(), "the service")
        assert thread.is_alive()
        with httpx.Client(base_url=f"http://127.0.0.1:{listening.getsockname()[1]}", timeout=60) as client:
            yield client
        server.should_exit = True
        thread.join()


@pytest.fixture
def client(served_versions: list[Version]) -> Iterator[httpx.Client]:
    with served(Service("demo", registry)) as client:
        yield client


def body(at: int = 100, rows: int = 48) -> Body:
    """A window that ends with a row of the table."""
    part = pl.read_parquet("data/ingest/demo/table.parquet").slice(at - rows + 1, rows)
    columns = {name: part[name].to_list() for name in ("T (degC)", "p (mbar)")}
    return {"time": [moment.isoformat() for moment in part["time"]], "columns": columns}


def wait_for_answer(answers: list[httpx.Response], begin: int, champion: Version) -> None:
    """Wait until a version has answered, after the first `begin` answers."""

    def has_answered() -> bool:
        return any(
            answer.is_success and answer.json()["model_version"] == champion.version for answer in answers[begin:]
        )

    wait_until(has_answered, f"an answer of version {champion.version}")


def logged() -> pl.DataFrame:
    return forecast_log.read_forecasts("demo")


def test_a_request_is_answered_with_what_the_champion_forecasts_and_written_down(
    served_versions: list[Version],
) -> None:
    service = Service("demo", registry)
    rows = pl.read_parquet("data/ingest/demo/table.parquet")
    with served(service) as client:
        one = client.post("/forecast", json=body(100))
        several = client.post("/forecast", json={"windows": [body(100), body(107, rows=60)]})
        assert (one.status_code, several.status_code) == (200, 200)
    expected = registry.load_model(served_versions[1]).forecast(rows.head(108), all_windows=True)
    for answer, at in ((one.json()["forecasts"][0], 100), *zip(several.json()["forecasts"], (100, 107), strict=True)):
        origin = rows["time"][at]
        wanted = expected.row(by_predicate=pl.col("origin") == origin, named=True)
        assert answer["forecast"] == pytest.approx(wanted["forecast"], abs=1e-5)
        assert answer["origin"] == f"{origin.isoformat()}Z"
        assert answer["target_time"] == f"{(origin + timedelta(hours=24)).isoformat()}Z"
        assert [interval["level"] for interval in answer["intervals"]] == [0.5, 0.8, 0.95]
        for interval in answer["intervals"]:
            assert interval["low"] == pytest.approx(wanted[f"low_{interval['level']:g}"], abs=1e-5)
            assert interval["high"] == pytest.approx(wanted[f"high_{interval['level']:g}"], abs=1e-5)
    assert one.json()["unit"] == "°C"
    assert one.json()["model_version"] == 2
    # Each forecast that was sent is in the log after the end of the service, once.
    ids = [forecast["forecast_id"] for forecast in several.json()["forecasts"]]
    assert one.json()["forecasts"][0]["forecast_id"] == ids[0] != ids[1]
    assert sorted(logged()["forecast_id"]) == sorted(ids)


def test_a_time_may_be_written_in_several_ways(client: httpx.Client) -> None:
    plain = [datetime.fromisoformat(time) for time in body()["time"]]
    written = {
        "with Z": [f"{time.isoformat()}Z" for time in plain],
        "to the minute": [time.isoformat(timespec="minutes") for time in plain],
        "to the millisecond": [time.isoformat(timespec="milliseconds") for time in plain],
        "in another zone": [f"{(time + timedelta(hours=2)).isoformat()}+02:00" for time in plain],
        "mixed": [time.isoformat() + ("Z" if i % 2 else "+00:00") for i, time in enumerate(plain)],
    }
    expected = client.post("/forecast", json=body()).json()
    for name, time in written.items():
        assert client.post("/forecast", json={**body(), "time": time}).json() == expected, name


def test_a_forecast_is_found_by_its_id(client: httpx.Client) -> None:
    made = client.post("/forecast", json=body()).json()["forecasts"][0]
    while (answer := client.get(f"/forecasts/{made['forecast_id']}")).status_code == 404:
        pass
    logged = answer.json()
    assert {name: logged[name] for name in made} == made
    assert logged["age_seconds"] > 365 * 86400
    assert (logged["problem"], logged["model_version"], logged["unit"]) == ("demo", 2, "°C")
    assert client.get("/forecasts/0123456789abcdef").json() == {
        "detail": "no forecast of demo has the id '0123456789abcdef'"
    }


def test_what_answers_and_how_it_does(client: httpx.Client, served_versions: list[Version]) -> None:
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/ready").json() == {"status": "ready", "model_version": 2}
    model = client.get("/model").json()
    assert (model["key"], model["run"], model["uri"]) == (
        served_versions[1].key,
        served_versions[1].run,
        "models:/demo/2",
    )
    assert (model["rows"], model["cadence"], model["leads"], model["unit"]) == (48, "1h", ["1d"], "°C")
    assert model["columns"].keys() == {"T (degC)", "p (mbar)"}
    assert model["columns"]["p (mbar)"]["high"] == 1008
    newest = model["newest_row"]
    assert (newest["time"], newest["max_age_seconds"], newest["stale"]) == ("2020-01-25T23:00:00Z", None, False)
    assert newest["age_seconds"] > 365 * 86400
    client.post("/forecast", json={"windows": [body(100), body(101)]})
    client.post("/forecast", content="{", headers={"Content-Type": "application/json"})
    client.get("/nowhere/at/all")
    metrics = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(client.get("/metrics").text)
        for sample in family.samples
    }
    assert metrics["recast_requests_total", "/forecast", "200"] == 1
    assert metrics["recast_requests_total", "/forecast", "400"] == metrics["recast_errors_total", "400"] == 1
    assert metrics["recast_requests_total", "404", "other"] == 1
    assert metrics["recast_forecasts_total", "2"] == 2
    assert metrics["recast_batch_windows_sum",] == 2
    assert metrics["recast_model_version",] == 2
    assert metrics["recast_request_seconds_count", "/forecast"] == 2


def test_what_answers_is_told_while_dvc_replaces_the_table(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure_age(*arguments: Any) -> None:
        Path("data/ingest/demo/gone.parquet").stat()

    monkeypatch.setattr("lifecycle.serving.newest_row.measure_age", measure_age)
    newest = client.get("/model").json()["newest_row"]
    assert newest["time"] is None
    assert "gone.parquet" in newest["reason"]


def changed(change: Callable[[Body], object]) -> Callable[[], Body]:
    def make() -> Body:
        made = body()
        change(made)
        return made

    return make


def kelvin(made: Body) -> None:
    made["columns"]["T (degC)"] = [value + 273.15 for value in made["columns"]["T (degC)"]]


def at_the_end_of_time(made: Body) -> None:
    first = datetime(9999, 12, 30)
    made["time"] = [(first + timedelta(hours=i)).isoformat() for i in range(48)]


REFUSED: dict[str, tuple[Callable[[], Any], int, str]] = {
    "a column is missing": (
        changed(lambda b: b["columns"].pop("p (mbar)")),
        422,
        "columns lacks 'p (mbar)'; it must have",
    ),
    "a column too many": (changed(lambda b: b["columns"].update(q=[1])), 422, "columns has 'q'; it may only have"),
    "no columns": (changed(lambda b: b.pop("columns")), 422, "columns must be an object"),
    "no time": (changed(lambda b: b.pop("time")), 422, "time must be a list of times"),
    "a key too many": (
        changed(lambda b: b.update(lead=3)),
        422,
        "unknown key 'lead'; allowed are time, columns, series",
    ),
    "too short": (lambda: body(rows=47), 422, "series all: 47 rows are too few; a window takes 48 rows, one every 1h"),
    "uneven": (changed(lambda b: b["time"].pop()), 422, "column 'T (degC)' has 48 values, but time has 47"),
    "a gap": (
        changed(lambda b: [values.pop(9) for values in (b["time"], *b["columns"].values())]),
        422,
        "after 2020-01-03T13:00 comes 2020-01-03T15:00",
    ),
    "another cadence": (
        changed(lambda b: b["time"].__setitem__(-1, "2020-01-05T04:10")),
        422,
        "comes 2020-01-05T04:10",
    ),
    "backwards": (changed(lambda b: b["time"].reverse()), 422, "does not come after the one before it"),
    "no day": (
        changed(lambda b: b["time"].__setitem__(3, "2020-02-30T08:00:00Z")),
        422,
        "2020-02-30T08:00:00Z', which",
    ),
    "the year 0": (
        changed(lambda b: b["time"].__setitem__(3, "0000-01-03T08:00:00")),
        422,
        "0000-01-03T08:00:00', which",
    ),
    "past all years": (changed(at_the_end_of_time), 422, "must be in the years 1 to 9998"),
    "no time at all": (
        changed(lambda b: b["time"].__setitem__(3, "noon")),
        422,
        "time contains 'noon', which is not a time",
    ),
    "a number for a time": (
        changed(lambda b: b["time"].__setitem__(3, 1.5)),
        422,
        "time contains 1.5, which is not a time",
    ),
    "an object for a time": (
        changed(lambda b: b["time"].__setitem__(3, {})),
        422,
        "time contains {}, which is not a time",
    ),
    "a list for a time": (
        changed(lambda b: b["time"].__setitem__(3, [])),
        422,
        "time contains [], which is not a time",
    ),
    "a colon too many": (
        changed(lambda b: b["time"].__setitem__(3, "2020-01-03T08:Z")),
        422,
        "'2020-01-03T08:Z', which",
    ),
    "a null": (
        changed(lambda b: b["columns"]["T (degC)"].__setitem__(3, None)),
        422,
        "column 'T (degC)' has no value at 2020-01-03T08:00",
    ),
    "text": (
        changed(lambda b: b["columns"]["T (degC)"].__setitem__(3, "7")),
        422,
        "contains '7', which is not a number",
    ),
    "a truth value": (
        changed(lambda b: b["columns"]["p (mbar)"].__setitem__(3, True)),
        422,
        "contains True, which is not",
    ),
    "no list": (changed(lambda b: b["columns"].update({"p (mbar)": 3})), 422, "'p (mbar)' must be a list of numbers"),
    "another unit": (changed(kelvin), 422, "far outside 5."),
    "huge": (changed(lambda b: b["columns"]["p (mbar)"].__setitem__(3, 10**300)), 422, "far outside 992 to 1008"),
    "a number for a series": (changed(lambda b: b.update(series=3)), 422, "series must be one of all"),
    "null for a series": (changed(lambda b: b.update(series=None)), 422, "series must be one of all"),
    "no windows": (lambda: {"windows": []}, 422, "windows must be a list"),
    "windows and more": (lambda: {"windows": [body()], "time": []}, 422, "unknown key 'time' beside windows"),
    "one window of several": (
        lambda: {"windows": [body(), body(rows=47)]},
        422,
        "windows[1]: series all: 47 rows are too few",
    ),
    "a list": (list, 422, "the body must be an object"),
    "no JSON": (lambda: b"{'time': ", 400, "the body is not JSON"),
    "NaN": (changed(lambda b: b["columns"]["p (mbar)"].__setitem__(3, float("nan"))), 400, "the body is not JSON"),
    "an infinity": (lambda: json.dumps(body()).replace("100", "1e999", 1).encode(), 400, "infinity"),
    "no UTF-8": (lambda: b'{"\xff": 1}', 400, "the body is not JSON"),
    "nested a thousand times": (lambda: b"[" * 5000, 400, "the body is not JSON"),
    "nothing": (lambda: b"", 400, "the body is not JSON"),
}


def test_a_bad_request_is_refused_with_the_reason_and_the_service_goes_on(client: httpx.Client) -> None:
    for name, (make, status, reason) in REFUSED.items():
        content = make()
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        answer = client.post("/forecast", content=content, headers={"Content-Type": "application/json"})
        assert answer.status_code == status, f"{name}: {answer.text}"
        assert reason in answer.json()["detail"], name
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        answer = client.post("/forecast", content=json.dumps(body()), headers={"Content-Type": kind})
        assert (answer.status_code, answer.json()["detail"][:12]) == (415, "Content-Type")
    assert client.get("/forecast").status_code == client.delete("/model").status_code == 405
    assert client.post("/forecast", json=body(), headers={"Content-Type": "application/json; charset=utf-8"}).is_success
    assert logged().height <= 1


def test_bad_requests_in_a_batch_do_not_disturb_the_good_ones(client: httpx.Client) -> None:
    """All wait while the first one is forecast; then they are forecast together."""

    async def ask() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=client.base_url, timeout=60) as to:
            bodies = [body(100 + i, rows=48 - i % 2) for i in range(20)]
            return list(await asyncio.gather(*(to.post("/forecast", json=content) for content in bodies)))

    alone = [client.post("/forecast", json=body(100 + i)).json() for i in range(0, 20, 2)]
    answers = asyncio.run(ask())
    assert [answer.status_code for answer in answers] == [200, 422] * 10
    for together, single in zip(answers[::2], alone, strict=True):
        (forecast,), (wanted,) = together.json()["forecasts"], single["forecasts"]
        assert forecast["forecast"] == pytest.approx(wanted["forecast"], abs=1e-5)
        assert {**forecast, "forecast": 0, "intervals": 0} == {**wanted, "forecast": 0, "intervals": 0}


def test_a_request_that_meets_a_bug_of_the_service_fails_alone(
    served_versions: list[Version], monkeypatch: pytest.MonkeyPatch
) -> None:
    def faulty(content: bytes, forecaster: Any) -> Any:
        if content == b"fault":
            raise KeyError("a fault")
        return parse_request(content, forecaster)

    monkeypatch.setattr("lifecycle.serving.service.parse_request", faulty)
    good = json.dumps(body()).encode()
    requests = [PendingRequest(content) for content in (b"{", good, b"fault", good)]
    Service("demo", registry).answer_all(requests)
    errors = [request.answer.exception() for request in requests]
    assert [error.status if isinstance(error, RefusedRequest) else error for error in errors] == [400, None, 500, None]


def test_the_bodies_that_wait_are_bounded_and_so_are_those_of_a_batch(
    served_versions: list[Version], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = json.dumps(body()).encode()
    monkeypatch.setattr("lifecycle.serving.service.MAX_PENDING_BYTES", 3 * len(content))
    monkeypatch.setattr("lifecycle.serving.service.MAX_BATCH_BYTES", 2 * len(content))
    service = Service("demo", registry)

    async def ask() -> None:
        waiting = [asyncio.create_task(service.forecast(content)) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(RefusedRequest, match="too many requests are waiting already") as refused:
            await service.forecast(content)
        assert refused.value.status == 503
        service.start()
        await asyncio.gather(*waiting)
        assert service.metrics.registry.get_sample_value("recast_batch_windows_count") == 2
        await service.forecast(content)

    asyncio.run(ask())
    service.stop()


def test_a_body_of_a_hundred_megabytes_is_refused_and_not_read(client: httpx.Client) -> None:
    chunk = b" " * MAX_BODY_BYTES
    for content in (chunk * 100, (chunk for _ in range(100))):
        answer = client.post("/forecast", content=content, headers={"Content-Type": "application/json"})
        assert answer.status_code == 413
        assert answer.json()["detail"].startswith("a body may have at most 1,048,576 bytes")
    assert client.post("/forecast", json=body()).is_success


def test_no_request_fails_while_the_model_is_swapped(client: httpx.Client, served_versions: list[Version]) -> None:
    """A rollback's version answers; each answer is wholly of the version that it names."""
    rows = pl.read_parquet("data/ingest/demo/table.parquet").slice(53, 48)
    wanted = {
        version.version: float(registry.load_model(version).forecast(rows)["forecast"].item())
        for version in served_versions[:2]
    }
    answers: list[httpx.Response] = []
    stop = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=client.base_url, timeout=60) as to:
            while not stop.is_set():
                answers.append(to.post("/forecast", json=body()))

    clients = [threading.Thread(target=ask) for _ in range(3)]
    for thread in clients:
        thread.start()
    for swap in range(6):
        if swap % 2:
            promotion.promote("demo", served_versions[1], None)
        else:
            roll_back("demo")
        champion = find_champion("demo")
        assert champion is not None
        begin = len(answers)
        wait_for_answer(answers, begin, champion)
        assert all(thread.is_alive() for thread in clients)
    stop.set()
    for thread in clients:
        thread.join()
    assert {answer.status_code for answer in answers} == {200}
    for answer in answers:
        content = answer.json()
        assert content["forecasts"][0]["forecast"] == pytest.approx(wanted[content["model_version"]], abs=1e-5)
    assert wanted[1] != pytest.approx(wanted[2], abs=1e-3)
    assert logged().height == 2, "one window, forecast by two versions"


def test_what_a_rollback_brings_back_is_in_memory_already(served_versions: list[Version]) -> None:
    service = Service("demo", registry)
    with served(service) as client:
        while service.champion.models_in_memory < 2:
            pass
        (folder,) = Path(".recast/models/demo").glob(f"1-{served_versions[0].run[:8]}")
        aside = folder.rename(folder.with_name("aside"))
        folder.mkdir()  # A load would find nothing.
        roll_back("demo")
        while client.get("/ready").json()["model_version"] != 1:
            pass
        assert client.post("/forecast", json=body()).json()["model_version"] == 1
        folder.rmdir()
        aside.rename(folder)


def test_a_champion_that_cannot_be_loaded_leaves_the_former_one_answering(
    served_versions: list[Version],
) -> None:
    service = Service("demo", registry)
    promotion.promote("demo", served_versions[2], None)
    registry.load_model(served_versions[2])
    (weights,) = Path(".recast/models/demo").glob("3-*/**/weights.safetensors")
    shutil.move(weights, weights.with_suffix(".gone"))
    with pytest.raises(RecastError, match="this code is not the code that the model was trained with"):
        service.champion.follow()
    with pytest.raises(RecastError):
        Service("demo", registry)
    assert service.require_model().version == served_versions[1]
    shutil.move(weights.with_suffix(".gone"), weights)
    assert service.champion.follow()
    assert service.require_model().version == served_versions[2]
    assert not service.champion.follow()


def test_a_service_without_a_champion_says_so_until_there_is_one(served_versions: list[Version]) -> None:
    history = champion_folder("demo") / "history.json"
    aside = history.rename(history.with_suffix(".aside"))
    service = Service("demo", registry)
    with served(service) as client:
        for answer in (client.get("/ready"), client.post("/forecast", json=body()), client.get("/model")):
            assert answer.status_code == 503
            assert answer.headers["Retry-After"] == "1"
            assert answer.json()["detail"] == "demo has no champion yet: recast retrain demo"
        assert client.get("/health").is_success
        aside.rename(history)
        wait_until(lambda: client.get("/ready").is_success, "a service that is ready")
        assert client.post("/forecast", json=body()).is_success


def test_the_openapi_document_tells_the_columns_and_gives_an_example_that_works(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    content = document["paths"]["/forecast"]["post"]["requestBody"]["content"]["application/json"]
    window = content["schema"]["oneOf"][0]["properties"]
    assert window["columns"]["required"] == ["T (degC)", "p (mbar)"]
    assert window["time"]["minItems"] == 48
    assert client.post("/forecast", json=content["example"]).is_success
    assert client.get("/docs").is_success


def test_a_log_that_refuses_is_reported_and_loses_nothing(
    served_versions: list[Version], monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is a folder in the place of the file: like a full disk, a person has to fix it."""
    monkeypatch.setattr("lifecycle.serving.log_writer.LOG_RETRY_SECONDS", 0.01)
    file = forecast_log.log_file("demo")
    file.mkdir(parents=True)
    with served(Service("demo", registry)) as client:
        made = client.post("/forecast", json=body()).json()["forecasts"][0]
        wait_until(lambda: client.get("/ready").is_error, "a service that is not ready")
        answer = client.get("/ready")
        assert "forecasts cannot be written to the log" in answer.json()["detail"]
        assert client.post("/forecast", json=body()).status_code == 503
        file.rmdir()
        wait_until(lambda: client.get("/ready").is_success, "a service that is ready")
    assert logged()["forecast_id"].to_list() == [made["forecast_id"]]


def test_a_client_that_goes_away_is_not_an_error_of_the_service(
    client: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_connection((client.base_url.host, client.base_url.port or 80)) as connection:
        connection.sendall(
            b"POST /forecast HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: 1000\r\n\r\n{"
        )
    while "499" not in (metrics := client.get("/metrics").text):
        pass
    assert 'recast_requests_total{path="/forecast",status="499"} 1.0' in metrics
    assert 'status="500"' not in metrics
    assert not caplog.records


def test_a_body_that_does_not_end_is_refused_in_time(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lifecycle.serving.api.BODY_SECONDS", 0.05)
    with socket.create_connection((client.base_url.host, client.base_url.port or 80), timeout=60) as connection:
        connection.sendall(
            b"POST /forecast HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n"
        )
        with connection.makefile("rb") as answer:
            text = answer.read()
    assert text.startswith(b"HTTP/1.1 408"), text
    assert b"the body did not come within 0.05 seconds" in text
    assert client.get("/health").is_success


def test_a_request_for_another_host_is_refused(client: httpx.Client) -> None:
    """A web page whose name resolves to 127.0.0.1 must not reach the service through its reader's browser."""
    for host in ("evil.example", "evil.example:8000", "127.0.0.1.evil.example", "[evil]", "a:b:c", "@"):
        answer = client.get("/model", headers={"Host": host})
        assert answer.status_code == 421, host
        assert "start it with --allowed-host" in answer.json()["detail"]
        assert client.post("/forecast", json=body(), headers={"Host": host}).status_code == 421
    for host in ("localhost", "LOCALHOST:80", "127.0.0.1:1", "[::1]:8000", "10.0.0.7", socket.gethostname()):
        assert client.get("/health", headers={"Host": host}).is_success, host


def test_the_name_of_a_proxy_may_be_allowed() -> None:
    async def answer(scope: Any, receive: Any, send: Any) -> None:
        await Response("own")(scope, receive, send)

    def ask(host: str, *names: str) -> int:
        transport = httpx.ASGITransport(HostCheck(answer, names))

        async def get() -> int:
            async with httpx.AsyncClient(transport=transport, base_url=f"http://{host}") as to:
                return (await to.get("/")).status_code

        return asyncio.run(get())

    assert ask("forecasts.example.org", "Forecasts.example.org") == 200
    assert ask("other.example.org", "forecasts.example.org") == 421
    assert ask("other.example.org", "*") == 200


def test_a_log_of_another_problem_that_is_damaged_does_no_harm(
    client: httpx.Client, served_versions: list[Version]
) -> None:
    made = client.post("/forecast", json=body()).json()["forecasts"][0]["forecast_id"]
    other = forecast_log.log_file("a_problem_before_demo")
    other.parent.mkdir(parents=True, exist_ok=True)
    other.write_bytes(b"not a database" * 100)
    while (answer := client.get(f"/forecasts/{made}")).status_code == 404:
        pass
    assert answer.json()["forecast_id"] == made
    # `recast trace` reads all logs.
    assert (forecast_log.find_forecast(made) or {})["problem"] == "demo"
    with pytest.raises(RecastError, match=r"a_problem_before_demo\.db: the log of forecasts cannot be used"):
        forecast_log.find_forecast("0" * 16)


def test_a_damaged_log_is_reported(served_versions: list[Version]) -> None:
    forecast_log.FORECASTS_FOLDER.mkdir(parents=True)
    forecast_log.log_file("demo").write_bytes(b"not a database" * 100)
    with served(Service("demo", registry)) as client:
        answer = client.get(f"/forecasts/{'0' * 16}")
        assert answer.status_code == 503
        assert "demo.db: the log of forecasts cannot be used: file is not a database" in answer.json()["detail"]


def test_a_service_without_a_champion_stops_without_a_word(
    served_versions: list[Version], caplog: pytest.LogCaptureFixture
) -> None:
    history = champion_folder("demo") / "history.json"
    aside = history.rename(history.with_suffix(".aside"))
    with served(Service("demo", registry)) as client:
        assert client.get("/health").is_success
    aside.rename(history)
    assert not caplog.records


def fuzz_service(client: httpx.Client, cases: int) -> None:
    """Send requests that fit the OpenAPI document, and such that do not; check the answers against the document.

    Args:
        cases: how many, about.
    """
    schema = schemathesis.openapi.from_url(f"{client.base_url}/openapi.json")
    operations = [result.ok() for result in schema.get_all_operations()]
    kinds = [(operation, mode) for operation in operations for mode in schemathesis.GenerationMode]
    session = requests.Session()
    for operation, mode in kinds:

        @hypothesis.settings(
            max_examples=max(cases // len(kinds), 1),
            database=None,
            derandomize=True,
            suppress_health_check=list(hypothesis.HealthCheck),
            phases=[hypothesis.Phase.generate],
        )
        @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
        def send(case: schemathesis.Case) -> None:
            with limited_time(case):
                # Times that do not follow each other fit the document, and are refused all the same.
                case.call_and_validate(session=session, excluded_checks=[positive_data_acceptance])

        with suppress(hypothesis.errors.Unsatisfiable):
            send()


def test_no_request_breaks_the_service(client: httpx.Client, caplog: pytest.LogCaptureFixture) -> None:
    fuzz_service(client, 60)
    assert not caplog.records


@pytest.mark.long
def test_none_of_many_requests_breaks_the_service(client: httpx.Client, caplog: pytest.LogCaptureFixture) -> None:
    fuzz_service(client, count_cases(2000))
    assert not caplog.records
