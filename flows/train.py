"""The command of the DVC stage `train`, which runs the train flow, so that a plain `dvc repro` trains in parallel too.

    python -m flows.train <problem>

The flow is in a module of its own, which is imported only here: a worker process imports the module that runs as a
command once more, and needs neither the flow nor Prefect.
"""

from flows.runners.preparation import prepare_runner
from project.command import run_stage
from project.progress import print_warning
from project.settings.parsing import parse_settings


def main(problem: str) -> None:
    """Train the missing trials of a problem's grid."""
    prepare_runner(parse_settings().runner.kind)
    # After it: these take seconds to load.
    from flows.connection import connect  # noqa: PLC0415 - see above
    from flows.train_flow import TrialsFailed, train  # noqa: PLC0415 - see above

    connect()
    try:
        train(problem)
    except TrialsFailed as failures:
        # The grid is complete: the next stage can run, and the leaderboard says what failed.
        print_warning(str(failures))


if __name__ == "__main__":
    run_stage(main)
