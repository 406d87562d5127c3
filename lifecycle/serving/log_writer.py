"""A thread that writes forecasts to the forecast log, so that requests need not wait for the disk."""

import logging
import queue
import threading

import polars as pl

from lifecycle import forecast_log
from lifecycle.serving.metrics import ServiceMetrics

MAX_UNLOGGED_BATCHES = 256
"""Batches that may wait to be written; then requests wait too."""
LOG_RETRY_SECONDS = 5.0
"""The time between two attempts to write to a log that refuses."""

_log = logging.getLogger(__name__)


class LogWriter:
    """Writes the forecasts of a problem to its log, in the order in which they come.

    Attributes:
        failure: why the last attempt to write failed; None: it did not.
    """

    def __init__(self, problem: str, metrics: ServiceMetrics) -> None:
        self.problem, self._metrics = problem, metrics
        self.failure: str | None = None
        self._unlogged: queue.Queue[pl.DataFrame | None] = queue.Queue(MAX_UNLOGGED_BATCHES)
        self._thread = threading.Thread(target=self._write, daemon=True)
        self._stopping = threading.Event()
        metrics.unlogged.set_function(self._unlogged.qsize)

    def start(self) -> None:
        self._thread.start()

    def add(self, forecasts: pl.DataFrame) -> None:
        """Have forecasts written soon; this waits while too many others are not written yet."""
        self._unlogged.put(forecasts)

    def stop_retrying(self) -> None:
        """Do not try again from now on what the log refuses."""
        self._stopping.set()

    def stop(self) -> None:
        """Write what is not written yet, and end. What the log still refuses is reported, and lost."""
        self._unlogged.put(None)
        self._thread.join()

    def _write(self) -> None:
        """Write forecasts until a None comes. What the log refuses is tried again."""
        while (forecasts := self._unlogged.get()) is not None:
            while True:
                try:
                    forecast_log.record_forecasts(self.problem, forecasts)
                # A full disk, a database that is locked or damaged: a person has to fix these.
                except Exception as error:
                    self.failure = str(error)
                    self._metrics.failures.labels("log").inc()
                    _log.error("forecasts cannot be written to the log: %s", error)
                    if self._stopping.wait(LOG_RETRY_SECONDS):
                        _log.error("%d forecasts are lost: %s", len(forecasts), forecasts["forecast_id"].to_list())
                        break
                else:
                    self.failure = None
                    break
