"""The retrain flow: new rows are fetched and checked, the grid trained, the best challenger held against the champion.

Every step may be repeated. What a killed run has begun, the next one ends: it finds `open.json` among what is kept of a
champion, which is there from before anything is changed until everything is told.
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from filelock import FileLock, Timeout
from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.flow_runs import pause_flow_run, resume_flow_run
from prefect.input import RunInput
from prefect.runtime import flow_run
from prefect.states import Completed, Failed

from flows import dag, experiments
from flows.alerts import alert
from flows.connection import reached
from flows.pipeline import pipeline
from flows.train import TrialsFailed
from lifecycle.champions import comparison, lineage, pages, registry
from lifecycle.champions.comparison import VALIDATED_UNTIL, Decision
from lifecycle.champions.registry import Version, patiently
from lifecycle.new_rows import contract, refresh
from problems.errors import RecastError
from problems.problem import Problem
from problems.source import written
from project import paths
from project.atomic import write_json
from project.lock import PATIENCE_SECONDS, only_pipeline
from project.progress import console
from project.settings.loading import load_settings
from project.settings.sections import Settings
from stages import ingest
from stages.tracking.rebuild import write_missing
from stages.training.trials import Trial

NOTHING_NEW, BREACH, PROMOTED, REFUSED, UNCHANGED = "Nothing new", "Breach", "Promoted", "Refused", "Champion stays"
"""How a retraining ends, by the name of its state; a breach is a failure, the others are not."""

CHANGED = "The champion has changed since the challenger was compared with it; retrain again."

POLL_SECONDS = 5
GRACE_SECONDS = 120
"""How much longer Prefect would wait for a person than `retrain.approval` says: the refusal comes from here."""


@dataclass(frozen=True)
class Came:
    """What a refresh has brought.

    Attributes:
        accepted: the increments that the raw store has now, in words.
        breaches: what those in quarantine break; those too that a run has put there which was killed before its end.
    """

    accepted: list[str]
    breaches: list[str]


@dataclass(frozen=True)
class Proposal:
    """A challenger, held against the champion of the day.

    Attributes:
        experiment: name of the DVC experiment that holds the retraining; None where none was saved.
    """

    challenger: Version
    champion: Version | None
    decision: Decision
    experiment: str | None


class Approval(RunInput):
    """What a person answers."""

    promote: bool
    comment: str = ""


@flow(name="retrain", flow_run_name="retrain {problem}", persist_result=False)
def retrain(problem: str, force: bool = False) -> State[None]:
    """Bring a problem's champion up to date with what its source has now.

    Args:
        problem: one that `run` in params.yaml lists.
        force: go on although nothing new has come.

    Raises:
        RecastError: something a person can mend. The champion stays, and the next run goes on from there.
    """
    settings = load_settings()
    comparison.table_problem(problem, settings)
    if problem not in settings.run:
        raise RecastError(f"{problem} is declared, but the pipeline does not run it; add it to `run` in params.yaml")
    with _only_retraining(problem):
        untold = _untold(problem)
        told = _concluded(untold, None, settings) if untold else None
        with only_pipeline(wait=True):
            ended = _proposed(problem, settings, force)
        if not isinstance(ended, Proposal):
            return told if told and ended.name == NOTHING_NEW else ended
        return _concluded(ended, _refusal(ended, settings), settings)


@contextmanager
def _only_retraining(problem: str) -> Iterator[None]:
    """Hold the lock of this problem's retraining; it is free again however its holder ends.

    Raises:
        RecastError: another holds it.
    """
    paths.STATE.mkdir(exist_ok=True)
    lock = FileLock(paths.STATE / f"retrain-{problem}.lock")
    try:
        lock.acquire(timeout=PATIENCE_SECONDS)
    except Timeout:
        raise RecastError(
            f"another retraining of {problem} runs in this checkout, or waits for a person's answer on Prefect's page; "
            "wait for it"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _mark(problem: str) -> Path:
    """The file that is there while a retraining is under way."""
    return registry.folder(problem) / "open.json"


def _breaches(problem: str) -> Path:
    """The file that is there from before rows go into quarantine until their retraining has ended as a breach."""
    return registry.folder(problem) / "breach.json"


def _proposed(problem: str, settings: Settings, force: bool) -> State[None] | Proposal:
    """All up to the comparison; a state where the flow ends before it."""
    patience = settings.retrain.patience.total_seconds()
    patiently(lambda: registry.reconcile(problem), patience)
    resumed = _mark(problem).exists()
    came = refresh_task(problem, settings)
    if came.breaches:
        return _breached(problem, came, patience)
    if not (
        came.accepted
        or resumed
        or force
        or dag.stale([problem])
        or _settled(*_contenders(problem, settings), settings) is None
    ):
        message = f"{problem}: nothing new has come, so nothing was trained"
        console.print(message, highlight=False)
        return Completed(name=NOTHING_NEW, message=message)
    _open(problem)
    _train(problem, patience)
    trial, champion = _contenders(problem, settings)
    if why := _settled(trial, champion, settings):
        return _unchanged(problem, f"{trial.label} is not compared: {why}")
    challenger = register_task(trial, patience)
    if champion == challenger:
        return _unchanged(problem, f"{trial.label} is the champion, version {challenger.version}, itself")
    patiently(lambda: registry.challenge(challenger), patience)
    decision = compare_task(trial, challenger, champion, settings)
    # Before the lock of the pipeline is given up: what another run makes of this checkout is not of this retraining.
    kept = experiments.save(_experiment(decision), problem, f"{problem}: version {challenger.version}")
    if not kept:
        console.print(
            "There is no commit in git yet, so the retraining is not kept as a DVC experiment; `git add` what you have "
            "and `git commit` once.",
            soft_wrap=True,
        )
    return Proposal(challenger, champion, decision, _experiment(decision) if kept else None)


def _contenders(problem: str, settings: Settings) -> tuple[Trial, Version | None]:
    """The best trial that there is, which a person may have trained, and the champion."""
    return comparison.best(problem, settings), registry.champion(problem)


def _settled(trial: Trial, champion: Version | None, settings: Settings) -> str | None:
    """Why a trial is not to be held against the champion; None: it is."""

    def asked() -> str | None:
        if champion and registry.is_as_stored(champion, trial):
            return f"it is the champion, version {champion.version}, itself"
        return comparison.settled(trial, champion, settings)

    return patiently(asked, settings.retrain.patience.total_seconds())


def _untold(problem: str) -> Proposal | None:
    """What a run that was killed has decided, and not told of yet, unless it holds no longer."""
    mark = _mark(problem)
    entry = registry.decided(problem, json.loads(mark.read_bytes()).get("decision")) if mark.exists() else None
    if entry is None or entry.decision is None:
        return None
    decision = comparison.read(problem, entry.decision)
    is_past = entry.kind == "promotion" and entry not in registry.reign(registry.history(problem))[-1:]
    if decision is None or is_past:
        return None
    return Proposal(entry.version_of(problem), None, decision, entry.experiment)


def _unchanged(problem: str, why: str) -> State[None]:
    """The end of a retraining that has found nothing to compare."""
    _mark(problem).unlink()
    console.print(f"{problem}: {why}", highlight=False, soft_wrap=True)
    return Completed(name=UNCHANGED, message=f"{problem}: {why}")


def _open(problem: str) -> None:
    """Note that a retraining is under way; what is noted already stays."""
    if not _mark(problem).exists():
        write_json(_mark(problem), {"since": datetime.now(UTC).isoformat(timespec="seconds")})


def _experiment(decision: Decision) -> str:
    """The name of the retraining's DVC experiment: the same for the same decision."""
    parts = [decision.problem, *([decision.last[:10]] if decision.last else []), decision.id[:6]]
    return "-".join(parts)


@task(name="refresh", persist_result=False)
def refresh_task(problem: str, settings: Settings) -> Came:
    """Fetch and check what is new, increment by increment; what breaks the contract goes into quarantine."""
    declared = settings.problem(problem)
    ingest.fetch(problem, settings)
    accepted: list[str] = []
    breaches: list[str] = json.loads(_breaches(problem).read_bytes()) if _breaches(problem).exists() else []
    while isinstance(declared, Problem) and declared.fresh is not None:
        arrival = refresh.arrived(problem, settings, lambda done, total: None)
        if arrival is None:
            break
        told = f"{arrival.rows:,} rows from {arrival.first} to {arrival.last}"
        found = contract.check(problem, settings, arrival)
        if found:
            lines = [f"{told}, in {paths.quarantine(problem) / arrival.pending.name}:"]
            lines += [f"- {each.rule}: {each.message}" for each in found]
            # People are told first: what lies in quarantine does not come again, even if this process is killed.
            alert("breach", f"{problem}: new rows break the data contract", _breach_text(problem, lines))
            breaches += lines
            write_json(_breaches(problem), breaches)
            refresh.quarantine(arrival, found)
        else:
            # From here on there is something to be trained on, even if this process is killed.
            _open(problem)
            refresh.accept(arrival)
            accepted.append(f"{told}, {arrival.corrected:,} of them corrections")
            console.print(f"{problem}: {accepted[-1]}", highlight=False, soft_wrap=True)
    fresh = paths.raw(problem) / "fresh"
    if fresh.exists():
        dag.track(fresh)
    return Came(accepted, breaches)


def _breach_text(problem: str, breaches: list[str]) -> str:
    """What people are told of rows that break the contract."""
    after = f"Nothing was trained, and the champion stays. `recast quarantine {problem}` shows what to do."
    return "\n".join([*breaches, after])


def _breached(problem: str, came: Came, patience: float) -> State[None]:
    """The end of a retraining whose rows break the contract, of which people have been told; nothing is trained."""
    text = _breach_text(problem, came.breaches)
    console.print(f"[red]{problem}: new rows break the data contract.[/]")
    console.print(text, markup=False, highlight=False, soft_wrap=True)
    reached(_never_again, patience)
    _breaches(problem).unlink()
    return Failed(name=BREACH, message=text)


def _never_again() -> None:
    """Have this flow run not tried again: there would be nothing new, and it would look as if all had been well."""
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(flow_run.id)
        run.empirical_policy.retries = 0
        client.update_flow_run(run.id, empirical_policy=run.empirical_policy)


def _train(problem: str, patience: float) -> None:
    """Run the pipeline. Trials that fail are told; the others make the leaderboard.

    Raises:
        RecastError: a stage has failed.
    """

    def run() -> None:
        try:
            pipeline([problem])
        except TrialsFailed as failed:
            console.print(str(failed), style="yellow", markup=False, highlight=False, soft_wrap=True)

    patiently(run, patience)


@task(name="register", persist_result=False)
def register_task(trial: Trial, patience: float) -> Version:
    """The challenger's version in MLflow, and what it was made of; both are made where they are not there yet."""

    def registered() -> Version:
        # A stage that DVC has restored has written nothing to MLflow.
        if not registry.is_stored(trial):
            write_missing(load_settings(), trial.problem)
        tags = {VALIDATED_UNTIL: comparison.validated_until(trial.problem), "recast.data": trial.data}
        version = registry.register(trial, tags)
        lineage.note(trial, version)
        return version

    return patiently(registered, patience)


@task(name="compare", persist_result=False)
def compare_task(trial: Trial, challenger: Version, champion: Version | None, settings: Settings) -> Decision:
    """Hold the challenger against the champion, and publish the evidence."""
    patience = settings.retrain.patience.total_seconds()
    decision = patiently(lambda: comparison.compare(trial, challenger, champion, settings), patience)
    patiently(lambda: comparison.publish(decision, challenger, pages.decision_page(decision)), patience)
    console.print(f"{trial.problem}: {decision.reasons[0]}", markup=False, highlight=False, soft_wrap=True)
    return decision


def _refusal(proposal: Proposal, settings: Settings) -> str | None:
    """Why the challenger is not promoted; None: it is. A person is asked where the settings say so."""
    decision = proposal.decision
    if not decision.promoted:
        return decision.reasons[0]
    if settings.retrain.approval is None:
        return None
    answer = _asked(decision, settings.retrain.approval)
    comment = f": {answer.comment}" if answer.comment else ""
    return None if answer.promote else f"{decision.reasons[0]} But a person has refused it{comment}."


def _asked(decision: Decision, limit: timedelta) -> Approval:
    """A person's answer in Prefect's page; no, where none comes in time."""
    run = flow_run.id
    page = (decision.folder / "page.html").absolute().as_uri()
    form = Approval.with_initial_data(
        description=f"**{decision.problem}: promote version {decision.challenger.version}, "
        f"{decision.challenger.label}?**\n\n{decision.reasons[0]}\n\nThe evidence: {page}",
        promote=True,
    )
    no = {"promote": False, "comment": f"nobody has answered within {written(limit)}"}
    # Prefect ends a run whose pause has timed out as failed, so the answer is given before that.
    timer = threading.Timer(limit.total_seconds(), resume_flow_run, [run], {"run_input": no})
    timer.daemon = True
    timer.start()
    console.print(
        f"{decision.problem}: version {decision.challenger.version} waits for a person's answer on Prefect's page, at "
        f"most {written(limit)}",
        highlight=False,
        soft_wrap=True,
    )
    try:
        return pause_flow_run(
            wait_for_input=form,
            timeout=round(limit.total_seconds()) + GRACE_SECONDS,
            poll_interval=POLL_SECONDS,
            key=decision.id,
        )
    finally:
        timer.cancel()


def _concluded(proposal: Proposal, refusal: str | None, settings: Settings) -> State[None]:
    """Do what was decided, record it and tell people."""
    decision, challenger = proposal.decision, proposal.challenger
    problem, patience = decision.problem, settings.retrain.patience.total_seconds()
    # A run that is killed after this finds by it what it has to tell.
    write_json(_mark(problem), json.loads(_mark(problem).read_bytes()) | {"decision": decision.id})
    entry = conclude_task(proposal, refusal, patience)
    history = pages.write_history(problem)
    _tell(proposal, entry, history, patience)
    _mark(problem).unlink(missing_ok=True)
    state = PROMOTED if entry.kind == "promotion" else REFUSED
    return Completed(name=state, message=f"{problem}: version {challenger.version} {entry.kind}. {entry.reason}")


@task(name="conclude", persist_result=False)
def conclude_task(proposal: Proposal, refusal: str | None, patience: float) -> registry.Entry:
    """Promote the challenger, unless the champion is another than it was compared with, or refuse it: in the history
    first, then in MLflow."""
    decision, challenger, experiment = proposal.decision, proposal.challenger, proposal.experiment
    reason, champion = decision.reasons[0], proposal.champion

    def concluded() -> registry.Entry:
        made = registry.decided(decision.problem, decision.id)
        if made is not None:
            registry.reconcile(decision.problem)
        elif refusal is not None:
            registry.refuse(challenger, decision.id, refusal, experiment=experiment)
        elif not registry.promote(
            decision.problem, challenger, decision.id, reason, experiment=experiment, expected=champion
        ):
            registry.refuse(challenger, decision.id, CHANGED, experiment=experiment)
        entry = registry.decided(decision.problem, decision.id)
        assert entry is not None
        registry.tag(challenger, {"recast.outcome": entry.kind, "recast.experiment": entry.experiment or ""})
        return entry

    return patiently(concluded, patience)


def _tell(proposal: Proposal, entry: registry.Entry, history: Path, patience: float) -> None:
    """Say what became of the challenger: to people, and on the flow run's page."""
    decision, problem = proposal.decision, proposal.decision.problem
    page = (decision.folder / "page.html").absolute().as_uri()
    what = "promoted" if entry.kind == "promotion" else "refused"
    title = f"{problem}: version {entry.version}, {entry.label}, is {what}"
    text = f"{entry.reason}\nThe evidence: {page}\nAll champions: {history.absolute().as_uri()}"
    alert("promotion" if entry.kind == "promotion" else "refusal", title, text)
    reasons = "\n".join(f"- {each}" for each in decision.reasons)
    shown = (
        f"**{title}**\n\n{entry.reason}\n\n{reasons}\n\nThe evidence: {page}\n\n"
        f"All champions: {history.absolute().as_uri()}\n\nDVC experiment: `{entry.experiment}`\n"
    )
    about = "What became of the challenger, and why"
    key = f"champion-{problem.replace('_', '-')}"
    reached(lambda: create_markdown_artifact(shown, key=key, description=about), patience)
    console.print(f"{title}\nThe evidence: {page}", markup=False, highlight=False, soft_wrap=True)
