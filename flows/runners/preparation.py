"""What can begin long before a runner has trials to train."""

import pkgutil

from project.settings.runners import RUNNERS


def prepare_runner(kind: str) -> None:
    """Begin what the runner of this kind needs for its first trial, and return at once.

    Call it as soon as it is known that there is something to train, before the imports that take seconds.
    """
    prepare = RUNNERS[kind].prepare
    if prepare is not None:
        pkgutil.resolve_name(prepare)()
