"""The HTTP interface of the service: its paths, and how it answers and refuses requests."""

import asyncio
import re
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from datetime import timedelta
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import ClientDisconnect

from lifecycle import forecast_log
from lifecycle.serving.champion_model import LoadedModel
from lifecycle.serving.hosts import HostCheck
from lifecycle.serving.metrics import RequestMetrics
from lifecycle.serving.newest_row import describe_newest_row
from lifecycle.serving.openapi import make_openapi
from lifecycle.serving.requests import RefusedRequest, encode_json, shorten_value
from lifecycle.serving.schemas import Answer, LoggedForecast, Reason, ServedModel, Status
from lifecycle.serving.service import Service
from problems.durations import format_duration
from problems.errors import RecastError

MAX_BODY_BYTES = 1 << 20
"""The largest body of a request."""

BODY_SECONDS = 30
"""The time in which a body has to come. A client that never ends it would hold its connection for ever."""

CLIENT_DISCONNECTED = 499
"""The status of a request whose client went away while it sent it: for the metrics, as nginx counts such requests."""

_FORECAST_ID = re.compile("[0-9a-f]{16}")


def _error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The description of these statuses in the OpenAPI document."""
    return {status: {"model": Reason, "description": HTTPStatus(status).phrase} for status in statuses}


def make_app(service: Service, allowed_hosts: Collection[str] = ()) -> FastAPI:
    """The HTTP interface of a service. It starts and stops the service's threads.

    Args:
        allowed_hosts: more names by which clients may call it, see `HostCheck`.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        watching = asyncio.create_task(service.champion.watch())
        try:
            yield
        finally:
            watching.cancel()
            await asyncio.to_thread(service.stop)

    app = FastAPI(
        title=f"Recast: {service.problem}",
        version="1",
        description="Forecasts by the champion of a problem. Times are in UTC, also those without a time zone.",
        lifespan=lifespan,
    )
    app.add_middleware(HostCheck, names=allowed_hosts)
    # Added last, so that it also counts the requests that the other one refuses.
    app.add_middleware(RequestMetrics, metrics=service.metrics)
    app.add_exception_handler(RefusedRequest, _respond_to_refusal)
    app.add_exception_handler(RecastError, _respond_to_error)
    app.add_exception_handler(ClientDisconnect, _note_disconnect)

    @app.post(
        "/forecast",
        summary="Forecast from one window, or from several",
        response_model=Answer,
        responses=_error_responses(400, 408, 413, 415, 422, 503),
    )
    async def forecast(request: Request) -> Response:
        return Response(await service.forecast(await _read_body(request)), media_type="application/json")

    @app.get("/health", summary="Whether the service is alive", response_model=Status)
    async def health() -> Response:
        return _json_response({"status": "ok"})

    @app.get(
        "/ready",
        summary="Whether it can answer: a model is loaded, and forecasts can be logged",
        response_model=Status,
        responses=_error_responses(503),
    )
    async def ready() -> Response:
        return _json_response({"status": "ready", "model_version": service.require_ready().version.version})

    @app.get(
        "/model",
        summary="The model that answers, and what it was made from",
        response_model=ServedModel,
        responses=_error_responses(503),
    )
    async def model() -> Response:
        described = _describe_model(service.require_model())
        newest_row = await asyncio.to_thread(describe_newest_row, service.problem)
        return _json_response({**described, "newest_row": newest_row})

    @app.get(
        "/forecasts/{forecast_id}",
        summary="A forecast that was made by this service or from a file; it is here a moment after it was made",
        response_model=LoggedForecast,
        responses=_error_responses(404, 503),
    )
    def forecasts(forecast_id: str) -> Response:
        is_id = _FORECAST_ID.fullmatch(forecast_id)
        logged = forecast_log.find_forecast(forecast_id, service.problem) if is_id else None
        if logged is None:
            raise RefusedRequest(
                HTTPStatus.NOT_FOUND, f"no forecast of {service.problem} has the id {shorten_value(forecast_id)}"
            )
        levels = [name.removeprefix("low_") for name in logged if name.startswith("low_")]
        intervals = [
            {"level": float(level), "low": logged.pop(f"low_{level}"), "high": logged.pop(f"high_{level}")}
            for level in levels
        ]
        unit = service.require_model().forecaster.about.unit
        age = (logged["made"] - logged["origin"]).total_seconds()
        return _json_response({**logged, "unit": unit, "age_seconds": age, "intervals": intervals})

    @app.get("/metrics", summary="For Prometheus", response_class=PlainTextResponse)
    async def metrics() -> Response:
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    app.openapi = lambda: make_openapi(app, service)  # type: ignore[method-assign]
    return app


def _json_response(value: dict[str, Any], status: int = 200) -> Response:
    return Response(encode_json(value), status, media_type="application/json")


async def _respond_to_refusal(request: Request, error: Exception) -> Response:
    if not isinstance(error, RefusedRequest):
        raise error
    answer = _json_response({"detail": str(error)}, error.status)
    if error.status == HTTPStatus.SERVICE_UNAVAILABLE:
        answer.headers["Retry-After"] = "1"
    if error.status == HTTPStatus.REQUEST_TIMEOUT:
        # Nobody waits for the rest of the body.
        answer.headers["Connection"] = "close"
    return answer


async def _respond_to_error(request: Request, error: Exception) -> Response:
    """Respond that something has to be fixed by the person who runs the service."""
    return _json_response({"detail": str(error)}, HTTPStatus.SERVICE_UNAVAILABLE)


async def _note_disconnect(request: Request, error: Exception) -> Response:
    """Respond to a client that is not there any more."""
    return Response(status_code=CLIENT_DISCONNECTED)


async def _read_body(request: Request) -> bytes:
    """The body of a request.

    Raises:
        RefusedRequest: its content type is not JSON, it is too long, or it does not come in time.
        ClientDisconnect: the client has gone away.
    """
    kind = request.headers.get("content-type", "")
    if kind.partition(";")[0].strip().lower() != "application/json":
        raise RefusedRequest(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"Content-Type must be application/json, not {shorten_value(kind)}"
        )
    try:
        async with asyncio.timeout(BODY_SECONDS):
            body = await _read_chunks(request)
    except TimeoutError:
        raise RefusedRequest(
            HTTPStatus.REQUEST_TIMEOUT, f"the body did not come within {BODY_SECONDS} seconds; send it again"
        ) from None
    if body is None:
        raise RefusedRequest(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"a body may have at most {MAX_BODY_BYTES:,} bytes: send fewer windows, or use recast predict",
        )
    return body


async def _read_chunks(request: Request) -> bytes | None:
    """The body of a request; None: it is too long."""
    if int(request.headers.get("content-length", "0")) > MAX_BODY_BYTES:
        return None
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > MAX_BODY_BYTES:
            return None
        chunks.append(chunk)
    return b"".join(chunks)


def _describe_model(model: LoadedModel) -> dict[str, Any]:
    """The content of a `ServedModel`."""
    version, about = model.version, model.forecaster.about
    return {
        "problem": version.problem,
        "model_version": version.version,
        "since": model.since,
        **{name: getattr(version, name) for name in ("key", "run", "uri")},
        **{name: getattr(about, name) for name in ("architecture", "hyperparameters", "commit", "code", "data")},
        **{name: getattr(about, name) for name in ("synthetic", "unit", "levels", "series")},
        "rows": about.window_rows,
        "cadence": format_duration(timedelta(seconds=about.cadence)),
        "leads": about.lead_names,
        "columns": {name: dict(zip(("low", "high"), about.ranges[name], strict=True)) for name in about.columns},
        "known": model.forecaster.window_builder.preparation.table.known,
    }
