"""The HTTP side of the service: its paths, its OpenAPI document, and how long requests take."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, Field
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from forecasting.forecaster import About, Forecaster
from lifecycle.serving import forecast_log
from lifecycle.serving.requests import Refused, cut, encoded
from lifecycle.serving.service import Held, Metrics, Service
from problems.source import written

LIMIT_BYTES = 1 << 20
"""The longest body of a request."""


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
            raise Refused(HTTPStatus.NOT_FOUND, f"no forecast of {service.problem} has the id {cut(forecast_id)}")
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
        raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"Content-Type must be application/json; it is {cut(kind)}")
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
