"""What the service counts and times, for Prometheus."""

import time
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class ServiceMetrics:
    """The metrics of one service."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        options: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("recast_requests", "Requests that were answered.", ["path", "status"], **options)
        self.seconds = Histogram(
            "recast_request_seconds",
            "Time from a request to its answer.",
            ["path"],
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5),
            **options,
        )
        self.batch = Histogram(
            "recast_batch_windows",
            "Windows in one call of the network.",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
            **options,
        )
        self.forecasts = Counter("recast_forecasts", "Forecasts by model version.", ["model_version"], **options)
        self.errors = Counter(
            "recast_errors", "Requests that were refused or have failed, by status.", ["status"], **options
        )
        self.version = Gauge("recast_model_version", "The version that answers.", **options)
        self.swaps = Counter("recast_model_swaps", "How often another version took over.", **options)
        self.failures = Counter("recast_failures", "Failures behind the requests, by kind.", ["what"], **options)
        self.unlogged = Gauge("recast_unlogged_batches", "Batches of forecasts that wait to be logged.", **options)


class RequestMetrics:
    """ASGI middleware that counts and times requests."""

    def __init__(self, app: ASGIApp, metrics: ServiceMetrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, send_and_note)
        finally:
            # The route, not the path that was requested: there are few routes, and any number of paths.
            path = getattr(scope.get("route"), "path", "other")
            self.metrics.requests.labels(path, status).inc()
            self.metrics.seconds.labels(path).observe(time.perf_counter() - start)
            if status >= 400:
                self.metrics.errors.labels(status).inc()
