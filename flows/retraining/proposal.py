"""The middle steps of a retraining: register the challenger, and compare it with the champion."""

from dataclasses import dataclass

from prefect import task

from lifecycle.champions import decisions, lineage, pages, registry
from lifecycle.champions.comparison import Decision
from lifecycle.champions.history import Version
from lifecycle.champions.registry import VALIDATED_FROM_TAG, VALIDATED_UNTIL_TAG
from project.progress import console
from project.retry import retry_while_unreachable
from project.settings.loading import load_settings
from project.settings.sections import Settings
from stages.tracking.full_report import write_full_report
from stages.tracking.rebuild import write_missing
from stages.training.trials import Trial


@dataclass(frozen=True)
class PromotionProposal:
    """A challenger that was compared with the present champion.

    Attributes:
        experiment: name of the DVC experiment with the state of the retraining; None: none was saved.
    """

    challenger: Version
    champion: Version | None
    decision: Decision
    experiment: str | None


def experiment_name(decision: Decision) -> str:
    """The name of the retraining's DVC experiment, the same for the same decision."""
    parts = [decision.problem, *([decision.last[:10]] if decision.last else []), decision.id[:6]]
    return "-".join(parts)


@task(name="register", persist_result=False)
def register_task(trial: Trial, patience: float) -> Version:
    """The challenger's version in MLflow. The version and its lineage are written where they do not exist yet."""

    def register() -> Version:
        # A stage that DVC has restored from its cache has written nothing to MLflow.
        if not registry.is_stored(trial):
            write_missing(load_settings(), trial.problem)
        tags = {
            VALIDATED_FROM_TAG: decisions.find_validated_from(trial.problem),
            VALIDATED_UNTIL_TAG: decisions.find_validated_until(trial.problem),
            "recast.data": trial.data,
        }
        version = registry.register_version(trial, tags)
        lineage.record_lineage(trial, version)
        return version

    return retry_while_unreachable(register, patience, "MLflow")


@task(name="compare", persist_result=False)
def compare_task(trial: Trial, challenger: Version, champion: Version | None, settings: Settings) -> Decision:
    """Compare the challenger with the champion, and publish the evidence."""
    patience = settings.retrain.patience.total_seconds()
    decision = retry_while_unreachable(
        lambda: decisions.decide(trial, challenger, champion, settings), patience, "MLflow"
    )
    retry_while_unreachable(
        lambda: decisions.publish_decision(decision, challenger, pages.render_decision(decision)), patience, "MLflow"
    )
    if decision.promoted:
        retry_while_unreachable(lambda: write_full_report(trial.problem, settings), patience, "MLflow")
    console.print(f"{trial.problem}: {decision.reasons[0]}", markup=False, highlight=False, soft_wrap=True)
    return decision
