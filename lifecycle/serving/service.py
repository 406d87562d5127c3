"""The service behind `recast serve`: it answers requests for forecasts of one problem with its champion's model.

Requests that wait at the same time are forecast in one call of the network, in a thread. The service follows the
champion: the new model is loaded beside the old one, then one reference is swapped, so that each request is answered by
one of them alone. Forecasts are written to the log by another thread; when the log does not keep up, requests wait.
"""

import asyncio
import gc
import logging
import queue
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from http import HTTPStatus

import polars as pl
import torch

from forecasting.windows import InputError, Windows
from lifecycle import forecast_log
from lifecycle.serving.champion_model import ChampionModel, LoadedModel, ModelRegistry
from lifecycle.serving.log_writer import LogWriter
from lifecycle.serving.metrics import ServiceMetrics
from lifecycle.serving.requests import RefusedRequest, encode_json, forecasts_for_json, parse_request

MAX_REQUESTS_PER_BATCH = 256
"""The most requests that are answered by one call of the network."""
MAX_BATCH_BYTES = 4 << 20
"""The size of bodies from which on no request is added to a batch: the first one waits until all are parsed."""
MAX_PENDING_REQUESTS = 4096
"""Requests that may wait to be forecast. Further ones are refused, and may be sent again a second later."""
MAX_PENDING_BYTES = 256 << 20
"""The size of the bodies of requests that may wait; with further ones it is the same."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PendingRequest:
    """A request for forecasts that waits for its answer."""

    body: bytes
    answer: "Future[bytes]" = field(default_factory=Future)


class Service:
    """The model of one problem's champion, the requests that wait for it, and the log of its forecasts."""

    def __init__(self, problem: str, registry: ModelRegistry) -> None:
        """
        Raises:
            RecastError: there is a champion, but its model cannot be loaded.
        """
        self.problem = problem
        self.metrics = ServiceMetrics()
        self.champion = ChampionModel(problem, registry, self.metrics)
        self._log_writer = LogWriter(problem, self.metrics)
        self._pending: queue.SimpleQueue[PendingRequest | None] = queue.SimpleQueue()
        self._pending_bytes = 0
        """Of bodies whose answers are awaited. Only the thread of the event loop changes it."""
        self._thread = threading.Thread(target=self._answer_pending, daemon=True)
        self.champion.follow()

    def require_model(self) -> LoadedModel:
        """The model that answers now.

        Raises:
            RefusedRequest: there is no champion.
        """
        if self.champion.current is None:
            raise RefusedRequest(
                HTTPStatus.SERVICE_UNAVAILABLE, f"{self.problem} has no champion yet: recast retrain {self.problem}"
            )
        return self.champion.current

    def require_ready(self) -> LoadedModel:
        """The model that answers now.

        Raises:
            RefusedRequest: there is no champion, or the log cannot be written.
        """
        if self._log_writer.failure is not None:
            raise RefusedRequest(
                HTTPStatus.SERVICE_UNAVAILABLE, f"forecasts cannot be written to the log: {self._log_writer.failure}"
            )
        return self.require_model()

    def start(self) -> None:
        """Start to answer requests."""
        torch.set_num_threads(1)
        # What is loaded by now stays. A full garbage collection that went through it would delay requests by 0.2 s.
        gc.collect()
        gc.freeze()
        self._thread.start()
        self._log_writer.start()

    def stop(self) -> None:
        """Answer the requests that wait, write their forecasts to the log, and end."""
        # This comes first: otherwise requests would wait for ever for a log that cannot be written.
        self._log_writer.stop_retrying()
        self._pending.put(None)
        self._thread.join()
        self._log_writer.stop()

    async def forecast(self, body: bytes) -> bytes:
        """The answer to a request, as JSON.

        Args:
            body: the body of the request.

        Raises:
            RefusedRequest: the request cannot be answered; the message says why.
        """
        self.require_ready()
        request = PendingRequest(body)
        if self._pending.qsize() >= MAX_PENDING_REQUESTS or self._pending_bytes + len(body) > MAX_PENDING_BYTES:
            raise RefusedRequest(
                HTTPStatus.SERVICE_UNAVAILABLE, "too many requests are waiting already; try again in a second"
            )
        self._pending_bytes += len(body)
        try:
            self._pending.put(request)
            return await asyncio.wrap_future(request.answer)
        finally:
            self._pending_bytes -= len(body)

    def _answer_pending(self) -> None:
        """Answer the requests that wait, together as far as a batch may be so large, until a None comes."""
        next_request = self._pending.get()
        while next_request is not None:
            batch, size = [next_request], len(next_request.body)
            while len(batch) < MAX_REQUESTS_PER_BATCH and size < MAX_BATCH_BYTES and not self._pending.empty():
                next_request = self._pending.get()
                if next_request is None:
                    break
                batch.append(next_request)
                size += len(next_request.body)
            # A client may have gone away while it waited.
            requests = [request for request in batch if request.answer.set_running_or_notify_cancel()]
            if requests:
                self.answer_all(requests)
            if next_request is not None:
                next_request = self._pending.get()

    def answer_all(self, requests: Sequence[PendingRequest]) -> None:
        """Answer requests, or refuse them if there is a bug in the service: no request may wait for ever."""
        try:
            self._answer_batch(requests)
        except Exception as error:
            unanswered = [request for request in requests if not request.answer.done()]
            if len(requests) > 1:
                # One of them may have caused the error, and the others may succeed without it.
                for request in unanswered:
                    self.answer_all([request])
                return
            _log.exception("forecasting has failed")
            self.metrics.failures.labels("forecast").inc()
            for request in unanswered:
                request.answer.set_exception(
                    RefusedRequest(HTTPStatus.INTERNAL_SERVER_ERROR, f"forecasting has failed: {type(error).__name__}")
                )

    def _answer_batch(self, requests: Sequence[PendingRequest]) -> None:
        """Answer requests by one call of the network."""
        version, forecaster, _ = self.require_model()
        accepted: list[PendingRequest] = []
        counts: list[int] = []
        windows: list[Windows] = []
        for request in requests:
            try:
                windows_of_request = parse_request(request.body, forecaster)
            except RefusedRequest as refused:
                request.answer.set_exception(refused)
            except InputError as error:
                request.answer.set_exception(RefusedRequest(HTTPStatus.UNPROCESSABLE_ENTITY, str(error)))
            else:
                accepted.append(request)
                counts.append(len(windows_of_request))
                windows += windows_of_request
        if not accepted:
            return
        forecasts = forecaster.tabulate(forecaster.forecast_windows(windows))
        forecasts = forecast_log.add_ids(self.problem, version.version, forecasts)
        leads = len(forecaster.about.leads)
        if not forecasts["forecast"].is_finite().all():
            accepted, counts, forecasts = _refuse_infinite(accepted, counts, forecasts, leads)
        self.metrics.batch.observe(len(windows))
        self.metrics.forecasts.labels(str(version.version)).inc(len(forecasts))
        # Before the answers: nobody may get an id that is lost because the log is full.
        self._log_writer.add(forecasts)
        rows = forecasts_for_json(forecasts, forecaster.about)
        begin = 0
        for request, count in zip(accepted, counts, strict=True):
            answer = {
                "problem": self.problem,
                "unit": forecaster.about.unit,
                "model_version": version.version,
                "forecasts": rows[begin : begin + leads * count],
            }
            begin += leads * count
            request.answer.set_result(encode_json(answer))


def _refuse_infinite(
    requests: Sequence[PendingRequest], counts: Sequence[int], forecasts: pl.DataFrame, leads: int
) -> tuple[list[PendingRequest], list[int], pl.DataFrame]:
    """Refuse requests with a forecast that is infinite or NaN, and return the others, with their forecasts.

    Such requests were accepted because a column that never changed in training has no range that a value could be far
    outside of.

    Args:
        counts: the number of windows in each request.
        forecasts: those of all requests, in their order.
        leads: the number of forecasts from each window.
    """
    finite, finite_counts, parts, begin = [], [], [forecasts.clear()], 0
    for request, count in zip(requests, counts, strict=True):
        part = forecasts.slice(begin, count * leads)
        begin += count * leads
        if part["forecast"].is_finite().all():
            finite.append(request)
            finite_counts.append(count)
            parts.append(part)
        else:
            reason = "the forecast is not a finite number: the values are too far from those of the training rows"
            request.answer.set_exception(RefusedRequest(HTTPStatus.UNPROCESSABLE_ENTITY, reason))
    return finite, finite_counts, pl.concat(parts)
