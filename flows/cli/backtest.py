"""The command of backtests."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from flows.cli.app import Wait, app, chosen
from project.lock import only_pipeline
from project.progress import console, results
from project.settings.loading import load_settings
from stages.evaluation.phrasing import decimals, fixed, signed

if TYPE_CHECKING:
    from lifecycle.backtests.backtest import Backtest
    from stages.evaluation.leaderboard import Spread


@app.command()
def backtest(
    problem: Annotated[str, typer.Argument(help="problem of params.yaml")],
    origins: Annotated[int, typer.Option(help="how many origins", min=1)] = 6,
    every: Annotated[str, typer.Option(help="from one origin to the next, such as 30d")] = "30d",
    test: Annotated[str | None, typer.Option(help="how long each tests; left out: until the next")] = None,
    validation: Annotated[
        str | None, typer.Option(help="how long each validates; left out: as `recent` does, or three times the test")
    ] = None,
    train: Annotated[
        str | None, typer.Option(help="how long each trains; left out: as `recent` does, or on all rows before")
    ] = None,
    until: Annotated[str | None, typer.Option(help="a date: the last origin tests before it")] = None,
    wait: Wait = False,
) -> None:
    """Try the grid at several origins in the past, each with the data that there were then."""
    settings = load_settings()
    (name,) = chosen(settings, [problem])
    with only_pipeline(wait):
        from flows.backtest import backtest as flow
        from flows.connection import connect
        from flows.train import TrialsFailed
        from lifecycle.backtests import backtest as rolling
        from stages.ingest import fetch

        fetch(name, settings)
        connect()
        try:
            flow(name, origins, every, test, validation, train, until)
            failed = False
        except TrialsFailed as failures:
            console.print(f"[red]{escape(str(failures))}[/]", highlight=False, soft_wrap=True)
            failed = True
        except KeyboardInterrupt:
            console.print("Stopped. What is trained is kept; the next backtest goes on from there.")
            raise typer.Exit(130) from None
    found = rolling.read(rolling.result(name))
    if found is not None:
        results.print(_table(found))
        results.print(f"Page: {rolling.result(name) / 'backtest.html'}", soft_wrap=True)
    if failed:
        raise typer.Exit(3)


def _table(found: "Backtest") -> Table:
    """Errors by origin, and their mean and deviation over the origins."""
    title = f"{found.measure.title} {found.measure.unit}".rstrip()
    simulated = " · SIMULATED DATA" if found.synthetic else ""
    table = Table(
        title=escape(f"Backtest of {found.title} ({found.problem}){simulated}: test {title} by origin"),
        caption="Each origin selects by validation alone. Mean ± deviation are over origins.",
    )
    table.add_column("configuration")
    for heading in (*(origin.name for origin in found.origins), "mean", "skill", "chosen"):
        table.add_column(heading, justify="right")
    errors = [line.test.mean for line in found.lines if line.test]
    digits = decimals(min(errors), 3) if errors else 3
    for line in (found.chosen, *found.lines):
        is_chosen = line is found.chosen
        cells = ["failed" if cell is None else fixed(cell.test.mean, digits) for cell in line.at]
        table.add_row(
            escape(line.configuration),
            *cells,
            _spread(line.test, digits),
            "" if line.skill is None else f"{signed(line.skill.mean, 3)}",
            "" if is_chosen else str(line.chosen),
            style="bold" if is_chosen else None,
        )
    return table


def _spread(spread: "Spread | None", digits: int) -> str:
    if spread is None:
        return ""
    return fixed(spread.mean, digits) + ("" if spread.deviation is None else f" ± {fixed(spread.deviation, digits)}")
