"""The stores of a project with the profile `laptop`, for whoever copies them elsewhere."""

from project.paths import MLFLOW_STORE, STATE

DATABASES = {"mlflow": MLFLOW_STORE / "mlflow.db", "prefect": STATE / "prefect.db"}
"""SQLite databases. With the profile `servers`, databases of PostgreSQL have the same names."""

ARTIFACTS = MLFLOW_STORE / "artifacts"

LOCATIONS = {
    "experiments": ("artifact_location",),
    "runs": ("artifact_uri",),
    "model_versions": ("source", "storage_location"),
    "logged_models": ("artifact_location",),
}
"""The columns of MLflow's database, by table, that contain locations of artifacts."""
