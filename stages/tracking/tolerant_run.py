"""MLflow runs of trials that training survives when MLflow fails."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.tracking.runs import RunContext
from stages.tracking.store import TrackingError, translate_errors
from stages.tracking.trial_run import TrialRun
from stages.training.history import Epoch


class TolerantRun:
    """Writes to a trial's run until MLflow fails for the first time; from then on it writes nothing.

    The train flow logs what the store lacks when the grid is complete.
    """

    def __init__(self, open_run: Callable[[], TrialRun]) -> None:
        self._run: TrialRun | None = None
        self._failed = False
        self._attempt(lambda: setattr(self, "_run", open_run()))

    def log_epochs(self, epochs: Sequence[Epoch]) -> None:
        """Write the epochs that the store does not have yet."""
        run = self._run
        if run and not self._failed:
            self._attempt(lambda: run.log_epochs(epochs))

    def finish(self, record: dict[str, Any], epochs: Sequence[Epoch], seconds: float) -> None:
        """Write the result and end the run; see `TrialRun.finish`."""
        run = self._run
        if run and not self._failed:
            self._attempt(lambda: run.finish(record, epochs, seconds))

    def _attempt(self, action: Callable[[], None]) -> None:
        try:
            with translate_errors():
                action()
        except TrackingError as error:
            self._failed = True
            logging.getLogger(__name__).warning("%s", error)


@dataclass(frozen=True)
class MlflowLogger:
    """Opens the MLflow runs of the trials of a pipeline run."""

    context: RunContext

    @property
    def prefect_run(self) -> str | None:
        """The id of the flow run that trains, if there is one."""
        return self.context.prefect_run

    def open_trial(self, folder: Path, record: dict[str, Any], device: str) -> TolerantRun:
        """The run of the trial in a folder; see `TrialRun`."""
        return TolerantRun(lambda: TrialRun(self.context, folder, record, device))
