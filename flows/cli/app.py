"""The command line that the modules beside this one put their commands on, and what these share."""

from typing import Annotated

import typer

from problems.errors import RecastError
from project.settings.sections import Settings

# Imports that take seconds (Prefect, DVC, MLflow, PyTorch) stand in the commands that need them.

app = typer.Typer(
    help="Retrain and compare sequence models: DVC stages, run as Prefect flows, recorded in MLflow.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
Problems = Annotated[list[str] | None, typer.Argument(help="problems of params.yaml; none: all that its `run` lists")]
Wait = Annotated[bool, typer.Option("--wait", help="wait for another pipeline in this checkout to end")]


def chosen(settings: Settings, problems: list[str] | None) -> list[str]:
    """The problems asked for; each must be one that the pipeline runs.

    Raises:
        RecastError: it is not.
    """
    for name in problems or ():
        settings.problem(name)
        if name not in settings.run:
            raise RecastError(f"{name} is declared, but the pipeline does not run it; add it to `run` in params.yaml")
    return list(problems or settings.run)
