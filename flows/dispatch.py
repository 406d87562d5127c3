"""Dispatch: bundles of trials are trained by the runner that the settings choose, a Prefect task each."""

import pkgutil

from flows.runners.work import Contexts, Runner, Work
from problems.errors import RecastError
from project.paths import PARAMS
from project.settings.runners import RUNNERS
from project.settings.sections import Settings
from stages.training.outcomes import Outcome
from stages.training.trials import Trial


def dispatch(title: str, bundles: list[list[Trial]], settings: Settings, contexts: Contexts) -> list[Outcome]:
    """Train bundles with the runner of the settings; how their trials ended.

    Args:
        title: of the progress bar.
        bundles: the trials of each have the same origin.

    Raises:
        Stopped: a person has stopped the training.
        RecastError: the runner cannot run, or an error has ended bundles before their trials had.
    """
    if not bundles:
        return []
    return load_runner(settings.runner.kind).run(Work(title, bundles, settings, contexts))


def load_runner(kind: str) -> Runner:
    """The runner of this kind.

    Raises:
        RecastError: the packages that it needs are not installed.
    """
    entry = RUNNERS[kind]
    try:
        runner_class: type[Runner] = pkgutil.resolve_name(entry.path)
    except ImportError as error:
        if entry.extra is None:
            raise
        raise RecastError(
            f"{PARAMS}: runner.kind: {kind} needs packages that are not installed: pip install 'recast[{entry.extra}]'"
        ) from error
    return runner_class()
