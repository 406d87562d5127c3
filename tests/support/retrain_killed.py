"""Retrainings that die where they are told to, for tests/flows/test_retrain.py.

    python retrain_killed.py PROBLEM

reads a place to die at a line, retrains in a process of its own that dies there as by `kill -9`, and prints `answer: `
with the name of the flow's last state, or `killed`. `whole` dies nowhere, `forced` goes on
although nothing new has come, `rollback` rolls back. The code takes seconds to load, and is loaded once.
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
    return lambda: setattr(holder, name, die)


def after(holder: Any, name: str) -> Callable[[], None]:
    what = getattr(holder, name)

    def whole(*arguments: Any, **named: Any) -> None:
        what(*arguments, **named)
        die()

    return lambda: setattr(holder, name, whole)


def within(holder: Any, name: str, other: Callable[[], None]) -> Callable[[], None]:
    """Die at another place, once this one is reached."""
    what = getattr(holder, name)

    def begun(*arguments: Any, **named: Any) -> Any:
        other()
        return what(*arguments, **named)

    return lambda: setattr(holder, name, begun)


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
