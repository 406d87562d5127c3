"""The champion's model in memory, and how it changes while requests are answered."""

import asyncio
import logging
import threading
from datetime import UTC, datetime
from typing import NamedTuple, Protocol

from forecasting.forecaster import Forecaster
from lifecycle.champions.history import Version, champion_stack, find_champion, history_file, read_history
from lifecycle.serving.metrics import ServiceMetrics
from problems.errors import RecastError

WATCH_SECONDS = 0.2
LOAD_RETRY_SECONDS = 5.0
"""The time between two attempts to load a new champion."""
MODELS_IN_MEMORY = 4
"""Models that stay in memory, so that a rollback loads nothing."""

_log = logging.getLogger(__name__)


class ModelRegistry(Protocol):
    """Where models are stored; `lifecycle.champions.registry` is one."""

    def load_model(self, version: Version) -> Forecaster: ...


class LoadedModel(NamedTuple):
    """A model that answers requests, and since when it does."""

    version: Version
    forecaster: Forecaster
    since: datetime


class ChampionModel:
    """The model of a problem's champion. A new champion's model is loaded beside the old one, which answers until then.

    Attributes:
        current: the model that answers now; None: there is no champion yet.
    """

    def __init__(self, problem: str, registry: ModelRegistry, metrics: ServiceMetrics) -> None:
        self.problem, self._registry, self._metrics = problem, registry, metrics
        self.current: LoadedModel | None = None
        self._in_memory: dict[tuple[int, str], Forecaster] = {}
        """By version and run; the one that was used last is at the end."""
        self._memory_lock = threading.Lock()
        self._history_state: object = None
        """Identifies the champion's history as `follow` read it last."""
        self._preloading: asyncio.Task[None] | None = None

    @property
    def models_in_memory(self) -> int:
        return len(self._in_memory)

    def follow(self) -> bool:
        """Switch to the champion, if another version is the champion now.

        Returns:
            Whether the history of champions has changed.

        Raises:
            RecastError: the champion cannot be loaded; the former one goes on answering.
        """
        try:
            stat = history_file(self.problem).stat()
        except FileNotFoundError:
            return False
        state = (stat.st_mtime_ns, stat.st_ino, stat.st_size)
        if state == self._history_state:
            return False
        version = find_champion(self.problem)
        if version is not None and (self.current is None or version != self.current.version):
            self._switch_to(version)
        self._history_state = state
        return True

    def _switch_to(self, version: Version) -> None:
        forecaster = self._load(version)
        if forecaster.about.preparation is None:
            raise RecastError(
                f"{self.problem} is a problem of sequences, which `recast serve` cannot serve; use "
                f"`mlflow models serve -m {version.uri}`"
            )
        if self.current is not None:
            self._metrics.swaps.inc()
        # The first call of a network takes longer than later ones. Loading has made that call.
        self.current = LoadedModel(version, forecaster, datetime.now(UTC))
        self._metrics.version.set(version.version)
        _log.info("%s: version %d answers", self.problem, version.version)

    def _load(self, version: Version) -> Forecaster:
        """The model of a version. It becomes the most recently used, so it is evicted last."""
        key = (version.version, version.run)
        forecaster = self._in_memory.get(key) or self._registry.load_model(version)
        with self._memory_lock:
            self._in_memory.pop(key, None)
            self._in_memory[key] = forecaster
            while len(self._in_memory) > MODELS_IN_MEMORY:
                del self._in_memory[next(iter(self._in_memory))]
        return forecaster

    def _preload_former(self) -> None:
        """Load the model that a rollback would bring back, because people wait for a rollback."""
        try:
            former = champion_stack(read_history(self.problem))[:-1]
            if former:
                self._load(former[-1].version_of(self.problem))
        # Nobody has asked for this model yet. Whoever rolls back to it gets the error.
        except Exception as error:
            _log.warning("%s: the model that a rollback would bring back cannot be loaded: %s", self.problem, error)

    async def watch(self) -> None:
        """Follow the champion until cancelled."""
        preloaded_for: object = None
        while True:
            pause = WATCH_SECONDS
            try:
                await asyncio.to_thread(self.follow)
                if self._history_state != preloaded_for:
                    preloaded_for = self._history_state
                    # In the background: a store that does not answer must not delay a switch to a model in memory.
                    self._preloading = asyncio.create_task(asyncio.to_thread(self._preload_former))
            # Whatever keeps a champion from being loaded, the former one goes on answering.
            except Exception as error:
                self._metrics.failures.labels("swap").inc()
                _log.error("%s: the champion cannot be loaded: %s", self.problem, error)
                pause = LOAD_RETRY_SECONDS
            await asyncio.sleep(pause)
