"""The command that writes reports again, and draws what not every run draws."""

from typing import Annotated

import typer

from flows.cli.app import ProblemArguments, WaitOption, app
from flows.problem_selection import select_problems
from project import paths
from project.lock import hold_pipeline_lock
from project.progress import console, output


@app.command()
def report(
    problems: ProblemArguments = None,
    full: Annotated[
        bool,
        typer.Option("--full", help="with pictures of how the best networks work, into data/report/PROBLEM and MLflow"),
    ] = False,
    wait: WaitOption = False,
) -> None:
    """Write the reports again from the leaderboards. Nothing is trained or evaluated."""
    from project.settings.loading import load_settings

    paths.require_root()
    settings = load_settings()
    with hold_pipeline_lock(wait):
        for name in select_problems(settings, problems):
            if full:
                from stages.tracking.full_report import write_full_report

                with console.status(f"drawing the networks of {name}"):
                    file = write_full_report(name, settings)
            else:
                from stages.report.page import rewrite_report

                file = rewrite_report(paths.stage_folder("evaluate", name))
            output.print(f"Report: {file}", soft_wrap=True)
