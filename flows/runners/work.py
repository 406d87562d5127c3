"""What a runner is given and what it gives back: the interface that every runner has. This module imports no runner."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

from infra.devices.costs import Costs, Pace, cost_shape
from infra.devices.packing import Job
from infra.devices.status import RunningBundle
from problems.errors import RecastError
from project.progress import show_progress
from project.settings.sections import Settings
from stages.tracking import runs
from stages.training.fit import count_epochs
from stages.training.outcomes import Outcome
from stages.training.results import record_lost_trial
from stages.training.trials import Trial

POLL_SECONDS = 0.3
"""How long a runner waits for bundles to end before it looks again, at most."""

Contexts = Mapping[str | None, runs.RunContext]
"""The contexts of trials in MLflow by the origin of the backtest that their data belong to; None: no backtest."""

OnProgress = Callable[[float], None]
"""Called with the number of completed epochs of the bundles of a round."""

_job_numbers = itertools.count()
"""Numbers of jobs, unique in this process: grids that run side by side share the devices."""


@dataclass
class Work:
    """Bundles to train. All trials of a bundle have the same origin.

    Attributes:
        title: of the progress bar.
        device: the kind of device that trains them, `cpu` or `cuda`; set it before reading `costs`.
    """

    title: str
    bundles: list[list[Trial]]
    settings: Settings
    contexts: Contexts
    device: str = "cpu"

    @cached_property
    def pace(self) -> Pace:
        """How long bundles take now, compared with what was expected."""
        return Pace(self.costs.are_seconds)

    @cached_property
    def costs(self) -> Costs:
        """What the trials are expected to take."""
        return Costs.read([trial for bundle in self.bundles for trial in bundle], self.device)

    def jobs(self, bundles: Sequence[Sequence[Trial]]) -> list[Job]:
        """The bundles as jobs to pack onto devices."""
        return [Job(next(_job_numbers), cost_shape(bundle[0]), self.seconds(bundle)) for bundle in bundles]

    def seconds(self, bundle: Sequence[Trial]) -> float:
        """How long a bundle is expected to take."""
        return sum(self.costs.seconds(trial) for trial in bundle)


class Runner(Protocol):
    """Trains bundles in a place of its own. The place decides no result.

    A new runner takes a module with such a class and an entry in `project.settings.runners`.
    """

    def run(self, work: Work) -> list[Outcome]:
        """Train every bundle, the longest first, a Prefect task each; how the trials ended.

        Raises:
            Stopped: a person has stopped the training.
            RecastError: what the trials need cannot be reached, or is not there.
        """


@dataclass
class DispatchResult:
    """How the bundles of one round ended.

    Attributes:
        suspects: trials whose process died while they were trained. They may be the reason.
        bystanders: bundles that had not begun when their process died.
    """

    outcomes: list[Outcome] = field(default_factory=list)
    suspects: list[Trial] = field(default_factory=list)
    bystanders: list[list[Trial]] = field(default_factory=list)


def run_until_done(work: Work, run: Callable[[list[list[Trial]], OnProgress], DispatchResult]) -> list[Outcome]:
    """Run bundles, in rounds, until all have ended; how their trials ended.

    A trial that was being trained when its process died is tried again, alone. If the process dies again, the trial is
    recorded as failed. Trials that had not begun go into the next round.

    Args:
        run: runs the bundles of one round.

    Raises:
        RecastError: the processes die before any trial begins.
    """
    outcomes: list[Outcome] = []
    bundles = work.bundles
    total = sum(count_bundle_epochs(bundle) for bundle in bundles)
    with show_progress() as display:
        bar = display.add_task(work.title, total=total)

        def show_epochs(completed: float) -> None:
            # Earlier rounds have completed whatever this one does not run.
            display.update(bar, completed=total - sum(count_bundle_epochs(bundle) for bundle in bundles) + completed)

        while bundles:
            result = run(bundles, show_epochs)
            outcomes += result.outcomes
            remaining = result.bystanders
            for trial in result.suspects:
                retried = run([[trial]], lambda completed: None)
                outcomes += retried.outcomes
                remaining += retried.bystanders
                if retried.suspects:
                    reason = "its process died, and died again when it was tried alone; most likely for want of memory"
                    outcomes.append(record_lost_trial(trial, reason))
            if remaining and not result.suspects and not result.outcomes:
                raise RecastError(
                    "the worker processes die before they begin to train; the log of this run in Prefect may say why, "
                    "or `runner: {kind: inline}`"
                )
            bundles = remaining
        display.remove_task(bar)
    return outcomes


def estimate_seconds_left(running: Sequence[RunningBundle], now: float, waiting_seconds: float | None) -> float | None:
    """How many seconds a grid still takes if it goes on to run as many bundles at once as now; None: not known.

    Args:
        now: the time, in seconds since the epoch.
        waiting_seconds: how long the waiting bundles are expected to take; None: not known.
    """
    if waiting_seconds is None or not running:
        return waiting_seconds
    unfinished = sum(max(0.0, (bundle.expected or 0.0) - (now - bundle.begun)) for bundle in running)
    return (waiting_seconds + unfinished) / len(running)


def bundle_label(bundle: Sequence[Trial]) -> str:
    """A bundle's name for people."""
    origin = f"{bundle[0].origin} " if bundle[0].origin else ""
    rest = f" and {len(bundle) - 1} more" if len(bundle) > 1 else ""
    return origin + bundle[0].label + rest


def count_bundle_epochs(bundle: Sequence[Trial]) -> int:
    """How many epochs a bundle trains at most; a baseline counts as one."""
    return sum(max(1, count_epochs(trial.configuration.hyperparameters, trial.train)) for trial in bundle)
