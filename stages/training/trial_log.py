"""What training reports while it runs: the interface that a log of trials, such as MLflow's, has."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from stages.training.history import Epoch


class TrialLog(Protocol):
    """The log of one trial. It does not raise errors of the server that it writes to: training goes on without it."""

    def log_epochs(self, epochs: Sequence[Epoch]) -> None:
        """Write the epochs so far."""

    def finish(self, record: dict[str, Any], epochs: Sequence[Epoch], seconds: float) -> None:
        """Write how the trial ended.

        Args:
            record: the content of trial.json.
            seconds: how long the trial took.
        """


class TrialLogger(Protocol):
    """Opens the logs of trials."""

    @property
    def prefect_run(self) -> str | None:
        """The id of the flow run that trains, if there is one."""

    def open_trial(self, folder: Path, record: dict[str, Any], device: str) -> TrialLog:
        """The log of the trial in a folder.

        Args:
            record: the content of trial.json so far.
        """
