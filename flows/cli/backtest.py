"""The command of backtests."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from flows.cli.app import WaitOption, app
from flows.problem_selection import select_problems
from project.lock import hold_pipeline_lock
from project.progress import console, output

if TYPE_CHECKING:
    from lifecycle.backtests.result import Backtest
    from stages.evaluation.leaderboard import Spread


@app.command()
def backtest(
    problem: Annotated[str, typer.Argument(help="a problem of params.yaml")],
    origins: Annotated[int, typer.Option(help="the number of origins", min=1)] = 6,
    every: Annotated[str, typer.Option(help="the time from one origin to the next, such as 30d")] = "30d",
    test: Annotated[
        str | None, typer.Option(help="the length of each origin's test rows; left out: until the next origin")
    ] = None,
    validation: Annotated[
        str | None,
        typer.Option(help="the length of validation; left out: that of the split `recent`, or three times the test"),
    ] = None,
    train: Annotated[
        str | None,
        typer.Option(help="the length of training; left out: that of the split `recent`, or all earlier rows"),
    ] = None,
    until: Annotated[str | None, typer.Option(help="a date before which the test rows of the last origin end")] = None,
    wait: WaitOption = False,
) -> None:
    """Train and test the grid at several origins in the past, each with the data that existed then."""
    from project.settings.loading import load_settings

    settings = load_settings()
    (name,) = select_problems(settings, [problem])
    with hold_pipeline_lock(wait):
        from flows.backtest import backtest as flow
        from flows.connection import connect
        from flows.train_flow import TrialsFailed
        from lifecycle.backtests.result import read_backtest, result_folder
        from stages.fetching import fetch

        fetch(name, settings)
        connect()
        try:
            flow(name, origins, every, test, validation, train, until)
            failed = False
        except TrialsFailed as failures:
            console.print(f"[red]{escape(str(failures))}[/]", highlight=False, soft_wrap=True)
            failed = True
        except KeyboardInterrupt:
            console.print("Stopped. What was trained is kept; the next backtest continues from there.")
            raise typer.Exit(130) from None
    result = read_backtest(result_folder(name))
    if result is not None:
        output.print(_table(result))
        output.print(f"Page: {result_folder(name) / 'backtest.html'}", soft_wrap=True)
    if failed:
        raise typer.Exit(3)


def _table(result: "Backtest") -> Table:
    """The test errors by origin, and their mean and deviation over the origins."""
    from learning.measures import MAE
    from stages.evaluation.number_format import choose_decimals, format_number, format_signed

    title = f"{result.measure.title} {result.measure.unit}".rstrip()
    simulated = " · SIMULATED DATA" if result.synthetic else ""
    table = Table(
        title=escape(f"Backtest of {result.title} ({result.problem}){simulated}: test {title} by origin"),
        caption="Each origin selects by validation only. Mean ± deviation are over origins.",
    )
    table.add_column("configuration")
    skills = ["skill"] if result.measure.name == MAE else [f"skill by {result.measure.title}", "skill by MAE"]
    for heading in (*(origin.name for origin in result.origins), "mean", *skills, "chosen"):
        table.add_column(heading, justify="right")
    errors = [row.test.mean for row in result.configurations if row.test]
    digits = choose_decimals(min(errors), 3) if errors else 3
    for row in (result.chosen, *result.configurations):
        is_chosen = row is result.chosen
        cells = ["failed" if score is None else format_number(score.test.mean, digits) for score in row.by_origin]
        table.add_row(
            escape(row.configuration),
            *cells,
            _format_spread(row.test, digits),
            *(
                "" if skill is None else format_signed(skill.mean, 3)
                for skill in (row.skill, row.mae_skill)[: len(skills)]
            ),
            "" if is_chosen else str(row.times_chosen),
            style="bold" if is_chosen else None,
        )
    return table


def _format_spread(spread: "Spread | None", digits: int) -> str:
    from stages.evaluation.number_format import format_number

    if spread is None:
        return ""
    return format_number(spread.mean, digits) + (
        "" if spread.deviation is None else f" ± {format_number(spread.deviation, digits)}"
    )
