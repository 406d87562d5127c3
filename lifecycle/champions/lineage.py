"""The lineage of a version: from a forecast back to the raw bytes and the commit, and from these to the forecasts.

What a version was made of is written when it is registered, to `data/champion/<problem>/versions/<version>.json`. Its
retraining is a DVC experiment: a commit beside the branch, with the dvc.lock of that time.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from lifecycle import forecast_log
from lifecycle.champions.history import CHAMPIONS_FOLDER, Version, champion_folder, read_history
from problems.errors import RecastError
from project import git, paths
from project.atomic import write_json
from project.paths import DVC_LOCK
from project.records import read_record
from stages.tables.ingested import read_quality
from stages.training.trials import Trial


@dataclass(frozen=True)
class Lineage:
    """What a version was made of.

    Attributes:
        key: of the trial, whose folder is trials/<problem>/<key>.
        run: the id of its run in MLflow.
        commit: the one that was checked out, with -dirty where tracked files differed from it; "" where there was none.
        data: identity of the data.
        raw: the SHA-256 of each raw file, by its name.
        lock: the entries of dvc.lock for the problem's stages.
    """

    problem: str
    version: int
    key: str
    label: str
    run: str
    commit: str
    data: str
    raw: dict[str, str]
    lock: dict[str, Any]


@dataclass(frozen=True)
class Trace:
    """The way from a forecast to everything that it was made of.

    Attributes:
        forecast: its row in the log of forecasts; None where a version is traced, not a forecast.
        experiment: the DVC experiment that holds the retraining; None where none was saved.
        locked: whether the experiment's dvc.lock agrees with the version's `lock`; None: there is no experiment.
    """

    forecast: dict[str, Any] | None
    lineage: Lineage
    experiment: str | None
    locked: bool | None


def record_lineage(trial: Trial, version: Version) -> Lineage:
    """Write what a version is made of, unless that is written already, and return it."""
    file = _lineage_file(version.problem, version.version)
    if not file.exists():
        quality = read_quality(paths.stage_folder("ingest", trial.problem))
        lineage = Lineage(
            version.problem,
            version.version,
            trial.key,
            trial.label,
            version.run,
            git.describe_commit(),
            trial.data,
            quality["files"],
            _stage_entries(Path(DVC_LOCK).read_text(encoding="utf-8"), trial.problem),
        )
        write_json(file, asdict(lineage))
    return read_lineage(version.problem, version.version)


def read_lineage(problem: str, version: int) -> Lineage:
    """What a version was made of.

    Raises:
        RecastError: it is not known in this checkout.
    """
    file = _lineage_file(problem, version)
    if not file.exists():
        numbers = list_known_versions(problem)
        raise RecastError(
            f"{file}: what version {version} of {problem} was made of is not known in this checkout; known versions: "
            f"{', '.join(map(str, numbers)) or 'none'}"
        )
    return read_record(file, Lineage, fix="restore the file from a backup")


def list_known_versions(problem: str) -> list[int]:
    """The numbers of the versions of which this checkout knows what they were made of."""
    return sorted(int(file.stem) for file in _lineage_file(problem, 0).parent.glob("*.json"))


def _lineage_file(problem: str, version: int) -> Path:
    return champion_folder(problem) / "versions" / f"{version}.json"


def trace_forecast(forecast_id: str) -> Trace:
    """The way of a forecast.

    Raises:
        RecastError: no such forecast was made in this checkout, its version is not known there, or git has failed.
    """
    forecast = forecast_log.find_forecast(forecast_id)
    if forecast is None:
        raise RecastError(
            f"{forecast_log.FORECASTS_FOLDER}: there is no forecast {forecast_id}; `recast trace --version N --problem "
            "NAME` lists the forecasts of a version"
        )
    return _trace(forecast, read_lineage(forecast["problem"], forecast["model_version"]))


def trace_version(problem: str, version: int) -> Trace:
    """The way of a version.

    Raises:
        RecastError: it is not known in this checkout, or git has failed.
    """
    return _trace(None, read_lineage(problem, version))


def _trace(forecast: dict[str, Any] | None, lineage: Lineage) -> Trace:
    experiment = find_experiment(lineage.problem, lineage.version)
    lock = _read_experiment_file(experiment, DVC_LOCK) if experiment else None
    locked = None if lock is None else _stage_entries(lock, lineage.problem) == lineage.lock
    return Trace(forecast, lineage, experiment, locked)


def _stage_entries(lock: str, problem: str) -> dict[str, Any]:
    """The entries for the stages of one problem in the text of a dvc.lock."""
    stages = YAML(typ="safe").load(lock)["stages"]
    return {name: entry for name, entry in stages.items() if name.endswith(f"@{problem}")}


def find_experiment(problem: str, version: int) -> str | None:
    """The DVC experiment that holds the retraining of a version."""
    # A later retraining may have compared the version once more, with another state of the code.
    entries = (entry for entry in read_history(problem) if entry.version == version and entry.experiment)
    return next((entry.experiment for entry in entries), None)


def find_versions_using(digest: str) -> Iterator[tuple[Lineage, str]]:
    """The versions of all problems that used a raw file, with the file's name.

    Args:
        digest: the beginning of the file's SHA-256.
    """
    files = CHAMPIONS_FOLDER.glob("*/versions/*.json")
    for file in sorted(files, key=lambda file: (file.parts[-3], int(file.stem))):
        lineage = read_lineage(file.parts[-3], int(file.stem))
        for name, sha256 in lineage.raw.items():
            if sha256.startswith(digest):
                yield lineage, name


def find_experiment_commit(experiment: str) -> str | None:
    """The commit of a DVC experiment, by its name; None: git does not have it.

    Raises:
        RecastError: git has failed.
    """
    try:
        references = git.run_git("for-each-ref", "--format=%(objectname) %(refname)", "refs/exps/")
    except (git.GitNotInstalled, git.NotARepository):
        return None
    for line in references.splitlines():
        commit, name = line.split(" ", 1)
        if name.rpartition("/")[2] == experiment and not name.startswith("refs/exps/exec/"):
            return commit
    return None


def _read_experiment_file(experiment: str, file: str) -> str | None:
    """A file in the commit of an experiment; None: git does not have the experiment, or the experiment lacks the file.

    Raises:
        RecastError: git has failed.
    """
    commit = find_experiment_commit(experiment)
    return git.read_committed_file(commit, file) if commit else None
