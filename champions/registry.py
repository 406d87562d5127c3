"""Which model serves, and which ones did: MLflow's registered models by problem, and the history that MLflow lacks.

A registered model is named as its problem, and has one version a trial that was ever a challenger. Its aliases
`champion`, `previous` and `challenger` follow from `data/champion/<problem>/history.json`, a list of what happened. The
file is the truth: it is replaced as a whole before any alias is set, and `reconcile` sets the aliases to what it says.
A kill between the two, or at any other moment, is mended by the next call.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, TypeVar

import mlflow
from filelock import FileLock
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from pydantic import TypeAdapter, ValidationError
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_exponential

from problems.errors import RecastError
from stages import tracking
from stages.atomic import replaced_file, replaced_folder
from stages.forecaster import Forecaster
from stages.packaging import PACKAGED
from stages.places import STATE
from stages.trials import Trial, read_run, trial_folder
from stages.words import without_passwords

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"
KEY, LABEL = "recast.key", "recast.label"
"""Tags of a version: the key of its trial, and what it is for people."""
LONGEST_WAIT_SECONDS = 15
FOLDER = Path("data/champion")
"""Histories, decisions and pages, a folder a problem."""

T = TypeVar("T")


@dataclass(frozen=True)
class Version:
    """A version of a problem's registered model.

    Attributes:
        key: of the trial.
        run: the trial's run in MLflow.
        label: of the trial, for people: gru units=32 seed=1.
        uri: by which MLflow loads it.
    """

    problem: str
    version: int
    key: str
    run: str
    label: str = ""

    @property
    def uri(self) -> str:
        return f"models:/{self.problem}/{self.version}"


@dataclass(frozen=True)
class Entry:
    """Something that happened to a problem's champion.

    Attributes:
        kind: challenge (a version was registered, to be compared), promotion, refusal or rollback.
        time: in UTC, ISO 8601.
        version, key, run, label: of the challenger; of a rollback, of the version that is champion again.
        former: the champion before, if there was one.
        decision: id of the comparison that it rests on, if there was one.
        reason: in a sentence.
        by: retrain, or the person who asked for it.
        experiment: name of the DVC experiment that holds the retraining, where there is one.
    """

    kind: Literal["challenge", "promotion", "refusal", "rollback"]
    time: str
    version: int
    key: str
    run: str
    label: str
    former: int | None
    decision: str | None
    reason: str
    by: str
    experiment: str | None = None


def folder(problem: str) -> Path:
    """Where a problem's history, decisions and pages are."""
    return FOLDER / problem


def _file(problem: str) -> Path:
    return folder(problem) / "history.json"


def history(problem: str) -> list[Entry]:
    """All that happened, the oldest first.

    Raises:
        RecastError: the file cannot be read.
    """
    file = _file(problem)
    if not file.exists():
        return []
    try:
        return TypeAdapter(list[Entry]).validate_json(file.read_bytes())
    except ValidationError as error:
        what = error.errors()[0]
        raise RecastError(
            f"{file}: {'.'.join(map(str, what['loc']))}: {what['msg']}; restore the file, or move {folder(problem)} "
            "aside to begin a new history"
        ) from error


@contextmanager
def writing(problem: str) -> Iterator[None]:
    """Hold the lock of what is written of a problem's champion: a person may roll back while a flow promotes."""
    STATE.mkdir(exist_ok=True)
    with FileLock(STATE / f"champion-{problem}.lock"):
        yield


def _append(problem: str, made: Callable[[list[Entry]], Entry | None]) -> None:
    """Add what is made of the entries that there are, if anything is; the file has it, or is as it was."""
    with writing(problem):
        entries = history(problem)
        entry = made(entries)
        if entry is not None:
            with replaced_file(_file(problem)) as temporary:
                temporary.write_bytes(TypeAdapter(list[Entry]).dump_json([*entries, entry], indent=1) + b"\n")


def reign(entries: Sequence[Entry]) -> list[Entry]:
    """The champions that a rollback could go back to, the present one last: what promotions added, rollbacks took."""
    found: list[Entry] = []
    for entry in entries:
        if entry.kind == "promotion":
            found.append(entry)
        elif entry.kind == "rollback":
            del found[-1:]
    return found


def _version(problem: str, entry: Entry) -> Version:
    return Version(problem, entry.version, entry.key, entry.run, entry.label)


def champion(problem: str) -> Version | None:
    """The champion by the history, or None where there was never one. MLflow is not asked."""
    return _champion(problem, history(problem))


def _champion(problem: str, entries: Sequence[Entry]) -> Version | None:
    found = reign(entries)
    return _version(problem, found[-1]) if found else None


def challenger(problem: str) -> Version | None:
    """The version that was last proposed, unless it has become champion."""
    return _challenger(problem, history(problem))


def _challenger(problem: str, entries: Sequence[Entry]) -> Version | None:
    found = [entry for entry in entries if entry.kind != "rollback"]
    return _version(problem, found[-1]) if found and found[-1].kind != "promotion" else None


def known(problem: str) -> dict[int, Version]:
    """The versions that MLflow has of a problem, by number.

    Raises:
        TrackingError: MLflow has failed.
    """
    with tracking.reported():
        return {found.version: found for each in _versions(problem) if (found := _read(problem, each))}


def _versions(problem: str) -> list[ModelVersion]:
    found: list[ModelVersion] = []
    token: str | None = None
    while True:
        page = tracking.client().search_model_versions(f"name = '{problem}'", page_token=token)
        found += page
        token = page.token
        if not token:
            return sorted(found, key=lambda each: int(each.version))


def _read(problem: str, found: ModelVersion) -> Version | None:
    """A version of ours; of one that somebody else has made, nothing is known."""
    key = found.tags.get(KEY)
    return Version(problem, int(found.version), key, str(found.run_id), found.tags.get(LABEL, "")) if key else None


@tracking.reported()
def is_stored(trial: Trial) -> bool:
    """Whether MLflow has the trial's run and its model.

    Raises:
        TrackingError: MLflow has failed.
    """
    try:
        run = tracking.client().get_run(str(read_run(trial_folder(trial)).get("mlflow_run_id")))
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False
    return PACKAGED in run.data.tags


@tracking.reported()
def register(trial: Trial, tags: dict[str, str]) -> Version:
    """The version of a trial whose model is stored; a new one where there is none, however often it is called.

    Raises:
        TrackingError: MLflow has failed.
        RecastError: the trial's model is not stored.
    """
    problem = trial.problem
    for version in known(problem).values():
        if version.key == trial.key:
            return version
    run = str(read_run(trial_folder(trial))["mlflow_run_id"])
    model = tracking.client().get_run(run).data.tags.get(PACKAGED)
    if model is None:
        raise RecastError(f"{trial.label}: its model is not in MLflow; `recast rebuild-mlflow {problem}` writes it")
    try:
        tracking.client().create_registered_model(problem, tags={"recast.problem": problem})
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    made = tracking.client().create_model_version(
        problem, model, run, {KEY: trial.key, LABEL: trial.label, **tags}, model_id=model.removeprefix("models:/")
    )
    return Version(problem, int(made.version), trial.key, run, trial.label)


@tracking.reported()
def tag(version: Version, tags: dict[str, str]) -> None:
    """Set tags of a version.

    Raises:
        TrackingError: MLflow has failed.
    """
    for name, value in tags.items():
        tracking.client().set_model_version_tag(version.problem, str(version.version), name, value)


def challenge(version: Version) -> None:
    """Note in the history that a version is to be compared with the champion, and set the alias.

    Raises:
        TrackingError: MLflow has failed; the history has it all the same.
    """
    problem = version.problem

    def made(entries: list[Entry]) -> Entry | None:
        if _challenger(problem, entries) == version:
            return None
        return _entry("challenge", version, entries, None, "", "retrain", None)

    _append(problem, made)
    reconcile(problem)


def promote(
    problem: str,
    version: Version,
    decision: str | None,
    reason: str = "",
    by: str = "retrain",
    experiment: str | None = None,
) -> None:
    """Make a version the champion; nothing more happens where it is.

    Args:
        decision: id of the comparison that it rests on; None: a person has decided.

    Raises:
        TrackingError: MLflow has failed; the history has it all the same.
    """

    def made(entries: list[Entry]) -> Entry | None:
        if _champion(problem, entries) == version:
            return None
        return _entry("promotion", version, entries, decision, reason, by, experiment)

    _append(problem, made)
    reconcile(problem)


def refuse(
    version: Version, decision: str | None, reason: str, by: str = "retrain", experiment: str | None = None
) -> None:
    """Note that a challenger is not promoted, once a decision.

    Raises:
        TrackingError: MLflow has failed; the history has it all the same.
    """
    problem = version.problem

    def made(entries: list[Entry]) -> Entry | None:
        if _decided(entries, decision):
            return None
        return _entry("refusal", version, entries, decision, reason, by, experiment)

    _append(problem, made)
    reconcile(problem)


def decided(problem: str, decision: str | None) -> Entry | None:
    """What became of a comparison, where something has."""
    return _decided(history(problem), decision)


def _decided(entries: Sequence[Entry], decision: str | None) -> Entry | None:
    found = [entry for entry in entries if decision and entry.decision == decision]
    return found[-1] if found else None


def rollback(problem: str, by: str = "retrain", reason: str = "") -> Version:
    """Make the former champion the champion again, and say which it is; each further call goes one further back.

    Raises:
        RecastError: there is none.
        TrackingError: MLflow has failed; the history has it all the same.
    """

    def made(entries: list[Entry]) -> Entry:
        found = reign(entries)
        if len(found) < 2:
            now = f"version {found[-1].version} is the first champion" if found else "there is no champion"
            raise RecastError(f"{problem}: {now}, so there is no former one to go back to")
        return _entry("rollback", _version(problem, found[-2]), entries, None, reason, by, None)

    _append(problem, made)
    reconcile(problem)
    now = champion(problem)
    assert now is not None
    return now


def _entry(
    kind: Literal["challenge", "promotion", "refusal", "rollback"],
    version: Version,
    entries: Sequence[Entry],
    decision: str | None,
    reason: str,
    by: str,
    experiment: str | None,
) -> Entry:
    now = _champion(version.problem, entries)
    return Entry(
        kind,
        datetime.now(UTC).isoformat(timespec="seconds"),
        version.version,
        version.key,
        version.run,
        version.label,
        now.version if now else None,
        decision,
        reason,
        by,
        experiment,
    )


def reconcile(problem: str) -> None:
    """Set MLflow's aliases to what the history says.

    Where there is no history yet, the champion that MLflow has, if it has one, is taken over: another checkout that
    writes to the same store has made it.

    Raises:
        RecastError: MLflow lacks a version that the history has.
        TrackingError: MLflow has failed.
    """
    with tracking.reported():
        if not _file(problem).exists():
            _take_over(problem)
        # What is set follows from one reading of the history, and nobody writes it meanwhile.
        with writing(problem):
            if entries := history(problem):
                _set_aliases(problem, entries)


def _take_over(problem: str) -> None:
    """Begin a history with the champion that MLflow has, if it has one."""
    version = known(problem).get(_aliases(problem).get(CHAMPION, 0))
    if version:
        _append(
            problem,
            lambda entries: (
                None
                if entries
                else _entry("promotion", version, entries, None, "taken over from MLflow's alias", "MLflow", None)
            ),
        )


def _aliases(problem: str) -> dict[str, int]:
    """The aliases that MLflow has; none where it has no such model."""
    try:
        return {name: int(at) for name, at in tracking.client().get_registered_model(problem).aliases.items()}
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
    proposed = _challenger(problem, entries)
    wanted = {
        CHAMPION: reigned[-1].version if reigned else None,
        PREVIOUS: reigned[-2].version if len(reigned) > 1 else None,
        CHALLENGER: proposed.version if proposed else None,
    }
    for alias, at in wanted.items():
        if at is None and alias in aliases:
            tracking.client().delete_registered_model_alias(problem, alias)
        elif at is not None and aliases.get(alias) != at:
            try:
                tracking.client().set_registered_model_alias(problem, alias, str(at))
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    raise _lost(problem) from error
                raise


def _lost(problem: str) -> RecastError:
    return RecastError(
        f"{_file(problem)} names versions that MLflow at {without_passwords(tracking.uri())} does not have. Name the "
        f"store that has them by MLFLOW_TRACKING_URI, or move {folder(problem)} aside to begin a new history"
    )


def load(version: Version) -> Forecaster:
    """The model of a version, ready to forecast; kept on disk, by version, below `.recast/models`.

    Raises:
        TrackingError: MLflow, or the store of its artifacts, has failed.
    """
    tracking.client()
    kept = STATE / "models" / version.problem / f"{version.version}-{version.run[:8]}"
    kept.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(kept.with_name(f"{kept.name}.lock")):
        if not kept.exists():
            with replaced_folder(kept) as temporary, tracking.storing():
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
    if not isinstance(error, tracking.TrackingError):
        return False
    cause = error.__cause__
    if isinstance(cause, MlflowException):
        status = cause.get_http_status_code()
        return status >= 500 or status in (408, 429)
    return not isinstance(cause, ImportError)
