"""The command line to which the modules beside this one add their commands, and what the commands share.

Imports that take seconds (Prefect, DVC, MLflow, PyTorch) are within the commands that need them.
"""

from typing import TYPE_CHECKING, Annotated

import typer

from problems.errors import RecastError

if TYPE_CHECKING:
    from project.settings.sections import Settings

app = typer.Typer(
    help="Retrain and compare sequence models: DVC stages, run as Prefect flows, recorded in MLflow.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
ProblemArguments = Annotated[
    list[str] | None, typer.Argument(help="problems of params.yaml; left out: all that its `run` lists")
]
WaitOption = Annotated[bool, typer.Option("--wait", help="wait until another pipeline in this checkout has ended")]


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
