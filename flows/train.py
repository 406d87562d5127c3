"""The command of the DVC stage `train`, which runs the train flow, so that a plain `dvc repro` trains in parallel too.

    python -m flows.train <problem>

The flow is in a module of its own: worker processes import its tasks by their module's name, which for this one is
`__main__` when it runs as a command.
"""

from flows.connection import connect
from flows.train_flow import TrialsFailed, train
from project.command import run_stage
from project.progress import console


def main(problem: str) -> None:
    """Train the missing trials of a problem's grid."""
    connect()
    try:
        train(problem)
    except TrialsFailed as failures:
        # The grid is complete: the next stage can run, and the leaderboard says what failed.
        console.print(f"warning: {failures}", style="yellow", markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    run_stage(main)
