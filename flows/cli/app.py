"""The command line to which the modules beside this one add their commands, and what the commands share.

Imports that take seconds (Prefect, DVC, MLflow, PyTorch) are within the commands that need them.
"""

from typing import Annotated

import typer

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
