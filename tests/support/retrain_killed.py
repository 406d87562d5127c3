"""Retrainings that die at a given place, for tests/flows/test_retrain.py.

    python -m tests.support.retrain_killed PROBLEM

The first line of the output is `process: ` with the id of this process. Each line of the input names a place. The
retraining runs in a process of its own, which dies at that place as by `kill -9`. Then a line is printed: `answer: `
with the name of the flow's last state, or with `killed`. `whole` does not die, `forced` retrains even if there is
nothing new, `rollback` rolls back.
"""

import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

import mlflow

import flows.retrain
from flows import experiments
from flows.connection import connect
from flows.retraining import conclusion
from lifecycle.champions import decisions, history, promotion
from lifecycle.new_rows import quarantine

KILLED = 9


def die(*_: Any, **__: Any) -> None:
    os._exit(KILLED)


def before(holder: Any, name: str) -> Callable[[], None]:
    """Die instead of calling the function."""
    return lambda: setattr(holder, name, die)


def after(holder: Any, name: str) -> Callable[[], None]:
    """Die when the function has returned."""
    function = getattr(holder, name)

    def call_and_die(*arguments: Any, **named: Any) -> None:
        function(*arguments, **named)
        die()

    return lambda: setattr(holder, name, call_and_die)


def within(holder: Any, name: str, other: Callable[[], None]) -> Callable[[], None]:
    """Die at another place, but only after this function was called."""
    function = getattr(holder, name)

    def call(*arguments: Any, **named: Any) -> Any:
        other()
        return function(*arguments, **named)

    return lambda: setattr(holder, name, call)


PLACES: dict[str, Callable[[], None]] = {
    "whole": lambda: None,
    "the increment is accepted": after(quarantine, "accept_increment"),
    "the rows are in quarantine": after(quarantine, "quarantine_increment"),
    "the pipeline has run": after(flows.retrain, "pipeline"),
    "the version is made": after(mlflow.MlflowClient, "create_model_version"),
    "the decision is written": after(decisions, "decide"),
    "the experiment is saved": after(experiments, "save_experiment"),
    "the promotion is written": within(promotion, "promote", before(promotion, "_set_aliases")),
    "an alias is set": after(mlflow.MlflowClient, "set_registered_model_alias"),
    "people are told": after(conclusion, "alert"),
}


def run(problem: str, place: str) -> None:
    """Retrain once, and die."""
    if place == "rollback":
        history.roll_back(problem, history.RETRAIN, reason="")
        promotion.reconcile(problem)
        print("answer: rolled back", flush=True)
        os._exit(0)
    PLACES["whole" if place == "forced" else place]()
    connect()
    state = flows.retrain.retrain(problem, place == "forced", return_state=True)
    print(f"answer: {state.name}", flush=True)
    os._exit(0)


def main(problem: str) -> None:
    """Answer each line."""
    print(f"process: {os.getpid()}", flush=True)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            try:
                run(problem, line.strip())
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        if code:
            print("answer: killed" if code == KILLED else f"answer: ended with {code}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
