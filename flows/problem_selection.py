"""Which problems a command or a flow is about. The command line loads this, so it imports nothing that takes long."""

from typing import TYPE_CHECKING

from problems.errors import RecastError

if TYPE_CHECKING:
    from project.settings.sections import Settings


def select_problems(settings: "Settings", problems: list[str] | None) -> list[str]:
    """The problems that the user has named, else all that the pipeline runs.

    Raises:
        RecastError: the pipeline does not run one of them.
    """
    for name in problems or ():
        settings.problem(name)
        if name not in settings.run:
            raise RecastError(f"{name} is declared, but the pipeline does not run it; add it to `run` in params.yaml")
    return list(problems or settings.run)
