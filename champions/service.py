"""A small HTTP service around a problem's champion: `recast serve`.

Requests that come at once are forecast in one call of the network, in a thread. The service follows the champion: the
new model is loaded beside the old one, then one reference is swapped, and a request is answered by one of them whole.
Every forecast is written to the log behind the requests; when the log does not keep up, they wait for it.
"""

import asyncio
import gc
import logging
import queue
import re
import threading
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import orjson
import polars as pl
import torch
from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from fastapi.responses import PlainTextResponse
from numpy.typing import NDArray
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import BaseModel, Field
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from champions import forecast_log
from champions.history import Entry, reign
from champions.registry import Version
from problems.errors import RecastError
from problems.source import written
from stages.forecaster import About, Forecaster, InputError, Windows

LIMIT_BYTES = 1 << 20
"""The longest body of a request."""
MOST_WINDOWS = 256
"""In one call of the network, unless one request alone has more."""
MOST_WAITING = 4096
"""Requests that may wait to be forecast; further ones are told to come again."""
MOST_UNLOGGED = 256
"""Batches that may wait to be written to the log."""
WATCH_SECONDS = 0.2
RETRY_SECONDS = 5.0
"""Between two tries to load a new champion, or to write to a log that refuses."""
KEPT = 4
"""Models in memory, so that a rollback loads nothing."""

_log = logging.getLogger(__name__)


class Registry(Protocol):
    """Where the champion is found; `champions.registry` is one."""

    def folder(self, problem: str) -> Path: ...

    def champion(self, problem: str) -> Version | None: ...

    def history(self, problem: str) -> list[Entry]: ...

    def load(self, version: Version) -> Forecaster: ...


class Refused(Exception):
    """A request that is not answered; the message says why."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Held(NamedTuple):
    """A model that answers."""

    version: Version
    forecaster: Forecaster
    since: datetime


@dataclass(frozen=True)
class Asked:
    """A request for forecasts that waits."""

    body: bytes
    answer: "Future[bytes]" = field(default_factory=Future)


class Metrics:
    """What Prometheus reads."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        named: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("recast_requests", "Requests that were answered.", ["path", "status"], **named)
        self.seconds = Histogram(
            "recast_request_seconds",
            "From a request to its answer.",
            ["path"],
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5),
            **named,
        )
        self.batch = Histogram(
            "recast_batch_windows",
            "Windows in one call of the network.",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
            **named,
        )
        self.forecasts = Counter("recast_forecasts", "Forecasts that were made.", ["model_version"], **named)
        self.errors = Counter("recast_errors", "Requests refused, or failed, by status.", ["status"], **named)
        self.version = Gauge("recast_model_version", "The version that answers.", **named)
        self.swaps = Counter("recast_model_swaps", "Times that another version took over.", **named)
        self.failures = Counter("recast_failures", "What went wrong behind the requests.", ["what"], **named)
        self.unlogged = Gauge("recast_unlogged_batches", "Batches of forecasts that wait for the log.", **named)


class Service:
    """The champion of one problem, its queue, and its log."""

    def __init__(self, problem: str, registry: Registry) -> None:
        """
        Raises:
            RecastError: there is a champion, and it cannot be loaded.
        """
        self.problem, self._registry = problem, registry
        self.metrics = Metrics()
        self._held: Held | None = None
        self._kept: dict[tuple[int, str], Forecaster] = {}
        self._keeping = threading.Lock()
        self._preparing: asyncio.Task[None] | None = None
        self._seen: object = None
        self._log_failed: str | None = None
        self._waiting: queue.Queue[Asked | None] = queue.Queue(MOST_WAITING)
        self._unlogged: queue.Queue[pl.DataFrame | None] = queue.Queue(MOST_UNLOGGED)
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._forecast, self._write)]
        self._stopping = threading.Event()
        self.metrics.unlogged.set_function(self._unlogged.qsize)
        self.follow()

    @property
    def answering(self) -> Held | None:
        """What answers now, if anything does."""
        return self._held

    @property
    def held(self) -> Held:
        """What answers now.

        Raises:
            Refused: nothing does.
        """
        if self._held is None:
            raise Refused(
                HTTPStatus.SERVICE_UNAVAILABLE, f"{self.problem} has no champion yet: recast retrain {self.problem}"
            )
        return self._held

    def ready(self) -> Held:
        """
        Raises:
            Refused: nothing answers, or the log refuses.
        """
        if self._log_failed is not None:
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, f"forecasts cannot be written down: {self._log_failed}")
        return self.held

    # The champion

    def follow(self) -> bool:
        """Let the champion answer, if another one does or none; whether anything changed.

        Raises:
            RecastError: the champion cannot be loaded; the one before goes on.
        """
        file = self._registry.folder(self.problem) / "history.json"
        try:
            stat = file.stat()
        except FileNotFoundError:
            return False
        seen = (stat.st_mtime_ns, stat.st_ino, stat.st_size)
        if seen == self._seen:
            return False
        version = self._registry.champion(self.problem)
        if version is not None and (self._held is None or version != self._held.version):
            self._hold(version)
        self._seen = seen
        return True

    def _hold(self, version: Version) -> None:
        forecaster = self._kept_or_loaded(version)
        if forecaster.about.preparation is None:
            raise RecastError(
                f"{self.problem} is a problem of sequences, which recast serve does not answer: mlflow models serve -m "
                f"{version.uri}"
            )
        if self._held is not None:
            self.metrics.swaps.inc()
        # The network's first call takes longer than the others: loading has made it.
        self._held = Held(version, forecaster, datetime.now(UTC))
        self.metrics.version.set(version.version)
        _log.info("%s: version %d answers", self.problem, version.version)

    def _kept_or_loaded(self, version: Version) -> Forecaster:
        """The model of a version, which is now the last to be forgotten."""
        key = (version.version, version.run)
        forecaster = self._kept.get(key) or self._registry.load(version)
        with self._keeping:
            self._kept.pop(key, None)
            self._kept[key] = forecaster
            while len(self._kept) > KEPT:
                del self._kept[next(iter(self._kept))]
        return forecaster

    def _prepare(self) -> None:
        """Load what a rollback would bring back: people wait for it."""
        try:
            former = reign(self._registry.history(self.problem))[:-1]
            if former:
                self._kept_or_loaded(former[-1].version_of(self.problem))
        # Nothing has asked for it yet; who does will be told.
        except Exception as error:
            _log.warning("%s: what a rollback would bring back cannot be loaded: %s", self.problem, error)

    async def watch(self) -> None:
        """Follow the champion until cancelled."""
        prepared: object = None
        while True:
            pause = WATCH_SECONDS
            try:
                await asyncio.to_thread(self.follow)
                if self._seen != prepared:
                    prepared = self._seen
                    # Beside it: a store that does not answer must not hold up what is in memory.
                    self._preparing = asyncio.create_task(asyncio.to_thread(self._prepare))
            # Whatever it is that keeps a champion from being loaded, the one before goes on.
            except Exception as error:
                self.metrics.failures.labels("swap").inc()
                _log.error("%s: the champion cannot be loaded: %s", self.problem, error)
                pause = RETRY_SECONDS
            await asyncio.sleep(pause)

    # Forecasts

    def start(self) -> None:
        """Begin to work off what waits."""
        torch.set_num_threads(1)
        # What is loaded by now stays: a full collection that went through it would hold up requests for 0.2 s.
        gc.collect()
        gc.freeze()
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Answer what waits, write down what is not, and end; what the log still refuses is told, and lost."""
        # First: where the log refuses, what waits for it would hold up the end.
        self._stopping.set()
        self._waiting.put(None)
        self._threads[0].join()
        self._unlogged.put(None)
        self._threads[1].join()

    async def forecast(self, body: bytes) -> bytes:
        """The answer to the body of a request, as JSON.

        Raises:
            Refused: there is none, and why.
        """
        self.ready()
        asked = Asked(body)
        try:
            self._waiting.put_nowait(asked)
        except queue.Full:
            raise Refused(
                HTTPStatus.SERVICE_UNAVAILABLE, f"{MOST_WAITING:,} requests wait already; ask again in a second"
            ) from None
        return await asyncio.wrap_future(asked.answer)

    def _forecast(self) -> None:
        """Answer what waits, together, until there is a None."""
        while True:
            batch = [self._waiting.get()]
            while batch[-1] is not None and len(batch) < MOST_WINDOWS and not self._waiting.empty():
                batch.append(self._waiting.get())
            # A client may have gone away while it waited.
            asked = [each for each in batch if each is not None and each.answer.set_running_or_notify_cancel()]
            self._answer_or_say(asked)
            if batch[-1] is None:
                return

    def _answer_or_say(self, asked: Sequence[Asked]) -> None:
        """Answer requests, or say that a fault of ours is in the way: none must wait for ever."""
        try:
            self._answer(asked)
        except Exception as error:
            left = [each for each in asked if not each.answer.done()]
            if len(asked) > 1:
                # One of them may have brought it about, and the others may do better.
                for each in left:
                    self._answer_or_say([each])
                return
            _log.exception("forecasting has failed")
            self.metrics.failures.labels("forecast").inc()
            for each in left:
                each.answer.set_exception(
                    Refused(HTTPStatus.INTERNAL_SERVER_ERROR, f"forecasting has failed: {type(error).__name__}")
                )

    def _answer(self, asked: Sequence[Asked]) -> None:
        version, forecaster, _ = self.held
        taken: list[Asked] = []
        counts: list[int] = []
        windows: list[Windows] = []
        for each in asked:
            try:
                of_request = read(each.body, forecaster)
            except Refused as refused:
                each.answer.set_exception(refused)
            except InputError as error:
                each.answer.set_exception(Refused(HTTPStatus.UNPROCESSABLE_ENTITY, str(error)))
            else:
                taken.append(each)
                counts.append(len(of_request))
                windows += of_request
        if not taken:
            return
        forecasts = forecaster.tabled(forecaster.answered(windows))
        forecasts = forecast_log.identified(self.problem, version.version, forecasts)
        if not forecasts["forecast"].is_finite().all():
            taken, counts, forecasts = _finite(taken, counts, forecasts, len(forecaster.about.leads))
        self.metrics.batch.observe(len(windows))
        self.metrics.forecasts.labels(str(version.version)).inc(len(forecasts))
        # Before it is answered: nobody holds an id that is lost when the log is full.
        self._unlogged.put(forecasts)
        made = shown(forecasts, forecaster.about)
        leads, begin = len(forecaster.about.leads), 0
        for each, count in zip(taken, counts, strict=True):
            answer = {
                "problem": self.problem,
                "unit": forecaster.about.unit,
                "model_version": version.version,
                "forecasts": made[begin : begin + leads * count],
            }
            begin += leads * count
            each.answer.set_result(encoded(answer))

    def _write(self) -> None:
        """Write forecasts to the log until there is a None; what the log refuses is tried again."""
        while (forecasts := self._unlogged.get()) is not None:
            while True:
                try:
                    forecast_log.record(self.problem, forecasts)
                # A full disk, a database that is locked or broken: each is for a person to mend.
                except Exception as error:
                    self._log_failed = str(error)
                    self.metrics.failures.labels("log").inc()
                    _log.error("forecasts cannot be written down: %s", error)
                    if self._stopping.wait(RETRY_SECONDS):
                        _log.error("%d forecasts are lost: %s", len(forecasts), forecasts["forecast_id"].to_list())
                        break
                else:
                    self._log_failed = None
                    break


def _finite(
    taken: Sequence[Asked], counts: Sequence[int], forecasts: pl.DataFrame, leads: int
) -> tuple[list[Asked], list[int], pl.DataFrame]:
    """The requests whose forecasts are numbers, how many windows each has, and the forecasts; the others are refused.

    A column that never changed in training has no range that a value could be far outside of.
    """
    kept, kept_counts, parts, begin = [], [], [forecasts.clear()], 0
    for each, count in zip(taken, counts, strict=True):
        part = forecasts.slice(begin, count * leads)
        begin += count * leads
        if part["forecast"].is_finite().all():
            kept.append(each)
            kept_counts.append(count)
            parts.append(part)
        else:
            reason = "the forecast is no number: the values are too far from those of the training rows"
            each.answer.set_exception(Refused(HTTPStatus.UNPROCESSABLE_ENTITY, reason))
    return kept, kept_counts, pl.concat(parts)


def read(body: bytes, forecaster: Forecaster) -> list[Windows]:
    """The windows of a request.

    Raises:
        Refused: it is no JSON, or not of the form that the OpenAPI document gives.
        InputError: no forecast can be made from what it holds.
    """
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Refused(HTTPStatus.BAD_REQUEST, f"the body is no JSON: {error}") from None
    if not isinstance(document, dict):
        raise InputError("the body must be an object with time and columns, or with windows")
    if "windows" not in document:
        return [_window(document, forecaster, "")]
    if extra := sorted(set(document) - {"windows"}):
        raise InputError(f"unknown key {extra[0]!r} beside windows")
    windows = document["windows"]
    if not isinstance(windows, list) or not windows:
        raise InputError("windows must be a list of objects with time and columns, and not empty")
    return [_window(each, forecaster, f"windows[{i}]: ") for i, each in enumerate(windows)]


def _window(given: Any, forecaster: Forecaster, place: str) -> Windows:
    """One window of a request.

    Raises:
        InputError: what is wrong with it.
    """
    about = forecaster.about
    if not isinstance(given, dict):
        raise InputError(f"{place}must be an object with time and columns")
    if extra := sorted(set(given) - {"time", "columns", "series"}):
        raise InputError(f"{place}unknown key {extra[0]!r}; allowed are time, columns, series")
    moments, columns = given.get("time"), given.get("columns")
    series = given.get("series", about.series[0] if len(about.series) == 1 else None)
    if not isinstance(series, str):
        raise InputError(f"{place}series must say which of {', '.join(about.series)} this is")
    if not isinstance(moments, list) or not moments:
        raise InputError(f"{place}time must be a list of times, such as 2016-01-01T00:00:00, and not empty")
    if not isinstance(columns, dict):
        raise InputError(f"{place}columns must be an object with a list of numbers for each of {_named(about.columns)}")
    if missing := [name for name in about.columns if name not in columns]:
        raise InputError(f"{place}columns lacks {_named(missing)}; needed are {_named(about.columns)}")
    if unknown := [name for name in columns if name not in about.columns]:
        raise InputError(f"{place}columns has {_named(unknown)}, which is none of {_named(about.columns)}")
    values_NC = np.empty((len(moments), len(about.columns)))
    for i, name in enumerate(about.columns):
        values_NC[:, i] = _numbers(columns[name], name, len(moments), place)
    if wrong := forecaster.implausible(values_NC):
        raise InputError(f"{place}{wrong}")
    try:
        return forecaster.windows_of(series, _times(moments, place), values_NC)
    except InputError as error:
        raise InputError(f"{place}{error}") from None


_NUMBERS = {int, float, type(None)}


def _numbers(values: Any, name: str, count: int, place: str) -> NDArray[np.float64]:
    """The numbers of a column, NaN where it has null."""
    if not isinstance(values, list):
        raise InputError(f"{place}column {name!r} must be a list of numbers, null where nothing is known")
    if len(values) != count:
        raise InputError(f"{place}column {name!r} has {len(values):,} values, and time has {count:,}")
    # A text or a truth value would become a number of NumPy's.
    if not set(map(type, values)) <= _NUMBERS:
        wrong = next(each for each in values if type(each) not in _NUMBERS)
        raise InputError(f"{place}column {name!r} holds {_cut(wrong)}, which is no number")
    return np.array(values, dtype=np.float64)


_PLAIN = re.compile(r"(?:(?!0000)\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ?\n)+", re.ASCII)


def _times(moments: list[Any], place: str) -> NDArray[np.datetime64]:
    """Times in UTC; those without a zone are in UTC too."""
    # A request has hundreds: those that are all written plainly are read at once, in a tenth of the time.
    if set(map(type, moments)) == {str} and _PLAIN.fullmatch(lines := "\n".join([*moments, ""])):
        # A 30th of February is refused below, by name.
        with suppress(ValueError):
            return np.array(lines.replace("Z", "").split(), dtype="datetime64[ms]")
    read = []
    for each in moments:
        try:
            read.append(_moment(each))
        except (TypeError, ValueError, OverflowError):
            reason = f"time holds {_cut(each)}, which is no time such as 2016-01-01T00:00:00"
            raise InputError(f"{place}{reason}") from None
    return np.array(read, dtype="datetime64[ms]")


def _moment(value: Any) -> datetime:
    """A time in UTC, without a zone.

    Raises:
        TypeError, ValueError, OverflowError: it is none.
    """
    if not isinstance(value, str):
        raise TypeError
    # Python 3.11 takes "08:Z" for a time, but not "08:".
    read = datetime.fromisoformat(value[:-1] if value[-1:] == "Z" else value)
    return read.astimezone(UTC).replace(tzinfo=None) if read.tzinfo else read


def _named(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))


def _cut(value: Any) -> str:
    """A value as it was sent, or its beginning."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def shown(forecasts: pl.DataFrame, about: About) -> list[dict[str, Any]]:
    """Forecasts, as the log has them, for JSON."""
    levels = [(level, f"low_{level:g}", f"high_{level:g}") for level in about.levels]
    return [
        {
            "forecast_id": row["forecast_id"],
            "series": row["series"],
            "origin": row["origin"],
            "target_time": row["target_time"],
            "lead": row["lead"],
            "forecast": row["forecast"],
            "intervals": [{"level": level, "low": row[low], "high": row[high]} for level, low, high in levels],
        }
        for row in forecasts.iter_rows(named=True)
    ]


def encoded(value: Any) -> bytes:
    """JSON, whose times are in UTC and say so."""
    return orjson.dumps(value, option=orjson.OPT_NAIVE_UTC | orjson.OPT_UTC_Z)


# HTTP


class Interval(BaseModel):
    level: float = Field(description="the share of targets that it is made to hold")
    low: float
    high: float


class Forecast(BaseModel):
    forecast_id: str = Field(
        description="the same for the same window and model version", examples=["0f3a59c2d17be684"]
    )
    series: str
    origin: datetime = Field(description="time of the last row that it is made from")
    target_time: datetime
    lead: str = Field(description="from the origin to the target", examples=["24h"])
    forecast: float
    intervals: list[Interval]


class Answer(BaseModel):
    problem: str
    unit: str = Field(description="of the forecasts and the intervals")
    model_version: int
    forecasts: list[Forecast] = Field(description="by window, in their order, and lead")


class Logged(Forecast):
    problem: str
    model_version: int
    unit: str
    made: datetime = Field(description="when it was first made")


class Range(BaseModel):
    low: float = Field(description="the least value in the training rows")
    high: float = Field(description="the greatest value in them")


class Serving(BaseModel):
    problem: str
    model_version: int
    since: datetime = Field(description="when this service has begun to answer with it")
    key: str = Field(description="of the trial: trials/<problem>/<key>")
    run: str = Field(description="in MLflow")
    uri: str = Field(description="by which MLflow loads it")
    architecture: str
    hyperparameters: dict[str, Any]
    commit: str = Field(description="that it was trained at; empty where that is not known")
    code: str = Field(description="hash of the source that trained it")
    data: str = Field(description="hash of what it was trained on")
    synthetic: bool
    unit: str
    cadence: str = Field(description="between rows")
    rows: int = Field(description="that a window takes, up to its last input")
    leads: list[str]
    levels: list[float]
    series: list[str]
    columns: dict[str, Range]
    known: list[str] = Field(description="columns that are known in advance, to be given up to the last target")


class Reason(BaseModel):
    detail: str = Field(description="why there is no answer")


class Status(BaseModel):
    status: str
    model_version: int | None = None


def _why(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": Reason, "description": HTTPStatus(status).phrase} for status in statuses}


def make_app(service: Service) -> FastAPI:
    """The service's HTTP side. It starts the service's threads and stops them."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        watching = asyncio.create_task(service.watch())
        try:
            yield
        finally:
            watching.cancel()
            await asyncio.to_thread(service.stop)

    app = FastAPI(
        title=f"Recast: {service.problem}",
        version="1",
        description="Forecasts by the champion of a problem. Times are in UTC; those without a zone too.",
        lifespan=lifespan,
    )
    app.add_middleware(Measured, metrics=service.metrics)
    app.add_exception_handler(Refused, _refused)

    @app.post(
        "/forecast",
        summary="Forecast from one window, or from several",
        response_model=Answer,
        responses=_why(400, 413, 415, 422, 503),
    )
    async def forecast(request: Request) -> Response:
        return Response(await service.forecast(await _body(request)), media_type="application/json")

    @app.get("/health", summary="Whether the service lives", response_model=Status)
    async def health() -> Response:
        return _answered({"status": "ok"})

    @app.get(
        "/ready",
        summary="Whether it answers: a model is loaded, and forecasts can be written down",
        response_model=Status,
        responses=_why(503),
    )
    async def ready() -> Response:
        return _answered({"status": "ready", "model_version": service.ready().version.version})

    @app.get("/model", summary="What answers, and what it was made from", response_model=Serving, responses=_why(503))
    async def model() -> Response:
        return _answered(_serving(service.held))

    @app.get(
        "/forecasts/{forecast_id}",
        summary="A forecast that was made, here or by file; it stands here a moment after it was made",
        response_model=Logged,
        responses=_why(404, 503),
    )
    def forecasts(forecast_id: str) -> Response:
        found = forecast_log.find(forecast_id)
        if found is None or found["problem"] != service.problem:
            raise Refused(HTTPStatus.NOT_FOUND, f"no forecast of {service.problem} has the id {_cut(forecast_id)}")
        levels = [name.removeprefix("low_") for name in found if name.startswith("low_")]
        intervals = [
            {"level": float(level), "low": found.pop(f"low_{level}"), "high": found.pop(f"high_{level}")}
            for level in levels
        ]
        return _answered({**found, "unit": service.held.forecaster.about.unit, "intervals": intervals})

    @app.get("/metrics", summary="For Prometheus", response_class=PlainTextResponse)
    async def metrics() -> Response:
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    app.openapi = lambda: _openapi(app, service)  # type: ignore[method-assign]
    return app


def _answered(value: dict[str, Any], status: int = 200) -> Response:
    return Response(encoded(value), status, media_type="application/json")


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    answer = _answered({"detail": str(error)}, error.status)
    if error.status == HTTPStatus.SERVICE_UNAVAILABLE:
        answer.headers["Retry-After"] = "1"
    return answer


async def _body(request: Request) -> bytes:
    """The body of a request.

    Raises:
        Refused: it is not said to be JSON, or too long.
    """
    kind = request.headers.get("content-type", "")
    if kind.partition(";")[0].strip().lower() != "application/json":
        raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"Content-Type must be application/json; it is {_cut(kind)}")
    length = request.headers.get("content-length", "0")
    chunks: list[bytes] = []
    size = 0
    if int(length) <= LIMIT_BYTES:
        async for chunk in request.stream():
            size += len(chunk)
            if size > LIMIT_BYTES:
                break
            chunks.append(chunk)
        else:
            return b"".join(chunks)
    raise Refused(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        f"a body may have at most {LIMIT_BYTES:,} bytes: send fewer windows, or use recast predict",
    )


def _serving(held: Held) -> dict[str, Any]:
    version, about = held.version, held.forecaster.about
    assert about.preparation
    return {
        "problem": version.problem,
        "model_version": version.version,
        "since": held.since,
        **{name: getattr(version, name) for name in ("key", "run", "uri")},
        **{name: getattr(about, name) for name in ("architecture", "hyperparameters", "commit", "code", "data")},
        **{name: getattr(about, name) for name in ("synthetic", "unit", "rows", "levels", "series")},
        "cadence": written(timedelta(seconds=about.cadence)),
        "leads": about.lead_names,
        "columns": {name: dict(zip(("low", "high"), about.ranges[name], strict=True)) for name in about.columns},
        "known": about.preparation.table.known,
    }


def _openapi(app: FastAPI, service: Service) -> dict[str, Any]:
    """The document, with the columns of the model that answers now."""
    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    held = service.answering
    body: dict[str, Any] = {"type": "object"}
    example: dict[str, Any] = {}
    if held is not None:
        about = held.forecaster.about
        window = _window_schema(about)
        several = {
            "type": "object",
            "additionalProperties": False,
            "required": ["windows"],
            "properties": {"windows": {"type": "array", "minItems": 1, "items": window}},
        }
        body, example = {"oneOf": [window, several]}, {"example": _example(held.forecaster)}
    document["paths"]["/forecast"]["post"]["requestBody"] = {
        "required": True,
        "content": {"application/json": {"schema": body, **example}},
    }
    return document


def _window_schema(about: About) -> dict[str, Any]:
    numbers = {"type": "array", "minItems": about.rows, "items": {"type": ["number", "null"]}}
    every = written(timedelta(seconds=about.cadence))
    ranges = {name: f"{low:g} to {high:g} in the training rows" for name, (low, high) in about.ranges.items()}
    return {
        "type": "object",
        "additionalProperties": False,
        "required": ["time", "columns", *(["series"] if len(about.series) > 1 else [])],
        "properties": {
            "time": {
                "type": "array",
                "minItems": about.rows,
                "items": {"type": "string", "format": "date-time"},
                "description": f"one every {every}; the forecast is made at the last",
            },
            "series": {"type": "string", "description": f"such as {', '.join(about.series[:3])}"},
            "columns": {
                "type": "object",
                "additionalProperties": False,
                "required": list(about.columns),
                "properties": {name: {**numbers, "description": ranges[name]} for name in about.columns},
            },
        },
    }


def _example(forecaster: Forecaster) -> dict[str, Any]:
    """The model's own example."""
    rows = forecaster.example
    return {
        "time": [f"{moment.isoformat()}Z" for moment in rows["time"]],
        "series": rows["series"][0],
        "columns": {name: rows[name].to_list() for name in forecaster.about.columns},
    }


class Measured:
    """ASGI middleware that counts and times requests."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun, status = time.perf_counter(), 500

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, noted)
        finally:
            # What was asked for could be anything; what there is, is little.
            path = getattr(scope.get("route"), "path", "other")
            self.metrics.requests.labels(path, status).inc()
            self.metrics.seconds.labels(path).observe(time.perf_counter() - begun)
            if status >= 400:
                self.metrics.errors.labels(status).inc()
