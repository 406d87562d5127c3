"""Which model serves, and which ones did: MLflow's registered models by problem, and the history that MLflow lacks.

A registered model is named as its problem, and has one version a trial that was ever a challenger, or several where the
trial's model was stored again with another content, such as other intervals. Its aliases `champion`, `previous` and
`challenger` follow from `data/champion/<problem>/history.json`, a list of what happened. The file is the truth: it is
replaced as a whole before any alias is set, and `reconcile` sets the aliases to what it says.
A kill between the two, or at any other moment, is mended by the next call.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Literal, TypeVar

import mlflow
from filelock import FileLock
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_exponential

from forecasting.forecaster import Forecaster
from lifecycle.champions.history import (
    RETRAIN,
    Entry,
    Version,
    append,
    challenger,
    challenger_of,
    champion,
    champion_of,
    decided,
    decided_of,
    file_of,
    folder,
    history,
    new_entry,
    reign,
    roll_back,
    writing,
)
from problems.errors import RecastError
from project.atomic import replaced_folder
from project.paths import STATE
from project.redaction import without_passwords
from stages.tracking import store
from stages.tracking.packaging import CONTENT, PACKAGED
from stages.training.trials import Trial, read_run, trial_folder

__all__ = [
    "Entry",
    "Version",
    "challenge",
    "challenger",
    "champion",
    "content",
    "decided",
    "folder",
    "history",
    "is_as_stored",
    "is_stored",
    "known",
    "load",
    "patiently",
    "promote",
    "reconcile",
    "refuse",
    "register",
    "reign",
    "rollback",
    "tag",
    "writing",
]

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"
KEY, LABEL = "recast.key", "recast.label"
"""Tags of a version: the key of its trial, and what it is for people."""
TAKEN_OVER = "MLflow"
"""By whom an entry is that stands for what another checkout has done."""
LONGEST_WAIT_SECONDS = 15

T = TypeVar("T")


def known(problem: str) -> dict[int, Version]:
    """The versions that MLflow has of a problem, by number.

    Raises:
        TrackingError: MLflow has failed.
    """
    with store.reported():
        return {found.version: found for each in _versions(problem) if (found := _read(problem, each))}


def _versions(problem: str) -> list[ModelVersion]:
    found: list[ModelVersion] = []
    token: str | None = None
    while True:
        page = store.client().search_model_versions(f"name = '{problem}'", page_token=token)
        found += page
        token = page.token
        if not token:
            return sorted(found, key=lambda each: int(each.version))


def _read(problem: str, found: ModelVersion) -> Version | None:
    """A version of ours; of one that somebody else has made, nothing is known."""
    key = found.tags.get(KEY)
    return Version(problem, int(found.version), key, str(found.run_id), found.tags.get(LABEL, "")) if key else None


@store.reported()
def _stored(trial: Trial) -> dict[str, str]:
    """The tags of the trial's run, if its model is stored; else none."""
    try:
        run = store.client().get_run(str(read_run(trial_folder(trial)).get("mlflow_run_id")))
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return {}
    return dict(run.data.tags) if PACKAGED in run.data.tags else {}


def is_stored(trial: Trial) -> bool:
    """Whether MLflow has the trial's run and its model.

    Raises:
        TrackingError: MLflow has failed.
    """
    return bool(_stored(trial))


def content(trial: Trial) -> str | None:
    """What the trial's stored model is made of, see `stages.tracking.packaging.content`; None: none is stored.

    Raises:
        TrackingError: MLflow has failed.
    """
    return _stored(trial).get(CONTENT)


@store.reported()
def is_as_stored(version: Version, trial: Trial) -> bool:
    """Whether a version is of the trial's model as it is stored now: with the same intervals, say.

    Raises:
        TrackingError: MLflow has failed.
    """
    if version.key != trial.key or not (stored := _stored(trial)):
        return False
    made_of = store.client().get_model_version(version.problem, str(version.version)).tags
    return bool(stored.get(CONTENT) == made_of.get(CONTENT))


@store.reported()
def register(trial: Trial, tags: dict[str, str]) -> Version:
    """The version of a trial's stored model; a new one where there is none of it, however often it is called.

    Raises:
        TrackingError: MLflow has failed.
        RecastError: the trial's model is not stored.
    """
    problem = trial.problem
    run = str(read_run(trial_folder(trial))["mlflow_run_id"])
    stored = store.client().get_run(run).data.tags
    model, made_of = stored.get(PACKAGED), {name: stored[name] for name in (CONTENT,) if name in stored}
    for found in reversed(_versions(problem)):
        version = _read(problem, found)
        if version and version.key == trial.key and made_of.items() <= found.tags.items():
            return version
    if model is None:
        raise RecastError(f"{trial.label}: its model is not in MLflow; `recast rebuild-mlflow {problem}` writes it")
    try:
        store.client().create_registered_model(problem, tags={"recast.problem": problem})
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    made = store.client().create_model_version(
        problem,
        model,
        run,
        {KEY: trial.key, LABEL: trial.label, **made_of, **tags},
        model_id=model.removeprefix("models:/"),
    )
    return Version(problem, int(made.version), trial.key, run, trial.label)


@store.reported()
def tag(version: Version, tags: dict[str, str]) -> None:
    """Set tags of a version.

    Raises:
        TrackingError: MLflow has failed.
    """
    for name, value in tags.items():
        store.client().set_model_version_tag(version.problem, str(version.version), name, value)


def challenge(version: Version) -> None:
    """Note in the history that a version is to be compared with the champion, and set the alias.

    Raises:
        TrackingError: MLflow has failed; the history has it all the same.
    """
    problem = version.problem

    def made(entries: list[Entry]) -> Entry | None:
        if challenger_of(problem, entries) == version:
            return None
        return new_entry("challenge", version, entries, None, "", RETRAIN, None)

    append(problem, made)
    reconcile(problem)


def promote(
    problem: str,
    version: Version,
    decision: str | None,
    reason: str = "",
    by: str = RETRAIN,
    experiment: str | None = None,
    expected: Version | Literal["any"] | None = "any",
) -> bool:
    """Make a version the champion; nothing more happens where it is.

    Args:
        decision: id of the comparison that it rests on; None: a person has decided.
        expected: the champion that it takes the place of; None: there is none.

    Returns:
        False: the champion is another than the one expected, and stays.

    Raises:
        TrackingError: MLflow has failed; the history has it all the same.
    """
    is_expected = True

    def made(entries: list[Entry]) -> Entry | None:
        nonlocal is_expected
        now = champion_of(problem, entries)
        is_expected = expected in ("any", now)
        if now == version or not is_expected:
            return None
        return new_entry("promotion", version, entries, decision, reason, by, experiment)

    append(problem, made)
    reconcile(problem)
    return is_expected


def refuse(
    version: Version, decision: str | None, reason: str, by: str = RETRAIN, experiment: str | None = None
) -> None:
    """Note that a challenger is not promoted, once a decision.

    Raises:
        TrackingError: MLflow has failed; the history has it all the same.
    """
    problem = version.problem

    def made(entries: list[Entry]) -> Entry | None:
        if decided_of(entries, decision):
            return None
        return new_entry("refusal", version, entries, decision, reason, by, experiment)

    append(problem, made)
    reconcile(problem)


def rollback(problem: str, by: str = RETRAIN, reason: str = "") -> Version:
    """Make the former champion the champion again, and say which it is; each further call goes one further back.

    Raises:
        RecastError: there is none.
        TrackingError: MLflow has failed; the history has it all the same.
    """
    former = roll_back(problem, by, reason)
    reconcile(problem)
    return former


def reconcile(problem: str) -> None:
    """Set MLflow's aliases to what the history says.

    Where there is no history yet, the champion that MLflow has, if it has one, is taken over: another checkout that
    writes to the same store has made it. As long as nothing happens here, that one's aliases are left as they are.

    Raises:
        RecastError: MLflow lacks a version that the history has.
        TrackingError: MLflow has failed.
    """
    with store.reported():
        if not file_of(problem).exists():
            _take_over(problem)
        # What is set follows from one reading of the history, and nobody writes it meanwhile.
        with writing(problem):
            entries = history(problem)
            if any(entry.by != TAKEN_OVER for entry in entries):
                _set_aliases(problem, entries)


def _take_over(problem: str) -> None:
    """Begin a history with the champion that MLflow has, if it has one."""
    version = known(problem).get(_aliases(problem).get(CHAMPION, 0))
    if version:
        append(
            problem,
            lambda entries: (
                None
                if entries
                else new_entry("promotion", version, entries, None, "taken over from MLflow's alias", TAKEN_OVER, None)
            ),
        )


def _aliases(problem: str) -> dict[str, int]:
    """The aliases that MLflow has; none where it has no such model."""
    try:
        return {name: int(at) for name, at in store.client().get_registered_model(problem).aliases.items()}
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return {}


def _set_aliases(problem: str, entries: Sequence[Entry]) -> None:
    """Set those that differ.

    Raises:
        RecastError: MLflow lacks a version.
    """
    aliases = _aliases(problem)
    reigned = reign(entries)
    proposed = challenger_of(problem, entries)
    wanted = {
        CHAMPION: reigned[-1].version if reigned else None,
        PREVIOUS: reigned[-2].version if len(reigned) > 1 else None,
        CHALLENGER: proposed.version if proposed else None,
    }
    for alias, at in wanted.items():
        if at is None and alias in aliases:
            store.client().delete_registered_model_alias(problem, alias)
        elif at is not None and aliases.get(alias) != at:
            try:
                store.client().set_registered_model_alias(problem, alias, str(at))
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    raise _lost(problem) from error
                raise


def _lost(problem: str) -> RecastError:
    return RecastError(
        f"{file_of(problem)} names versions that MLflow at {without_passwords(store.uri())} does not have. Name the "
        f"store that has them by MLFLOW_TRACKING_URI, or move {folder(problem)} aside to begin a new history"
    )


def load(version: Version) -> Forecaster:
    """The model of a version, ready to forecast; kept on disk, by version, below `.recast/models`.

    Raises:
        TrackingError: MLflow, or the store of its artifacts, has failed.
    """
    kept = STATE / "models" / version.problem / f"{version.version}-{version.run[:8]}"
    kept.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(kept.with_name(f"{kept.name}.lock")):
        # Where it is kept, it serves while MLflow is away.
        if not kept.exists():
            store.client()
            with replaced_folder(kept) as temporary, store.storing():
                mlflow.artifacts.download_artifacts(artifact_uri=version.uri, dst_path=str(temporary))
    return Forecaster.load(kept)


def patiently(what: Callable[[], T], seconds: float) -> T:
    """What `what` returns, called again and again while MLflow is out of reach; it may be called after having worked.

    Args:
        seconds: how long MLflow may be out of reach.

    Raises:
        TrackingError: it was for longer, or has refused.
    """

    def told(state: object) -> None:
        logging.getLogger(__name__).warning("MLflow does not answer; it is tried again")

    for attempt in Retrying(
        retry=retry_if_exception(_may_pass),
        stop=stop_after_delay(seconds),
        wait=wait_exponential(max=LONGEST_WAIT_SECONDS),
        before_sleep=told,
        reraise=True,
    ):
        with attempt:
            return what()
    raise AssertionError("the last attempt raises")


def _may_pass(error: BaseException) -> bool:
    """Whether MLflow failed in a way that time may mend: not by a refusal, not by the lack of a driver."""
    if not isinstance(error, store.TrackingError):
        return False
    cause = error.__cause__
    if isinstance(cause, MlflowException):
        status = cause.get_http_status_code()
        return status >= 500 or status in (408, 429)
    return not isinstance(cause, ImportError)
