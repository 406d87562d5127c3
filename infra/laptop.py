"""What a project with the profile `laptop` keeps, and where: for those that copy it elsewhere."""

from project.paths import MLFLOW_STORE, STATE

DATABASES = {"mlflow": MLFLOW_STORE / "mlflow.db", "prefect": STATE / "prefect.db"}
"""SQLite's; on servers, databases of PostgreSQL have the names."""

ARTIFACTS = MLFLOW_STORE / "artifacts"

LOCATIONS = {
    "experiments": ("artifact_location",),
    "runs": ("artifact_uri",),
    "model_versions": ("source", "storage_location"),
    "logged_models": ("artifact_location",),
}
"""Columns of MLflow's database, by table, that say where artifacts are."""
