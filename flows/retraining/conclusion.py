"""The last steps of a retraining: promote or refuse the challenger, and announce it."""

from pathlib import Path

from prefect import task
from prefect.artifacts import create_markdown_artifact

from flows.alerts import alert
from flows.retraining.links import link_decision, link_versions
from flows.retraining.proposal import PromotionProposal
from lifecycle.champions import promotion, registry
from lifecycle.champions.history import Entry, find_outcome
from project.progress import console
from project.retry import retry_while_unreachable

CHAMPION_CHANGED = "The champion has changed since the challenger was compared with it; retrain again."


@task(name="conclude", persist_result=False)
def conclude_task(proposal: PromotionProposal, refusal: str | None, patience: float) -> Entry:
    """Promote or refuse the challenger, first in the history, then in MLflow; the entry of the history.

    The challenger is refused too if the champion is no longer the one that it was compared with.

    Args:
        refusal: why the challenger is refused; None: it is promoted.
    """
    decision, challenger, experiment = proposal.decision, proposal.challenger, proposal.experiment
    reason, champion = decision.reasons[0], proposal.champion

    def conclude() -> Entry:
        if find_outcome(decision.problem, decision.id) is not None:
            promotion.reconcile(decision.problem)
        elif refusal is not None:
            promotion.refuse(challenger, decision.id, refusal, experiment=experiment)
        elif not promotion.promote(
            decision.problem, challenger, decision.id, reason, experiment=experiment, expected=champion
        ):
            promotion.refuse(challenger, decision.id, CHAMPION_CHANGED, experiment=experiment)
        entry = find_outcome(decision.problem, decision.id)
        if entry is None:
            raise RuntimeError(f"{decision.problem}: the history lacks decision {decision.id}, which was just written")
        registry.set_tags(challenger, {"recast.outcome": entry.kind, "recast.experiment": entry.experiment or ""})
        return entry

    return retry_while_unreachable(conclude, patience, "MLflow")


def announce_decision(proposal: PromotionProposal, entry: Entry, history: Path, patience: float) -> None:
    """Send an alert that says what became of the challenger, and show it on the flow run's page."""
    decision, problem = proposal.decision, proposal.decision.problem
    page = link_decision(proposal.challenger, decision.id, patience)
    champions = f"All champions: {history}, and in MLflow {link_versions(problem)}"
    outcome = "promoted" if entry.kind == "promotion" else "refused"
    title = f"{problem}: version {entry.version}, {entry.label}, is {outcome}"
    text = f"{entry.reason}\nThe evidence: {page}\n{champions}"
    alert("promotion" if entry.kind == "promotion" else "refusal", title, text)
    reasons = "\n".join(f"- {reason}" for reason in decision.reasons)
    markdown = (
        f"**{title}**\n\n{entry.reason}\n\n{reasons}\n\nThe evidence: {page}\n\n"
        f"{champions}\n\nDVC experiment: `{entry.experiment}`\n"
    )
    description = "What became of the challenger, and why"
    key = f"champion-{problem.replace('_', '-')}"
    retry_while_unreachable(
        lambda: create_markdown_artifact(markdown, key=key, description=description), patience, "Prefect"
    )
    console.print(f"{title}\nThe evidence: {page}", markup=False, highlight=False, soft_wrap=True)
