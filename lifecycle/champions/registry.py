"""MLflow's registered models: the versions of each problem, their tags, and the models themselves.

A registered model is named after its problem. It has one version for each trial that was ever a challenger; several,
where the trial's model was stored again with another content, such as other intervals.
"""

import mlflow
import numpy as np
from filelock import FileLock
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from forecasting.forecaster import DamagedModel, Forecaster
from lifecycle.champions.history import Version
from problems.errors import RecastError
from project.atomic import replace_folder
from project.paths import MODEL_COPIES
from project.progress import print_warning
from stages.tracking import store
from stages.tracking.packaging import CONTENT_TAG, MODEL_TAG
from stages.training.trials import Trial, read_run_notes, trial_folder

KEY_TAG, LABEL_TAG = "recast.key", "recast.label"
"""Tags of a version: the key of its trial, and its name for people."""
VALIDATED_FROM_TAG = "recast.validated_from"
"""Tag of a version: the time of the last input of the first window that it was selected on."""
VALIDATED_UNTIL_TAG = "recast.validated_until"
"""Tag of a version: the time of the last target that it was trained or selected on."""
UNDONE_TAG = "recast.undone"
"""Tag of a version: the increment that it was trained on and that a person has taken back since."""


def list_versions(problem: str) -> dict[int, Version]:
    """The versions that MLflow has of a problem, by number.

    Raises:
        TrackingError: MLflow has failed.
    """
    with store.translate_errors():
        versions = [_parse_version(problem, model) for model in _search_versions(problem)]
    return {version.version: version for version in versions if version}


def _search_versions(problem: str) -> list[ModelVersion]:
    """All versions, the oldest first."""
    versions: list[ModelVersion] = []
    token: str | None = None
    while True:
        page = store.get_client().search_model_versions(f"name = '{problem}'", page_token=token)
        versions += page
        token = page.token
        if not token:
            return sorted(versions, key=lambda version: int(version.version))


def _parse_version(problem: str, model: ModelVersion) -> Version | None:
    """A version; None if it was not registered by Recast."""
    key = model.tags.get(KEY_TAG)
    return Version(problem, int(model.version), key, str(model.run_id), model.tags.get(LABEL_TAG, "")) if key else None


@store.translate_errors()
def _read_model_tags(trial: Trial) -> dict[str, str]:
    """The tags of the trial's run; empty where its model is not stored."""
    try:
        run = store.get_client().get_run(str(read_run_notes(trial_folder(trial)).get("mlflow_run_id")))
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return {}
    return dict(run.data.tags) if MODEL_TAG in run.data.tags else {}


def is_stored(trial: Trial) -> bool:
    """Whether MLflow has the trial's run and its model.

    Raises:
        TrackingError: MLflow has failed.
    """
    return bool(_read_model_tags(trial))


def read_content_tag(trial: Trial) -> str | None:
    """The hash of the content of the trial's stored model, see `hash_content`; None: no model is stored.

    Raises:
        TrackingError: MLflow has failed.
    """
    return _read_model_tags(trial).get(CONTENT_TAG)


@store.translate_errors()
def is_current_model(version: Version, trial: Trial) -> bool:
    """Whether a version has the trial's model as it is stored now: with the same intervals, for example.

    Raises:
        TrackingError: MLflow has failed.
    """
    if version.key != trial.key or not (stored := _read_model_tags(trial)):
        return False
    tags = store.get_client().get_model_version(version.problem, str(version.version)).tags
    return bool(stored.get(CONTENT_TAG) == tags.get(CONTENT_TAG))


@store.translate_errors()
def register_version(trial: Trial, tags: dict[str, str]) -> Version:
    """The version of a trial's stored model, registered where it does not exist; it may be called any number of times.

    Raises:
        TrackingError: MLflow has failed.
        RecastError: the trial's model is not stored.
    """
    problem = trial.problem
    run = str(read_run_notes(trial_folder(trial))["mlflow_run_id"])
    stored = store.get_client().get_run(run).data.tags
    model_uri, content = stored.get(MODEL_TAG), {name: stored[name] for name in (CONTENT_TAG,) if name in stored}
    for model in reversed(_search_versions(problem)):
        version = _parse_version(problem, model)
        if version and version.key == trial.key and content.items() <= model.tags.items():
            return version
    if model_uri is None:
        raise RecastError(f"{trial.label}: its model is not in MLflow; `recast rebuild-mlflow {problem}` writes it")
    try:
        store.get_client().create_registered_model(problem, tags={"recast.problem": problem})
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    created = store.get_client().create_model_version(
        problem,
        model_uri,
        run,
        {KEY_TAG: trial.key, LABEL_TAG: trial.label, **content, **tags},
        model_id=model_uri.removeprefix("models:/"),
    )
    return Version(problem, int(created.version), trial.key, run, trial.label)


@store.translate_errors()
def set_tags(version: Version, tags: dict[str, str]) -> None:
    """Set tags of a version.

    Raises:
        TrackingError: MLflow has failed.
    """
    for name, value in tags.items():
        store.get_client().set_model_version_tag(version.problem, str(version.version), name, value)


def load_model(version: Version) -> Forecaster:
    """The model of a version, ready to forecast. A copy below `.recast/models` serves while MLflow is away.

    Raises:
        TrackingError: MLflow, or the store of its artifacts, has failed.
        RecastError: the model is damaged in the store too, or this code makes other forecasts with it.
    """
    copy = MODEL_COPIES / version.problem / f"{version.version}-{version.run[:8]}"
    copy.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(copy.with_name(f"{copy.name}.lock")):
        if copy.exists():
            try:
                return Forecaster.load(copy)
            except DamagedModel as damage:
                print_warning(f"{damage}; the model is downloaded again")
        store.get_client()
        with replace_folder(copy) as temporary, store.translate_artifact_errors():
            mlflow.artifacts.download_artifacts(artifact_uri=version.uri, dst_path=str(temporary))
        return Forecaster.load(copy)


def read_validated_until(version: Version) -> np.datetime64:
    """The time of the last target that a version was trained or selected on.

    Raises:
        TrackingError: MLflow has failed.
        RecastError: the version was not registered by Recast.
    """
    tags = _read_tags(version)
    if VALIDATED_UNTIL_TAG not in tags:
        raise RecastError(
            f"{version.uri} has no tag {VALIDATED_UNTIL_TAG}, so it is not known which windows it was selected on; set "
            "the tag to the time of the last target that it was trained or selected on, such as 2020-01-31T23:00:00"
        )
    return np.datetime64(tags[VALIDATED_UNTIL_TAG], "ms")


def read_validated_from(version: Version) -> np.datetime64 | None:
    """The time of the last input of the first window that a version was selected on.

    Returns:
        None: an earlier version of Recast has registered it, which did not note the time.

    Raises:
        TrackingError: MLflow has failed.
    """
    time = _read_tags(version).get(VALIDATED_FROM_TAG)
    return None if time is None else np.datetime64(time, "ms")


@store.translate_errors()
def _read_tags(version: Version) -> dict[str, str]:
    """
    Raises:
        TrackingError: MLflow has failed.
    """
    return dict(store.get_client().get_model_version(version.problem, str(version.version)).tags)
