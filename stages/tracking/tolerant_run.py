"""A trial's MLflow run that training survives when MLflow fails."""

import logging
from collections.abc import Callable

from stages.tracking.store import TrackingError, translate_errors
from stages.tracking.trial_run import TrialRun


class TolerantRun:
    """Writes to a trial's run until MLflow fails for the first time; from then on it writes nothing.

    The train flow logs what the store lacks when the grid is complete.
    """

    def __init__(self, open_run: Callable[[], TrialRun]) -> None:
        self._run: TrialRun | None = None
        self._failed = False
        self._attempt(lambda: setattr(self, "_run", open_run()))

    def write(self, write_to: Callable[[TrialRun], None]) -> None:
        """Call a function with the run, unless MLflow has failed before."""
        run = self._run
        if run and not self._failed:
            self._attempt(lambda: write_to(run))

    def _attempt(self, action: Callable[[], None]) -> None:
        try:
            with translate_errors():
                action()
        except TrackingError as error:
            self._failed = True
            logging.getLogger(__name__).warning("%s", error)
