"""Addresses of the pages that MLflow shows about a challenger."""

from infra.servers import mlflow_page
from lifecycle.champions.history import Version
from project.retry import retry_while_unreachable
from stages.tracking import store


def link_decision(challenger: Version, decision: str, patience: float) -> str:
    """The address of the page of a decision, which is among the artifacts of the challenger's run.

    Args:
        decision: its id.
        patience: how many seconds to wait for MLflow.
    """
    experiment = retry_while_unreachable(lambda: store.get_or_create_experiment(challenger.problem), patience, "MLflow")
    return mlflow_page(f"/experiments/{experiment}/runs/{challenger.run}/artifacts/decisions/{decision}/page.html")


def link_versions(problem: str) -> str:
    """The address of the page with all versions of a problem's model."""
    return mlflow_page(f"/models/{problem}")
