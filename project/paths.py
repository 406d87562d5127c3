"""The files and folders of the project, relative to its root. `dvc.yaml` names the same folders."""

from pathlib import Path

from problems.errors import RecastError

ROOT_FILES = ("params.yaml", "dvc.yaml")
"""Files by which the project's root is recognized; every path is relative to it."""

STATE = Path(".recast")
"""The state of what runs: locks, logs, addresses of servers, Prefect's database; with the profile `servers` also their
stores.
"""

INTERRUPTED_RESTORE = STATE / "restoring"
"""What a restore has prepared. It exists only while one is going on, or after one was killed."""

MODEL_COPIES = STATE / "models"
"""Versions of models that were fetched from MLflow, by problem; they are fetched again where they are missing."""

MLFLOW_STORE = Path("mlruns")
"""MLflow's own store: a database and artifacts."""

DVC_LOCK, DVC_CACHE = "dvc.lock", Path(".dvc/cache")
"""What DVC knows of the outputs of the stages, and where it keeps them."""

PARAMS = Path("params.yaml")
"""The settings."""


def require_root() -> None:
    """Check that the current folder is the project's root; in another folder every command would begin anew.

    Raises:
        RecastError: it is not.
    """
    if missing := [name for name in ROOT_FILES if not Path(name).exists()]:
        raise RecastError(f"{Path.cwd()}: this folder has no {missing[0]}; run this in the project's root")


def raw_folder(problem: str) -> Path:
    """The raw files of a problem: downloads, and links to files that the user owns."""
    return Path("data/raw") / problem


def backtest_folder(problem: str) -> Path:
    """What a backtest of a problem writes: data of its origins, trials, the result. DVC tracks none of it."""
    return Path("data/backtest") / problem


def pending_folder(problem: str) -> Path:
    """New rows that have arrived and are not checked yet; the folder is made anew each time."""
    return Path("data/pending") / problem


def quarantine_folder(problem: str) -> Path:
    """New rows that break the contract, with the reasons."""
    return Path("data/quarantine") / problem


def stage_folder(name: str, problem: str, origin: str | None = None) -> Path:
    """The folder that a stage writes for a problem, or for an origin of its backtest."""
    return (backtest_folder(problem) / origin if origin else Path("data")) / name / problem


def trials_folder(problem: str, origin: str | None = None) -> Path:
    """The trials of a problem, one folder per key. They persist: no trial is trained twice.

    The trials of a backtest are kept apart from them, and those of all its origins together.
    """
    return backtest_folder(problem) / "trials" if origin else Path("trials") / problem
