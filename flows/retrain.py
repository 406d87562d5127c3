"""The retrain flow: fetch and check new rows, train the grid, compare the best challenger with the champion.

Every step may be repeated. What a killed run has begun, the next run finishes. It knows by `open.json`, in the folder
of the champion: the file is written before anything is changed, and deleted after the result was announced. The steps
are in `flows/retraining`.
"""

from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed, Failed

from flows import dag, experiments
from flows.new_rows import breach_text
from flows.pipeline import pipeline
from flows.problem_selection import select_problems
from flows.retraining.approval import ask_person
from flows.retraining.conclusion import announce_decision, conclude_task
from flows.retraining.links import link_decision
from flows.retraining.marks import breach_mark, mark_open, open_mark, read_mark
from flows.retraining.new_rows import BREACH_OUTCOME, RefreshResult, refresh_task
from flows.retraining.proposal import PromotionProposal, compare_task, experiment_name, register_task
from flows.train_flow import TrialsFailed
from lifecycle.champions import decisions, pages, promotion, registry
from lifecycle.champions.history import (
    Version,
    champion_stack,
    find_champion,
    find_outcome,
    read_history,
)
from lifecycle.table_problem import require_table_problem
from project.atomic import write_json
from project.lock import hold_pipeline_lock, hold_retraining_lock
from project.progress import console
from project.retry import retry_while_unreachable
from project.settings.loading import load_settings
from project.settings.sections import Settings
from stages.training.trials import Trial

NOTHING_NEW, BREACH, PROMOTED, REFUSED, UNCHANGED = "Nothing new", "Breach", "Promoted", "Refused", "Champion stays"
"""The names of the states in which a retraining may end. A breach is a failure, the others are not."""


@flow(name="retrain", flow_run_name="retrain {problem}", persist_result=False)
def retrain(problem: str, force: bool = False) -> State[None]:
    """Bring a problem's champion up to date with what its source has now.

    Args:
        problem: one that `run` in params.yaml lists.
        force: train and compare even if there is nothing new.

    Raises:
        RecastError: something that a person can fix. The champion stays, and the next run continues from there.
    """
    settings = load_settings()
    require_table_problem(problem, settings)
    select_problems(settings, [problem])
    with hold_retraining_lock(problem):
        unannounced = _find_unannounced(problem)
        earlier_state = _conclude(unannounced, None, settings) if unannounced else None
        with hold_pipeline_lock(wait=True):
            result = _propose(problem, settings, force)
        if not isinstance(result, PromotionProposal):
            return earlier_state if earlier_state and result.name == NOTHING_NEW else result
        return _conclude(result, _find_refusal(result, settings), settings)


def _propose(problem: str, settings: Settings, force: bool) -> State[None] | PromotionProposal:
    """Do everything up to the comparison; the final state of the flow where it ends before that."""
    patience = settings.retrain.patience.total_seconds()
    retry_while_unreachable(lambda: promotion.reconcile(problem), patience, "MLflow")
    resumed = open_mark(problem).exists()
    refreshed = refresh_task(problem, settings)
    if refreshed.breaches:
        return _end_with_breach(problem, refreshed, patience)
    if not (
        refreshed.accepted
        or resumed
        or force
        or dag.stale_stages([problem])
        or _reason_not_to_compare(*_contenders(problem, settings), settings) is None
    ):
        message = f"{problem}: there is nothing new, so nothing was trained"
        console.print(message, highlight=False)
        return Completed(name=NOTHING_NEW, message=message)
    mark_open(problem)
    _run_pipeline(problem, patience)
    trial, champion = _contenders(problem, settings)
    if reason := _reason_not_to_compare(trial, champion, settings):
        return _end_unchanged(problem, f"{trial.label} is not compared: {reason}")
    challenger = register_task(trial, patience)
    if champion == challenger:
        return _end_unchanged(problem, f"{trial.label} is the champion, version {challenger.version}, itself")
    retry_while_unreachable(lambda: promotion.propose_challenger(challenger), patience, "MLflow")
    decision = compare_task(trial, challenger, champion, settings)
    # Saved before the lock of the pipeline is released, as another run may change this checkout then.
    saved = experiments.save_experiment(experiment_name(decision), problem, f"{problem}: version {challenger.version}")
    if not saved:
        console.print(
            "There is no commit in git yet, so the retraining is not saved as a DVC experiment; `git add` what you "
            "have and `git commit` once.",
            soft_wrap=True,
        )
    return PromotionProposal(challenger, champion, decision, experiment_name(decision) if saved else None)


def _contenders(problem: str, settings: Settings) -> tuple[Trial, Version | None]:
    """The best trial, which a person may have trained, and the champion."""
    return decisions.select_challenger(problem, settings), find_champion(problem)


def _reason_not_to_compare(trial: Trial, champion: Version | None, settings: Settings) -> str | None:
    """Why a trial is not compared with the champion; None: it is compared."""

    def find_reason() -> str | None:
        if champion and registry.is_current_model(champion, trial):
            return f"it is the champion, version {champion.version}, itself"
        return decisions.reason_not_to_compare(trial, champion, settings)

    return retry_while_unreachable(find_reason, settings.retrain.patience.total_seconds(), "MLflow")


def _find_unannounced(problem: str) -> PromotionProposal | None:
    """What a killed run has decided but not announced; None: nothing, or it is no longer true."""
    mark = open_mark(problem)
    entry = find_outcome(problem, read_mark(problem).get("decision")) if mark.exists() else None
    if entry is None or entry.decision is None:
        return None
    decision = decisions.read_decision(problem, entry.decision)
    is_past = entry.kind == "promotion" and entry not in champion_stack(read_history(problem))[-1:]
    if decision is None or is_past:
        return None
    return PromotionProposal(entry.version_of(problem), None, decision, entry.experiment)


def _end_unchanged(problem: str, reason: str) -> State[None]:
    """End a retraining that has found nothing to compare."""
    open_mark(problem).unlink()
    console.print(f"{problem}: {reason}", highlight=False, soft_wrap=True)
    return Completed(name=UNCHANGED, message=f"{problem}: {reason}")


def _end_with_breach(problem: str, refreshed: RefreshResult, patience: float) -> State[None]:
    """End a retraining whose rows break the contract. People have had their alert; nothing is trained."""
    text = breach_text(problem, refreshed.breaches, BREACH_OUTCOME)
    console.print(f"[red]{problem}: new rows break the data contract.[/]")
    console.print(text, markup=False, highlight=False, soft_wrap=True)
    retry_while_unreachable(_forbid_retries, patience, "Prefect")
    breach_mark(problem).unlink()
    return Failed(name=BREACH, message=text)


def _forbid_retries() -> None:
    """Have Prefect not retry this flow run: a retry would find nothing new, and would end as if all was well."""
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(flow_run.id)
        run.empirical_policy.retries = 0
        client.update_flow_run(run.id, empirical_policy=run.empirical_policy)


def _run_pipeline(problem: str, patience: float) -> None:
    """Run the pipeline. Trials that fail are reported; the leaderboard is made of the others.

    Raises:
        RecastError: a stage has failed.
    """

    def run() -> None:
        try:
            pipeline([problem])
        except TrialsFailed as failed:
            console.print(str(failed), style="yellow", markup=False, highlight=False, soft_wrap=True)

    retry_while_unreachable(run, patience, "MLflow")


def _find_refusal(proposal: PromotionProposal, settings: Settings) -> str | None:
    """Why the challenger is not promoted; None: it is promoted. Asks a person where the settings say so."""
    decision = proposal.decision
    if not decision.promoted:
        return decision.reasons[0]
    if settings.retrain.approval is None:
        return None
    page = link_decision(proposal.challenger, decision.id, settings.retrain.patience.total_seconds())
    refusal = ask_person(decision, page, settings.retrain.approval)
    return None if refusal is None else f"{decision.reasons[0]} But {refusal}."


def _conclude(proposal: PromotionProposal, refusal: str | None, settings: Settings) -> State[None]:
    """Do what was decided, record it and announce it."""
    decision, challenger = proposal.decision, proposal.challenger
    problem, patience = decision.problem, settings.retrain.patience.total_seconds()
    # If this run is killed after this, the next one knows what to announce.
    write_json(open_mark(problem), read_mark(problem) | {"decision": decision.id})
    entry = conclude_task(proposal, refusal, patience)
    history = pages.write_history_page(problem)
    announce_decision(proposal, entry, history, patience)
    open_mark(problem).unlink(missing_ok=True)
    state = PROMOTED if entry.kind == "promotion" else REFUSED
    return Completed(name=state, message=f"{problem}: version {challenger.version} {entry.kind}. {entry.reason}")
