"""What answers requests for forecasts: the champion of a problem, behind a queue and before a log; `recast serve`.

Requests that come at once are forecast in one call of the network, in a thread. The service follows the champion: the
new model is loaded beside the old one, then one reference is swapped, and a request is answered by one of them whole.
Every forecast is written to the log behind the requests; when the log does not keep up, they wait for it.
"""

import asyncio
import gc
import logging
import queue
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import polars as pl
import torch
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from forecasting.forecaster import Forecaster, InputError, Windows
from lifecycle.champions.history import Entry, reign
from lifecycle.champions.registry import Version
from lifecycle.serving import forecast_log
from lifecycle.serving.requests import Refused, encoded, read, shown
from problems.errors import RecastError

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
    """Where the champion is found; `lifecycle.champions.registry` is one."""

    def folder(self, problem: str) -> Path: ...

    def champion(self, problem: str) -> Version | None: ...

    def history(self, problem: str) -> list[Entry]: ...

    def load(self, version: Version) -> Forecaster: ...


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
