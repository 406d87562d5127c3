"""Where a served forecast comes from, down to the raw bytes and the commit; and back from those to the forecasts.

What a version was made of is written down when it is registered, in `data/champion/<problem>/versions/<version>.json`.
Its retraining is a DVC experiment: a commit beside the branch whose dvc.lock is the one that was true then.
"""

import json
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from ruamel.yaml import YAML

from lifecycle.champions.history import FOLDER, Version, folder, history
from lifecycle.serving import forecast_log
from problems.errors import RecastError
from project import git, paths
from project.atomic import write_json
from stages.training.trials import Trial

LOCK = "dvc.lock"


@dataclass(frozen=True)
class Lineage:
    """What a version was made of.

    Attributes:
        key: of the trial, whose folder is trials/<problem>/<key>.
        run: in MLflow.
        commit: that was checked out, with -dirty where tracked files differed from it; "" where there was none.
        data: identity of the data.
        raw: the SHA-256 of each raw file, by its name.
        lock: what dvc.lock said of the problem's stages.
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
    """The way from a forecast to what it was made of.

    Attributes:
        forecast: as the log of forecasts has it.
        experiment: the DVC experiment that holds the retraining; None where none was saved.
        locked: the experiment's dvc.lock says of the problem's stages what the version says; None: no experiment.
    """

    forecast: dict[str, Any] | None
    lineage: Lineage
    experiment: str | None
    locked: bool | None


def _file(problem: str, version: int) -> Path:
    return folder(problem) / "versions" / f"{version}.json"


def note(trial: Trial, version: Version) -> Lineage:
    """Write down what a version is made of, unless that was done."""
    file = _file(version.problem, version.version)
    if not file.exists():
        quality = json.loads((paths.stage("ingest", trial.problem) / "quality.json").read_text(encoding="utf-8"))
        found = Lineage(
            version.problem,
            version.version,
            trial.key,
            trial.label,
            version.run,
            git.commit(),
            trial.data,
            quality["files"],
            _of_problem(Path(LOCK).read_text(encoding="utf-8"), trial.problem),
        )
        write_json(file, asdict(found))
    return of(version.problem, version.version)


def _of_problem(lock: str, problem: str) -> dict[str, Any]:
    """The entries of a dvc.lock about one problem."""
    stages = YAML(typ="safe").load(lock)["stages"]
    return {name: entry for name, entry in stages.items() if name.endswith(f"@{problem}")}


def of(problem: str, version: int) -> Lineage:
    """What a version was made of.

    Raises:
        RecastError: it is not known here.
    """
    file = _file(problem, version)
    if not file.exists():
        there = ", ".join(map(str, sorted(int(each.stem) for each in file.parent.glob("*.json")))) or "none"
        raise RecastError(
            f"{file}: what version {version} of {problem} was made of is not known in this checkout; known are: {there}"
        )
    return TypeAdapter(Lineage).validate_json(file.read_bytes())


def trace(forecast_id: str) -> Trace:
    """The way of a forecast.

    Raises:
        RecastError: no such forecast was made here, or its version is not known.
    """
    forecast = forecast_log.find(forecast_id)
    if forecast is None:
        raise RecastError(
            f"{forecast_log.FOLDER}: no forecast {forecast_id}; `recast trace --version N --problem NAME` lists those "
            "of a version"
        )
    return _traced(forecast, of(forecast["problem"], forecast["model_version"]))


def trace_version(problem: str, version: int) -> Trace:
    """The way of a version.

    Raises:
        RecastError: it is not known here.
    """
    return _traced(None, of(problem, version))


def _traced(forecast: dict[str, Any] | None, lineage: Lineage) -> Trace:
    experiment = experiment_of(lineage.problem, lineage.version)
    lock = experiment and _in_experiment(experiment, LOCK)
    locked = None if not lock else _of_problem(lock, lineage.problem) == lineage.lock
    return Trace(forecast, lineage, experiment, locked)


def experiment_of(problem: str, version: int) -> str | None:
    """The DVC experiment that holds the retraining of a version."""
    entries = [each for each in history(problem) if each.version == version and each.experiment]
    # A later one may have compared it once more, from another state of the code.
    return entries[0].experiment if entries else None


def using(digest: str) -> Iterator[tuple[Lineage, str]]:
    """The versions, of whatever problem, that used a raw file, and its name; by the beginning of its SHA-256."""
    for file in sorted(FOLDER.glob("*/versions/*.json"), key=lambda each: (each.parts[-3], int(each.stem))):
        lineage = of(file.parts[-3], int(file.stem))
        for name, sha256 in lineage.raw.items():
            if sha256.startswith(digest):
                yield lineage, name


def reference(experiment: str) -> str | None:
    """The commit of a DVC experiment, by its name; None: git has none."""
    listed = _git("for-each-ref", "--format=%(objectname) %(refname)", "refs/exps/")
    for line in (listed or "").splitlines():
        commit, name = line.split(" ", 1)
        if name.rpartition("/")[2] == experiment and not name.startswith("refs/exps/exec/"):
            return commit
    return None


def _in_experiment(experiment: str, file: str) -> str | None:
    """A file of an experiment's commit."""
    commit = reference(experiment)
    return _git("show", f"{commit}:./{file}") if commit else None


def _git(*arguments: str) -> str | None:
    """What git prints; None where it has nothing to say, or is not there."""
    try:
        ended = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return ended.stdout if ended.returncode == 0 else None
