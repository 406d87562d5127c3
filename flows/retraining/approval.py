"""A person's approval of a promotion, on Prefect's page."""

import threading
from datetime import timedelta

from prefect.flow_runs import pause_flow_run, resume_flow_run
from prefect.input import RunInput
from prefect.runtime import flow_run

from lifecycle.champions.comparison import Decision
from problems.durations import format_duration
from project.progress import console

APPROVAL_POLL_SECONDS = 5
"""How often Prefect is asked for the answer."""

GRACE_SECONDS = 120
"""How much longer Prefect waits than `retrain.approval` says, so that the refusal comes from here, not from Prefect."""


class Approval(RunInput):
    """A person's answer."""

    promote: bool
    comment: str = ""


def ask_person(decision: Decision, page: str, limit: timedelta) -> str | None:
    """Ask a person on Prefect's page whether a challenger is promoted.

    Args:
        page: the address of the page with the evidence.
        limit: how long to wait for the answer.

    Returns:
        Why it is not promoted: a person has refused it, or nobody has answered in time; None: it is promoted.
    """
    run_id = flow_run.id
    form = Approval.with_initial_data(
        description=f"**{decision.problem}: promote version {decision.challenger.version}, "
        f"{decision.challenger.label}?**\n\n{decision.reasons[0]}\n\nThe evidence: {page}",
        promote=True,
    )
    unanswered = f"nobody has answered within {format_duration(limit)}"
    refusal = {"promote": False, "comment": unanswered}
    # Prefect fails a run whose pause has timed out, so the refusal is given before that.
    timer = threading.Timer(limit.total_seconds(), resume_flow_run, [run_id], {"run_input": refusal})
    timer.daemon = True
    timer.start()
    console.print(
        f"{decision.problem}: version {decision.challenger.version} waits for a person's answer on Prefect's page, for "
        f"at most {format_duration(limit)}",
        highlight=False,
        soft_wrap=True,
    )
    try:
        answer = pause_flow_run(
            wait_for_input=form,
            timeout=round(limit.total_seconds()) + GRACE_SECONDS,
            poll_interval=APPROVAL_POLL_SECONDS,
            key=decision.id,
        )
    finally:
        timer.cancel()
    if answer.promote:
        return None
    if answer.comment == unanswered:
        return unanswered
    return f"a person has refused it: {answer.comment}" if answer.comment else "a person has refused it"
